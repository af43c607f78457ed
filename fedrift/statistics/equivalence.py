"""No effect, shown: two one-sided t tests (TOST). Not finding a difference is not finding none.

Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 15, 1987. Equivalent at alpha exactly when the 1 - 2 alpha t-interval
lies inside (-within, within).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from .evidence import ALPHA, Interval, P, smallest_p
from .paired import paired_t

GRID = (np.arange(400) + 0.5) / 400  # quantiles over which the unknown sd is averaged


@dataclass(frozen=True)
class Equivalence:
    """``p``: the larger of the two one-sided ones; ``interval``: at level 1 - 2 alpha."""

    p: P
    interval: Interval
    within: float

    @property
    def shown(self) -> bool:
        """Whether the interval lies inside the margin."""
        return -self.within < self.interval.low and self.interval.high < self.within


def tost(d: np.ndarray, within: float, alpha: float = ALPHA) -> Equivalence:
    """Whether the mean of ``d [seeds]`` lies inside (-within, within). Both tests are one-sided: n seeds, all inside,
    have 1 / 2^n to be on that side of the margin by chance, and are believed no more than that."""
    d = np.asarray(d, dtype=np.float64)
    interval, least = paired_t(d, 1 - 2 * alpha), smallest_p(len(d)) / 2
    if math.isnan(interval.low):
        return Equivalence(P(math.nan, least, len(d), "TOST"), interval, within)
    error = float(d.std(ddof=1)) / math.sqrt(len(d))
    room = within - abs(float(d.mean()))
    value = float(stats.t.sf(room / error, len(d) - 1)) if error else float(room <= 0)
    return Equivalence(P(value, least, len(d), "TOST"), interval, within)


def smallest_margin(d: np.ndarray, alpha: float = ALPHA) -> float:
    """The narrowest margin that these numbers would have shown equivalence within."""
    interval = paired_t(np.asarray(d, dtype=np.float64), 1 - 2 * alpha)
    return max(abs(interval.low), abs(interval.high))


def margin_for(seeds: int, sd: float, alpha: float = ALPHA, power: float = 0.8) -> float:
    """The margin within which a true difference of 0 would be shown with that power; infinite where so few seeds can
    show none."""
    if smallest_p(seeds) / 2 > alpha or seeds < 2:
        return math.inf
    if not sd > 0:
        return math.nan if math.isnan(sd) else 0.0
    freedom, error = seeds - 1, sd / math.sqrt(seeds)
    edge = stats.t.ppf(1 - alpha, freedom)

    def chance(margin: float) -> float:  # mean z, sd s: |z| < margin - edge s, over the chi distribution of s
        spread = stats.chi.ppf(GRID, freedom) / math.sqrt(freedom)
        return float(np.mean(2 * stats.norm.cdf(np.maximum(margin - edge * spread, 0.0)) - 1))

    return error * float(optimize.brentq(lambda margin: chance(margin) - power, 0.0, 1e6))
