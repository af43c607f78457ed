"""Intervals of paired differences over seeds: Student's t, and order statistics where a run has no number.

Percentile bootstraps of so few seeds cover too little (95 % nominal is 83 % of 5 seeds), t-intervals do not.
Where diverged runs make a difference infinite the mean has no interval, but the median has: [d_(j), d_(n+1-j)] covers it with
1 - 2 P(Bin(n, 1/2) < j), whatever the distribution (Thompson, Annals of Mathematical Statistics 7, 1936).
"""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from .evidence import Interval, P, smallest_p


def differences(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``a - b``; a diverged run is infinite. Where both sides diverged there is no difference to tell: NaN, see ``ties``."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return np.where(ties(a, b), np.nan, a - b)


def ties(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Where both sides diverged: they are as bad as each other, which is not a difference of zero."""
    return np.isinf(a) & (np.asarray(a) == np.asarray(b))


def paired_t(d: np.ndarray, level: float = 0.95) -> Interval:
    """The mean of the differences ``d [seeds]`` and its t-interval; NaN bounds of fewer than two."""
    d = np.asarray(d, dtype=np.float64)
    if len(d) < 2 or not np.isfinite(d).all():
        return Interval(float(d.mean()) if len(d) and np.isfinite(d).all() else math.nan, math.nan, math.nan, math.nan)
    half = stats.t.ppf((1 + level) / 2, len(d) - 1) * d.std(ddof=1) / math.sqrt(len(d))
    return Interval(float(d.mean()), float(d.mean() - half), float(d.mean() + half), level)


def t_test(d: np.ndarray, about: float = 0.0) -> P:
    """Student's paired t test; its p is no better than the seeds' signs allow when it is printed."""
    d = np.asarray(d, dtype=np.float64)
    if len(d) < 2 or not np.isfinite(d).all():
        return P(math.nan, smallest_p(len(d)), len(d), "paired t")
    spread = d.std(ddof=1)
    if spread == 0:
        return P(float(d[0] == about), smallest_p(len(d)), len(d), "paired t")
    t = (d.mean() - about) / (spread / math.sqrt(len(d)))
    return P(float(2 * stats.t.sf(abs(t), len(d) - 1)), smallest_p(len(d)), len(d), "paired t")


def median_interval(d: np.ndarray, level: float = 0.95) -> Interval:
    """The median of ``d [seeds]`` between two order statistics, infinities allowed.

    ``level`` comes back as what was reached: at least what was asked, or the range of them all and its lower
    level (.94 of five seeds) where even that is not enough.
    """
    ordered = np.sort(np.asarray(d, dtype=np.float64))
    count = len(ordered)
    if count == 0:
        return Interval(math.nan, math.nan, math.nan, math.nan)
    inside = max(1, int(stats.binom.ppf((1 - level) / 2, count, 0.5)))
    if 2 * stats.binom.cdf(inside - 1, count, 0.5) > 1 - level + 1e-12:
        inside = max(1, inside - 1)
    reached = 1 - 2 * stats.binom.cdf(inside - 1, count, 0.5)
    return Interval(middle(ordered), float(ordered[inside - 1]), float(ordered[count - inside]), float(reached))


def middle(d: np.ndarray) -> float:
    """The median; between minus and plus infinity it is 0."""
    ordered = np.sort(np.asarray(d, dtype=np.float64))
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return float(low) if low == high else 0.0 if low == -high else float((low + high) / 2)
