"""Hypotheses about two groups of runs: their difference, its interaction, equivalence, recovered share and event rates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from annotated_types import Gt

from ..core.lazy_imports import pd
from .hypothesis_base import FactorLevels, Hypothesis, NonNegative, format_groups, group_difference, metric_label
from .intervals import mask_both_diverged, paired_differences, ratio_ci
from .results import DecisionCriteria, HypothesisResult, detectable_effect, directional_result, empty_result, equivalence_result, to_ratio
from .selection import REQUIRED_COLUMNS, PerSeedValues, Scale, default_worst_end, format_selection, require_columns, select_runs
from .significance import Interval, clopper_pearson, mcnemar, min_seeds, sign_flip_test


@dataclass(frozen=True, kw_only=True)
class Greater(Hypothesis):
    """``metric`` of ``group`` exceeds that of ``reference`` by more than ``margin``.

    Without ``reference`` the metric of ``group`` itself exceeds ``margin``. ``min_effect`` is the smallest effect of interest: the
    hypothesis is refuted if the data rule out an effect of that size. With ``scale: ratio`` the test compares log-ratios, and ``margin``
    and ``min_effect`` are natural logarithms (0.1 is about 10 %).
    """

    group: FactorLevels = field(default_factory=dict)
    reference: FactorLevels = field(default_factory=dict)
    margin: NonNegative = 0.0
    min_effect: NonNegative = 0.0
    scale: Scale = "difference"
    sign: ClassVar[int] = 1

    def evaluate(self, runs: pd.DataFrame, factors: Sequence[str], criteria: DecisionCriteria) -> HypothesisResult:
        """Test one paired difference, for ``Greater`` and ``Less``."""
        d, diverged = group_difference(self, runs, factors, self.group, self.reference, scale=self.scale)
        result = directional_result(
            d, self.sign, self.margin, self.min_effect, criteria, metric_label(self) + format_groups(self.group, self.reference), diverged
        )
        return to_ratio(result) if self.scale == "ratio" else result


@dataclass(frozen=True, kw_only=True)
class Less(Greater):
    """``metric`` of ``group`` is below that of ``reference`` by more than ``margin``; the fields are those of ``Greater``."""

    sign: ClassVar[int] = -1


@dataclass(frozen=True, kw_only=True)
class Interaction(Hypothesis):
    """The difference between ``group`` and ``reference`` is larger (or smaller) in the runs ``inside`` than in the runs ``outside``.

    The test is a difference-in-differences per seed.
    """

    group: FactorLevels
    reference: FactorLevels
    inside: FactorLevels
    outside: FactorLevels
    direction: Literal["greater", "less"] = "greater"
    min_effect: NonNegative = 0.0

    def evaluate(self, runs: pd.DataFrame, factors: Sequence[str], criteria: DecisionCriteria) -> HypothesisResult:
        """Test a difference of two paired differences, per seed."""
        inside, diverged_inside = group_difference(self, runs, factors, self.group, self.reference, self.inside)
        outside, diverged_outside = group_difference(self, runs, factors, self.group, self.reference, self.outside)
        seeds = inside.values.index.intersection(outside.values.index)
        a, b = inside.values[seeds].to_numpy(float), outside.values[seeds].to_numpy(float)
        is_undefined = mask_both_diverged(a, b)
        d = PerSeedValues(
            pd.Series(paired_differences(a, b)[~is_undefined], index=seeds[~is_undefined]),
            max(inside.incomplete, outside.incomplete),
            max(inside.both_diverged, outside.both_diverged) + int(is_undefined.sum()),
        )
        description = (
            f"{metric_label(self)}{format_groups(self.group, self.reference)}, "
            f"in {format_selection(self.inside)} minus in {format_selection(self.outside)}"
        )
        sign = 1 if self.direction == "greater" else -1
        return directional_result(d, sign, 0.0, self.min_effect, criteria, description, diverged_inside + diverged_outside)


@dataclass(frozen=True, kw_only=True)
class Equivalent(Hypothesis):
    """``metric`` of ``group`` and ``reference`` differs by less than ``margin``, by two one-sided tests (TOST).

    Without ``reference`` the metric of ``group`` itself lies within ``margin`` of 0. ``margin`` must be fixed before the runs.
    """

    margin: Annotated[float, Gt(0)]
    group: FactorLevels = field(default_factory=dict)
    reference: FactorLevels = field(default_factory=dict)

    def evaluate(self, runs: pd.DataFrame, factors: Sequence[str], criteria: DecisionCriteria) -> HypothesisResult:
        """Test equivalence by TOST; it is refuted if the interval lies entirely beyond the margin."""
        per_seed, diverged = group_difference(self, runs, factors, self.group, self.reference)
        description = f"{metric_label(self)}{format_groups(self.group, self.reference)}"
        return equivalence_result(per_seed, self.margin, criteria, description, diverged)


@dataclass(frozen=True, kw_only=True)
class RecoveredFraction(Hypothesis):
    """``group`` recovers more than ``min_fraction`` of the difference between ``reference`` and ``target``.

    Without ``target`` the target is the IID baselines of ``reference``.
    """

    group: FactorLevels
    reference: FactorLevels
    target: FactorLevels = field(default_factory=dict)
    min_fraction: NonNegative = 0.0

    def evaluate(self, runs: pd.DataFrame, factors: Sequence[str], criteria: DecisionCriteria) -> HypothesisResult:
        """Test (reference - group) / (reference - target) with Fieller's interval.

        The p-value is that of the sign-flip test of (reference - group) - min_fraction (reference - target).
        """
        (gain, incomplete_gain, both_diverged), diverged_gain = group_difference(self, runs, factors, self.reference, self.group)
        target = replace(self, contrast="iid_baseline") if not self.target else self
        (target_gap, incomplete_gap, both_diverged_gap), diverged_gap = group_difference(target, runs, factors, self.reference, self.target)
        both_diverged = max(both_diverged, both_diverged_gap)
        target_label = format_selection(self.target) or "its IID baseline"
        description = (
            f"share of {self.metric} that {format_selection(self.group)} recovers, "
            f"from {format_selection(self.reference)} to {target_label}"
        )
        seeds = gain.index.intersection(target_gap.index)
        incomplete = max(incomplete_gain, incomplete_gap)
        if not len(seeds):
            return empty_result(description, "share", incomplete, diverged=diverged_gain + diverged_gap, both_diverged=both_diverged)
        recovered, gap = gain[seeds].to_numpy(float), target_gap[seeds].to_numpy(float)
        if not (np.isfinite(recovered).all() and np.isfinite(gap).all()):
            return empty_result(
                description,
                "share",
                incomplete,
                "a run diverged, so the recovered fraction is undefined",
                diverged_gain + diverged_gap,
                both_diverged,
            )
        # reference - target is above 0 where high values are bad, and below 0 otherwise
        sign = 1.0 if (self.worst_end or default_worst_end(self.metric)) == "high" else -1.0
        gap_p, excess = sign_flip_test(gap), recovered - self.min_fraction * gap
        p, notes = (sign_flip_test(excess), [f"the hypothesis predicts more than {self.min_fraction:.0%}"] if self.min_fraction else [])
        p = replace(p, value=max(p.value, gap_p.value))
        if sign * gap.mean() <= 0 or not gap_p.is_significant(criteria.strictest_alpha):
            notes.insert(0, f"there may be nothing to recover: the reference differs from the target by {gap.mean():.3g} ({gap_p})")
        if sign * gap.mean() <= 0:
            p = replace(p, value=1.0)
        interval, has_predicted_sign = ratio_ci(recovered, gap, 1 - criteria.alpha), bool(sign * excess.mean() > 0)
        points = tuple((int(seed), float(a / b)) for seed, a, b in zip(seeds, recovered, gap, strict=True) if b)
        detectable = self.min_fraction + detectable_effect(excess, criteria) / abs(gap.mean()) if gap.mean() else math.inf
        return HypothesisResult(
            description,
            "share",
            interval,
            p,
            has_predicted_sign,
            False,
            incomplete,
            diverged_gain + diverged_gap,
            detectable=detectable,
            points=points,
            notes=tuple(notes),
            both_diverged=both_diverged,
        )


@dataclass(frozen=True, kw_only=True)
class RateGreater(Hypothesis):
    """An event occurs in more seeds of ``group`` than of ``reference``.

    The event is that ``metric`` is true (for example ``diverged``), or that it exceeds ``threshold``. Without ``reference`` the comparison
    is with the IID baselines of ``group``.
    """

    group: FactorLevels
    reference: FactorLevels = field(default_factory=dict)
    threshold: float | None = None

    def evaluate(self, runs: pd.DataFrame, factors: Sequence[str], criteria: DecisionCriteria) -> HypothesisResult:
        """Compare the seeds in which the event occurs on one side only; the event occurs in a seed if it occurs in any of its runs."""
        require_columns(runs, [self.metric, "iid_baseline", *REQUIRED_COLUMNS])
        occurred = runs[self.metric].astype(float) if self.threshold is None else (runs[self.metric] > self.threshold).astype(float)
        diverged = runs["diverged"].astype(bool)
        occurred = occurred.where(runs[self.metric].notna(), np.nan).where(~diverged, 1.0)  # a diverged run always has the event
        events = runs.assign(event=occurred)
        left = select_runs(events, self.where, self.group)
        right = select_runs(events, self.where, self.reference) if self.reference else events[events["run"].isin(set(left["iid_baseline"]))]
        condition = "" if self.threshold is None else f" above {self.threshold:g}"
        description = f"seeds with {self.metric}{condition}{format_groups(self.group, self.reference or {'iid': True})}"
        left_events, right_events = (
            rows.groupby("seed")["event"].agg(lambda values: values.max(skipna=False)).dropna() for rows in (left, right)
        )
        seeds = left_events.index.intersection(right_events.index)
        incomplete = len(set(left["seed"])) - len(seeds)
        if not len(seeds):
            return empty_result(description, "rate", incomplete)
        a, b = left_events[seeds].to_numpy(bool), right_events[seeds].to_numpy(bool)
        count, left_rate, right_rate = len(seeds), clopper_pearson(int(a.sum()), len(seeds)), clopper_pearson(int(b.sum()), len(seeds))
        needed = min_seeds(criteria.alpha, criteria.family_size)
        counts = (
            f"{int(a.sum())} of {count} ({left_rate.low:.2f} to {left_rate.high:.2f}) against "
            f"{int(b.sum())} of {count} ({right_rate.low:.2f} to {right_rate.high:.2f})"
        )
        return HypothesisResult(
            description,
            "rate",
            Interval(left_rate.estimate - right_rate.estimate, math.nan, math.nan, math.nan),
            mcnemar(a, b),
            bool(a.sum() > b.sum()),
            False,
            incomplete,
            int(left["diverged"].sum() + right["diverged"].sum()),
            detectable=needed / count if needed <= count else math.inf,
            points=tuple(
                (int(seed), float(left_event) - float(right_event)) for seed, left_event, right_event in zip(seeds, a, b, strict=True)
            ),
            notes=(counts,),
        )
