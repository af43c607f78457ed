"""Intervals of paired differences over seeds: Student's t, and order statistics where a run has no number.

Percentile bootstraps of so few seeds cover too little (95 % nominal is 83 % of 5 seeds), t-intervals do not.
Where diverged runs make a difference infinite the mean has no interval, but the median has: [d_(j), d_(n+1-j)] covers it with
1 - 2 P(Bin(n, 1/2) < j), whatever the distribution (Thompson, Annals of Mathematical Statistics 7, 1936).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy import stats

from ..core.errors import UserError
from ..core.random import numpy_stream
from .significance import Interval, PValue, min_p


def paired_differences(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``a - b``; a diverged run is infinite. Where both sides diverged there is no difference to tell: NaN, see
    ``both_diverged``."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return np.where(both_diverged(a, b), np.nan, a - b)


def both_diverged(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Where both sides diverged: they are as bad as each other, which is not a difference of zero."""
    return np.isinf(a) & (np.asarray(a) == np.asarray(b))


def mean_ci(d: np.ndarray, confidence_level: float = 0.95) -> Interval:
    """The mean of the differences ``d [seeds]`` and its t-interval; NaN bounds of fewer than two."""
    d = np.asarray(d, dtype=np.float64)
    if len(d) < 2 or not np.isfinite(d).all():
        return Interval(float(d.mean()) if len(d) and np.isfinite(d).all() else math.nan, math.nan, math.nan, math.nan)
    half = stats.t.ppf((1 + confidence_level) / 2, len(d) - 1) * d.std(ddof=1) / math.sqrt(len(d))
    return Interval(float(d.mean()), float(d.mean() - half), float(d.mean() + half), confidence_level)


def paired_t_test(d: np.ndarray, null_value: float = 0.0) -> PValue:
    """Student's paired t test; its p is no better than the seeds' signs allow when it is printed."""
    d = np.asarray(d, dtype=np.float64)
    if len(d) < 2 or not np.isfinite(d).all():
        return PValue(math.nan, min_p(len(d)), len(d), "paired t")
    spread = d.std(ddof=1)
    if spread == 0:
        return PValue(float(d[0] == null_value), min_p(len(d)), len(d), "paired t")
    t = (d.mean() - null_value) / (spread / math.sqrt(len(d)))
    return PValue(float(2 * stats.t.sf(abs(t), len(d) - 1)), min_p(len(d)), len(d), "paired t")


def median_ci(d: np.ndarray, confidence_level: float = 0.95) -> Interval:
    """The median of ``d [seeds]`` between two order statistics, infinities allowed.

    ``confidence_level`` comes back as what was reached: at least what was asked, or the range of them all and its lower
    level (.94 of five seeds) where even that is not enough.
    """
    ordered = np.sort(np.asarray(d, dtype=np.float64))
    count = len(ordered)
    if count == 0:
        return Interval(math.nan, math.nan, math.nan, math.nan)
    inside = max(1, int(stats.binom.ppf((1 - confidence_level) / 2, count, 0.5)))
    if 2 * stats.binom.cdf(inside - 1, count, 0.5) > 1 - confidence_level + 1e-12:
        inside = max(1, inside - 1)
    reached = 1 - 2 * stats.binom.cdf(inside - 1, count, 0.5)
    return Interval(median(ordered), float(ordered[inside - 1]), float(ordered[count - inside]), float(reached))


def median(d: np.ndarray) -> float:
    """The median; between minus and plus infinity it is 0."""
    ordered = np.sort(np.asarray(d, dtype=np.float64))
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return float(low) if low == high else 0.0 if low == -high else float((low + high) / 2)


# A ratio of two means of paired numbers, with an interval that knows that the lower one is uncertain too.
#
# Fieller, JRSS B 16, 1954: all r for which mean(a - r b) is no further from 0 than t allows. Where the denominator may be
# 0 there is no finite interval, and none is given.


def ratio_ci(a: np.ndarray, b: np.ndarray, confidence_level: float = 0.95) -> Interval:
    """mean(a) / mean(b) over seeds; both ``[seeds]``, paired."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    count = len(a)
    estimate = float(a.mean() / b.mean()) if count and b.mean() else math.nan
    if count < 2 or math.isnan(estimate):
        return Interval(estimate, math.nan, math.nan, math.nan)
    t = stats.t.ppf((1 + confidence_level) / 2, count - 1)
    (vaa, vab), (_, vbb) = np.cov(a, b) / count
    square, middle, rest = b.mean() ** 2 - t**2 * vbb, a.mean() * b.mean() - t**2 * vab, a.mean() ** 2 - t**2 * vaa
    root = middle**2 - square * rest
    if square <= 0 or root < 0:
        return Interval(estimate, -math.inf, math.inf, confidence_level)
    return Interval(estimate, float((middle - math.sqrt(root)) / square), float((middle + math.sqrt(root)) / square), confidence_level)


# The bootstrap, for items inside one run only: documents, minimal pairs, tokens.
#
# Items of a template or a document are alike, so whole clusters are drawn, not items (Davison & Hinkley, "Bootstrap
# Methods and their Application", 1997, section 3.8). Never over seeds: with fewer than about thirty the percentile
# interval covers too little.

MIN_CLUSTERS = 15  # clusters; below it the percentile interval of the mean covers less than 92 % for 95 %


def bootstrap_items(
    values: np.ndarray,
    clusters: np.ndarray | None = None,
    statistic: Callable[[np.ndarray], float] = np.mean,
    confidence_level: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """The percentile interval of ``statistic`` over items ``values [items]``, drawn by whole ``clusters [items]``."""
    values = np.asarray(values, dtype=np.float64)
    members = [values[[number]] for number in range(len(values))] if clusters is None else split_by_cluster(values, np.asarray(clusters))
    if len(members) < MIN_CLUSTERS:
        kind = "items" if clusters is None else "clusters"
        raise UserError(
            f"a bootstrap of {len(members)} {kind} covers too little; it wants {MIN_CLUSTERS} or more. "
            "Over seeds use paired_t_test and sign_flip_test"
        )
    rng = numpy_stream(seed, "bootstrap")
    drawn = [
        float(statistic(np.concatenate([members[place] for place in rng.integers(0, len(members), len(members))])))
        for _ in range(num_resamples)
    ]
    low, high = np.quantile(drawn, [(1 - confidence_level) / 2, (1 + confidence_level) / 2])
    estimate = float(statistic(values)) if len(values) else math.nan
    return Interval(estimate, float(low), float(high), confidence_level)


def split_by_cluster(values: np.ndarray, clusters: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(clusters, kind="stable")
    starts = np.flatnonzero(clusters[order][1:] != clusters[order][:-1]) + 1
    return np.split(values[order], starts)


# What heterogeneity caused: difference-in-differences against IID twins.
#
# DiD_s = [M(a, non-IID) - M(a, IID)] - [M(b, non-IID) - M(b, IID)] for each paired seed s. With b centralised or FedSGD
# it says what the skew did to a; with b = FedAvg, how a fails otherwise than FedAvg. What both show on IID data too
# cancels (Card & Krueger, AER 84, 1994).


def difference_in_differences(a: np.ndarray, a_baseline: np.ndarray, b: np.ndarray, b_baseline: np.ndarray) -> np.ndarray:
    """One number a seed; all ``[seeds]``, in the same order of seeds."""
    return paired_differences(paired_differences(a, a_baseline), paired_differences(b, b_baseline))
