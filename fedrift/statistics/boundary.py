"""Stability boundaries: how much smaller the largest stable learning rate is, as a ratio with an interval.

Boundaries are found on a logarithmic grid or by bisection of log lr, so it is their logarithms that differ evenly: the
paired t-interval of log a_s - log b_s, taken back by exp.
"""

from __future__ import annotations

import math

import numpy as np

from .evidence import Interval
from .paired import paired_t


def log_ratio(a: np.ndarray, b: np.ndarray, level: float = 0.95) -> Interval:
    """The geometric mean of ``a / b`` over paired seeds; both ``[seeds]`` and above 0, else NaN."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if not ((a > 0) & (b > 0)).all():
        return Interval(math.nan, math.nan, math.nan, math.nan)
    found = paired_t(np.log(a) - np.log(b), level)
    return Interval(math.exp(found.estimate), math.exp(found.low), math.exp(found.high), found.level)
