"""How small an effect a paired design could have seen: the power of the test that is made, the exact sign-flip test.

Few seeds have few sign patterns, and the paired t test, whose power has a closed form, promises too much for them: what it
would see with 80 % probability, six seeds call in 64 %. So up to ``FEW`` seeds the power is that of the sign-flip test itself,
of drawn normal differences; beyond that both are the same to a hundredth, and the noncentral t distribution is taken.

"No failure found" without it is no finding. Cohen, "Statistical Power Analysis for the Behavioral Sciences", 1988, chapter 2.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from scipy import optimize, stats

from ..seeds import numpy_stream
from .evidence import ALPHA, smallest_p

FAR = 1e3  # standard errors
FEW, DRAWS = 12, 4000


def power(seeds: int, effect: float, sd: float, alpha: float = ALPHA) -> float:
    """The chance that the two-sided sign-flip test calls a true mean difference ``effect`` of differences with that ``sd``."""
    if seeds < 2 or not sd > 0:
        return math.nan
    if seeds <= FEW:
        return called(seeds, min(abs(effect) / sd, FAR), alpha)
    edge = stats.t.ppf(1 - alpha / 2, seeds - 1)
    shift = effect / sd * math.sqrt(seeds)
    if abs(shift) > FAR:
        return 1.0
    wrong_side = stats.nct.cdf(-edge, seeds - 1, abs(shift))  # scipy gives NaN where it is too small to be told
    return float(stats.nct.sf(edge, seeds - 1, abs(shift)) + np.nan_to_num(wrong_side))


def called(seeds: int, effect: float, alpha: float) -> float:
    """The share of drawn differences, normal about ``effect`` sd, that the exact sign-flip test calls."""
    draws = DRAWS * 2 ** max(0, 10 - seeds)
    drawn = (effect + numpy_stream(0, "power", seeds).standard_normal((draws, seeds))).astype(np.float32)
    half = 2 ** (seeds - 1)  # patterns up to their common sign
    signs = np.ones((seeds, half), dtype=np.float32)
    signs[1:] -= 2 * (np.arange(half) >> np.arange(seeds - 1)[:, None] & 1)
    far = np.abs(drawn @ signs) >= np.abs(drawn.sum(axis=1, keepdims=True)) * (1 - 1e-5)
    return float((far.mean(axis=1) <= alpha).mean())


def detectable(seeds: int, sd: float, alpha: float = ALPHA, power: float = 0.8) -> float:
    """The minimum detectable effect; infinite where no effect, however large, could be called by so few seeds."""
    if smallest_p(seeds) > alpha or seeds < 2:
        return math.inf
    if not sd > 0:
        return math.nan if math.isnan(sd) else 0.0
    return sd * standard(seeds, alpha, power)


@cache
def standard(seeds: int, alpha: float, wanted: float) -> float:
    """The standardised effect (in sd of the differences) that is called with the power that is wanted."""
    high = 1.0
    while power(seeds, high, 1.0, alpha) < wanted:
        high *= 2
    return float(optimize.brentq(lambda effect: power(seeds, effect, 1.0, alpha) - wanted, 1e-9, high, xtol=1e-3))


def seeds_for(effect: float, sd: float, alpha: float = ALPHA, power: float = 0.8, most: int = 1000) -> int | None:
    """The fewest seeds that see ``effect`` with that power; None if not even ``most`` do."""
    return next((n for n in range(2, most + 1) if detectable(n, sd, alpha, power) <= abs(effect)), None)
