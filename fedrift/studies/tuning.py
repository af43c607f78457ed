"""Tuning with the same budget for everybody: trials drawn by name, chosen by validation loss, edges of the grid told.

What is compared is then algorithms at the same effort, not a tuned one against one left at its defaults.
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
    """What tuning chose for some levels. ``at_grid_edge``: paths whose best value is the largest or the smallest that was
    tried."""

    group: str
    settings: dict[str, Any]
    score: float
    at_grid_edge: tuple[str, ...]
    trials: tuple[dict[str, Any], ...]  # every trial: its settings, its score by seed, its mean


def plan_trials(study: Study) -> list[PlannedRun]:
    """Every run of the tuning stage; none where nothing is tuned."""
    tuning = study.tuning
    if not tuning.trials:
        return []
    varied = parse_factors(study.factors)
    for name in (*tuning.tune_per, *tuning.at_levels):
        if name not in varied:
            raise unknown_name_error("factor to tune for", name, varied)
    known = [str(each) for name in tuning.tune_per for each in varied[name].levels]
    odd = [label for label in (*tuning.space_by_level, *tuning.baseline_levels) if label not in known]
    if odd:
        raise unknown_name_error("level in tuning.space_by_level or tuning.baseline_levels", odd[0], known)
    found = []
    for group in list_tuning_groups(study, varied):
        cell = {name: group.get(name, tuning.at_levels.get(name, next(iter(factor.levels)))) for name, factor in varied.items()}
        wrong = [f"{name}: {label!r}" for name, label in cell.items() if label not in varied[name].levels]
        if wrong:
            raise UserError(f"tuning.at_levels names no level of {', '.join(wrong)}")
        changes = [varied[name].levels[label] for name, label in cell.items()]
        for settings in sample_settings(study, group):
            for seed in tuning.seeds:
                said = apply_changes(build_base_config(study), [*changes, settings, {"seed": seed}])
                iid = {"partition.severity": 0.0} if is_tuned_on_baseline(study, group) else {}
                for path, value in {**tuning.overrides, **iid, "evaluation.split": tuning.split}.items():
                    said = set_key(said, path, value)
                found.append(PlannedRun("trial", "tuning", format_cell(group), seed, cell, said, False, settings))
    return found


def is_tuned_on_baseline(study: Study, group: Mapping[str, Any]) -> bool:
    """Whether the trials for some levels are run on the IID baseline."""
    return any(str(label) in study.tuning.baseline_levels for label in group.values())


def list_tuning_groups(study: Study, factors_by_name: Mapping[str, Factor]) -> list[dict[str, Any]]:
    """The combinations of levels that are tuned for, one budget each."""
    return [
        dict(zip(study.tuning.tune_per, labels, strict=True))
        for labels in product(*(factors_by_name[name].levels for name in study.tuning.tune_per))
    ]


def sample_settings(study: Study, group: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The settings to try for some levels: so many of all combinations, without replacement."""
    tuning, space = study.tuning, get_search_space(study, group)
    every = [dict(zip(space, values, strict=True)) for values in product(*space.values())]
    if len(every) < tuning.trials:
        raise UserError(
            f"tuning: {format_cell(group)} has {len(every)} combinations for {tuning.trials} trials; everybody gets the "
            "same number of trials, so give it a finer grid (tuning.space_by_level) or ask for fewer trials"
        )
    order = numpy_stream(0, "tuning", study.name, format_cell(group)).permutation(len(every))[: tuning.trials]
    return [every[index] for index in sorted(order)]


def get_search_space(study: Study, group: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Path -> values for some levels: those of all, and their own."""
    own = [study.tuning.space_by_level.get(str(label), {}) for label in group.values()]
    return {path: values for space in (study.tuning.space, *own) for path, values in space.items()}


def pick_best_settings(study: Study, scored_trials: list[tuple[PlannedRun, float]]) -> list[TuningResult]:
    """The best settings of each group, from its trials and what each came to; NaN and infinite are the worst."""
    chosen = []
    for group in list_tuning_groups(study, parse_factors(study.factors)):
        name = format_cell(group)
        tried: list[dict[str, Any]] = []
        for settings in sample_settings(study, group):
            scores = {planned.seed: score for planned, score in scored_trials if planned.condition == name and planned.settings == settings}
            mean = sum(scores.values()) / len(scores) if scores else math.nan
            tried.append({"settings": settings, "scores": scores, "mean": mean if math.isfinite(mean) else math.inf})
        best = min(tried, key=lambda each: each["mean"])  # of equals the first, in the order of the grid
        if not math.isfinite(best["mean"]):
            chosen.append(TuningResult(name, {}, math.inf, (), tuple(tried)))
            continue
        edges = tuple(path for path, values in get_search_space(study, group).items() if is_on_edge(best["settings"][path], values))
        chosen.append(TuningResult(name, best["settings"], best["mean"], edges, tuple(tried)))
    return chosen


def is_on_edge(value: Any, values: list[Any]) -> bool:
    """Whether a number is the largest or smallest of at least two numbers."""
    numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    return len(set(numbers)) > 1 and len(numbers) == len(values) and value in (min(numbers), max(numbers))
