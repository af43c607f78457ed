"""How small an effect a paired design could have seen: power of the paired t test, by the noncentral t distribution.

"No failure found" without it is no finding. Cohen, "Statistical Power Analysis for the Behavioral Sciences", 1988, chapter 2.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import optimize, stats

from .evidence import ALPHA, smallest_p

FAR = 1e3  # standard errors


def power(seeds: int, effect: float, sd: float, alpha: float = ALPHA) -> float:
    """The chance that a two-sided paired t test calls a true mean difference ``effect`` of differences with that ``sd``."""
    if seeds < 2 or not sd > 0:
        return math.nan
    edge = stats.t.ppf(1 - alpha / 2, seeds - 1)
    shift = effect / sd * math.sqrt(seeds)
    if abs(shift) > FAR:
        return 1.0
    wrong_side = stats.nct.cdf(-edge, seeds - 1, abs(shift))  # scipy gives NaN where it is too small to be told
    return float(stats.nct.sf(edge, seeds - 1, abs(shift)) + np.nan_to_num(wrong_side))


def detectable(seeds: int, sd: float, alpha: float = ALPHA, power: float = 0.8) -> float:
    """The minimum detectable effect; infinite where no effect, however large, could be called by so few seeds."""
    if smallest_p(seeds) > alpha or seeds < 2:
        return math.inf
    if not sd > 0:
        return math.nan if math.isnan(sd) else 0.0
    return sd * standard(seeds, alpha, power)


def standard(seeds: int, alpha: float, wanted: float) -> float:
    """The standardised effect (in sd of the differences) that is called with the power that is wanted."""
    high = 1.0
    while power(seeds, high, 1.0, alpha) < wanted:
        high *= 2
    return float(optimize.brentq(lambda effect: power(seeds, effect, 1.0, alpha) - wanted, 1e-9, high))


def seeds_for(effect: float, sd: float, alpha: float = ALPHA, power: float = 0.8, most: int = 1000) -> int | None:
    """The fewest seeds that see ``effect`` with that power; None if not even ``most`` do."""
    return next((n for n in range(2, most + 1) if detectable(n, sd, alpha, power) <= abs(effect)), None)
