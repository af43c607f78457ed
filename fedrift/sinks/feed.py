"""Feeding sinks from what a run has stored. What each was told is noted beside the run, so that a run which was killed and
resumes tells nothing twice: the rounds that are done again come out the same, bit for bit."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import unknown
from ..records import Record
from ..store import Run
from ..store.files import write_whole
from ..store.query import flat

if TYPE_CHECKING:
    from .sink import Sink

NOTE = "sinks.json"  # name of the sink -> the last round that it was told


class Feed:
    """One run's way into one sink."""

    def __init__(self, name: str, sink: Sink, run: Run) -> None:
        self.name, self.sink, self.run = name, sink, run
        self.told = self._noted().get(name, -1)
        asked = {path: value for path, value in flat(run.experiment).items() if not path.startswith("partition_table")}
        title = " ".join(str(asked.get(path, "")) for path in ("algorithm", "partition", "partition.severity"))
        sink.begin(run.id, title, asked, self.told >= 0)

    def look(self) -> None:
        """Tell what is new. The newest round may not be whole yet: it is told with the next, or at the end."""
        self._tell(self.run.records(), whole=False)

    def end(self) -> None:
        """Tell the rest, and how it ended."""
        self._tell(self.run.records(), whole=True)
        self.sink.end(self.run.read_json("finished") if self.run.finished else {})

    def _tell(self, records: Sequence[Record], whole: bool) -> None:
        newest = max((record.round for record in records), default=-1)
        by_round: dict[int, list[Record]] = defaultdict(list)
        for record in records:
            if record.round > self.told and (whole or record.round < newest):
                by_round[record.round].append(record)
        for round in sorted(by_round):
            self.sink.write(round, numbers(by_round[round]))
            self.told = round
        if by_round:
            noted = {**self._noted(), self.name: self.told}
            write_whole(self.run.folder / NOTE, json.dumps(noted).encode() + b"\n")

    def _noted(self) -> dict[str, int]:
        path = self.run.folder / NOTE
        return dict(json.loads(path.read_bytes())) if path.exists() else {}


def numbers(records: Iterable[Record]) -> dict[str, float]:
    """A round's numbers by name: ``loss``, ``loss/sport``; of clients ``loss/clients.mean``, ``.min``, ``.max``."""
    found: dict[str, float] = {}
    clients: dict[str, list[float]] = defaultdict(list)
    for record in records:
        if record.client >= 0:
            clients[record.metric].append(record.value)
        else:
            found[f"{record.metric}/{record.domain}" if record.domain else record.metric] = record.value
    for metric, values in clients.items():
        known = [value for value in values if not math.isnan(value)]
        if known:
            found |= {f"{metric}/clients.mean": sum(known) / len(known), f"{metric}/clients.min": min(known),
                      f"{metric}/clients.max": max(known)}
    return found


def ready(names: Iterable[str], root: Path) -> dict[str, Sink]:
    """The sinks of these names; what is missing is told before anything is run."""
    from . import SINKS

    chosen = list(dict.fromkeys(names))
    for name in chosen:
        if name not in SINKS:
            raise unknown("sink", name, SINKS)
    return {name: SINKS[name](Path(root) / "sinks" / name) for name in chosen}


class Feeds:
    """One run's feeds into all sinks; they begin with its first word, for before that there may be no folder."""

    def __init__(self, sinks: dict[str, Sink]) -> None:
        self.sinks = sinks
        self.open: list[Feed] = []

    def look(self, run: Run) -> None:
        if not self.open:
            self.open = [Feed(name, sink, run) for name, sink in self.sinks.items()]
        for feed in self.open:
            feed.look()


@contextmanager
def fed(names: Iterable[str], root: Path) -> Iterator[Feeds]:
    """Feeds that are ended however the block ends."""
    feeds = Feeds(ready(names, root))
    try:
        yield feeds
    finally:
        for feed in feeds.open:
            feed.end()


def told_when_over(begin: Callable[[str, Sequence[Any]], Callable[[str, int], None]], names: Sequence[str],
                   root: Path) -> Callable[[str, Sequence[Any]], Callable[[str, int], None]]:
    """A study's ``begin`` whose runs are told to the sinks, each when it is over; those that were over before, now.

    One after the other, wherever they are computed, for a sink may have room for one run at a time.
    """
    def started(what: str, experiments: Sequence[Any]) -> Callable[[str, int], None]:
        tell, left = begin(what, experiments), {experiment.id for experiment in experiments}

        def feed(run: Run) -> None:
            if run.id in left and (run.finished or (run.folder / "failed.json").exists()):
                left.discard(run.id)
                noted = run.folder / NOTE
                if not noted.exists() or set(names) - set(json.loads(noted.read_bytes())):
                    with fed(names, root) as feeds:
                        feeds.look(run)

        def told(run: str, round: int) -> None:
            tell(run, round)
            feed(Run(root, run))

        for experiment in experiments:
            run = Run(root, experiment.id)
            if run.finished:
                feed(run)
        return told

    return started if names else begin
