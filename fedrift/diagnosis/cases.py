"""Build detector inputs from stored runs: group runs by experiment and find their IID baselines and reference runs.

Runs belong to one group if they differ only in their seed. A reference run is a stored run with the same seed that differs from
the run only in the property that makes it a reference.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..core.records import Trajectory, final_round_indices
from ..storage import Run
from ..storage.index import UnreadableRun, is_iid, to_iid_baseline, try_read_each
from .failures import find_dead_model
from .finding import THRESHOLDS, RunEvidence, RunInfo, read_curve

NON_CONFIG_KEYS = ("id", "partition_table")  # stored with the configuration, but not part of it
COMPARED_EVALUATION_KEYS = (
    "split",
    "blocks_per_domain",
    "final_blocks_per_domain",
)  # losses on different held-out blocks are not comparable
REFERENCE_ALGORITHMS = ("Centralized", "LocalOnly", "FedSGD")  # names of algorithms


@dataclass(frozen=True, eq=False)
class RunGroup:
    """Runs of one experiment with different seeds, and the evidence for each run."""

    runs: tuple[Run, ...]  # the runs, in order of their seeds
    baselines: tuple[Run | None, ...]  # the IID baseline of each run, or None
    cases: tuple[RunEvidence, ...]


def group_readable_runs(chosen: Sequence[Run], known_runs: Iterable[Run]) -> tuple[list[RunGroup], list[UnreadableRun]]:
    """Group runs by experiment, in order of their seeds, and report runs that cannot be read.

    An unreadable chosen run is in no group, and an unreadable known run is not used as a baseline or reference.

    Args:
        chosen: The runs to diagnose.
        known_runs: Stored runs among which IID baselines and reference runs are found.

    Returns:
        The groups and the unreadable runs.
    """
    index = RunIndex.from_runs([*known_runs, *chosen])
    groups: dict[str, list[Run]] = {}
    readable, unreadable = try_read_each({run.id: run for run in chosen}.values(), index.load_trajectory)
    for run, _ in readable:
        groups.setdefault(make_config_key(run.config, ignored=("seed",)), []).append(run)
    run_groups = []
    for runs in groups.values():
        runs.sort(key=lambda run: run.config["seed"])
        baselines = [index.find_baseline(run) for run in runs]
        run_groups.append(
            RunGroup(
                tuple(runs),
                tuple(baselines),
                tuple(index.build_evidence(run, baseline) for run, baseline in zip(runs, baselines, strict=True)),
            )
        )
    return run_groups, list(dict.fromkeys([*unreadable, *index.unreadable.values()]))


@dataclass(frozen=True, eq=False)
class RunIndex:
    """Stored runs, indexed by their configuration. Each run is read once.

    Attributes:
        runs: The runs and their configurations.
        matches: Runs by the configuration without some keys; filled on demand.
        unreadable: Runs that could not be read, by id.
        trajectories: Trajectories by run directory; filled on demand, None if unreadable.
    """

    runs: tuple[tuple[Run, dict[str, Any]], ...]
    matches: dict[tuple[str, ...], dict[str, list[tuple[Run, dict[str, Any]]]]] = field(default_factory=dict, repr=False)
    unreadable: dict[str, UnreadableRun] = field(default_factory=dict, repr=False)
    trajectories: dict[Path, Trajectory | None] = field(default_factory=dict, repr=False)

    @staticmethod
    def from_runs(runs: Iterable[Run]) -> RunIndex:
        """Read the configurations of runs and build an index."""
        readable, unreadable_runs = try_read_each({run.folder: run for run in runs}.values(), lambda run: run.config)
        return RunIndex(tuple(readable), unreadable={each.id: each for each in unreadable_runs})

    def load_trajectory(self, run: Run) -> Trajectory:
        """Return a run's trajectory, from the cache if possible."""
        trajectory = self.trajectories.get(run.folder)
        if trajectory is None:
            trajectory = self.trajectories[run.folder] = run.trajectory()
        return trajectory

    def try_load_trajectory(self, run: Run) -> Trajectory | None:
        """Return a run's trajectory, or None if it cannot be read."""
        if run.folder not in self.trajectories:
            readable, unreadable_runs = try_read_each([run], self.load_trajectory)
            self.unreadable.update((each.id, each) for each in unreadable_runs)
            self.trajectories[run.folder] = readable[0][1] if readable else None
        return self.trajectories[run.folder]

    def find_similar(self, config: dict[str, Any], *drop: str) -> list[tuple[Run, dict[str, Any]]]:
        """Find the runs whose configuration equals a configuration, except for some keys.

        Args:
            config: The configuration.
            drop: Dotted keys to ignore.

        Returns:
            The runs and their configurations.
        """
        if drop not in self.matches:
            by_key: dict[str, list[tuple[Run, dict[str, Any]]]] = {}
            for run, run_config in self.runs:
                by_key.setdefault(make_config_key(run_config, drop), []).append((run, run_config))
            self.matches[drop] = by_key
        return self.matches[drop].get(make_config_key(config, drop), [])

    @cached_property
    def baselines(self) -> dict[str, list[Run]]:
        """The IID baselines by the key that they share with their runs."""
        by_key: dict[str, list[Run]] = {}
        for run, config in self.runs:
            if is_iid(config) and "fork" not in config:
                by_key.setdefault(iid_baseline_key(config), []).append(run)
        return by_key

    def find_baseline(self, run: Run) -> Run | None:
        """Find a run's matched IID baseline: the same experiment with severity 0, which is not a fork.

        Returns:
            The baseline; None if there is none, or if the run itself has severity 0.
        """
        config = run.config
        if is_iid(config):
            return None
        return next(
            (other for other in self.baselines.get(iid_baseline_key(config), ()) if self.try_load_trajectory(other) is not None), None
        )

    def build_evidence(self, run: Run, baseline: Run | None) -> RunEvidence:
        """Collect the baseline, the reference runs and the facts that a run is judged by."""
        config, trajectory = run.config, self.load_trajectory(run)
        centralized, local_only, fedsgd = (
            self.find_reference(config, kind) if config["algorithm"]["type"] != kind else None for kind in REFERENCE_ALGORITHMS
        )
        return RunEvidence(
            trajectory,
            self.try_load_trajectory(baseline) if baseline else None,
            centralized,
            local_only,
            fedsgd,
            self.find_best_lr(run, config),
            self.find_local_steps_sweep(run, config),
            extract_run_info(config),
            int(config["seed"]),
        )

    def find_reference(self, config: dict[str, Any], algorithm_type: str) -> Trajectory | None:
        """Find the same run with a reference algorithm.

        A centralized run does not depend on the partition. So if there is none with the same severity, one with any other is used.

        Returns:
            The trajectory, or None.
        """
        other_partitions = [("algorithm", "partition.severity", "partition.alpha")] if algorithm_type == "Centralized" else []
        for drop in (("algorithm",), *other_partitions):
            for other, other_config in self.find_similar(config, *drop):
                if other_config["algorithm"]["type"] == algorithm_type and (trajectory := self.try_load_trajectory(other)) is not None:
                    return trajectory
        return None

    def find_local_steps_sweep(self, run: Run, config: dict[str, Any]) -> dict[int, Trajectory]:
        """Find the same run with other numbers of local steps, by that number."""
        return {
            int(other_config["training"]["local_steps"]): trajectory
            for other, other_config in self.find_similar(config, "training.local_steps")
            if other.id != run.id and (trajectory := self.try_load_trajectory(other)) is not None
        }

    def find_best_lr(self, run: Run, config: dict[str, Any]) -> Trajectory | None:
        """Find the run with the lowest final loss among those that differ only in the clients' learning rate.

        A run with a dead model is excluded, because its loss can be low.

        Returns:
            The trajectory; None if there are no such runs.
        """
        others = [
            trajectory
            for other, _config in self.find_similar(config, "training.client_optimizer.lr")
            if other.id != run.id
            and (trajectory := self.try_load_trajectory(other)) is not None
            and not find_dead_model(trajectory, THRESHOLDS)[0]
        ]
        curves = [read_curve(other) for other in others]
        final_losses = [float(loss[final_round_indices(rounds)].mean()) if len(loss) else math.inf for rounds, loss in curves]
        final_losses = [final_loss if math.isfinite(final_loss) else math.inf for final_loss in final_losses]
        return others[final_losses.index(min(final_losses))] if final_losses and math.isfinite(min(final_losses)) else None


def make_config_key(config: dict[str, Any], ignored: Iterable[str]) -> str:
    """Serialize a configuration without some keys, to compare configurations.

    Args:
        config: The stored configuration.
        ignored: Dotted keys to leave out.
    """
    compared = json.loads(json.dumps({key: value for key, value in config.items() if key not in NON_CONFIG_KEYS}))
    compared["evaluation"] = {key: value for key, value in compared.get("evaluation", {}).items() if key in COMPARED_EVALUATION_KEYS}
    for path in ignored:
        *parts, last = path.split(".")
        section = compared
        for part in parts:
            section = section.get(part) or {}
        section.pop(last, None)
    return json.dumps(compared, sort_keys=True)


def iid_baseline_key(config: Mapping[str, Any]) -> str:
    """Return a key that a run shares with its IID baseline."""
    return make_config_key(to_iid_baseline(config), ignored=())


def extract_run_info(config: dict[str, Any]) -> RunInfo:
    """Extract the facts about a run that detectors need from its stored configuration."""
    table = config.get("partition_table", {})
    tokens = tuple(tuple(float(value) for value in row) for row in table.get("tokens", ()))
    steps = 0 if config["training"].get("local_epochs") else int(config["training"]["local_steps"])
    return RunInfo(steps, tuple(table.get("domains", ())), tokens)
