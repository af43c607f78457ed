"""The result of one hypothesis, and the tests of one number per seed that produce it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from ..core.lazy_imports import pd
from .effects import compare_paired, detectable_margin, mean_ci, min_detectable_effect, tost
from .selection import PerSeedValues
from .significance import Interval, PValue, count_seeds, is_below, subtract


@dataclass(frozen=True)
class DecisionCriteria:
    """The significance level ``alpha`` that ``family_size`` hypotheses share, and the power that defines the minimum detectable effect."""

    alpha: float = 0.05
    power: float = 0.8
    family_size: int = 1

    @property
    def strictest_alpha(self) -> float:
        """Return the strictest significance level that Holm's procedure applies to a hypothesis of the family."""
        return self.alpha / max(self.family_size, 1)


@dataclass(frozen=True)
class HypothesisResult:
    """The result of one hypothesis before the correction over its family.

    Attributes:
        description: The compared quantity in words.
        unit: The unit of the interval: "difference", "ratio", "slope", "share" or "rate".
        interval: The estimate with its confidence interval.
        p: The p-value of the test.
        has_predicted_sign: Whether the estimate has the sign that the hypothesis predicts.
        is_ruled_out: Whether the data exclude the predicted effect.
        incomplete: The number of seeds that lack a run of the comparison.
        diverged: The number of diverged runs.
        g: Paired Hedges' g.
        detectable: The minimum detectable effect.
        points: (seed, value) of every seed.
        notes: Remarks on the result, as plain sentences.
        both_diverged: The number of seeds in which both sides diverged.
    """

    description: str
    unit: str
    interval: Interval
    p: PValue
    has_predicted_sign: bool
    is_ruled_out: bool = False
    incomplete: int = 0
    diverged: int = 0
    g: float = math.nan
    detectable: float = math.nan
    points: tuple[tuple[int, float], ...] = ()
    notes: tuple[str, ...] = ()
    both_diverged: int = 0  # the difference of these seeds is undefined; it is not zero


def describe_infinite(description: str) -> str:
    """Return what an infinite value means: a cost or a round to a target (``rounds.to:4.2``) is infinite too where it is not reached."""
    return "diverged or never reached the target" if ".to:" in description else "diverged"


def empty_result(
    description: str, unit: str, incomplete: int = 0, reason: str = "", diverged: int = 0, both_diverged: int = 0
) -> HypothesisResult:
    """Return the result of a comparison without any complete seed."""
    reason = reason or (
        f"both sides {describe_infinite(description)} in all of {count_seeds(both_diverged)}, so there is no difference to test"
        if both_diverged
        else "no seed has all the runs that the comparison needs"
    )
    empty = Interval(math.nan, math.nan, math.nan, math.nan)
    return HypothesisResult(
        description,
        unit,
        empty,
        PValue(math.nan, 1.0, 0, "none"),
        False,
        incomplete=incomplete,
        diverged=diverged,
        detectable=math.inf,
        notes=(reason,),
        both_diverged=both_diverged,
    )


def directional_result(
    per_seed: PerSeedValues, sign: int, margin: float, min_effect: float, criteria: DecisionCriteria, description: str, diverged: int
) -> HypothesisResult:
    """Test whether the mean difference is above ``margin`` (``sign`` 1) or below ``-margin`` (``sign`` -1).

    Args:
        per_seed: The differences, one per seed.
        sign: 1 or -1, the predicted direction.
        margin: The margin, at least 0, in the unit of the differences.
        min_effect: The smallest effect of interest. If it is above 0, the hypothesis is ruled out when a one-sided t bound at the
            strictest alpha of the family excludes effects of this size.
        criteria: The significance level and the power.
        description: The compared quantity in words.
        diverged: The number of diverged runs.
    """
    d = per_seed.values
    if not len(d):
        return empty_result(description, "difference", per_seed.incomplete, diverged=diverged, both_diverged=per_seed.both_diverged)
    numbers = d.to_numpy(dtype=np.float64)
    beyond = subtract(numbers, sign * margin)
    comparison = compare_paired(beyond, 1 - criteria.alpha, criteria.alpha, criteria.power, criteria.family_size)
    shift = sign * margin
    centered = comparison.interval
    interval = Interval(centered.estimate + shift, centered.low + shift, centered.high + shift, centered.confidence_level)
    bounds = mean_ci(numbers, 1 - 2 * criteria.strictest_alpha)
    largest_plausible = sign * (bounds.high if sign > 0 else bounds.low)  # in the predicted direction
    is_ruled_out = min_effect > 0 and is_below(largest_plausible, min_effect) and 0.5 ** len(numbers) <= criteria.strictest_alpha
    notes = []
    if comparison.infinite:
        notes.append(
            f"in {comparison.infinite} of {comparison.seeds} seeds only one side {describe_infinite(description)}, so the median and ranks "
            "replace the mean"
        )
    equal = int((beyond == 0).sum())
    if equal:
        notes.append(f"{equal} of {count_seeds(len(numbers))} {'does' if equal == 1 else 'do'} not differ at all")
    if is_ruled_out:
        notes.append(f"the data rule out an effect of {min_effect:g}, the smallest effect of interest")
    notes += per_seed.notes
    has_predicted_sign = sign * comparison.interval.estimate > 0 if not comparison.infinite else sign * comparison.rank_biserial > 0
    return HypothesisResult(
        description,
        "difference",
        interval,
        comparison.p,
        has_predicted_sign,
        is_ruled_out,
        per_seed.incomplete,
        diverged,
        comparison.g,
        comparison.detectable + margin,
        seed_points(d),
        tuple(notes),
        per_seed.both_diverged,
    )


def equivalence_result(
    per_seed: PerSeedValues, margin: float, criteria: DecisionCriteria, description: str, diverged: int
) -> HypothesisResult:
    """Apply TOST to one number per seed; equivalence is refuted if the interval lies entirely beyond the margin."""
    d, incomplete, both_diverged, notes = per_seed
    description = f"{description} within {margin:g}"
    if not len(d):
        return empty_result(description, "difference", incomplete, diverged=diverged, both_diverged=both_diverged)
    numbers = d.to_numpy(float)
    if not np.isfinite(numbers).all():
        return replace(
            empty_result(
                description,
                "difference",
                incomplete,
                f"only one side {describe_infinite(description)} in at least one seed, so equivalence cannot be tested",
                diverged,
                both_diverged,
            ),
            points=seed_points(d),
        )
    equivalence, interval = tost(numbers, margin, criteria.alpha), mean_ci(numbers, 1 - 2 * criteria.strictest_alpha)
    is_beyond = is_below(margin, interval.low) or is_below(interval.high, -margin)
    is_ruled_out = is_beyond and equivalence.p.min_attainable_p <= criteria.strictest_alpha
    sd = float(numbers.std(ddof=1)) if len(numbers) > 1 else math.nan
    is_inside = is_below(abs(float(numbers.mean())), margin)
    return HypothesisResult(
        description,
        "difference",
        equivalence.interval,
        equivalence.p,
        is_inside,
        is_ruled_out,
        incomplete,
        diverged,
        detectable=detectable_margin(len(numbers), sd, criteria.strictest_alpha, criteria.power),
        points=seed_points(d),
        notes=notes,
        both_diverged=both_diverged,
    )


def to_ratio(result: HypothesisResult) -> HypothesisResult:
    """Convert a result in logarithms to a result in ratios."""
    interval = result.interval
    return replace(
        result,
        unit="ratio",
        interval=Interval(np.exp(interval.estimate), np.exp(interval.low), np.exp(interval.high), interval.confidence_level),
        detectable=float(np.exp(result.detectable)),
        points=tuple((seed, float(np.exp(value))) for seed, value in result.points),
    )


def seed_points(d: pd.Series) -> tuple[tuple[int, float], ...]:
    """Return (seed, value) of every seed. Seeds are few, so reports show all of them."""
    return tuple((int(seed), float(value)) for seed, value in zip(d.index.to_numpy(), d.to_numpy(), strict=True))


def detectable_effect(numbers: np.ndarray, criteria: DecisionCriteria) -> float:
    """Return the minimum detectable effect of the numbers, or NaN if some are infinite."""
    if not np.isfinite(numbers).all():
        return math.nan
    return min_detectable_effect(
        len(numbers), float(numbers.std(ddof=1)) if len(numbers) > 1 else math.nan, criteria.strictest_alpha, criteria.power
    )
