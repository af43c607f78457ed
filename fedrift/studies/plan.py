"""The plan of a study: its tuning trials, its experiments with their ids and IID baselines, and the estimate of their cost.

In the tuning stage every combination of levels gets the same number of trials, and validation loss selects the settings. So the study
compares algorithms that were tuned with equal effort. Random streams with fixed names draw the trials. Results at the edge of the search
grid are reported.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from ..config.loader import edit_config, set_key
from ..config.schema import ExperimentConfig, iid_baseline, parse_config
from ..core.errors import UserError, quote_value, unknown_name_error
from ..core.random import numpy_stream
from ..engine.cache import ResourceCache, resolve_fingerprints
from ..engine.run import run_experiment
from ..stats import default_worst_end
from ..storage import Run
from .designs import find_aliases
from .manifest import ManifestEntry, StudyManifest
from .outcomes import has_diverged, list_recorded_metrics, load_trajectories, summarize_metric
from .spec import (
    Factor,
    PlannedRun,
    Study,
    apply_changes,
    build_base_config,
    expand_cells,
    expand_stages,
    format_cell,
    list_factor_names,
    parse_factors,
)


@dataclass(frozen=True)
class TuningResult:
    """The settings that tuning selected for one combination of levels."""

    group: str  # the combination of levels, as ``format_cell`` writes it
    settings: dict[str, Any]  # path -> selected value
    score: float  # the mean metric of the selected settings over the tuning seeds
    at_search_boundary: tuple[str, ...]  # the paths whose selected value is the largest or smallest candidate
    trials: tuple[dict[str, Any], ...]  # every trial with its ``settings``, its ``scores`` by seed, and their ``mean``


def plan_trials(study: Study) -> list[PlannedRun]:
    """Plan every run of the tuning stage; the list is empty if the study has no tuning.

    Raises:
        UserError: The tuning section names an unknown factor or level, or its space has too few combinations.
    """
    tuning = study.tuning
    if not tuning.trials:
        return []
    factors = parse_factors(study.factors)
    for name in (*tuning.tune_per, *tuning.at_levels):
        if name not in factors:
            raise unknown_name_error("factor for tuning.tune_per or tuning.at_levels", name, factors)
    known = [str(label) for name in tuning.tune_per for label in factors[name].levels]
    unknown = [label for label in (*tuning.space_by_level, *tuning.baseline_levels) if label not in known]
    if unknown:
        raise unknown_name_error("level for tuning.space_by_level or tuning.baseline_levels", unknown[0], known)
    planned_runs = []
    for group in list_tuning_groups(study, factors):
        cell = {name: group.get(name, tuning.at_levels.get(name, next(iter(factor.levels)))) for name, factor in factors.items()}
        invalid = [f"{name}: {label!r}" for name, label in cell.items() if label not in factors[name].levels]
        if invalid:
            raise UserError(f"tuning.at_levels has levels that do not exist: {', '.join(invalid)}")
        changes = [factors[name].levels[label] for name, label in cell.items()]
        for settings in sample_settings(study, group):
            for seed in tuning.seeds:
                raw_config = apply_changes(build_base_config(study), [*changes, settings, {"seed": seed}])
                iid = {"partition.severity": 0.0} if is_tuned_on_baseline(study, group) else {}
                for path, value in {**tuning.overrides, **iid, "evaluation.split": tuning.split}.items():
                    raw_config = set_key(raw_config, path, value)
                planned_runs.append(PlannedRun("trial", "tuning", format_cell(group), seed, cell, raw_config, False, settings))
    return planned_runs


def is_tuned_on_baseline(study: Study, group: Mapping[str, Any]) -> bool:
    """Whether the trials for some levels are run on the IID baseline."""
    return any(str(label) in study.tuning.baseline_levels for label in group.values())


def list_tuning_groups(study: Study, factors_by_name: Mapping[str, Factor]) -> list[dict[str, Any]]:
    """List the combinations of levels that are tuned separately."""
    return [
        dict(zip(study.tuning.tune_per, labels, strict=True))
        for labels in product(*(factors_by_name[name].levels for name in study.tuning.tune_per))
    ]


def sample_settings(study: Study, group: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Draw the settings of the trials for one combination of levels, without replacement."""
    tuning, space = study.tuning, get_search_space(study, group)
    combinations = [dict(zip(space, values, strict=True)) for values in product(*space.values())]
    if len(combinations) < tuning.trials:
        raise UserError(
            f"tuning: {format_cell(group)} has {len(combinations)} combinations of values for {tuning.trials} trials. All levels get the "
            "same number of trials, so add values for this one (tuning.space_by_level) or reduce tuning.trials"
        )
    order = numpy_stream(0, "tuning", study.name, format_cell(group)).permutation(len(combinations))[: tuning.trials]
    return [combinations[index] for index in sorted(order)]


def get_search_space(study: Study, group: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the search space of one combination of levels, path -> candidate values: the common space and that of its levels."""
    level_spaces = [study.tuning.space_by_level.get(str(label), {}) for label in group.values()]
    return {path: values for space in (study.tuning.space, *level_spaces) for path, values in space.items()}


def pick_best_settings(study: Study, scored_trials: list[tuple[PlannedRun, float]]) -> list[TuningResult]:
    """Select the best settings of each combination of levels by the good end of the metric; NaN and infinite scores rank last."""
    results = []
    sign = -1 if default_worst_end(study.tuning.metric) == "low" else 1
    for group in list_tuning_groups(study, parse_factors(study.factors)):
        name = format_cell(group)
        trials: list[dict[str, Any]] = []
        for settings in sample_settings(study, group):
            scores = {planned.seed: score for planned, score in scored_trials if planned.condition == name and planned.settings == settings}
            mean = sum(scores.values()) / len(scores) if scores else math.nan
            trials.append({"settings": settings, "scores": scores, "mean": mean if math.isfinite(mean) else math.inf})
        best = min(
            trials, key=lambda trial: sign * trial["mean"] if math.isfinite(trial["mean"]) else math.inf
        )  # ties: the first of the grid
        if not math.isfinite(best["mean"]):
            results.append(TuningResult(name, {}, math.inf, (), tuple(trials)))
            continue
        edges = tuple(path for path, values in get_search_space(study, group).items() if is_at_boundary(best["settings"][path], values))
        results.append(TuningResult(name, best["settings"], best["mean"], edges, tuple(trials)))
    return results


def is_at_boundary(value: Any, values: list[Any]) -> bool:
    """Return whether a value is the largest or smallest of at least two candidate numbers."""
    numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    return len(set(numbers)) > 1 and len(numbers) == len(values) and value in (min(numbers), max(numbers))


@dataclass(frozen=True)
class StudyPlan:
    """The runs of a study.

    ``entries`` is the place of each run in the study. ``configs`` maps each run id to its experiment, once, in the order of execution.
    """

    entries: list[ManifestEntry]
    configs: dict[str, ExperimentConfig]
    tuning_results: list[TuningResult] = field(default_factory=list)


def plan_runs(planned_runs: Iterable[PlannedRun], resources: ResourceCache) -> StudyPlan:
    """Resolve every planned run to an experiment, directly followed by its IID baseline; no experiment occurs twice.

    Raises:
        UserError: The configuration of a run is invalid. The message names its stage and condition.
    """
    entries: list[ManifestEntry] = []
    baselines: list[ManifestEntry] = []
    configs: dict[str, ExperimentConfig] = {}
    for planned in planned_runs:
        try:
            config = resolve_fingerprints(parse_config(planned.raw_config), resources)
        except UserError as error:
            raise UserError(f"{planned.stage}: {planned.condition}: {error}") from error
        baseline = iid_baseline(config) if planned.with_iid_baseline else None
        configs.setdefault(config.id, config)
        entries.append(
            ManifestEntry(
                config.id,
                planned.role,
                planned.stage,
                planned.condition,
                planned.seed,
                False,
                baseline.id if baseline else "",
                planned.factors,
                planned.settings,
                config.name,
            )
        )
        if baseline and baseline.id != config.id:
            configs.setdefault(baseline.id, baseline)
            levels = {name: 0.0 if name == "partition.severity" else label for name, label in planned.factors.items()}
            baselines.append(
                ManifestEntry(
                    baseline.id,
                    "iid_baseline",
                    planned.stage,
                    format_cell(levels),
                    planned.seed,
                    True,
                    "",
                    levels,
                    planned.settings,
                    baseline.name,
                )
            )
    run_ids = {entry.run for entry in entries}  # a cell of severity 0 is its own IID baseline, and needs no second entry
    return StudyPlan(entries + [entry for entry in baselines if entry.run not in run_ids], configs)


def plan_tuning(study: Study, resources: ResourceCache) -> StudyPlan:
    """Plan the trials of the tuning stage."""
    return plan_runs(plan_trials(study), resources)


def select_settings(study: Study, plan: StudyPlan, manifest: StudyManifest) -> list[TuningResult]:
    """Select the best settings from the finished trials.

    A trial that failed, diverged, ended with a dead model or did not finish ranks last.

    Raises:
        UserError: Trials finished, but none of them has the metric.
    """
    trajectories = load_trajectories(manifest, plan.entries, list_recorded_metrics([study.tuning.metric]))
    scored_trials, has_finished = [], False
    for planned, entry in zip(plan_trials(study), plan.entries, strict=True):
        run = trajectories.get(entry.run)
        is_valid = run is not None and manifest.get_run(entry).is_finished and not has_diverged(run)
        score = summarize_metric(study.tuning.metric, run) if run is not None and is_valid else float("nan")
        scored_trials.append((planned, score))
        has_finished |= is_valid
    if has_finished and all(math.isnan(score) for _, score in scored_trials):
        raise UserError(
            f"tuning.metric: no finished trial has a value of {quote_value(study.tuning.metric)}; use another metric, or its probes"
        )
    return pick_best_settings(study, scored_trials)


def plan_study(study: Study, resources: ResourceCache, trial_plan: StudyPlan, tuning_results: list[TuningResult]) -> StudyPlan:
    """Plan all runs of the study with the selected settings; the trials come first."""
    settings: Mapping[str, Mapping[str, Any]] = {result.group: result.settings for result in tuning_results}
    plan = plan_runs(expand_cells(study, settings), resources)
    return StudyPlan(trial_plan.entries + plan.entries, {**trial_plan.configs, **plan.configs}, tuning_results)


def build_manifest_content(study: Study, plan: StudyPlan, complete: bool) -> dict[str, Any]:
    """Build the content of the study manifest.

    Args:
        study: The study.
        plan: Its plan.
        complete: Whether tuning is finished, so that all runs are known.
    """
    designs = {
        stage.name: {"cells": len(cells), "aliases": find_aliases(cells)}
        for stage in expand_stages(study)
        if (cells := list_stage_cells(study, stage.name))
    }
    return {
        "study": study.to_dict(),
        "factors": list_factor_names(study),
        "complete": complete,
        "designs": designs,
        "tuning_results": [asdict(result) for result in plan.tuning_results],
        "runs": plan.entries,
    }


def list_stage_cells(study: Study, name: str) -> list[dict[str, Any]]:
    """List the cells of one stage."""
    planned_runs = [planned for planned in expand_cells(study) if planned.stage == name]
    return [planned.factors for planned in planned_runs if planned.seed == planned_runs[0].seed]


def select_configs(plan: StudyPlan, role: str) -> list[ExperimentConfig]:
    """Select the experiments to run, each once: the trials, or all others. IID baselines follow their run."""
    selected = {entry.run for entry in plan.entries if (entry.role == "trial") == (role == "trial")}
    return [config for id, config in plan.configs.items() if id in selected]


# The cost of a study: its tokens, and the time that they take at the speed that a short speed test measures on this machine.

SPEED_TEST_ROUNDS = 3  # the first round is not counted


@dataclass(frozen=True)
class RunSpeed:
    """The measured speed of one kind of run, in seconds."""

    startup_s: float  # time before the first round
    seconds_per_token: float  # time per trained token
    seconds_per_evaluation: float  # time per evaluated round, for the evaluation and for storing its results
    final_s: float  # time after the last round

    def estimate_seconds(self, config: ExperimentConfig) -> float:
        """Estimate the duration of a run in seconds."""
        evaluations = config.training.num_rounds / config.evaluation.interval
        return self.startup_s + count_tokens(config) * self.seconds_per_token + evaluations * self.seconds_per_evaluation + self.final_s


@dataclass(frozen=True)
class StudyCost:
    """The cost of a study."""

    num_runs: int
    num_finished: int
    tokens: float  # trained tokens of the unfinished runs
    seconds: float  # if the unfinished runs are executed one after another on this machine; NaN if it was not measured
    tokens_per_second: float


def count_tokens(config: ExperimentConfig) -> float:
    """Count the tokens that all clients together train on, padding included.

    The count uses ``local_steps``, even if ``local_epochs`` determines the number of steps.
    """
    training = config.training
    return float(
        training.num_rounds
        * training.cohort_size(config.partition.num_clients)
        * training.local_steps
        * training.batch_size
        * training.max_seq_length
    )


def get_speed_key(config: ExperimentConfig) -> tuple[object, ...]:
    """Return a key that is equal for runs of about the same speed, so that one speed test covers them."""
    training = config.training
    return (
        config.model,
        config.trainable,
        type(config.partition),
        training.cohort_size(config.partition.num_clients),
        training.batch_size,
        training.max_seq_length,
        replace(config.evaluation, interval=1, split="test"),
    )


def measure_speed(config: ExperimentConfig, resources: ResourceCache) -> RunSpeed:
    """Measure the speed of an experiment by running a few rounds in a temporary folder."""
    short = edit_config(config, {"training__num_rounds": SPEED_TEST_ROUNDS, "evaluation__interval": 1})
    with tempfile.TemporaryDirectory() as folder:
        start = perf_counter()
        run = run_experiment(short, replace(resources, runtime=replace(resources.runtime, runs_dir=Path(folder))))
        total_s, timings = perf_counter() - start, run.timings()
    round_timings = [row for row in timings if "train" in row]
    final_s = sum(row.get("final", 0.0) for row in timings)
    rounds_s = sum(row["train"] + row["evaluate"] + row["store"] for row in round_timings)
    timed_rounds = round_timings[1:]
    return RunSpeed(
        max(0.0, total_s - rounds_s - final_s),
        float(np.mean([row["train"] for row in timed_rounds])) / (count_tokens(short) / SPEED_TEST_ROUNDS),
        float(np.mean([row["evaluate"] + row["store"] for row in timed_rounds])),
        final_s,
    )


def estimate_cost(configs: Iterable[ExperimentConfig], resources: ResourceCache, measure: bool = True) -> StudyCost:
    """Estimate the cost of the runs that are not finished.

    Args:
        configs: The experiments.
        resources: The shared resources.
        measure: Whether to run a short speed test for each kind of run.
    """
    all_configs = list(configs)
    pending = [experiment for experiment in all_configs if not Run(Path(resources.runtime.runs_dir), experiment.id).is_finished]
    speeds: dict[tuple[object, ...], RunSpeed] = {}
    seconds = 0.0 if measure else float("nan")
    for experiment in pending if measure else ():
        key = get_speed_key(experiment)
        if key not in speeds:
            speeds[key] = measure_speed(experiment, resources)
        seconds += speeds[key].estimate_seconds(experiment)
    rate = 1 / float(np.mean([speed.seconds_per_token for speed in speeds.values()])) if speeds else float("nan")
    return StudyCost(len(all_configs), len(all_configs) - len(pending), sum(map(count_tokens, pending)), seconds, rate)
