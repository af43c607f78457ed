"""The size of a paired effect in standard deviations: Hedges' g of the differences.

g_z = J mean(d) / sd(d), J = Gamma(m/2) / (sqrt(m/2) Gamma((m-1)/2)), m = n - 1. Hedges, Journal of Educational
Statistics 6, 1981, with the differences' own sd (Lakens, Frontiers in Psychology 4:863, 2013, calls it g_z). The raw
difference in nats says more, and as exp(difference) it is a ratio of perplexities: show both.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import gammaln


def hedges_g(d: np.ndarray) -> float:
    """Of the differences ``d [seeds]``; NaN of fewer than two, or where one is infinite."""
    d = np.asarray(d, dtype=np.float64)
    if len(d) < 2 or not np.isfinite(d).all():
        return math.nan
    mean, sd = d.mean(), d.std(ddof=1)
    if sd == 0:
        return 0.0 if mean == 0 else math.copysign(math.inf, mean)
    return float(unbiased(len(d) - 1) * mean / sd)


def unbiased(freedom: int) -> float:
    """J: what the standardised mean of so many degrees of freedom is too large by, about 1 - 3 / (4 m - 1)."""
    if freedom < 2:
        return math.nan
    return math.exp(gammaln(freedom / 2) - gammaln((freedom - 1) / 2)) / math.sqrt(freedom / 2)


def as_perplexity(nats: float) -> float:
    """A difference of losses as per cent of perplexity."""
    return math.expm1(min(nats, 700.0)) * 100
