"""The size of a paired effect in standard deviations: Hedges' g of the differences.

g_z = J mean(d) / sd(d), J = Gamma(m/2) / (sqrt(m/2) Gamma((m-1)/2)), m = n - 1. Hedges, Journal of Educational
Statistics 6, 1981, with the differences' own sd (Lakens, Frontiers in Psychology 4:863, 2013, calls it g_z). The raw
difference in nats says more, and as exp(difference) it is a ratio of perplexities: show both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import optimize, stats
from scipy.special import gammaln

from ..core.random import numpy_stream
from .intervals import mean_ci, median_ci
from .significance import ALPHA, Interval, PValue, min_p, rank_biserial, sign_flip_test, wilcoxon


def hedges_g(d: np.ndarray) -> float:
    """Of the differences ``d [seeds]``; NaN of fewer than two, or where one is infinite."""
    d = np.asarray(d, dtype=np.float64)
    if len(d) < 2 or not np.isfinite(d).all():
        return math.nan
    mean, sd = d.mean(), d.std(ddof=1)
    if sd == 0:
        return 0.0 if mean == 0 else math.copysign(math.inf, mean)
    return float(bias_correction(len(d) - 1) * mean / sd)


def bias_correction(dof: int) -> float:
    """J: what the standardised mean of so many degrees of freedom is too large by, about 1 - 3 / (4 m - 1)."""
    if dof < 2:
        return math.nan
    return math.exp(gammaln(dof / 2) - gammaln((dof - 1) / 2)) / math.sqrt(dof / 2)


def perplexity_change_percent(nats: float) -> float:
    """A difference of losses as per cent of perplexity."""
    return math.expm1(min(nats, 700.0)) * 100


# How small an effect a paired design could have seen: the power of the test that is made, the exact sign-flip test.
#
# Few seeds have few sign patterns, and the paired t test, whose power has a closed form, promises too much for them: what it
# would see with 80 % probability, six seeds call in 64 %. So up to ``MAX_SIMULATED_SEEDS`` seeds the power is that of the
# sign-flip test itself, of drawn normal differences; beyond that both are the same to a hundredth, and the noncentral t
# distribution is taken.
#
# "No failure found" without it is no finding. Cohen, "Statistical Power Analysis for the Behavioral Sciences", 1988, chapter 2.

MAX_STANDARD_ERRORS = 1e3  # standard errors
MAX_SIMULATED_SEEDS, NUM_SIMULATIONS = 12, 4000


def power(seeds: int, effect: float, sd: float, alpha: float = ALPHA) -> float:
    """The chance that the two-sided sign-flip test calls a true mean difference ``effect`` of differences with that ``sd``."""
    if seeds < 2 or not sd > 0:
        return math.nan
    if seeds <= MAX_SIMULATED_SEEDS:
        return simulate_power(seeds, min(abs(effect) / sd, MAX_STANDARD_ERRORS), alpha)
    edge = stats.t.ppf(1 - alpha / 2, seeds - 1)
    shift = effect / sd * math.sqrt(seeds)
    if abs(shift) > MAX_STANDARD_ERRORS:
        return 1.0
    wrong_side = stats.nct.cdf(-edge, seeds - 1, abs(shift))  # scipy gives NaN where it is too small to be told
    return float(stats.nct.sf(edge, seeds - 1, abs(shift)) + np.nan_to_num(wrong_side))


def simulate_power(seeds: int, effect: float, alpha: float) -> float:
    """The share of drawn differences, normal about ``effect`` sd, that the exact sign-flip test calls."""
    draws = NUM_SIMULATIONS * 2 ** max(0, 10 - seeds)
    drawn = (effect + numpy_stream(0, "power", seeds).standard_normal((draws, seeds))).astype(np.float32)
    half = 2 ** (seeds - 1)  # patterns up to their common sign
    signs = np.ones((seeds, half), dtype=np.float32)
    signs[1:] -= 2 * (np.arange(half) >> np.arange(seeds - 1)[:, None] & 1)
    far = np.abs(drawn @ signs) >= np.abs(drawn.sum(axis=1, keepdims=True)) * (1 - 1e-5)
    return float((far.mean(axis=1) <= alpha).mean())


def min_detectable_effect(seeds: int, sd: float, alpha: float = ALPHA, power: float = 0.8) -> float:
    """The minimum detectable effect; infinite where no effect, however large, could be called by so few seeds."""
    if min_p(seeds) > alpha or seeds < 2:
        return math.inf
    if not sd > 0:
        return math.nan if math.isnan(sd) else 0.0
    return sd * min_detectable_standardized(seeds, alpha, power)


@cache
def min_detectable_standardized(seeds: int, alpha: float, target_power: float) -> float:
    """The standardised effect (in sd of the differences) that is called with the power that is wanted."""
    high = 1.0
    while power(seeds, high, 1.0, alpha) < target_power:
        high *= 2
    return float(optimize.brentq(lambda effect: power(seeds, effect, 1.0, alpha) - target_power, 1e-9, high, xtol=1e-3))


def required_seeds(effect: float, sd: float, alpha: float = ALPHA, power: float = 0.8, max_seeds: int = 1000) -> int | None:
    """The fewest seeds that see ``effect`` with that power; None if not even ``max_seeds`` do."""
    return next((n for n in range(2, max_seeds + 1) if min_detectable_effect(n, sd, alpha, power) <= abs(effect)), None)


# No effect, shown: two one-sided t tests (TOST). Not finding a difference is not finding none.
#
# Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 15, 1987. Equivalent at alpha exactly when the 1 - 2 alpha
# t-interval lies inside (-margin, margin).

QUANTILE_GRID = (np.arange(400) + 0.5) / 400  # quantiles over which the unknown sd is averaged


@dataclass(frozen=True)
class EquivalenceResult:
    """``p``: the larger of the two one-sided ones; ``interval``: at level 1 - 2 alpha."""

    p: PValue
    interval: Interval
    margin: float

    @property
    def is_equivalent(self) -> bool:
        """Whether the interval lies inside the margin."""
        return -self.margin < self.interval.low and self.interval.high < self.margin


def tost(d: np.ndarray, margin: float, alpha: float = ALPHA) -> EquivalenceResult:
    """Whether the mean of ``d [seeds]`` lies inside (-margin, margin). Both tests are one-sided: n seeds, all inside,
    have 1 / 2^n to be on that side of the margin by chance, and are believed no more than that."""
    d = np.asarray(d, dtype=np.float64)
    interval, least = mean_ci(d, 1 - 2 * alpha), min_p(len(d)) / 2
    if math.isnan(interval.low):
        return EquivalenceResult(PValue(math.nan, least, len(d), "TOST"), interval, margin)
    error = float(d.std(ddof=1)) / math.sqrt(len(d))
    room = margin - abs(float(d.mean()))
    value = float(stats.t.sf(room / error, len(d) - 1)) if error else float(room <= 0)
    return EquivalenceResult(PValue(value, least, len(d), "TOST"), interval, margin)


def min_equivalence_margin(d: np.ndarray, alpha: float = ALPHA) -> float:
    """The narrowest margin that these numbers would have shown equivalence within."""
    interval = mean_ci(np.asarray(d, dtype=np.float64), 1 - 2 * alpha)
    return max(abs(interval.low), abs(interval.high))


def detectable_margin(seeds: int, sd: float, alpha: float = ALPHA, power: float = 0.8) -> float:
    """The margin within which a true difference of 0 would be shown with that power; infinite where so few seeds can
    show none."""
    if min_p(seeds) / 2 > alpha or seeds < 2:
        return math.inf
    if not sd > 0:
        return math.nan if math.isnan(sd) else 0.0
    freedom, error = seeds - 1, sd / math.sqrt(seeds)
    edge = stats.t.ppf(1 - alpha, freedom)

    def chance(margin: float) -> float:  # mean z, sd s: |z| < margin - edge s, over the chi distribution of s
        spread = stats.chi.ppf(QUANTILE_GRID, freedom) / math.sqrt(freedom)
        return float(np.mean(2 * stats.norm.cdf(np.maximum(margin - edge * spread, 0.0)) - 1))

    return error * float(optimize.brentq(lambda margin: chance(margin) - power, 0.0, 1e6))


# One paired comparison over seeds, whole: interval, exact p, effect sizes, and what could have been seen.
#
# With a diverged run among them the mean has no interval: then it is the median, its interval by order statistics, and
# signed ranks.


@dataclass(frozen=True)
class PairedComparison:
    """What the differences of some seeds say."""

    seeds: int
    interval: Interval  # of the mean; of the median where some are infinite
    p: PValue  # exact sign-flip; of signed ranks where some are infinite
    g: float  # paired Hedges g
    rank_biserial: float
    detectable: float  # the minimum detectable effect; NaN where some are infinite
    infinite: int  # seeds where one side diverged and the other did not


def compare_paired(
    d: np.ndarray, confidence_level: float = 0.95, alpha: float = ALPHA, power: float = 0.8, family_size: int = 1
) -> PairedComparison:
    """The differences ``d [seeds]``, NaN left out; ``family_size`` is how many hypotheses share ``alpha``."""
    d = np.asarray(d, dtype=np.float64)
    d = d[~np.isnan(d)]
    infinite = int(np.isinf(d).sum())
    ranked = infinite > 0
    sd = float(d.std(ddof=1)) if len(d) > 1 and not ranked else math.nan
    return PairedComparison(
        seeds=len(d),
        interval=median_ci(d, confidence_level) if ranked else mean_ci(d, confidence_level),
        p=wilcoxon(d) if ranked else sign_flip_test(d),
        g=hedges_g(d),
        rank_biserial=rank_biserial(d),
        detectable=min_detectable_effect(len(d), sd, alpha / max(family_size, 1), power),
        infinite=infinite,
    )
