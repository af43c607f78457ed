"""Which runs there are to be watched, and which belong in one row: by a study's book, or by what a folder's runs were asked."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..diagnose.cases import NOT_ASKED, name
from ..store import Run, list_runs, read_each
from ..store.query import flat
from ..store.shelf import find_fault
from ..study import Book, parse_study
from ..study.study import based

ROLES = ("trial", "run", "twin")


@dataclass(frozen=True)
class Place:
    """Where a run belongs. ``key`` and ``arm`` are those of its row."""

    run: str
    key: str
    arm: str
    stage: str
    role: str
    seed: int
    twin: str
    rounds: int  # that it is planned to have


class Folder:
    """All runs under a folder; what was asked of each is read once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: dict[str, dict[str, Any]] = {}
        self.names: dict[str, tuple[str, str]] = {}  # run -> what it was asked, without the seed; without the severity
        self.laid: list[Place] = []

    def places(self) -> list[Place]:
        new = read_each((run for run in list_runs(self.root) if run.id not in self.asked), lambda run: run.experiment)[0]
        for run, asked in new:
            self.asked[run.id] = asked
            self.names[run.id] = name(asked, ("seed",)), name(asked, ("partition.severity",))
        if new:
            self.laid = self._lay()
        return self.laid

    def _lay(self) -> list[Place]:
        iid = {self.names[id][1]: id for id, asked in self.asked.items() if asked["partition"].get("severity") == 0}
        groups: dict[str, list[str]] = defaultdict(list)
        for id in self.asked:
            groups[self.names[id][0]].append(id)
        called = titles({key: self.asked[ids[0]] for key, ids in groups.items()})
        return [Place(id, key, called[key], "", "twin" if self.asked[id]["partition"].get("severity") == 0 else "run",
                      int(self.asked[id]["seed"]), "" if iid.get(self.names[id][1], id) == id else iid[self.names[id][1]],
                      int(self.asked[id]["plan"]["rounds"]))
                for key, ids in groups.items() for id in sorted(ids, key=lambda id: int(self.asked[id]["seed"]))]


def titles(asked: dict[str, dict[str, Any]]) -> dict[str, str]:
    """A short name of each row, with the settings that tell it from others of that name."""
    short = {key: f"{said['algorithm']['is']} · {said['partition']['is']} {said['partition'].get('severity', 0):g}"
             for key, said in asked.items()}
    same: dict[str, list[str]] = defaultdict(list)
    for key, called in short.items():
        same[called].append(key)
    for keys in same.values():
        if len(keys) > 1:
            every = {key: flat({k: v for k, v in asked[key].items() if k not in (*NOT_ASKED, "seed")}) for key in keys}
            paths = sorted({path for said in every.values() for path in said})
            differ = [path for path in paths if len({json.dumps(said.get(path)) for said in every.values()}) > 1]
            for key in keys:
                short[key] += "".join(f", {path}={every[key].get(path, 'none')}" for path in differ[:3])
    return short


class OfStudy:
    """The runs of a study, in the order of its book, which is read again when it changes."""

    def __init__(self, book: Book) -> None:
        self.book = book
        self.stamp = 0
        self.said: dict[str, Any] = {}
        self.laid: list[Place] = []

    def places(self) -> list[Place]:
        try:
            stamp = (self.book.folder / "study.json").stat().st_mtime_ns
        except OSError:
            return []
        if stamp != self.stamp:
            self.said, self.stamp = self.book.read(), stamp
            rounds = int(based(parse_study(self.said["study"])).get("plan", {}).get("rounds", 0))
            every = [self._place(entry, rounds) for role in ROLES for entry in self.said["runs"] if entry.role == role]
            self.laid = list({(place.key, place.run): place for place in every}.values())  # a twin may serve several arms
        return self.laid

    def _place(self, entry: Any, rounds: int) -> Place:
        settings = ", ".join(f"{path}={value}" for path, value in (entry.settings or {}).items())
        arm = f"{entry.arm} [{settings}]" if entry.role == "trial" and settings else entry.arm
        if entry.role == "twin":
            arm = f"IID twin: {arm}"
        kept = Run(self.book.root, entry.run)
        rounds = int(entry.factors.get("plan.rounds", rounds) or rounds)
        if (kept.folder / "experiment.json").exists() and not find_fault(kept):
            rounds = int(kept.experiment["plan"]["rounds"])
        return Place(entry.run, f"{entry.role}/{entry.stage}/{arm}", arm, entry.stage, entry.role, entry.seed, entry.twin, rounds)
