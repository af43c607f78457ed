"""A run's loss as it grows: each look reads only the lines that were written since the last one."""

from __future__ import annotations

import json
import math
from collections import defaultdict

from ..errors import UserError
from ..store import Run
from ..store.parquet import parquet_path

LOSS = b', "loss", '


class Tail:
    """The loss of the federation and of each domain, and the last round with any record."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.place = 0  # bytes read
        self.round = 0
        self.curves: dict[str, dict[int, float]] = defaultdict(dict)  # domain -> round -> loss

    def look(self) -> None:
        """Take in what is new; a run that was rewound is read again from its beginning."""
        path = self.run.folder / "records.jsonl"
        try:
            with open(path, "rb") as file:
                size = file.seek(0, 2)
                if size < self.place:
                    self.place, self.round = 0, 0
                    self.curves.clear()
                file.seek(self.place)
                new = file.read(size - self.place)
        except FileNotFoundError:
            self._archived()
            return
        whole = new[:new.rfind(b"\n") + 1]  # the last line may be half written
        self.place += len(whole)
        lines = whole.splitlines()
        for line in lines:
            if LOSS in line:
                self._take(*json.loads(line))
        if lines:
            self.round = max(self.round, int(json.loads(lines[-1])[0]))

    def _archived(self) -> None:
        """All there is of a run from an archive is its Parquet file."""
        if self.place == 0 and parquet_path(self.run.folder).exists():
            try:
                for record in self.run.records():
                    self._take(*record)
                    self.round = max(self.round, record.round)
            except (UserError, OSError):
                return
            self.place = -1

    def _take(self, round: int, metric: str, domain: str, client: int, value: float | None) -> None:
        if metric == "loss" and client < 0:
            self.curves[domain][int(round)] = math.nan if value is None else float(value)

    @property
    def loss(self) -> float:
        """The latest; NaN before the first."""
        curve = self.curves.get("")
        return curve[max(curve)] if curve else math.nan

    def gap(self, twin: Tail | None, last: int = 5) -> float:
        """Mean loss above the twin's over the last evaluations that both have."""
        if twin is None:
            return math.nan
        ours, theirs = self.curves.get("", {}), twin.curves.get("", {})
        both = sorted(ours.keys() & theirs.keys())
        both = [round for round in both if round > 0][-last:] or both
        return sum(ours[round] - theirs[round] for round in both) / len(both) if both else math.nan
