"""Cases from stored runs: which belong together, which is whose IID baseline, and which anchors are there.

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

from ..core.records import Trajectory, final_round_indices
from ..storage import Run
from ..storage.index import UnreadableRun, read_each
from .curves import read_curve
from .failures import find_dead_model
from .finding import THRESHOLDS, RunEvidence, RunInfo

NON_CONFIG_KEYS = ("id", "partition_table")  # stored beside what was asked
COMPARED_EVALUATION_KEYS = ("split", "blocks_per_domain", "final_blocks_per_domain")  # losses on other blocks are other losses
REFERENCE_ALGORITHMS = ("Centralized", "LocalOnly", "FedSGD")  # algorithms, by name


@dataclass(frozen=True, eq=False)
class RunGroup:
    """Runs of one experiment over its seeds, and what each can be judged by."""

    runs: tuple[Run, ...]
    baselines: tuple[Run | None, ...]
    cases: tuple[RunEvidence, ...]


def group_runs(chosen: Sequence[Run], known_runs: Iterable[Run]) -> list[RunGroup]:
    """The chosen runs by experiment, in order of seed, each with its twin and anchors among all the known ones."""
    return group_readable_runs(chosen, known_runs)[0]


def group_readable_runs(chosen: Sequence[Run], known_runs: Iterable[Run]) -> tuple[list[RunGroup], list[UnreadableRun]]:
    """``group_runs``, and the runs that could not be read: a chosen one is in no group, a known one is no twin and no anchor."""
    shelf = RunIndex.from_runs([*known_runs, *chosen])
    groups: dict[str, list[Run]] = {}
    readable, bad = read_each({run.id: run for run in chosen}.values(), shelf.load_trajectory)
    for run, _ in readable:
        groups.setdefault(make_config_key(run.config, ignored=("seed",)), []).append(run)
    made = []
    for runs in groups.values():
        runs.sort(key=lambda run: run.config["seed"])
        twins = [shelf.find_baseline(run) for run in runs]
        made.append(
            RunGroup(tuple(runs), tuple(twins), tuple(shelf.build_evidence(run, twin) for run, twin in zip(runs, twins, strict=True)))
        )
    return made, list(dict.fromkeys([*bad, *shelf.unreadable.values()]))


@dataclass(frozen=True, eq=False)
class RunIndex:
    """Stored runs, by what was asked of them. ``unreadable``: those that turned out to be unreadable; the others are read once."""

    runs: tuple[tuple[Run, dict[str, Any]], ...]
    matches: dict[tuple[str, ...], dict[str, list[tuple[Run, dict[str, Any]]]]] = field(default_factory=dict, repr=False)
    unreadable: dict[str, UnreadableRun] = field(default_factory=dict, repr=False)
    trajectories: dict[Path, Trajectory | None] = field(default_factory=dict, repr=False)

    @staticmethod
    def from_runs(runs: Iterable[Run]) -> RunIndex:
        read, bad = read_each({run.folder: run for run in runs}.values(), lambda run: run.config)
        return RunIndex(tuple(read), unreadable={each.id: each for each in bad})

    def load_trajectory(self, run: Run) -> Trajectory:
        """A run's trajectory."""
        found = self.trajectories.get(run.folder)
        if found is None:
            found = self.trajectories[run.folder] = run.trajectory()
        return found

    def try_load_trajectory(self, run: Run) -> Trajectory | None:
        """A run's trajectory, None if it cannot be read."""
        if run.folder not in self.trajectories:
            read, bad = read_each([run], self.load_trajectory)
            self.unreadable.update((each.id, each) for each in bad)
            self.trajectories[run.folder] = read[0][1] if read else None
        return self.trajectories[run.folder]

    def find_similar(self, config: dict[str, Any], *drop: str) -> list[tuple[Run, dict[str, Any]]]:
        """The runs that were asked the same but for ``drop``; names are made once for all runs."""
        if drop not in self.matches:
            names: dict[str, list[tuple[Run, dict[str, Any]]]] = {}
            for run, said in self.runs:
                names.setdefault(make_config_key(said, drop), []).append((run, said))
            self.matches[drop] = names
        return self.matches[drop].get(make_config_key(config, drop), [])

    def find_baseline(self, run: Run) -> Run | None:
        """The same experiment dealt IID, from its beginning; None if it is not there, or the run is dealt IID itself."""
        asked = run.config
        if asked["partition"].get("severity") == 0:
            return None
        return next(
            (
                other
                for other, said in self.find_similar(asked, "partition.severity", "fork")
                if said["partition"].get("severity") == 0 and "fork" not in said and self.try_load_trajectory(other) is not None
            ),
            None,
        )

    def build_evidence(self, run: Run, baseline: Run | None) -> RunEvidence:
        asked, mine = run.config, self.load_trajectory(run)
        central, local, fedsgd = (
            self.find_reference(asked, kind) if asked["algorithm"]["type"] != kind else None for kind in REFERENCE_ALGORITHMS
        )
        return RunEvidence(
            mine,
            self.try_load_trajectory(baseline) if baseline else None,
            central,
            local,
            fedsgd,
            self.find_best_lr(run, asked),
            self.find_local_steps_sweep(run, asked),
            extract_run_info(asked),
            int(asked["seed"]),
        )

    def find_reference(self, config: dict[str, Any], algorithm_type: str) -> Trajectory | None:
        """The same with another algorithm, as skewed or, if that was not run, IID (what is pooled is the same)."""
        for drop in (("algorithm",), ("algorithm", "partition.severity")) if algorithm_type == "Centralized" else (("algorithm",),):
            for other, said in self.find_similar(config, *drop):
                if said["algorithm"]["type"] == algorithm_type and (found := self.try_load_trajectory(other)) is not None:
                    return found
        return None

    def find_local_steps_sweep(self, run: Run, config: dict[str, Any]) -> dict[int, Trajectory]:
        """The same with other numbers of local steps."""
        return {
            int(said["training"]["local_steps"]): found
            for other, said in self.find_similar(config, "training.local_steps")
            if other.id != run.id and (found := self.try_load_trajectory(other)) is not None
        }

    def find_best_lr(self, run: Run, config: dict[str, Any]) -> Trajectory | None:
        """The one of lowest end loss among those that differ in the clients' learning rate; None if there are no others.

        A dead model is none of them, however low its loss.
        """
        others = [
            found
            for other, said in self.find_similar(config, "training.client_optimizer.lr")
            if other.id != run.id and (found := self.try_load_trajectory(other)) is not None and not find_dead_model(found, THRESHOLDS)[0]
        ]
        curves = [read_curve(other) for other in others]
        ends = [float(loss[final_round_indices(rounds)].mean()) if len(loss) else math.inf for rounds, loss in curves]
        ends = [end if math.isfinite(end) else math.inf for end in ends]
        return others[ends.index(min(ends))] if ends and math.isfinite(min(ends)) else None


def make_config_key(config: dict[str, Any], ignored: Iterable[str]) -> str:
    """What was asked, without some of it, as text to compare by."""
    kept = json.loads(json.dumps({key: value for key, value in config.items() if key not in NON_CONFIG_KEYS}))
    kept["evaluation"] = {key: value for key, value in kept.get("evaluation", {}).items() if key in COMPARED_EVALUATION_KEYS}
    for path in ignored:
        *parts, last = path.split(".")
        place = kept
        for part in parts:
            place = place.get(part) or {}
        place.pop(last, None)
    return json.dumps(kept, sort_keys=True)


def extract_run_info(config: dict[str, Any]) -> RunInfo:
    """What the experiment says that detectors ask for."""
    table = config.get("partition_table", {})
    tokens = tuple(tuple(float(value) for value in row) for row in table.get("tokens", ()))
    steps = 0 if config["training"].get("local_epochs") else int(config["training"]["local_steps"])
    return RunInfo(steps, tuple(table.get("domains", ())), tokens)
