"""What a test and an interval come back with: a p that knows the smallest one that its seeds could have given.

Under the null hypothesis of a paired design each seed's difference is as likely to have either sign, so n seeds
have 2^n equally likely outcomes and no two-sided p below 2 / 2^n (Fisher, "The Design of Experiments", 1935,
section 21). Five seeds can never reach .05: a smaller p from them would be the work of an assumption, not of the seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations, product
from typing import Literal

import numpy as np
from scipy import stats
from scipy.stats import false_discovery_control, rankdata
from statsmodels.stats.contingency_tables import mcnemar as of_table

from ..core.random import numpy_stream

ALPHA = 0.05


@dataclass(frozen=True)
class PValue:
    """A two-sided p unless ``test`` says otherwise; printed, it refuses to be below .05 where the seeds cannot reach that."""

    value: float
    min_attainable_p: float  # the smallest p that so many seeds could have given
    seeds: int
    test: str

    def is_significant(self, alpha: float = ALPHA) -> bool:
        """Whether it is at most ``alpha``, and the seeds could have shown it."""
        return self.value <= alpha and self.min_attainable_p <= alpha

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "no p"
        if self.min_attainable_p > ALPHA and self.value <= max(ALPHA, self.min_attainable_p):
            return f"{count_seeds(self.seeds)} cannot give a p below {format_p(self.min_attainable_p)}"
        return f"p {'<' if self.value < 0.0001 else '='} {format_p(max(self.value, 0.0001))}"


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval; ``confidence_level`` is the one that was reached, NaN if there are too few
    numbers."""

    estimate: float
    low: float
    high: float
    confidence_level: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def min_p(seeds: int) -> float:
    """2 / 2^n: what n paired seeds can give at the least, two-sided."""
    return min(1.0, 2.0 ** (1 - seeds))


def min_seeds(alpha: float = ALPHA, family_size: int = 1) -> int:
    """The seeds below which no hypothesis of a Holm family of that size can be called: 6 for one at .05, 9 for eight."""
    return max(1, math.ceil(1 - math.log2(alpha / family_size) - 1e-9))


def format_p(value: float) -> str:
    """A p with two digits that mean something: .032, .0078, 0.42."""
    digits = 3 if value >= 0.01 else 4
    text = f"{value:.{digits}f}"
    return text.removeprefix("0") if value < 0.1 else f"{value:.2f}"


def count_seeds(seeds: int) -> str:
    return f"{seeds} seed{'' if seeds == 1 else 's'}"


# The exact sign-flip permutation test of paired differences: no normality, no variance, only signs that could have
# fallen otherwise.
#
# Fisher's permutation test of his Darwin data ("The Design of Experiments", 1935, section 21), over seeds: p is the share
# of the 2^n sign patterns whose sum is at least as far from zero as the one that was seen. Exact to 20 seeds, beyond that
# a named draw.

MAX_EXACT_SEEDS = 20
Alternative = Literal["two-sided", "greater", "less"]


def sign_flip_test(
    d: np.ndarray, null_value: float = 0.0, alternative: Alternative = "two-sided", num_permutations: int = 99_999, seed: int = 0
) -> PValue:
    """Whether the differences ``d [seeds]`` lie about ``null_value``; all finite. One-sided p can reach half of
    the two-sided ``min_p``."""
    moved = np.asarray(d, dtype=np.float64) - null_value
    count = len(moved)
    name = "exact sign-flip" if count <= MAX_EXACT_SEEDS else f"sign-flip, {num_permutations} draws"
    if count == 0:
        return PValue(1.0, 1.0, 0, name)
    seen = moved.sum()
    size = np.abs(moved)
    slack = 1e-12 * size.sum()  # equal sums that differ by rounding are equal
    if count <= MAX_EXACT_SEEDS:
        sums = sign_pattern_sums(size)
        extra, total = 0, len(sums)
    else:
        flips = numpy_stream(seed, "sign flips").integers(0, 2, (num_permutations, count), dtype=np.int8) * 2 - 1
        sums = flips @ size
        extra, total = 1, num_permutations + 1  # the pattern that was seen is one of them
    if alternative == "two-sided":
        far, floor = np.abs(sums) >= abs(seen) - slack, 2.0
    else:
        far, floor = (sums >= seen - slack if alternative == "greater" else sums <= seen + slack), 1.0
        name += f", one-sided ({alternative})"
    least = min_p(count) * floor / 2 if count <= MAX_EXACT_SEEDS else 1 / total
    return PValue(float((far.sum() + extra) / total), least, count, name)


def sign_pattern_sums(magnitudes: np.ndarray) -> np.ndarray:
    """The sums of all sign patterns of the sizes ``[n]``, ``[2^n]``."""
    sums = np.zeros(1)
    for value in magnitudes:
        sums = np.concatenate([sums + value, sums - value])
    return sums


# Tests and effects by rank, which diverged runs can enter: as the worst of all ranks, not dropped.
#
# Wilcoxon's signed ranks (Biometrics Bulletin 1, 1945) as a sign-flip of midranks, exact with ties; the matched-pairs
# rank-biserial correlation (Kerby, Comprehensive Psychology 3, 2014); Cliff's delta (Psychological Bulletin 114, 1993).
# Worst rank: Lachin, Controlled Clinical Trials 20, 1999.

WorstEnd = Literal["high", "low"]


def assign_worst_rank(values: np.ndarray, diverged: np.ndarray, worst_end: WorstEnd = "high") -> np.ndarray:
    """``values [runs]`` with those that diverged at the bad end, whatever they last said."""
    end = math.inf if worst_end == "high" else -math.inf
    return np.where(np.asarray(diverged, dtype=bool), end, np.asarray(values, dtype=np.float64))


def signed_ranks(d: np.ndarray) -> np.ndarray:
    """The ranks of |d| with d's signs; equal ones share the mean of their ranks, zeros stay 0 and rank lowest (Pratt)."""
    d = np.asarray(d, dtype=np.float64)
    return np.sign(d) * rankdata(np.abs(d)) if len(d) else d


def wilcoxon(d: np.ndarray) -> PValue:
    """Wilcoxon's signed-rank test of the differences ``d [seeds]``, infinities allowed."""
    found = sign_flip_test(signed_ranks(d))
    return replace(found, test=found.test.replace("sign-flip", "signed-rank"))


def rank_biserial(d: np.ndarray) -> float:
    """From -1 (all differences below zero) to 1: the share of the rank sum above zero, less the share below."""
    ranks = signed_ranks(d)
    total = np.abs(ranks).sum()
    return float(ranks.sum() / total) if total else math.nan if not len(ranks) else 0.0


def cliffs_delta(x: np.ndarray, y: np.ndarray) -> float:
    """P(x > y) - P(x < y) over all pairs of two independent samples."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if not len(x) or not len(y):
        return math.nan
    return float((x[:, None] > y).mean() - (x[:, None] < y).mean())


# How often runs fail: exact intervals and exact tests, because failures are few.
#
# Clopper & Pearson, Biometrika 26, 1934; McNemar, Psychometrika 12, 1947, in its exact (binomial) form, for the same
# seeds on both sides; Fisher, JRSS 98, 1935, for independent ones.


def clopper_pearson(failed: int, runs: int, confidence_level: float = 0.95) -> Interval:
    """A rate and its exact interval; [0, 1] of no runs."""
    if runs == 0:
        return Interval(math.nan, 0.0, 1.0, confidence_level)
    bounds = stats.binomtest(int(failed), int(runs)).proportion_ci(confidence_level, method="exact")
    return Interval(failed / runs, float(bounds.low), float(bounds.high), confidence_level)


def mcnemar(first: np.ndarray, second: np.ndarray) -> PValue:
    """Whether ``first [seeds]`` fails as often as ``second [seeds]`` of the same seeds; only seeds that differ say anything."""
    first, second = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    counts = [[int((first & second).sum()), int((first & ~second).sum())], [int((~first & second).sum()), int((~first & ~second).sum())]]
    value = float(of_table(counts, exact=True).pvalue) if counts[0][1] + counts[1][0] else 1.0
    return PValue(min(1.0, value), min_p(len(first)), len(first), "exact McNemar")


def fisher_exact(failed_a: int, runs_a: int, failed_b: int, runs_b: int) -> PValue:
    """Fisher's exact test of two independent rates; the least p is that of "all here, none there"."""
    found = stats.fisher_exact(np.array([[failed_a, runs_a - failed_a], [failed_b, runs_b - failed_b]]))
    least = float(stats.fisher_exact(np.diag([runs_a, runs_b])).pvalue) if runs_a and runs_b else 1.0
    return PValue(float(found.pvalue), least, runs_a + runs_b, "Fisher's exact")


# Whether an outcome rises with a dial: Page's L over seeds as blocks, and Spearman's rho permuted inside the seeds.
#
# Page, JASA 58, 1963: L = sum_j j R_j, R_j the rank sums of the levels in the order that was foretold. Where the dial is
# a measured one and each run has its own value: the mean over seeds of Spearman's rho, its null made by permuting the
# outcomes inside each seed.

MAX_EXACT_ORDERS = 20_000  # orders in all; more than that are drawn


@dataclass(frozen=True)
class MonotoneTrend:
    """``rho``: mean over seeds of Spearman's rho, from -1 to 1. ``slopes``: least squares, one a seed; NaN with a
    diverged run."""

    rho: float
    slopes: tuple[float, ...]
    p: PValue


def page_trend_test(table: np.ndarray) -> PValue:
    """Page's L of ``table [seeds, levels]``, two-sided: twice the smaller of rising and falling."""
    table = np.asarray(table, dtype=np.float64)
    seeds, levels = table.shape
    least = min(1.0, 2.0 / math.factorial(levels) ** seeds) if seeds else 1.0
    if seeds < 1 or levels < 2:
        return PValue(math.nan, 1.0, seeds, "Page's L")
    if levels == 2:  # not Page's
        return sign_test(table[:, 1] - table[:, 0])
    if seeds < 2:  # not Page's: the same permutations of the levels inside each seed
        return spearman_within_blocks(np.tile(np.arange(levels), seeds), table.ravel(), np.repeat(np.arange(seeds), levels)).p
    ranks = np.stack([stats.rankdata(row) for row in table])
    sides = [float(stats.page_trend_test(side, ranked=True).pvalue) for side in (ranks, levels + 1 - ranks)]
    return PValue(min(1.0, 2 * min(sides)), least, seeds, "Page's L")


def sign_test(d: np.ndarray) -> PValue:
    """The exact sign test: what permuting two levels inside each seed comes to. Seeds without a difference are dropped."""
    d = np.asarray(d, dtype=np.float64)
    up, down = int((d > 0).sum()), int((d < 0).sum())
    if not up + down:
        return PValue(1.0, 1.0, 0, "exact sign test")
    return PValue(float(stats.binomtest(up, up + down).pvalue), min_p(up + down), up + down, "exact sign test")


def spearman_within_blocks(x: np.ndarray, y: np.ndarray, blocks: np.ndarray, num_permutations: int = 9_999, seed: int = 0) -> MonotoneTrend:
    """The dial ``x``, the outcome ``y`` and the seed of each run, ``[runs]``; infinite outcomes are the last ranks."""
    x, y, blocks = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64), np.asarray(blocks)
    parts = [(x[blocks == block], y[blocks == block]) for block in np.unique(blocks)]
    parts = [(dial, outcome) for dial, outcome in parts if len(np.unique(dial)) > 1]
    if not parts:
        return MonotoneTrend(math.nan, (), PValue(1.0, 1.0, 0, "Spearman"))
    scored = [(standardize_ranks(dial), standardize_ranks(outcome)) for dial, outcome in parts]
    seen = sum(float(dial @ outcome) for dial, outcome in scored)
    orders = math.prod(math.factorial(len(dial)) for dial, _ in scored)
    if orders <= MAX_EXACT_ORDERS:
        each = [[float(dial @ outcome[list(order)]) for order in permutations(range(len(dial)))] for dial, outcome in scored]
        null = np.array([sum(choice) for choice in product(*each)])
        extra, total, name = 0, len(null), "Spearman, exact permutation"
    else:
        rng = numpy_stream(seed, "orders")
        null = sum(
            (rng.permuted(np.tile(outcome, (num_permutations, 1)), axis=1) @ dial for dial, outcome in scored), np.zeros(num_permutations)
        )
        extra, total, name = 1, num_permutations + 1, f"Spearman, {num_permutations} permutations"
    far = np.abs(null) >= abs(seen) - 1e-9
    value = float((far.sum() + extra) / total)
    least = max(2 / orders, 0.0) if orders <= MAX_EXACT_ORDERS else 1 / total
    slopes = tuple(least_squares_slope(dial, outcome) for dial, outcome in parts)
    return MonotoneTrend(seen / len(scored), slopes, PValue(value, min(1.0, least), len(scored), name))


def standardize_ranks(values: np.ndarray) -> np.ndarray:
    """Midranks, centred and of length 1 (0 if all are equal), so that products are Spearman's rho."""
    ranks = stats.rankdata(values)
    ranks = ranks - ranks.mean()
    length = math.sqrt(float(ranks @ ranks))
    return ranks / length if length else ranks


def least_squares_slope(predictor: np.ndarray, outcome: np.ndarray) -> float:
    """Least squares, outcome per unit of the dial."""
    if not np.isfinite(outcome).all():
        return math.nan
    centred = predictor - predictor.mean()
    return float(centred @ (outcome - outcome.mean()) / (centred @ centred))


# Several hypotheses at once: Holm inside a family of hypotheses, Benjamini-Hochberg over exploratory maps.
#
# Holm, Scandinavian Journal of Statistics 6, 1979: the chance of any false call in the family stays at alpha. Benjamini &
# Hochberg, JRSS B 57, 1995: the expected share of false ones among the calls does. A hypothesis that could not be tested
# still counts, as p = 1. (statsmodels has Holm too, and collects the garbage of the process in each call: .2 s where torch is
# loaded.)


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Adjusted p, same order."""
    given, counted = fill_untested(p)
    order = np.argsort(counted, kind="stable")
    steps = np.maximum.accumulate(counted[order] * np.arange(len(counted), 0, -1))
    adjusted = np.empty_like(counted)
    adjusted[order] = np.minimum(steps, 1.0)
    return np.where(np.isnan(given), np.nan, adjusted)


def benjamini_hochberg(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Adjusted p (q-values), same order."""
    given, counted = fill_untested(p)
    return np.where(np.isnan(given), np.nan, false_discovery_control(counted)) if len(given) else given


def fill_untested(p: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As given, and with 1 for what could not be tested."""
    given = np.asarray(p, dtype=np.float64)
    return given, np.where(np.isnan(given), 1.0, given)
