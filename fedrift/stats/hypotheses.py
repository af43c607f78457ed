"""The hypotheses that a study file can state, and the statistical test of each kind.

Every hypothesis is about one metric and is written down before the runs. ``verdicts.evaluate_hypotheses`` turns the results into
verdicts. The list ``hypotheses:`` of a study file accepts the classes that ``__all__`` names.

A selection is ``{factor: level}`` or ``{factor: [levels]}``. IID baselines are excluded unless a selection has ``{iid: true}``. Two
sides are paired within each seed by all factors that neither selection names, and the pairs are averaged to one number per seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from annotated_types import Ge, Gt, MaxLen, MinLen

from ..core.errors import UserError
from ..core.lazy_imports import optimize, pd, stats
from .effects import mask_both_diverged, mean_ci, median, paired_differences, ratio_ci
from .results import (
    DecisionCriteria,
    HypothesisResult,
    describe_infinite,
    detectable_effect,
    directional_result,
    empty_result,
    equivalence_result,
    to_ratio,
)
from .selection import (
    OF_BASELINE,
    OF_START,
    REQUIRED_COLUMNS,
    Contrast,
    PerSeedValues,
    Scale,
    Selection,
    average_cells,
    default_worst_end,
    describe_left_out,
    format_selection,
    keep_shared_cells,
    needs_baseline,
    outcome_values,
    require_columns,
    require_positive,
    select_runs,
    shared_factors,
    values_per_seed,
)
from .significance import (
    ROUNDING_OF_OUTCOMES,
    Interval,
    WorstEnd,
    clopper_pearson,
    count_seeds,
    is_below,
    mcnemar,
    min_seeds,
    page_trend_test,
    sign_flip_test,
    spearman_within_blocks,
    subtract,
)

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


def list_selections(hypothesis: Hypothesis) -> Iterator[tuple[FactorLevels, ...]]:
    """Every set of selections by which a hypothesis chooses runs."""
    parts = getattr(hypothesis, "parts", ())
    for part in parts:
        yield from list_selections(part)
    if parts:
        return
    where = hypothesis.where
    if terms := getattr(hypothesis, "terms", ()):
        yield from ((where, term.select) for term in terms)
        return
    sides = [getattr(hypothesis, "group", {})] + [side for name in ("reference", "target") if (side := getattr(hypothesis, name, {}))]
    places = [getattr(hypothesis, name) for name in ("inside", "outside") if hasattr(hypothesis, name)] or [{}]
    yield from ((where, side, place) for side in sides for place in places)


def evaluate_one(hypothesis: Hypothesis, runs: pd.DataFrame, factors: Sequence[str], criteria: DecisionCriteria) -> HypothesisResult:
    """Test one hypothesis; without a run that has its metric, the result is empty and names the metric.

    Otherwise the infinite ranks of diverged runs would be a result, although nothing was measured.
    """
    for metric in filter(None, (hypothesis.metric, getattr(hypothesis, "match", ""))):
        require_columns(runs, [metric], "outcome")
        used = pd.concat([select_runs(runs, *selections) for selections in list_selections(hypothesis)])
        if any(lacks_metric(rows, metric) for rows in (runs, used)):
            reason = f"no run that ended without diverging has a value of {metric!r}"
            return empty_result(hypothesis.metric, "difference", used["seed"].nunique(), reason)
    return hypothesis.evaluate(runs, factors, criteria)


def lacks_metric(runs: pd.DataFrame, metric: str) -> bool:
    """Return whether some runs ended without diverging, but no run has a value of the metric."""
    has_ended = runs["status"].eq("finished") if "status" in runs else pd.Series(True, index=runs.index)
    return bool((has_ended & ~runs["diverged"].astype(bool)).any() and runs[metric].isna().all())


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
    sides = [left] if right is None else [left, right]
    if scale == "ratio":
        require_positive(runs, hypothesis.metric, hypothesis.contrast, *sides)
    return values_per_seed(left, right, pairing), count_diverged(runs, list_compared_runs(hypothesis, *sides))


def list_compared_runs(hypothesis: Hypothesis, *sides: pd.DataFrame) -> set[str]:
    """Return the runs of the given sides, and their IID baselines, whose divergence changes the outcome of a hypothesis."""
    metric = hypothesis.metric
    if metric in OF_START:
        return set()
    own = [side["run"] for side in sides if metric not in OF_BASELINE]
    baselines = [side["iid_baseline"] for side in sides if needs_baseline(metric, hypothesis.contrast) and "iid_baseline" in side]
    return set().union(*own, *baselines)


def count_diverged(runs: pd.DataFrame, names: set[str]) -> int:
    """Count the diverged runs among the named ones, each once."""
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
            (*inside.notes, *outside.notes),
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
        gain, target_gap, diverged = self.measure_gain_and_gap(runs, factors)
        both_diverged, incomplete = max(gain.both_diverged, target_gap.both_diverged), max(gain.incomplete, target_gap.incomplete)
        target_label = format_selection(self.target) or "its IID baseline"
        description = (
            f"share of {self.metric} that {format_selection(self.group)} recovers, "
            f"from {format_selection(self.reference)} to {target_label}"
        )
        seeds = gain.values.index.intersection(target_gap.values.index)
        if not len(seeds):
            return empty_result(description, "share", incomplete, diverged=diverged, both_diverged=both_diverged)
        recovered, gap = gain.values[seeds].to_numpy(float), target_gap.values[seeds].to_numpy(float)
        if not (np.isfinite(recovered).all() and np.isfinite(gap).all()):
            return empty_result(
                description,
                "share",
                incomplete,
                f"a run {describe_infinite(description)}, so the recovered fraction is undefined",
                diverged,
                both_diverged,
            )
        # reference - target is above 0 where high values are bad, and below 0 otherwise
        sign = 1.0 if (self.worst_end or default_worst_end(self.metric)) == "high" else -1.0
        gap_p, excess = sign_flip_test(gap), subtract(recovered, self.min_fraction * gap)
        p, notes = (
            sign_flip_test(excess),
            [f"the hypothesis predicts more than {100 * self.min_fraction:.0f} %"] if self.min_fraction else [],
        )
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
            diverged,
            detectable=detectable,
            points=points,
            notes=(*notes, *gain.notes),
            both_diverged=both_diverged,
        )

    def measure_gain_and_gap(self, runs: pd.DataFrame, factors: Sequence[str]) -> tuple[PerSeedValues, PerSeedValues, int]:
        """Return reference minus group, reference minus target, and the number of diverged runs.

        Both are means over the same cells, those that all sides have; means over different cells have no ratio.
        """
        table = outcome_values(runs, self.metric, None, self.contrast, self.worst_end, include_baselines=True)
        to_baseline = replace(self, contrast="iid_baseline")
        start, repaired = (select_runs(table, self.where, side) for side in (self.reference, self.group))
        if self.target:
            sides = [start, repaired, start, select_runs(table, self.where, self.target)]
        else:
            table = outcome_values(runs, self.metric, None, "iid_baseline", self.worst_end, include_baselines=True)
            sides = [start, repaired, select_runs(table, self.where, self.reference)]
        names = list_compared_runs(self, *sides) | (set() if self.target else list_compared_runs(to_baseline, start))
        named = [*self.reference, *self.group, *self.target]
        shared = [factor for factor in factors if factor not in named and all(side[factor].notna().any() for side in sides)]
        (start, repaired, whole, *others), notes = keep_shared_cells(sides, shared)
        target = others[0] if others else None
        gain = values_per_seed(start, repaired, shared_factors(start, repaired, factors, named))
        gap = values_per_seed(whole, target, shared_factors(whole, whole if target is None else target, factors, named))
        return gain._replace(notes=notes), gap, count_diverged(runs, names)


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
        occurred = runs[self.metric].astype(float)
        if self.threshold is not None:
            occurred = pd.Series(subtract(occurred.to_numpy(), self.threshold) > 0, index=runs.index).astype(float)
        diverged = runs["diverged"].astype(bool)
        is_known = runs[self.metric].notna() & (runs["status"].eq("finished") if "status" in runs else True)
        occurred = occurred.where(is_known, np.nan).where(~diverged, 1.0)  # a diverged run always has the event, an unfinished one may yet
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
        needed = min_seeds(criteria.alpha, criteria.family_size)  # as many seeds must have the event, if the reference has none

        def excess_power(rate: float) -> float:
            return float(stats.binom.sf(needed - 1, count, rate)) - criteria.power

        detectable = float(optimize.brentq(excess_power, 0.0, 1.0)) if needed <= count else math.inf
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
            detectable=detectable,
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
        diverged = count_diverged(runs, list_compared_runs(self, *sides))
        columns = [values.values * term.weight for values, term in zip(found, self.terms, strict=True)]
        joined = (
            pd.concat(columns, axis=1, join="inner").to_numpy(dtype=np.float64) if all(len(one) for one in columns) else np.zeros((0, 1))
        )
        seeds = pd.concat(columns, axis=1, join="inner").index
        up, down = np.isposinf(joined).any(axis=1), np.isneginf(joined).any(axis=1)
        both = np.asarray(up & down)
        finite = np.where(np.isfinite(joined), joined, 0.0)
        is_rounding = np.abs(finite.sum(axis=1)) <= ROUNDING_OF_OUTCOMES * np.abs(finite).sum(axis=1)
        total = np.where(up, np.inf, np.where(down, -np.inf, np.where(is_rounding, 0.0, finite.sum(axis=1))))
        every = set().union(*(set(side["seed"]) for side in sides))
        both_diverged = max(values.both_diverged for values in found) + int(both.sum())
        values = pd.Series(total[~both], index=seeds[: len(total)][~both], dtype=float)
        notes = tuple(dict.fromkeys(note for values in found for note in values.notes))
        per_seed = PerSeedValues(values, len(every) - len(values) - both_diverged, both_diverged, notes)
        return directed_result(self, per_seed, criteria, words, diverged)


@dataclass(frozen=True, kw_only=True)
class MatchedDifference(Hypothesis):
    """``metric`` of ``group`` less that of ``reference`` at the same value of ``match``, e.g. at the same mean update norm.

    The runs of ``reference`` form a ladder. In each seed its outcome is interpolated, linearly in the logarithm of ``match``, at the value
    that the run of ``group`` has. A seed whose value lies outside the ladder, or beside a rung that diverged, is incomplete: nothing is
    extrapolated. A run of ``group`` that diverged ranks last, wherever it lies.
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
        cells = average_cells(left, key)
        places = left.groupby(key, dropna=False, observed=True)[self.match].mean()
        names = cells[key].itertuples(index=False, name=None)
        here = cells["value"].to_numpy(dtype=np.float64)
        there = np.array(
            [
                rank_ladder(ladders.get(name), value) if math.isinf(value) else interpolate_ladder(ladders.get(name), self.match, place)
                for name, value, place in zip(names, here, places, strict=True)
            ],
            dtype=np.float64,
        )
        both = cells["both_diverged"].to_numpy(dtype=bool) | mask_both_diverged(here, there)
        by_seed = average_cells(cells.assign(value=paired_differences(here, there), both_diverged=both), ["seed"]).set_index("seed")
        values, both_diverged = by_seed["value"].dropna().astype(float), int(by_seed["both_diverged"].sum())
        words = f"{metric_label(self)}{format_groups(self.group, self.reference)} at the same {self.match}"
        incomplete = len(set(left["seed"]) | set(right["seed"])) - len(values) - both_diverged
        diverged = count_diverged(runs, list_compared_runs(self, left, right))
        return directed_result(self, PerSeedValues(values, incomplete, both_diverged), criteria, words, diverged)


def directed_result(
    hypothesis: LinearContrast | MatchedDifference, per_seed: PerSeedValues, criteria: DecisionCriteria, description: str, diverged: int
) -> HypothesisResult:
    """Test one number per seed in the direction that the hypothesis states."""
    if hypothesis.direction == "equivalent":
        return equivalence_result(per_seed, hypothesis.margin, criteria, description, diverged)
    sign = 1 if hypothesis.direction == "greater" else -1
    return directional_result(per_seed, sign, hypothesis.margin, hypothesis.min_effect, criteria, description, diverged)


def rank_ladder(rows: pd.DataFrame | None, diverged: float) -> float:
    """Return what a diverged run is compared with: its own rank if every rung diverged too, 0 if one did not, NaN if none has ended."""
    values = np.zeros(0) if rows is None else rows["value"].dropna().to_numpy(dtype=np.float64)
    return math.nan if not len(values) else diverged if bool((values == diverged).all()) else 0.0


def interpolate_ladder(rows: pd.DataFrame | None, match: str, at: float) -> float:
    """Interpolate the outcome of some runs at ``match`` = ``at``, linearly in the logarithm of ``match``.

    Args:
        rows: The runs, with their ``value``; None if there are none.
        match: The outcome by which they are ordered.
        at: Its value.

    Returns:
        The outcome, or NaN outside the range of the runs and next to a run that diverged.
    """
    if rows is None:
        return math.nan
    place, value = rows[match].to_numpy(dtype=np.float64), rows["value"].to_numpy(dtype=np.float64)
    known = (place > 0) & np.isfinite(place) & np.isfinite(value)
    order = np.argsort(place[known])
    steps, heights = place[known][order], value[known][order]
    if not len(steps) or not at > 0 or is_below(at, steps[0]) or is_below(steps[-1], at):
        return math.nan
    at = min(max(at, steps[0]), steps[-1])
    is_diverged = np.isinf(value) | rows["both_diverged"].to_numpy(dtype=bool)
    if (is_diverged & (place >= steps[steps <= at][-1]) & (place <= steps[steps >= at][0])).any():
        return math.nan  # a straight line between its neighbors would hide that it diverged
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
        diverged = count_diverged(runs, list_compared_runs(self, table))
        rows = table.dropna(subset=["value", self.predictor])
        both_diverged = len(set(table.loc[table["both_diverged"], "seed"]))
        if not len(rows):
            return empty_result(description, "slope", diverged=diverged, both_diverged=both_diverged)
        if self.predictor in factors:
            others = [factor for factor in factors if factor not in {self.predictor, *self.where}]
            complete, incomplete, left_out = average_by_level(table.dropna(subset=[self.predictor]), self.predictor, others)
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
                    PerSeedValues(pd.Series(dtype=float), num_incomplete, both_diverged, left_out),
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
            num_values = rows.groupby("seed")[self.predictor].nunique()
            seeds, left_out = num_values.index[num_values > 1].to_numpy(), ()  # the others have no slope
        slopes = np.array(trend.slopes)
        notes = [f"mean rank correlation over seeds {trend.rho:+.2f}"]
        reversals = [f"{levels[k]:g} to {levels[k + 1]:g}" for k in range(len(medians) - 1) if sign * medians[k + 1] < sign * medians[k]]
        if reversals:
            notes.append(f"the trend does not hold at every step: the median reverses direction from {', '.join(reversals)}")
        if num_without := int(np.isnan(slopes).sum()):
            verb = "has" if num_without == 1 else "have"
            notes.append(
                f"{num_without} of {count_seeds(len(slopes))} {verb} no slope, because a run {describe_infinite(description)}; the ranks "
                "count it as the worst"
            )
        has_too_few_seeds = p.seeds < MIN_TREND_SEEDS
        if has_too_few_seeds:
            notes.append(
                f"a trend within {p.seeds} seed{'s' * (p.seeds != 1)} is not replicated; at least {MIN_TREND_SEEDS} seeds are needed"
            )
            p = replace(p, min_attainable_p=1.0)
        points = tuple((int(seed), float(value)) for seed, value in zip(seeds, slopes, strict=True))
        return HypothesisResult(
            description,
            "slope",
            mean_ci(slopes[np.isfinite(slopes)], 1 - criteria.alpha),
            p,
            sign * trend.rho > 0,
            False,
            num_incomplete,
            diverged,
            detectable=math.inf if has_too_few_seeds else math.nan,
            points=points,
            notes=(*notes, *left_out),
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
        excluded: The counts of seeds that were excluded before, and the note on conditions that were left out.
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
        excluded.notes,
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


def average_by_level(runs: pd.DataFrame, predictor: str, factors: Sequence[str]) -> tuple[pd.DataFrame, int, tuple[str, ...]]:
    """Average over the cells of the other factors that every level has.

    Args:
        runs: The rows, from ``outcome_values``; those without a value are left out.
        predictor: The factor of the levels.
        factors: The other factors.

    Returns:
        The means [seeds, levels] of the complete seeds, the number of seeds that lack a level, and notes on the levels and the cells
        that have runs but no value in any seed.
    """
    shared = [factor for factor in factors if runs[factor].notna().any()]
    planned = runs.assign(cell=list(map(str, runs[shared].itertuples(index=False, name=None))))
    table = planned.dropna(subset=["value"])
    by_cell = average_cells(table, ["seed", "cell", predictor]).pivot(index="seed", columns=["cell", predictor], values="value")
    levels = sorted(table[predictor].unique())
    complete_cells = [cell for cell in by_cell.columns.unique("cell") if len(by_cell[cell].columns) == len(levels)]
    if not complete_cells or len(levels) < 2:
        return pd.DataFrame(), len(by_cell), ()
    num_planned = planned[predictor].nunique()
    cells = planned[planned[predictor].isin(levels)].groupby("cell")[predictor].nunique()
    notes = (
        *describe_left_out(num_planned - len(levels), num_planned, "level"),
        *describe_left_out(int((cells == len(levels)).sum()) - len(complete_cells), int((cells == len(levels)).sum())),
    )
    complete = by_cell[complete_cells].dropna()
    means = {level: complete.xs(level, axis=1, level=predictor).to_numpy(dtype=np.float64).mean(axis=1) for level in levels}
    return pd.DataFrame(means, index=complete.index), len(by_cell) - len(complete), notes


@dataclass(frozen=True, kw_only=True)
class All(Hypothesis):
    """Every hypothesis in ``parts`` holds.

    This is an intersection-union test (Berger, Technometrics 24, 1982): the p-value is the largest p-value of the parts, and the number of
    parts needs no correction.
    """

    parts: Annotated[tuple[Hypothesis, ...], MinLen(1)]

    def evaluate(self, runs: pd.DataFrame, factors: Sequence[str], criteria: DecisionCriteria) -> HypothesisResult:
        return combine_parts(self, [evaluate_one(part, runs, factors, criteria) for part in self.parts])


def combine_parts(hypothesis: All, results: Sequence[HypothesisResult]) -> HypothesisResult:
    """Combine the results of all parts by intersection-union; one part with the opposite sign refutes the whole hypothesis."""
    opposite = [part for part in results if not part.has_predicted_sign]
    if opposite:
        weakest = min(opposite, key=lambda part: part.p.value if not math.isnan(part.p.value) else 2.0)
        p = replace(weakest.p, value=min(1.0, weakest.p.value * len(results)))
    else:
        weakest = max(results, key=lambda part: part.p.value)
        p = replace(weakest.p, min_attainable_p=max(part.p.min_attainable_p for part in results))
    reason = weakest.notes[:1] if not weakest.p.seeds else ()  # why there are no results
    notes = reason + tuple(
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
