"""Tuning with the same budget for everybody: trials drawn by name, chosen by validation loss, edges of the grid told.

What is compared is then algorithms at the same effort, not a tuned one against one left at its defaults.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from ..config import override
from ..errors import UserError, unknown
from ..seeds import numpy_stream
from .cells import Planned
from .factors import Factor, changed, factors, named
from .study import Study, based


@dataclass(frozen=True)
class Choice:
    """What tuning chose for some levels. ``edges``: paths whose best value is the largest or the smallest that was tried."""

    of: str
    settings: dict[str, Any]
    score: float
    edges: tuple[str, ...]
    tried: tuple[dict[str, Any], ...]  # every trial: its settings, its score by seed, its mean


def trials(study: Study) -> list[Planned]:
    """Every run of the tuning stage; none where nothing is tuned."""
    tuning = study.tuning
    if not tuning.trials:
        return []
    varied = factors(study.factors)
    for name in (*tuning.of, *tuning.at):
        if name not in varied:
            raise unknown("factor to tune for", name, varied)
    odd = [label for label in tuning.more if label not in [str(each) for name in tuning.of for each in varied[name].levels]]
    if odd:
        raise unknown("level in tuning.more", odd[0], [str(each) for name in tuning.of for each in varied[name].levels])
    found = []
    for group in groups(study, varied):
        cell = {name: group.get(name, tuning.at.get(name, next(iter(factor.levels)))) for name, factor in varied.items()}
        wrong = [f"{name}: {label!r}" for name, label in cell.items() if label not in varied[name].levels]
        if wrong:
            raise UserError(f"tuning.at names no level of {', '.join(wrong)}")
        changes = [varied[name].levels[label] for name, label in cell.items()]
        for settings in drawn(study, group):
            for seed in tuning.seeds:
                said = changed(based(study), [*changes, settings, {"seed": seed}])
                for path, value in {**tuning.set, "evaluate.split": tuning.split}.items():
                    said = override(said, path, value)
                found.append(Planned("trial", "tuning", named(group), seed, cell, said, False, settings))
    return found


def groups(study: Study, varied: Mapping[str, Factor]) -> list[dict[str, Any]]:
    """The combinations of levels that are tuned for, one budget each."""
    return [dict(zip(study.tuning.of, labels, strict=True))
            for labels in product(*(varied[name].levels for name in study.tuning.of))]


def drawn(study: Study, group: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The settings to try for some levels: so many of all combinations, without replacement."""
    tuning, space = study.tuning, grid(study, group)
    every = [dict(zip(space, values, strict=True)) for values in product(*space.values())]
    if len(every) < tuning.trials:
        raise UserError(f"tuning: {named(group)} has {len(every)} combinations for {tuning.trials} trials; everybody gets the "
                        "same number of trials, so give it a finer grid (tuning.more) or ask for fewer trials")
    order = numpy_stream(0, "tuning", study.name, named(group)).permutation(len(every))[:tuning.trials]
    return [every[index] for index in sorted(order)]


def grid(study: Study, group: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Path -> values for some levels: those of all, and their own."""
    own = [study.tuning.more.get(str(label), {}) for label in group.values()]
    return {path: values for space in (study.tuning.space, *own) for path, values in space.items()}


def choose(study: Study, done: list[tuple[Planned, float]]) -> list[Choice]:
    """The best settings of each group, from its trials and what each came to; NaN and infinite are the worst."""
    chosen = []
    for group in groups(study, factors(study.factors)):
        name = named(group)
        tried: list[dict[str, Any]] = []
        for settings in drawn(study, group):
            scores = {planned.seed: score for planned, score in done if planned.arm == name and planned.settings == settings}
            mean = sum(scores.values()) / len(scores) if scores else math.nan
            tried.append({"settings": settings, "scores": scores, "mean": mean if math.isfinite(mean) else math.inf})
        best = min(tried, key=lambda each: each["mean"])  # of equals the first, in the order of the grid
        if not math.isfinite(best["mean"]):
            chosen.append(Choice(name, {}, math.inf, (), tuple(tried)))
            continue
        edges = tuple(path for path, values in grid(study, group).items() if on_edge(best["settings"][path], values))
        chosen.append(Choice(name, best["settings"], best["mean"], edges, tuple(tried)))
    return chosen


def on_edge(value: Any, values: list[Any]) -> bool:
    """Whether a number is the largest or smallest of at least two numbers."""
    numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    return len(set(numbers)) > 1 and len(numbers) == len(values) and value in (min(numbers), max(numbers))
