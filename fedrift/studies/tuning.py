"""The tuning stage of a study: every combination of levels gets the same number of trials, and validation loss selects the settings.

So the study compares algorithms that were tuned with equal effort. Random streams with fixed names draw the trials. Results at the edge of
the search grid are reported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from ..config.loader import set_key
from ..core.errors import UserError, unknown_name_error
from ..core.random import numpy_stream
from .spec import Factor, PlannedRun, Study, apply_changes, build_base_config, format_cell, parse_factors


@dataclass(frozen=True)
class TuningResult:
    """The settings that tuning selected for one combination of levels.

    Attributes:
        group: The combination of levels, as ``format_cell`` writes it.
        settings: Path -> selected value.
        score: The mean metric of the selected settings over the tuning seeds.
        at_search_boundary: The paths whose selected value is the largest or smallest candidate.
        trials: Every trial with its ``settings``, its ``scores`` by seed, and their ``mean``.
    """

    group: str
    settings: dict[str, Any]
    score: float
    at_search_boundary: tuple[str, ...]
    trials: tuple[dict[str, Any], ...]


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
    unknown = [label for label in tuning.space_by_level if label not in known]
    if unknown:
        raise unknown_name_error("level for tuning.space_by_level", unknown[0], known)
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
                for path, value in {**tuning.overrides, "evaluation.split": tuning.split}.items():
                    raw_config = set_key(raw_config, path, value)
                planned_runs.append(PlannedRun("trial", "tuning", format_cell(group), seed, cell, raw_config, False, settings))
    return planned_runs


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
    """Select the best settings of each combination of levels; NaN and infinite scores rank last.

    Args:
        study: The study.
        scored_trials: The trials with their scores.
    """
    results = []
    for group in list_tuning_groups(study, parse_factors(study.factors)):
        name = format_cell(group)
        trials: list[dict[str, Any]] = []
        for settings in sample_settings(study, group):
            scores = {planned.seed: score for planned, score in scored_trials if planned.condition == name and planned.settings == settings}
            mean = sum(scores.values()) / len(scores) if scores else math.nan
            trials.append({"settings": settings, "scores": scores, "mean": mean if math.isfinite(mean) else math.inf})
        best = min(trials, key=lambda trial: trial["mean"])  # ties go to the first trial in the order of the grid
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
