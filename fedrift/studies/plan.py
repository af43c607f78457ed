"""From a study's cells to experiments with their ids and twins, ready to be run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from ..config.schema import ExperimentConfig, edit_config, iid_baseline, parse_config
from ..core.errors import UserError
from ..engine.build import resolve_fingerprints
from ..engine.cache import ResourceCache
from ..engine.run import run_experiment
from ..storage import Run
from .designs import find_aliases
from .manifest import ManifestEntry, StudyManifest
from .outcomes import has_diverged, list_recorded_metrics, load_trajectories, summarize_metric
from .spec import PlannedRun, Study, expand_cells, expand_stages, format_cell, list_factor_names
from .tuning import TuningResult, pick_best_settings, plan_trials


@dataclass(frozen=True)
class StudyPlan:
    """What a study will run. ``configs``: each once, by id, in the order of running."""

    entries: list[ManifestEntry]
    configs: dict[str, ExperimentConfig]
    tuning_results: list[TuningResult] = field(default_factory=list)


def plan_runs(planned_runs: Iterable[PlannedRun], resources: ResourceCache) -> StudyPlan:
    """Every cell resolved, its IID baseline right after it, and nothing twice."""
    entries: list[ManifestEntry] = []
    twins: list[ManifestEntry] = []
    experiments: dict[str, ExperimentConfig] = {}
    for cell in planned_runs:
        try:
            experiment = resolve_fingerprints(parse_config(cell.raw_config), resources)
        except UserError as error:
            raise UserError(f"{cell.stage}: {cell.condition}: {error}") from error
        iid = iid_baseline(experiment) if cell.with_iid_baseline else None
        experiments.setdefault(experiment.id, experiment)
        entries.append(
            ManifestEntry(
                experiment.id,
                cell.role,
                cell.stage,
                cell.condition,
                cell.seed,
                False,
                iid.id if iid else "",
                cell.factors,
                cell.settings,
                experiment.name,
            )
        )
        if iid and iid.id != experiment.id:
            experiments.setdefault(iid.id, iid)
            levels = {name: 0.0 if name == "partition.severity" else label for name, label in cell.factors.items()}
            twins.append(
                ManifestEntry(iid.id, "iid_baseline", cell.stage, format_cell(levels), cell.seed, True, "", levels, cell.settings, iid.name)
            )
    cells_too = {entry.run for entry in entries}  # a cell of severity 0 is its own twin, and no row beside itself
    return StudyPlan(entries + [entry for entry in twins if entry.run not in cells_too], experiments)


def plan_tuning(study: Study, resources: ResourceCache) -> StudyPlan:
    """The trials of the tuning stage."""
    return plan_runs(plan_trials(study), resources)


def select_settings(study: Study, plan: StudyPlan, manifest: StudyManifest) -> list[TuningResult]:
    """What tuning chose; a trial that failed, diverged, ended with a dead model or did not end is the worst."""
    found = load_trajectories(manifest, plan.entries, list_recorded_metrics([study.tuning.metric]))
    done = []
    for cell, entry in zip(plan_trials(study), plan.entries, strict=True):
        run = found.get(entry.run)
        ended = run is not None and manifest.get_run(entry).is_finished and not has_diverged(run)
        score = summarize_metric(study.tuning.metric, run) if run is not None and ended else float("nan")
        done.append((cell, score))
    return pick_best_settings(study, done)


def plan_study(study: Study, resources: ResourceCache, trial_plan: StudyPlan, tuning_results: list[TuningResult]) -> StudyPlan:
    """All runs of the study, tuned as was chosen; the trials first."""
    settings: Mapping[str, Mapping[str, Any]] = {choice.group: choice.settings for choice in tuning_results}
    plan = plan_runs(expand_cells(study, settings), resources)
    return StudyPlan(trial_plan.entries + plan.entries, {**trial_plan.configs, **plan.configs}, tuning_results)


def build_manifest_content(study: Study, plan: StudyPlan, complete: bool) -> dict[str, Any]:
    """What the study's book holds. ``complete``: tuning is over, so that all runs are known."""
    designs = {
        stage.name: {"cells": len(every), "aliases": find_aliases(every)}
        for stage in expand_stages(study)
        if (every := list_stage_cells(study, stage.name))
    }
    return {
        "study": study.to_dict(),
        "factors": list_factor_names(study),
        "complete": complete,
        "designs": designs,
        "choices": [asdict(choice) for choice in plan.tuning_results],
        "runs": plan.entries,
    }


def list_stage_cells(study: Study, name: str) -> list[dict[str, Any]]:
    """The cells of one stage."""
    unseeded = [cell for cell in expand_cells(study) if cell.stage == name]
    return [cell.factors for cell in unseeded if cell.seed == unseeded[0].seed]


def select_configs(plan: StudyPlan, role: str) -> list[ExperimentConfig]:
    """The experiments to run, each once: trials, or all the others. Twins follow their run."""
    wanted = [entry.run for entry in plan.entries if (entry.role == "trial") == (role == "trial")]
    inside = set(wanted)
    return [experiment for id, experiment in plan.configs.items() if id in inside]


# What a study will cost: its tokens, and the time they take at the speed that a short probe measures on this machine.

SPEED_TEST_ROUNDS = 3  # of the probe; the first is not counted


@dataclass(frozen=True)
class RunSpeed:
    """Seconds of one kind of run: in all before its rounds, a token trained, a round's evaluation, the end."""

    startup_s: float
    seconds_per_token: float
    seconds_per_evaluation: float
    final_s: float

    def estimate_seconds(self, config: ExperimentConfig) -> float:
        evaluations = config.training.num_rounds / config.evaluation.interval
        return self.startup_s + count_tokens(config) * self.seconds_per_token + evaluations * self.seconds_per_evaluation + self.final_s


@dataclass(frozen=True)
class StudyCost:
    num_runs: int
    num_finished: int
    tokens: float  # of the runs that are left
    seconds: float  # one after another on this machine; NaN if it was not measured
    tokens_per_second: float


def count_tokens(config: ExperimentConfig) -> float:
    """The tokens that all clients together train on, padding included; by ``steps`` also where epochs decide."""
    plan = config.training
    return float(
        plan.num_rounds * plan.cohort_size(config.partition.num_clients) * plan.local_steps * plan.batch_size * plan.max_seq_length
    )


def get_speed_key(config: ExperimentConfig) -> tuple[object, ...]:
    """What decides how fast a run is, about: one probe serves all runs of a kind."""
    plan = config.training
    return (
        config.model,
        config.trainable,
        type(config.partition),
        plan.cohort_size(config.partition.num_clients),
        plan.batch_size,
        plan.max_seq_length,
        replace(config.evaluation, interval=1, split="test"),
    )


def measure_speed(config: ExperimentConfig, resources: ResourceCache) -> RunSpeed:
    """A few rounds of an experiment, in a folder that goes again."""
    short = edit_config(config, {"training__num_rounds": SPEED_TEST_ROUNDS, "evaluation__interval": 1})
    with tempfile.TemporaryDirectory() as folder:
        begun = perf_counter()
        run = run_experiment(short, replace(resources, runtime=replace(resources.runtime, runs_dir=Path(folder))))
        wall, timings = perf_counter() - begun, run.timings()
    rounds = [row for row in timings if "train" in row]
    end = sum(row.get("final", 0.0) for row in timings)
    inside = sum(row["train"] + row["evaluate"] + row["store"] for row in rounds)
    late = rounds[1:]
    return RunSpeed(
        max(0.0, wall - inside - end),
        float(np.mean([row["train"] for row in late])) / (count_tokens(short) / SPEED_TEST_ROUNDS),
        float(np.mean([row["evaluate"] + row["store"] for row in late])),
        end,
    )


def estimate_cost(configs: Iterable[ExperimentConfig], resources: ResourceCache, measure: bool = True) -> StudyCost:
    """Of the runs that are not finished yet; ``measure``: with a probe of every kind of run among them."""
    every = list(configs)
    left = [experiment for experiment in every if not Run(Path(resources.runtime.runs_dir), experiment.id).is_finished]
    speeds: dict[tuple[object, ...], RunSpeed] = {}
    seconds = 0.0 if measure else float("nan")
    for experiment in left if measure else ():
        of = get_speed_key(experiment)
        if of not in speeds:
            speeds[of] = measure_speed(experiment, resources)
        seconds += speeds[of].estimate_seconds(experiment)
    rate = 1 / float(np.mean([speed.seconds_per_token for speed in speeds.values()])) if speeds else float("nan")
    return StudyCost(len(every), len(every) - len(left), sum(map(count_tokens, left)), seconds, rate)
