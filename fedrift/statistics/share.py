"""A ratio of two means of paired numbers, with an interval that knows that the lower one is uncertain too.

Fieller, JRSS B 16, 1954: all r for which mean(a - r b) is no further from 0 than t allows. Where the denominator may be
0 there is no finite interval, and none is given.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from .evidence import Interval


def fieller(a: np.ndarray, b: np.ndarray, level: float = 0.95) -> Interval:
    """mean(a) / mean(b) over seeds; both ``[seeds]``, paired."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    count = len(a)
    estimate = float(a.mean() / b.mean()) if count and b.mean() else math.nan
    if count < 2 or math.isnan(estimate):
        return Interval(estimate, math.nan, math.nan, math.nan)
    t = stats.t.ppf((1 + level) / 2, count - 1)
    (vaa, vab), (_, vbb) = np.cov(a, b) / count
    square, middle, rest = b.mean() ** 2 - t**2 * vbb, a.mean() * b.mean() - t**2 * vab, a.mean() ** 2 - t**2 * vaa
    root = middle**2 - square * rest
    if square <= 0 or root < 0:
        return Interval(estimate, -math.inf, math.inf, level)
    return Interval(estimate, float((middle - math.sqrt(root)) / square), float((middle + math.sqrt(root)) / square), level)
