"""Hypotheses about a trend over the levels of a factor, or along a predictor that is measured for each run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ..core.errors import UserError
from ..core.lazy_imports import pd
from .hypothesis_base import Hypothesis, count_diverged, metric_label
from .intervals import mask_both_diverged, mean_ci, median, paired_differences
from .results import DecisionCriteria, HypothesisResult, directional_result, empty_result
from .selection import PerSeedValues, average_cells, format_selection, outcome_values, select_runs
from .significance import page_trend_test, spearman_within_blocks

MIN_TREND_SEEDS = 3  # fewer seeds do not replicate a trend, whatever its p-value


@dataclass(frozen=True, kw_only=True)
class Trend(Hypothesis):
    """``metric`` rises (or falls) with ``predictor``.

    A factor with three or more levels is tested by Page's L with seeds as blocks. If each run has its own measured value of
    ``predictor``, the test is Spearman's rho, permuted within seeds. Two levels do not form a trend: the test is then the paired contrast
    of the two levels, with the test, interval and power of that contrast.
    """

    predictor: str
    direction: Literal["up", "down"] = "up"

    def evaluate(self, runs: pd.DataFrame, factors: Sequence[str], criteria: DecisionCriteria) -> HypothesisResult:
        """Test a trend: Page's L for three or more levels, the paired contrast for two, Spearman's rho for a measured predictor."""
        table = select_runs(outcome_values(runs, self.metric, None, self.contrast, self.worst_end, include_baselines=True), self.where)
        description = f"{metric_label(self)} along {self.predictor}" + (f", {format_selection(self.where)}" if self.where else "")
        sign = 1 if self.direction == "up" else -1
        diverged = count_diverged(runs, self.contrast, table)
        rows = table.dropna(subset=["value", self.predictor])
        both_diverged = len(set(table.loc[table["both_diverged"], "seed"]))
        if not len(rows):
            return empty_result(description, "slope", diverged=diverged, both_diverged=both_diverged)
        if self.predictor in factors:
            complete, incomplete = average_by_level(rows, self.predictor, [f for f in factors if f not in {self.predictor, *self.where}])
            if not len(complete):
                return empty_result(
                    description, "slope", incomplete, "no seed has a run at each of two or more levels", diverged, both_diverged
                )
            num_incomplete = len(set(table["seed"])) - len(complete) - both_diverged
            seeds, levels = complete.index.to_numpy(), numeric_levels(complete.columns, self.predictor)
            if len(levels) == 2:
                return evaluate_two_levels(
                    complete,
                    levels,
                    PerSeedValues(pd.Series(dtype=float), num_incomplete, both_diverged),
                    sign,
                    criteria,
                    description,
                    diverged,
                )
            trend = spearman_within_blocks(np.tile(levels, len(seeds)), complete.to_numpy().ravel(), np.repeat(seeds, len(levels)))
            p, medians = page_trend_test(complete.to_numpy()), np.array([median(column) for column in complete.to_numpy().T])
        else:
            trend = spearman_within_blocks(rows[self.predictor].to_numpy(float), rows["value"].to_numpy(float), rows["seed"].to_numpy())
            p, num_incomplete, medians, levels = trend.p, len(set(table["seed"])) - trend.p.seeds - both_diverged, np.zeros(0), np.zeros(0)
            seeds = np.unique(rows["seed"].to_numpy())
        slopes = np.array(trend.slopes)
        notes = [f"mean rank correlation over seeds {trend.rho:+.2f}"]
        reversals = [f"{levels[k]:g} to {levels[k + 1]:g}" for k in range(len(medians) - 1) if sign * medians[k + 1] < sign * medians[k]]
        if reversals:
            notes.append(f"the trend does not hold at every step: the median reverses direction from {', '.join(reversals)}")
        has_too_few_seeds = p.seeds < MIN_TREND_SEEDS
        if has_too_few_seeds:
            notes.append(
                f"a trend within {p.seeds} seed{'s' * (p.seeds != 1)} is not replicated; at least {MIN_TREND_SEEDS} seeds are needed"
            )
            p = replace(p, min_attainable_p=1.0)
        points = tuple((int(seed), float(value)) for seed, value in zip(seeds, slopes, strict=False))
        return HypothesisResult(
            description,
            "slope",
            mean_ci(slopes, 1 - criteria.alpha),
            p,
            sign * trend.rho > 0,
            False,
            num_incomplete,
            diverged,
            detectable=math.inf if has_too_few_seeds else math.nan,
            points=points,
            notes=tuple(notes),
            both_diverged=both_diverged,
        )


def evaluate_two_levels(
    complete: pd.DataFrame,
    levels: np.ndarray,
    excluded: PerSeedValues,
    sign: int,
    criteria: DecisionCriteria,
    description: str,
    diverged: int,
) -> HypothesisResult:
    """Test the upper level minus the lower one per seed, with the test, interval and power of a paired difference.

    Args:
        complete: The means per seed and level, [seeds, 2].
        levels: The two levels as numbers, [2].
        excluded: The counts of seeds that were excluded before.
        sign: 1 if the hypothesis predicts a rise, -1 if it predicts a fall.
        criteria: The significance level and the power.
        description: The compared quantity in words.
        diverged: The number of diverged runs.
    """
    low, high = (complete.iloc[:, index].to_numpy(dtype=np.float64) for index in (0, 1))
    is_undefined = mask_both_diverged(high, low)
    d = PerSeedValues(
        pd.Series(paired_differences(high, low)[~is_undefined], index=complete.index[~is_undefined]),
        excluded.incomplete,
        excluded.both_diverged + int(is_undefined.sum()),
    )
    result = directional_result(d, sign, 0.0, 0.0, criteria, f"{description}, {levels[1]:g} minus {levels[0]:g}", diverged)
    return replace(result, notes=("two levels are not a trend, so this is their paired contrast", *result.notes))


def numeric_levels(levels: pd.Index, predictor: str) -> np.ndarray:
    """Return the levels as numbers; raise UserError if they are not numeric."""
    try:
        return levels.to_numpy(dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError(
            f"predictor: a trend needs a factor whose levels are numbers; the levels of {predictor!r} are "
            f"{', '.join(map(str, levels))[:80]}"
        ) from None


def average_by_level(rows: pd.DataFrame, predictor: str, factors: Sequence[str]) -> tuple[pd.DataFrame, int]:
    """Average over the cells of the other factors that every level has.

    Returns:
        The means [seeds, levels] of the complete seeds, and the number of seeds that lack a level.
    """
    shared = [factor for factor in factors if rows[factor].notna().any()]
    table = rows.assign(cell=list(map(str, rows[shared].itertuples(index=False, name=None))))
    by_cell = average_cells(table, ["seed", "cell", predictor]).pivot(index="seed", columns=["cell", predictor], values="value")
    levels = sorted(table[predictor].unique())
    complete_cells = [cell for cell in by_cell.columns.unique("cell") if len(by_cell[cell].columns) == len(levels)]
    if not complete_cells or len(levels) < 2:
        return pd.DataFrame(), len(by_cell)
    complete = by_cell[complete_cells].dropna()
    means = {level: complete.xs(level, axis=1, level=predictor).to_numpy(dtype=np.float64).mean(axis=1) for level in levels}
    return pd.DataFrame(means, index=complete.index), len(by_cell) - len(complete)
