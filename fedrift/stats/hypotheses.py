"""The hypotheses that a study file can state, and the statistical test of each kind.

Every hypothesis is about one metric and is written down before the runs. ``verdicts.evaluate_hypotheses`` turns the results into
verdicts. The list ``hypotheses:`` of a study file accepts the classes that ``__all__`` names.

A selection is ``{factor: level}`` or ``{factor: [levels]}``. IID baselines are excluded unless a selection has ``{iid: true}``. Two
sides are paired within each seed by all factors that neither selection names, and the pairs are averaged to one number per seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from annotated_types import Ge, Gt, MaxLen, MinLen

from ..core.errors import UserError
from ..core.lazy_imports import pd
from .effects import mask_both_diverged, mean_ci, median, paired_differences, ratio_ci
from .results import DecisionCriteria, HypothesisResult, detectable_effect, directional_result, empty_result, equivalence_result, to_ratio
from .selection import (
    REQUIRED_COLUMNS,
    Contrast,
    PerSeedValues,
    Scale,
    Selection,
    average_cells,
    default_worst_end,
    format_selection,
    outcome_values,
    require_columns,
    select_runs,
    shared_factors,
    values_per_seed,
)
from .significance import Interval, WorstEnd, clopper_pearson, mcnemar, min_seeds, page_trend_test, sign_flip_test, spearman_within_blocks

FactorLevels = dict[str, Any]
NonNegative = Annotated[float, Ge(0)]


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """The fields that all hypotheses share. Subclasses implement ``evaluate``.

    Attributes:
        name: The unique name of the hypothesis within a study.
        claim: The claim in words.
        family: The family over which Holm's procedure corrects the p-values.
        metric: The outcome that the hypothesis is about.
        where: The selection of runs that both sides share.
        contrast: "none", or "iid_baseline" to subtract the metric of each run's own IID baseline.
        worst_end: The end at which a diverged run ranks. By default it is the bad end of the metric.

    Example:
        A study file states hypotheses like this one::

            hypotheses:
              - type: Greater
                name: drift
                claim: FedAvg loses more to non-IID data than FedSGD.
                metric: loss
                contrast: iid_baseline
                group: {algorithm: FedAvg}
                reference: {algorithm: FedSGD}
    """

    name: str
    claim: Annotated[str, MaxLen(10_000)] = ""
    family: str = "main"
    metric: str = ""
    where: FactorLevels = field(default_factory=dict)
    contrast: Contrast = "none"
    worst_end: WorstEnd | None = None

    def evaluate(self, runs: pd.DataFrame, factors: Sequence[str], criteria: DecisionCriteria) -> HypothesisResult:
        """Test the hypothesis on a table of runs.

        Args:
            runs: One row per run, with the columns that ``fedrift.stats.selection`` describes.
            factors: The columns by which runs are paired.
            criteria: The significance level and the power.
        """
        raise NotImplementedError


def group_difference(
    hypothesis: Hypothesis,
    runs: pd.DataFrame,
    factors: Sequence[str],
    group: Selection,
    reference: Selection,
    *also: Selection,
    scale: str = "difference",
) -> tuple[PerSeedValues, int]:
    """Return ``group`` minus ``reference`` per seed (``group`` alone if ``reference`` is empty), and the number of diverged runs."""
    table = outcome_values(
        runs,
        hypothesis.metric,
        None,
        hypothesis.contrast,
        hypothesis.worst_end,
        "ratio" if scale == "ratio" else "difference",
        include_baselines=True,
    )
    left = select_runs(table, hypothesis.where, group, *also)
    right = select_runs(table, hypothesis.where, reference, *also) if reference else None
    named = {*group, *reference, *(name for selection in also for name in selection)}
    pairing = [f for f in factors if f not in named] if right is None else shared_factors(left, right, factors, list(named))
    return values_per_seed(left, right, pairing), count_diverged(runs, hypothesis.contrast, left, *([] if right is None else [right]))


def count_diverged(runs: pd.DataFrame, contrast: str, *sides: pd.DataFrame) -> int:
    """Count the diverged runs of the given sides once each; with ``contrast: iid_baseline`` their IID baselines are included."""
    baselines = [side["iid_baseline"] for side in sides if contrast == "iid_baseline"]
    names = set().union(*(side["run"] for side in sides), *baselines)
    return int(runs.drop_duplicates("run").set_index("run")["diverged"].reindex(sorted(map(str, names))).eq(True).sum())


def metric_label(hypothesis: Hypothesis) -> str:
    """Return the metric, with a note if it is relative to the IID baseline."""
    return hypothesis.metric + (" minus the IID baseline's" if hypothesis.contrast == "iid_baseline" else "")


def format_groups(group: Selection, reference: Selection) -> str:
    """Format the two sides in words, for example `` of algorithm FedAvg against algorithm FedSGD``."""
    first = f" of {format_selection(group)}" if group else ""
    return f"{first} against {format_selection(reference)}" if reference else first


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


@dataclass(frozen=True, kw_only=True)
class ContrastTerm:
    """One term of a linear contrast: ``weight`` times the mean over the runs of a seed that ``select`` names."""

    weight: float
    select: FactorLevels


@dataclass(frozen=True, kw_only=True)
class LinearContrast(Hypothesis):
    """A weighted sum of means lies above ``margin`` (``less``: below its negative; ``equivalent``: within it).

    In each seed every term is the mean over all runs that it selects, so cells need not be paired: main effects of an orthogonal array,
    and statements such as "the remedy leaves at most half of the gap" (weight 1 for the remedy, -0.5 for what is to be remedied, ``less``).
    A negative ``margin`` states non-inferiority: ``less`` with -0.01 is "no higher than 0.01 above". ``min_effect`` is the smallest effect
    that matters: where the data rule it out, the hypothesis is refuted.
    """

    terms: Annotated[tuple[ContrastTerm, ...], MinLen(1)]
    direction: Literal["greater", "less", "equivalent"] = "greater"
    margin: float = 0.0
    min_effect: NonNegative = 0.0

    def evaluate(self, runs: pd.DataFrame, factors: Sequence[str], criteria: DecisionCriteria) -> HypothesisResult:
        """Test the weighted sum of the means of the terms, one sum per seed."""
        table = outcome_values(runs, self.metric, None, self.contrast, self.worst_end, include_baselines=True)
        sides = [select_runs(table, self.where, term.select) for term in self.terms]
        found = [
            values_per_seed(side, None, [factor for factor in factors if factor not in term.select])
            for side, term in zip(sides, self.terms, strict=True)
        ]
        words = f"{metric_label(self)}, " + " ".join(f"{term.weight:+g} x ({format_selection(term.select)})" for term in self.terms)
        diverged = count_diverged(runs, self.contrast, *sides)
        columns = [values.values * term.weight for values, term in zip(found, self.terms, strict=True)]
        joined = (
            pd.concat(columns, axis=1, join="inner").to_numpy(dtype=np.float64) if all(len(one) for one in columns) else np.zeros((0, 1))
        )
        seeds = pd.concat(columns, axis=1, join="inner").index
        up, down = np.isposinf(joined).any(axis=1), np.isneginf(joined).any(axis=1)
        both = np.asarray(up & down)
        total = np.where(up, np.inf, np.where(down, -np.inf, np.where(np.isfinite(joined), joined, 0.0).sum(axis=1)))
        every = set().union(*(set(side["seed"]) for side in sides))
        both_diverged = max(values.both_diverged for values in found) + int(both.sum())
        values = pd.Series(total[~both], index=seeds[: len(total)][~both], dtype=float)
        return directed_result(
            self, PerSeedValues(values, len(every) - len(values) - both_diverged, both_diverged), criteria, words, diverged
        )


@dataclass(frozen=True, kw_only=True)
class MatchedDifference(Hypothesis):
    """``metric`` of ``group`` less that of ``reference`` at the same value of ``match``, e.g. at the same mean update norm.

    The runs of ``reference`` form a ladder. In each seed its outcome is interpolated, linearly in the logarithm of ``match``, at the value
    that the run of ``group`` has. A seed whose value lies outside the ladder is incomplete: nothing is extrapolated.
    """

    match: str
    group: FactorLevels
    reference: FactorLevels
    direction: Literal["greater", "less", "equivalent"] = "equivalent"
    margin: NonNegative = 0.0
    min_effect: NonNegative = 0.0

    def evaluate(self, runs: pd.DataFrame, factors: Sequence[str], criteria: DecisionCriteria) -> HypothesisResult:
        """Test the outcome of ``group`` minus the interpolated outcome of ``reference``, one difference per seed."""
        table = outcome_values(runs, self.metric, None, self.contrast, self.worst_end, include_baselines=True)
        require_columns(table, [self.match], "outcome")
        left = select_runs(table, self.where, self.group)
        right = select_runs(table, self.where, self.reference)
        key = ["seed", *shared_factors(left, right, factors, [*self.group, *self.reference])]
        ladders = {name: rows for name, rows in right.groupby(key, dropna=False, observed=True)}
        differences, seeds = [], []
        for name, rows in left.groupby(key, dropna=False, observed=True):
            there = interpolate_ladder(ladders.get(name), self.match, float(rows[self.match].mean()))
            differences.append(float(rows["value"].mean()) - there)
            seeds.append(name[0])
        by_cell = pd.DataFrame({"seed": seeds, "value": differences}).groupby("seed")["value"]
        values = by_cell.agg(lambda cells: cells.mean(skipna=False)).astype(float)
        complete = values[np.isfinite(values.to_numpy(dtype=np.float64))]
        words = f"{metric_label(self)}{format_groups(self.group, self.reference)} at the same {self.match}"
        per_seed = PerSeedValues(complete, len(set(left["seed"]) | set(right["seed"])) - len(complete))
        return directed_result(self, per_seed, criteria, words, count_diverged(runs, self.contrast, left, right))


def directed_result(
    hypothesis: LinearContrast | MatchedDifference, per_seed: PerSeedValues, criteria: DecisionCriteria, description: str, diverged: int
) -> HypothesisResult:
    """Test one number per seed in the direction that the hypothesis states."""
    if hypothesis.direction == "equivalent":
        return equivalence_result(per_seed, hypothesis.margin, criteria, description, diverged)
    sign = 1 if hypothesis.direction == "greater" else -1
    return directional_result(per_seed, sign, hypothesis.margin, hypothesis.min_effect, criteria, description, diverged)


def interpolate_ladder(rows: pd.DataFrame | None, match: str, at: float) -> float:
    """Interpolate the outcome of some runs at ``match`` = ``at``, linearly in the logarithm of ``match``; NaN outside their range."""
    if rows is None:
        return math.nan
    place, value = rows[match].to_numpy(dtype=np.float64), rows["value"].to_numpy(dtype=np.float64)
    known = (place > 0) & np.isfinite(place) & np.isfinite(value)
    order = np.argsort(place[known])
    steps, heights = place[known][order], value[known][order]
    if not len(steps) or not at > 0 or not steps[0] <= at <= steps[-1]:
        return math.nan
    return float(np.interp(math.log(at), np.log(steps), heights))


MIN_TREND_SEEDS = 3  # fewer seeds do not replicate a trend, whatever its p-value


@dataclass(frozen=True, kw_only=True)
class Trend(Hypothesis):
    """``metric`` rises (or falls) with ``predictor``.

    A factor with three or more levels is tested by Page's L with seeds as blocks. If each run has its own measured value of
    ``predictor``, the test is Spearman's rho, permuted within seeds. Two levels do not form a trend: the test is then the paired contrast
    of the two levels, with the test, interval and power of that contrast.
    """

    predictor: str
    direction: Literal["up", "down"] = "up"

    def evaluate(self, runs: pd.DataFrame, factors: Sequence[str], criteria: DecisionCriteria) -> HypothesisResult:
        """Test a trend: Page's L for three or more levels, the paired contrast for two, Spearman's rho for a measured predictor."""
        table = select_runs(outcome_values(runs, self.metric, None, self.contrast, self.worst_end, include_baselines=True), self.where)
        description = f"{metric_label(self)} along {self.predictor}" + (f", {format_selection(self.where)}" if self.where else "")
        sign = 1 if self.direction == "up" else -1
        diverged = count_diverged(runs, self.contrast, table)
        rows = table.dropna(subset=["value", self.predictor])
        both_diverged = len(set(table.loc[table["both_diverged"], "seed"]))
        if not len(rows):
            return empty_result(description, "slope", diverged=diverged, both_diverged=both_diverged)
        if self.predictor in factors:
            complete, incomplete = average_by_level(rows, self.predictor, [f for f in factors if f not in {self.predictor, *self.where}])
            if not len(complete):
                return empty_result(
                    description, "slope", incomplete, "no seed has a run at each of two or more levels", diverged, both_diverged
                )
            num_incomplete = len(set(table["seed"])) - len(complete) - both_diverged
            seeds, levels = complete.index.to_numpy(), numeric_levels(complete.columns, self.predictor)
            if len(levels) == 2:
                return evaluate_two_levels(
                    complete,
                    levels,
                    PerSeedValues(pd.Series(dtype=float), num_incomplete, both_diverged),
                    sign,
                    criteria,
                    description,
                    diverged,
                )
            trend = spearman_within_blocks(np.tile(levels, len(seeds)), complete.to_numpy().ravel(), np.repeat(seeds, len(levels)))
            p, medians = page_trend_test(complete.to_numpy()), np.array([median(column) for column in complete.to_numpy().T])
        else:
            trend = spearman_within_blocks(rows[self.predictor].to_numpy(float), rows["value"].to_numpy(float), rows["seed"].to_numpy())
            p, num_incomplete, medians, levels = trend.p, len(set(table["seed"])) - trend.p.seeds - both_diverged, np.zeros(0), np.zeros(0)
            seeds = np.unique(rows["seed"].to_numpy())
        slopes = np.array(trend.slopes)
        notes = [f"mean rank correlation over seeds {trend.rho:+.2f}"]
        reversals = [f"{levels[k]:g} to {levels[k + 1]:g}" for k in range(len(medians) - 1) if sign * medians[k + 1] < sign * medians[k]]
        if reversals:
            notes.append(f"the trend does not hold at every step: the median reverses direction from {', '.join(reversals)}")
        has_too_few_seeds = p.seeds < MIN_TREND_SEEDS
        if has_too_few_seeds:
            notes.append(
                f"a trend within {p.seeds} seed{'s' * (p.seeds != 1)} is not replicated; at least {MIN_TREND_SEEDS} seeds are needed"
            )
            p = replace(p, min_attainable_p=1.0)
        points = tuple((int(seed), float(value)) for seed, value in zip(seeds, slopes, strict=False))
        return HypothesisResult(
            description,
            "slope",
            mean_ci(slopes, 1 - criteria.alpha),
            p,
            sign * trend.rho > 0,
            False,
            num_incomplete,
            diverged,
            detectable=math.inf if has_too_few_seeds else math.nan,
            points=points,
            notes=tuple(notes),
            both_diverged=both_diverged,
        )


def evaluate_two_levels(
    complete: pd.DataFrame,
    levels: np.ndarray,
    excluded: PerSeedValues,
    sign: int,
    criteria: DecisionCriteria,
    description: str,
    diverged: int,
) -> HypothesisResult:
    """Test the upper level minus the lower one per seed, with the test, interval and power of a paired difference.

    Args:
        complete: The means per seed and level, [seeds, 2].
        levels: The two levels as numbers, [2].
        excluded: The counts of seeds that were excluded before.
        sign: 1 if the hypothesis predicts a rise, -1 if it predicts a fall.
        criteria: The significance level and the power.
        description: The compared quantity in words.
        diverged: The number of diverged runs.
    """
    low, high = (complete.iloc[:, index].to_numpy(dtype=np.float64) for index in (0, 1))
    is_undefined = mask_both_diverged(high, low)
    d = PerSeedValues(
        pd.Series(paired_differences(high, low)[~is_undefined], index=complete.index[~is_undefined]),
        excluded.incomplete,
        excluded.both_diverged + int(is_undefined.sum()),
    )
    result = directional_result(d, sign, 0.0, 0.0, criteria, f"{description}, {levels[1]:g} minus {levels[0]:g}", diverged)
    return replace(result, notes=("two levels are not a trend, so this is their paired contrast", *result.notes))


def numeric_levels(levels: pd.Index, predictor: str) -> np.ndarray:
    """Return the levels as numbers; raise UserError if they are not numeric."""
    try:
        return levels.to_numpy(dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError(
            f"predictor: a trend needs a factor whose levels are numbers; the levels of {predictor!r} are "
            f"{', '.join(map(str, levels))[:80]}"
        ) from None


def average_by_level(rows: pd.DataFrame, predictor: str, factors: Sequence[str]) -> tuple[pd.DataFrame, int]:
    """Average over the cells of the other factors that every level has.

    Returns:
        The means [seeds, levels] of the complete seeds, and the number of seeds that lack a level.
    """
    shared = [factor for factor in factors if rows[factor].notna().any()]
    table = rows.assign(cell=list(map(str, rows[shared].itertuples(index=False, name=None))))
    by_cell = average_cells(table, ["seed", "cell", predictor]).pivot(index="seed", columns=["cell", predictor], values="value")
    levels = sorted(table[predictor].unique())
    complete_cells = [cell for cell in by_cell.columns.unique("cell") if len(by_cell[cell].columns) == len(levels)]
    if not complete_cells or len(levels) < 2:
        return pd.DataFrame(), len(by_cell)
    complete = by_cell[complete_cells].dropna()
    means = {level: complete.xs(level, axis=1, level=predictor).to_numpy(dtype=np.float64).mean(axis=1) for level in levels}
    return pd.DataFrame(means, index=complete.index), len(by_cell) - len(complete)


@dataclass(frozen=True, kw_only=True)
class All(Hypothesis):
    """Every hypothesis in ``parts`` holds.

    This is an intersection-union test (Berger, Technometrics 24, 1982): the p-value is the largest p-value of the parts, and the number of
    parts needs no correction.
    """

    parts: Annotated[tuple[Hypothesis, ...], MinLen(1)]

    def evaluate(self, runs: pd.DataFrame, factors: Sequence[str], criteria: DecisionCriteria) -> HypothesisResult:
        return combine_parts(self, [part.evaluate(runs, factors, criteria) for part in self.parts])


def combine_parts(hypothesis: All, results: Sequence[HypothesisResult]) -> HypothesisResult:
    """Combine the results of all parts by intersection-union; one part with the opposite sign refutes the whole hypothesis."""
    opposite = [part for part in results if not part.has_predicted_sign]
    if opposite:
        weakest = min(opposite, key=lambda part: part.p.value if not math.isnan(part.p.value) else 2.0)
        p = replace(weakest.p, value=min(1.0, weakest.p.value * len(results)))
    else:
        weakest = max(results, key=lambda part: part.p.value)
        p = replace(weakest.p, min_attainable_p=max(part.p.min_attainable_p for part in results))
    notes = tuple(
        f"{part_hypothesis.name}: {part.description} {part.interval.estimate:.3g} ({part.p})"
        for part_hypothesis, part in zip(hypothesis.parts, results, strict=True)
    )
    return replace(
        weakest,
        p=p,
        has_predicted_sign=not opposite,
        is_ruled_out=any(part.is_ruled_out for part in results),
        incomplete=max(part.incomplete for part in results),
        diverged=max(part.diverged for part in results),
        detectable=max(part.detectable for part in results),
        notes=notes,
        both_diverged=max(part.both_diverged for part in results),
        description=f"the weakest of {len(results)} parts, {weakest.description}",
    )


__all__ = [
    "All",
    "Equivalent",
    "Greater",
    "Interaction",
    "Less",
    "LinearContrast",
    "MatchedDifference",
    "RateGreater",
    "RecoveredFraction",
    "Trend",
]
