"""Cases from stored runs: which belong together, which is whose IID twin, and which anchors are there.

Runs belong together if they differ in nothing but the seed. An anchor is a stored run of the same seed that differs in just the
one thing that makes it an anchor.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..detectors.curves import evaluated
from ..detectors.dead import death
from ..detectors.finding import LIMITS, Case, Facts
from ..records import Trajectory, at_the_end
from ..store import Run
from ..store.shelf import Unreadable, read_each

NOT_ASKED = ("id", "partition_table")  # stored beside what was asked
COMPARABLE = ("split", "blocks", "final")  # of what is evaluated: losses on other blocks are other losses
ANCHORS = ("Centralised", "LocalOnly", "FedSGD")  # algorithms, by name


@dataclass(frozen=True, eq=False)
class Group:
    """Runs of one experiment over its seeds, and what each can be judged by."""

    runs: tuple[Run, ...]
    twins: tuple[Run | None, ...]
    cases: tuple[Case, ...]


def grouped(chosen: Sequence[Run], known: Iterable[Run]) -> list[Group]:
    """The chosen runs by experiment, in order of seed, each with its twin and anchors among all the known ones."""
    return sort_groups(chosen, known)[0]


def sort_groups(chosen: Sequence[Run], known: Iterable[Run]) -> tuple[list[Group], list[Unreadable]]:
    """``grouped``, and the runs that could not be read: a chosen one is in no group, a known one is no twin and no anchor."""
    shelf = Shelf.of([*known, *chosen])
    groups: dict[str, list[Run]] = {}
    readable, bad = read_each({run.id: run for run in chosen}.values(), shelf.read)
    for run, _ in readable:
        groups.setdefault(name(run.experiment, drop=("seed",)), []).append(run)
    made = []
    for runs in groups.values():
        runs.sort(key=lambda run: run.experiment["seed"])
        twins = [shelf.twin(run) for run in runs]
        made.append(Group(tuple(runs), tuple(twins), tuple(shelf.case(run, twin) for run, twin in zip(runs, twins, strict=True))))
    return made, list(dict.fromkeys([*bad, *shelf.bad.values()]))


@dataclass(frozen=True, eq=False)
class Shelf:
    """Stored runs, by what was asked of them. ``bad``: those that turned out to be unreadable; the others are read once."""

    runs: tuple[tuple[Run, dict[str, Any]], ...]
    found: dict[tuple[str, ...], dict[str, list[tuple[Run, dict[str, Any]]]]] = field(default_factory=dict, repr=False)
    bad: dict[str, Unreadable] = field(default_factory=dict, repr=False)
    curves: dict[Path, Trajectory | None] = field(default_factory=dict, repr=False)

    @staticmethod
    def of(runs: Iterable[Run]) -> Shelf:
        read, bad = read_each({run.folder: run for run in runs}.values(), lambda run: run.experiment)
        return Shelf(tuple(read), bad={each.id: each for each in bad})

    def read(self, run: Run) -> Trajectory:
        """A run's trajectory."""
        found = self.curves.get(run.folder)
        if found is None:
            found = self.curves[run.folder] = run.trajectory()
        return found

    def seek(self, run: Run) -> Trajectory | None:
        """A run's trajectory, None if it cannot be read."""
        if run.folder not in self.curves:
            read, bad = read_each([run], self.read)
            self.bad.update((each.id, each) for each in bad)
            self.curves[run.folder] = read[0][1] if read else None
        return self.curves[run.folder]

    def alike(self, asked: dict[str, Any], *drop: str) -> list[tuple[Run, dict[str, Any]]]:
        """The runs that were asked the same but for ``drop``; names are made once for all runs."""
        if drop not in self.found:
            names: dict[str, list[tuple[Run, dict[str, Any]]]] = {}
            for run, said in self.runs:
                names.setdefault(name(said, drop), []).append((run, said))
            self.found[drop] = names
        return self.found[drop].get(name(asked, drop), [])

    def twin(self, run: Run) -> Run | None:
        """The same experiment dealt IID, from its beginning; None if it is not there, or the run is dealt IID itself."""
        asked = run.experiment
        if asked["partition"].get("severity") == 0:
            return None
        return next((other for other, said in self.alike(asked, "partition.severity", "fork")
                     if said["partition"].get("severity") == 0 and "fork" not in said and self.seek(other) is not None), None)

    def case(self, run: Run, twin: Run | None) -> Case:
        asked, mine = run.experiment, self.read(run)
        central, local, fedsgd = (self.anchor(asked, kind) if asked["algorithm"]["is"] != kind else None for kind in ANCHORS)
        return Case(mine, self.seek(twin) if twin else None, central, local, fedsgd, self.best(run, asked),
                    self.ladder(run, asked), facts(asked), int(asked["seed"]))

    def anchor(self, asked: dict[str, Any], kind: str) -> Trajectory | None:
        """The same with another algorithm, as skewed or, if that was not run, IID (what is pooled is the same)."""
        for drop in (("algorithm",), ("algorithm", "partition.severity")) if kind == "Centralised" else (("algorithm",),):
            for other, said in self.alike(asked, *drop):
                if said["algorithm"]["is"] == kind and (found := self.seek(other)) is not None:
                    return found
        return None

    def ladder(self, run: Run, asked: dict[str, Any]) -> dict[int, Trajectory]:
        """The same with other numbers of local steps."""
        return {int(said["plan"]["steps"]): found for other, said in self.alike(asked, "plan.steps")
                if other.id != run.id and (found := self.seek(other)) is not None}

    def best(self, run: Run, asked: dict[str, Any]) -> Trajectory | None:
        """The one of lowest end loss among those that differ in the clients' learning rate; None if there are no others.

        A dead model is none of them, however low its loss.
        """
        others = [found for other, said in self.alike(asked, "plan.optimizer.lr")
                  if other.id != run.id and (found := self.seek(other)) is not None and not death(found, LIMITS)[0]]
        curves = [evaluated(other) for other in others]
        ends = [float(loss[at_the_end(rounds)].mean()) if len(loss) else math.inf for rounds, loss in curves]
        ends = [end if math.isfinite(end) else math.inf for end in ends]
        return others[ends.index(min(ends))] if ends and math.isfinite(min(ends)) else None


def name(asked: dict[str, Any], drop: Iterable[str]) -> str:
    """What was asked, without some of it, as text to compare by."""
    kept = json.loads(json.dumps({key: value for key, value in asked.items() if key not in NOT_ASKED}))
    kept["evaluate"] = {key: value for key, value in kept.get("evaluate", {}).items() if key in COMPARABLE}
    for path in drop:
        *parts, last = path.split(".")
        place = kept
        for part in parts:
            place = place.get(part) or {}
        place.pop(last, None)
    return json.dumps(kept, sort_keys=True)


def facts(asked: dict[str, Any]) -> Facts:
    """What the experiment says that detectors ask for."""
    table = asked.get("partition_table", {})
    tokens = tuple(tuple(float(value) for value in row) for row in table.get("tokens", ()))
    return Facts(0 if asked["plan"].get("epochs") else int(asked["plan"]["steps"]), tuple(table.get("domains", ())), tokens)
