"""p-values, intervals and exact tests for few paired seeds. Every p-value carries the smallest p-value that its seeds can produce.

Under the null hypothesis of a paired design each difference is equally likely to have either sign. So n seeds have 2^n equally likely
outcomes, and no two-sided p-value is below 2 / 2^n (Fisher, "The Design of Experiments", 1935, section 21). Five seeds can therefore
never reach 0.05: a smaller p-value from them would result from a distributional assumption, not from the seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations, product
from typing import Literal

import numpy as np

from ..core.lazy_imports import stats
from ..core.random import numpy_stream

ALPHA = 0.05
# Means, sums and differences of the same numbers differ in their last digits with the order of the terms. A verdict must not.
ROUNDING = 1e-9  # numbers that differ from a bound by at most this share of it are equal to it
ROUNDING_OF_OUTCOMES = 1e-12  # the same for two outcomes, such as counts of bytes, of which many digits count


@dataclass(frozen=True)
class PValue:
    """A p-value, two-sided unless ``test`` names another alternative.

    If so few seeds cannot reach 0.05, the printed text states this instead of a number below 0.05.
    """

    value: float
    min_attainable_p: float  # the smallest p-value that this number of seeds can produce
    seeds: int
    test: str

    def is_significant(self, alpha: float = ALPHA) -> bool:
        """Return whether the p-value is at most ``alpha`` and the number of seeds allows this."""
        return is_at_most(self.value, alpha) and is_at_most(self.min_attainable_p, alpha)

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "no p"
        if self.min_attainable_p > ALPHA and self.value <= max(ALPHA, self.min_attainable_p):
            return f"{count_seeds(self.seeds)} cannot give a p below {format_p(self.min_attainable_p)}"
        return f"p {'<' if self.value < 0.0001 else '='} {format_p(max(self.value, 0.0001))}"


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval.

    ``confidence_level`` is the attained level, or NaN if there are too few numbers for an interval.
    """

    estimate: float
    low: float
    high: float
    confidence_level: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def is_at_most(value: float, bound: float) -> bool:
    """Return whether a number is at most a bound, where numbers that differ from the bound only by rounding are equal to it."""
    return value <= bound + ROUNDING * abs(bound)


def is_below(value: float, bound: float) -> bool:
    """Return whether a number is below a bound by more than rounding."""
    return value < bound - ROUNDING * abs(bound)


def subtract(values: np.ndarray, bounds: float | np.ndarray, tolerance: float = ROUNDING) -> np.ndarray:
    """Return ``values - bounds``, with 0 where both differ only by rounding, so that rounding has no sign.

    Args:
        values: The numbers, [seeds]; they may be infinite.
        bounds: What is subtracted, one number or [seeds].
        tolerance: The share of ``bounds`` that counts as rounding.
    """
    with np.errstate(invalid="ignore"):
        difference = np.asarray(values, dtype=np.float64) - bounds
    return np.where(np.abs(difference) <= tolerance * np.abs(np.where(np.isfinite(bounds), bounds, 0.0)), 0.0, difference)


def min_p(seeds: int) -> float:
    """Return 2 / 2^n, the smallest two-sided p-value that n paired seeds can produce."""
    return min(1.0, 2.0 ** (1 - seeds))


def min_seeds(alpha: float = ALPHA, family_size: int = 1) -> int:
    """Return the smallest number of seeds with which a hypothesis of a Holm family can be significant.

    At ``alpha`` 0.05 this is 6 for a single hypothesis and 9 for a family of eight.
    """
    return max(1, math.ceil(1 - math.log2(alpha / family_size) - 1e-9))


def format_p(value: float) -> str:
    """Format a p-value with two significant digits: 0.032, 0.0078, 0.42."""
    digits = 2 if value >= 0.1 else 3 if value >= 0.01 else 4
    return f"{value:.{digits}f}"


def count_seeds(seeds: int) -> str:
    """Format a number of seeds, for example ``1 seed`` or ``5 seeds``."""
    return f"{seeds} seed{'' if seeds == 1 else 's'}"


MAX_EXACT_SEEDS, NUM_FLIPS = 20, 99_999  # with more seeds, that many sign patterns are sampled
MAX_SUMMAND = 1e300


def sign_flip_test(d: np.ndarray) -> PValue:
    """Run the two-sided sign-flip permutation test of paired differences, which assumes neither normality nor equal variances.

    This is Fisher's permutation test of Darwin's data ("The Design of Experiments", 1935, section 21). p is the share of the 2^n sign
    patterns whose sum is at least as far from zero as the observed sum. The test is exact up to ``MAX_EXACT_SEEDS`` seeds; with more seeds
    it samples ``NUM_FLIPS`` patterns.

    Args:
        d: The differences, [seeds]. If one is not finite, there is no p-value (NaN); ``wilcoxon`` allows infinite ones.

    Example:
        >>> sign_flip_test(np.array([0.11, 0.08, 0.14, 0.05, 0.12, 0.09])).value
        0.03125
    """
    d = np.asarray(d, dtype=np.float64)
    count, magnitudes = len(d), np.abs(d)
    is_exact = count <= MAX_EXACT_SEEDS
    name = "exact sign-flip" if is_exact else f"sign-flip, {NUM_FLIPS} draws"
    if count == 0:
        return PValue(1.0, 1.0, 0, name)
    if not np.isfinite(d).all():
        return PValue(math.nan, min_p(count), count, name)
    if magnitudes.max() > MAX_SUMMAND:  # their sums would be infinite, and no two infinite sums differ
        d, magnitudes = d / MAX_SUMMAND, magnitudes / MAX_SUMMAND
    if is_exact:
        sums, extra = sign_pattern_sums(magnitudes), 0
    else:
        flips = numpy_stream(0, "sign flips").integers(0, 2, (NUM_FLIPS, count), dtype=np.int8) * 2 - 1
        sums, extra = flips @ magnitudes, 1  # the observed pattern is one of them
    total = len(sums) + extra
    num_extreme = int((np.abs(sums) >= abs(d.sum()) - 1e-12 * magnitudes.sum()).sum())  # sums that differ only by rounding are equal
    return PValue((num_extreme + extra) / total, min_p(count) if is_exact else 1 / total, count, name)


def sign_pattern_sums(magnitudes: np.ndarray) -> np.ndarray:
    """Return the sums over all sign patterns of the magnitudes [n], as [2^n]."""
    sums = np.zeros(1)
    for value in magnitudes:
        sums = np.concatenate([sums + value, sums - value])
    return sums


# Rank tests keep diverged runs: these receive the worst rank (Lachin, Controlled Clinical Trials 20, 1999).

WorstEnd = Literal["high", "low"]


def assign_worst_rank(values: np.ndarray, diverged: np.ndarray, worst_end: WorstEnd = "high") -> np.ndarray:
    """Return the values [runs], with those of diverged runs replaced by plus infinity ("high") or minus infinity ("low")."""
    end = math.inf if worst_end == "high" else -math.inf
    return np.where(np.asarray(diverged, dtype=bool), end, np.asarray(values, dtype=np.float64))


def signed_ranks(d: np.ndarray) -> np.ndarray:
    """Return the ranks of |d| with the signs of d; ties share their mean rank, and zeros stay 0 and rank lowest (Pratt)."""
    d = np.asarray(d, dtype=np.float64)
    return np.sign(d) * midranks(np.abs(d)) if len(d) else d


def midranks(values: np.ndarray) -> np.ndarray:
    """Return the ranks of the values [runs]; values that differ only by rounding share their mean rank."""
    values = np.asarray(values, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    ascending = values[order]
    is_larger = subtract(ascending[1:], ascending[:-1], ROUNDING_OF_OUTCOMES) > 0
    ranks = np.empty(len(values))
    ranks[order] = stats.rankdata(np.cumsum(np.concatenate([[False], is_larger])))
    return ranks


def wilcoxon(d: np.ndarray) -> PValue:
    """Run Wilcoxon's signed-rank test of the differences [seeds]; infinite differences are allowed.

    The test (Biometrics Bulletin 1, 1945) is a sign-flip test of midranks, so it is exact with ties.
    """
    result = sign_flip_test(signed_ranks(d))
    return replace(result, test=result.test.replace("sign-flip", "signed-rank"))


def rank_biserial(d: np.ndarray) -> float:
    """Return the matched-pairs rank-biserial correlation of the differences [seeds] (Kerby, Comprehensive Psychology 3, 2014).

    It is the share of the rank sum above zero minus the share below zero, from -1 to 1; -1 means that all differences are below zero.
    """
    ranks = signed_ranks(d)
    total = np.abs(ranks).sum()
    return float(ranks.sum() / total) if total else math.nan if not len(ranks) else 0.0


# Failures are rare events, so their intervals and tests are exact.


def clopper_pearson(failed: int, runs: int, confidence_level: float = 0.95) -> Interval:
    """Return a rate with its exact interval (Clopper & Pearson, Biometrika 26, 1934); for no runs the interval is [0, 1]."""
    if runs == 0:
        return Interval(math.nan, 0.0, 1.0, confidence_level)
    bounds = stats.binomtest(int(failed), int(runs)).proportion_ci(confidence_level, method="exact")
    return Interval(failed / runs, float(bounds.low), float(bounds.high), confidence_level)


def mcnemar(first: np.ndarray, second: np.ndarray) -> PValue:
    """Test whether an event is equally frequent in two conditions over the same seeds.

    This is McNemar's test (Psychometrika 12, 1947) in its exact, binomial form. Only seeds in which the conditions differ contribute.

    Args:
        first: Whether the event occurs in each seed of one condition, [seeds] bool.
        second: The same for the other condition, [seeds] bool.
    """
    from statsmodels.stats import contingency_tables

    first, second = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    counts = [[int((first & second).sum()), int((first & ~second).sum())], [int((~first & second).sum()), int((~first & ~second).sum())]]
    value = float(contingency_tables.mcnemar(counts, exact=True).pvalue) if counts[0][1] + counts[1][0] else 1.0
    return PValue(min(1.0, value), min_p(len(first)), len(first), "exact McNemar")


# Trend tests: Page's L with seeds as blocks, and Spearman's rho permuted within seeds. A block of a statistical test is a group of
# observations that are compared only with each other.

MAX_EXACT_ORDERS, NUM_ORDERS = 20_000, 9_999  # with more permutations over all blocks, that many are sampled


@dataclass(frozen=True)
class MonotoneTrend:
    """A monotone trend of an outcome with a predictor.

    ``rho`` is the mean over seeds of Spearman's rho, from -1 to 1. ``slopes`` are least-squares slopes, one per seed, NaN if a run
    diverged.
    """

    rho: float
    slopes: tuple[float, ...]
    p: PValue


def page_trend_test(table: np.ndarray) -> PValue:
    """Run Page's trend test (JASA 58, 1963), two-sided: twice the smaller p-value of rising and falling.

    L = sum_j j R_j, where R_j is the rank sum of level j in the predicted order. Two levels fall back to the sign test, and a single seed
    to the permutation test of its levels.

    Args:
        table: The outcomes, [seeds, levels], with levels in ascending order.
    """
    table = np.asarray(table, dtype=np.float64)
    seeds, levels = table.shape
    min_attainable_p = min(1.0, 2.0 / math.factorial(levels) ** seeds) if seeds else 1.0
    if seeds < 1 or levels < 2:
        return PValue(math.nan, 1.0, seeds, "Page's L")
    if levels == 2:
        return sign_test(table[:, 1] - table[:, 0])
    if seeds < 2:
        return spearman_within_blocks(np.tile(np.arange(levels), seeds), table.ravel(), np.repeat(np.arange(seeds), levels)).p
    ranks = np.stack([midranks(row) for row in table])
    one_sided = [float(stats.page_trend_test(oriented, ranked=True).pvalue) for oriented in (ranks, levels + 1 - ranks)]
    return PValue(min(1.0, 2 * min(one_sided)), min_attainable_p, seeds, "Page's L")


def sign_test(d: np.ndarray) -> PValue:
    """Run the exact sign test, which is the permutation test of two levels within each seed; seeds without a difference are dropped."""
    d = np.asarray(d, dtype=np.float64)
    up, down = int((d > 0).sum()), int((d < 0).sum())
    if not up + down:
        return PValue(1.0, 1.0, 0, "exact sign test")
    return PValue(float(stats.binomtest(up, up + down).pvalue), min_p(up + down), up + down, "exact sign test")


def spearman_within_blocks(x: np.ndarray, y: np.ndarray, blocks: np.ndarray) -> MonotoneTrend:
    """Test the mean over blocks of Spearman's rho, with a null distribution from permutations of the outcomes within each block.

    Args:
        x: The predictor of each run, [runs].
        y: The outcome of each run, [runs]. Infinite outcomes have the last ranks.
        blocks: The block (seed) of each run, [runs].
    """
    x, y, blocks = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64), np.asarray(blocks)
    parts = [(x[blocks == block], y[blocks == block]) for block in np.unique(blocks)]
    parts = [(predictor, outcome) for predictor, outcome in parts if len(np.unique(predictor)) > 1]
    if not parts:
        return MonotoneTrend(math.nan, (), PValue(1.0, 1.0, 0, "Spearman"))
    ranked = [(standardize_ranks(predictor), standardize_ranks(outcome)) for predictor, outcome in parts]
    observed = sum(float(predictor @ outcome) for predictor, outcome in ranked)
    num_orders = math.prod(math.factorial(len(predictor)) for predictor, _ in ranked)
    if num_orders <= MAX_EXACT_ORDERS:
        block_products = [
            [float(predictor @ outcome[list(order)]) for order in permutations(range(len(predictor)))] for predictor, outcome in ranked
        ]
        null = np.array([sum(combination) for combination in product(*block_products)])
        extra, total, name = 0, len(null), "Spearman, exact permutation"
    else:
        rng = numpy_stream(0, "orders")
        null = sum(
            (rng.permuted(np.tile(outcome, (NUM_ORDERS, 1)), axis=1) @ predictor for predictor, outcome in ranked), np.zeros(NUM_ORDERS)
        )
        extra, total, name = 1, NUM_ORDERS + 1, f"Spearman, {NUM_ORDERS} permutations"
    is_extreme = np.abs(null) >= abs(observed) - 1e-9
    value = float((is_extreme.sum() + extra) / total)
    min_attainable_p = max(2 / num_orders, 0.0) if num_orders <= MAX_EXACT_ORDERS else 1 / total
    slopes = tuple(least_squares_slope(predictor, outcome) for predictor, outcome in parts)
    return MonotoneTrend(observed / len(ranked), slopes, PValue(value, min(1.0, min_attainable_p), len(ranked), name))


def standardize_ranks(values: np.ndarray) -> np.ndarray:
    """Return the midranks, centered and scaled to length 1 (0 if all are equal), so that dot products are Spearman's rho."""
    ranks = midranks(values)
    ranks = ranks - ranks.mean()
    length = math.sqrt(float(ranks @ ranks))
    return ranks / length if length else ranks


def least_squares_slope(predictor: np.ndarray, outcome: np.ndarray) -> float:
    """Return the least-squares slope, in units of the outcome per unit of the predictor."""
    if not np.isfinite(outcome).all():
        return math.nan
    centered = predictor - predictor.mean()
    return float(centered @ (outcome - outcome.mean()) / (centered @ centered))


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Adjust p-values by Holm (Scandinavian Journal of Statistics 6, 1979), in the same order.

    The procedure keeps the probability of any false positive in the family at most alpha. It is implemented here because the version in
    statsmodels runs the garbage collector on every call, which takes 0.2 s when torch is loaded.
    """
    p_values = np.asarray(p, dtype=np.float64)
    filled = np.where(np.isnan(p_values), 1.0, p_values)  # a hypothesis that could not be tested still counts
    order = np.argsort(filled, kind="stable")
    step_values = np.maximum.accumulate(filled[order] * np.arange(len(filled), 0, -1))
    adjusted = np.empty_like(filled)
    adjusted[order] = np.minimum(step_values, 1.0)
    return np.where(np.isnan(p_values), np.nan, adjusted)
