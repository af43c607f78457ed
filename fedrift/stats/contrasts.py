"""Hypotheses about a weighted sum of means, and about a difference at a matched value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from annotated_types import MinLen

from ..core.lazy_imports import pd
from .hypothesis_base import FactorLevels, Hypothesis, NonNegative, count_diverged, format_groups, metric_label
from .results import DecisionCriteria, HypothesisResult, directional_result, equivalence_result
from .selection import PerSeedValues, format_selection, outcome_values, require_columns, select_runs, shared_factors, values_per_seed


@dataclass(frozen=True, kw_only=True)
class ContrastTerm:
    """One term of a linear contrast: ``weight`` times the mean over the runs of a seed that ``select`` names."""

    weight: float
    select: FactorLevels


@dataclass(frozen=True, kw_only=True)
class LinearContrast(Hypothesis):
    """A weighted sum of means lies above ``margin`` (``less``: below its negative; ``equivalent``: within it).

    In each seed every term is the mean over all runs that it selects, so cells need not be paired: main effects of an orthogonal array,
    and statements such as "the remedy leaves at most half of the gap" (weight 1 for the remedy, -0.5 for what is to be remedied, ``less``).
    A negative ``margin`` states non-inferiority: ``less`` with -0.01 is "no higher than 0.01 above". ``min_effect`` is the smallest effect
    that matters: where the data rule it out, the hypothesis is refuted.
    """

    terms: Annotated[tuple[ContrastTerm, ...], MinLen(1)]
    direction: Literal["greater", "less", "equivalent"] = "greater"
    margin: float = 0.0
    min_effect: NonNegative = 0.0

    def evaluate(self, runs: pd.DataFrame, factors: Sequence[str], criteria: DecisionCriteria) -> HypothesisResult:
        """Test the weighted sum of the means of the terms, one sum per seed."""
        table = outcome_values(runs, self.metric, None, self.contrast, self.worst_end, include_baselines=True)
        sides = [select_runs(table, self.where, term.select) for term in self.terms]
        found = [
            values_per_seed(side, None, [factor for factor in factors if factor not in term.select])
            for side, term in zip(sides, self.terms, strict=True)
        ]
        words = f"{metric_label(self)}, " + " ".join(f"{term.weight:+g} x ({format_selection(term.select)})" for term in self.terms)
        diverged = count_diverged(runs, self.contrast, *sides)
        columns = [values.values * term.weight for values, term in zip(found, self.terms, strict=True)]
        joined = (
            pd.concat(columns, axis=1, join="inner").to_numpy(dtype=np.float64) if all(len(one) for one in columns) else np.zeros((0, 1))
        )
        seeds = pd.concat(columns, axis=1, join="inner").index
        up, down = np.isposinf(joined).any(axis=1), np.isneginf(joined).any(axis=1)
        both = np.asarray(up & down)
        total = np.where(up, np.inf, np.where(down, -np.inf, np.where(np.isfinite(joined), joined, 0.0).sum(axis=1)))
        every = set().union(*(set(side["seed"]) for side in sides))
        both_diverged = max(values.both_diverged for values in found) + int(both.sum())
        values = pd.Series(total[~both], index=seeds[: len(total)][~both], dtype=float)
        return directed_result(
            self, PerSeedValues(values, len(every) - len(values) - both_diverged, both_diverged), criteria, words, diverged
        )


@dataclass(frozen=True, kw_only=True)
class MatchedDifference(Hypothesis):
    """``metric`` of ``group`` less that of ``reference`` at the same value of ``match``, e.g. at the same mean update norm.

    The runs of ``reference`` form a ladder. In each seed its outcome is interpolated, linearly in the logarithm of ``match``, at the value
    that the run of ``group`` has. A seed whose value lies outside the ladder is incomplete: nothing is extrapolated.
    """

    match: str
    group: FactorLevels
    reference: FactorLevels
    direction: Literal["greater", "less", "equivalent"] = "equivalent"
    margin: NonNegative = 0.0
    min_effect: NonNegative = 0.0

    def evaluate(self, runs: pd.DataFrame, factors: Sequence[str], criteria: DecisionCriteria) -> HypothesisResult:
        """Test the outcome of ``group`` minus the interpolated outcome of ``reference``, one difference per seed."""
        table = outcome_values(runs, self.metric, None, self.contrast, self.worst_end, include_baselines=True)
        require_columns(table, [self.match], "outcome")
        left = select_runs(table, self.where, self.group)
        right = select_runs(table, self.where, self.reference)
        key = ["seed", *shared_factors(left, right, factors, [*self.group, *self.reference])]
        ladders = {name: rows for name, rows in right.groupby(key, dropna=False, observed=True)}
        differences, seeds = [], []
        for name, rows in left.groupby(key, dropna=False, observed=True):
            there = interpolate_ladder(ladders.get(name), self.match, float(rows[self.match].mean()))
            differences.append(float(rows["value"].mean()) - there)
            seeds.append(name[0])
        by_cell = pd.DataFrame({"seed": seeds, "value": differences}).groupby("seed")["value"]
        values = by_cell.agg(lambda cells: cells.mean(skipna=False)).astype(float)
        complete = values[np.isfinite(values.to_numpy(dtype=np.float64))]
        words = f"{metric_label(self)}{format_groups(self.group, self.reference)} at the same {self.match}"
        per_seed = PerSeedValues(complete, len(set(left["seed"]) | set(right["seed"])) - len(complete))
        return directed_result(self, per_seed, criteria, words, count_diverged(runs, self.contrast, left, right))


def directed_result(
    hypothesis: LinearContrast | MatchedDifference, per_seed: PerSeedValues, criteria: DecisionCriteria, description: str, diverged: int
) -> HypothesisResult:
    """Test one number per seed in the direction that the hypothesis states."""
    if hypothesis.direction == "equivalent":
        return equivalence_result(per_seed, hypothesis.margin, criteria, description, diverged)
    sign = 1 if hypothesis.direction == "greater" else -1
    return directional_result(per_seed, sign, hypothesis.margin, hypothesis.min_effect, criteria, description, diverged)


def interpolate_ladder(rows: pd.DataFrame | None, match: str, at: float) -> float:
    """Interpolate the outcome of some runs at ``match`` = ``at``, linearly in the logarithm of ``match``; NaN outside their range."""
    if rows is None:
        return math.nan
    place, value = rows[match].to_numpy(dtype=np.float64), rows["value"].to_numpy(dtype=np.float64)
    known = (place > 0) & np.isfinite(place) & np.isfinite(value)
    order = np.argsort(place[known])
    steps, heights = place[known][order], value[known][order]
    if not len(steps) or not at > 0 or not steps[0] <= at <= steps[-1]:
        return math.nan
    return float(np.interp(math.log(at), np.log(steps), heights))
