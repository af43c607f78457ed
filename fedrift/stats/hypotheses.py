"""What one hypothesis comes to before its family is looked at: numbers, and which way they point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pandas as pd
from annotated_types import Ge, Gt, MaxLen, MinLen

from ..core.errors import UserError
from .effects import compare_paired, detectable_margin, min_detectable_effect, tost
from .intervals import both_diverged, mean_ci, median, paired_differences, ratio_ci
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
from .significance import (
    Interval,
    PValue,
    WorstEnd,
    clopper_pearson,
    count_seeds,
    mcnemar,
    min_seeds,
    page_trend_test,
    sign_flip_test,
    spearman_within_blocks,
)


@dataclass(frozen=True)
class DecisionCriteria:
    """How sure one has to be: ``alpha`` shared by ``family_size`` hypotheses, and the power that "detectable" means."""

    alpha: float = 0.05
    power: float = 0.8
    family_size: int = 1

    @property
    def strictest_alpha(self) -> float:
        """The strictest alpha that a hypothesis of the family can meet under Holm."""
        return self.alpha / max(self.family_size, 1)


@dataclass(frozen=True)
class HypothesisResult:
    """``has_predicted_sign``: the estimate lies on the side that was foretold; ``is_ruled_out``: the data rule out what was
    foretold."""

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
    tied: int = 0  # seeds in which both sides diverged: no difference, and not one of zero


def empty_result(description: str, unit: str, incomplete: int = 0, reason: str = "", diverged: int = 0, tied: int = 0) -> HypothesisResult:
    """Of a comparison without a single complete seed."""
    reason = reason or (
        f"both sides diverged in all of {count_seeds(tied)}, so there is no difference to tell"
        if tied
        else "no seed has all the runs that are compared"
    )
    none = Interval(math.nan, math.nan, math.nan, math.nan)
    return HypothesisResult(
        description,
        unit,
        none,
        PValue(math.nan, 1.0, 0, "none"),
        False,
        incomplete=incomplete,
        diverged=diverged,
        detectable=math.inf,
        notes=(reason,),
        tied=tied,
    )


def directional_result(
    per_seed: PerSeedValues,
    sign: int,
    margin: float,
    min_effect: float,
    criteria: DecisionCriteria,
    description: str,
    unit: str,
    diverged: int,
) -> HypothesisResult:
    """Whether the differences lie above ``margin`` (``sign`` 1) or below its negative (-1).

    Ruled out, if ``min_effect`` is above 0, where a one-sided t-bound at the family's strictest alpha leaves no room for an
    effect that size.
    """
    d = per_seed.values
    if not len(d):
        return empty_result(description, unit, per_seed.incomplete, diverged=diverged, tied=per_seed.tied)
    numbers = d.to_numpy(dtype=np.float64)
    found = compare_paired(numbers - sign * margin, 1 - criteria.alpha, criteria.alpha, criteria.power, criteria.family_size)
    shift = sign * margin
    i = found.interval
    here = Interval(i.estimate + shift, i.low + shift, i.high + shift, i.confidence_level)
    bound = mean_ci(numbers, 1 - 2 * criteria.strictest_alpha)
    reach = sign * (bound.high if sign > 0 else bound.low)  # the most, in the foretold direction, that the data leave room for
    excluded = min_effect > 0 and reach < min_effect and 0.5 ** len(numbers) <= criteria.strictest_alpha
    notes = []
    if found.infinite:
        notes.append(f"{found.infinite} of {found.seeds} seeds differ by a run that diverged: the median and ranks instead of the mean")
    equal = int((numbers == margin * sign).sum())
    if equal:
        notes.append(f"{equal} of {count_seeds(len(numbers))} {'does' if equal == 1 else 'do'} not differ at all")
    if excluded:
        notes.append(f"an effect of {min_effect:g}, the smallest that was said to matter, is ruled out")
    favours = sign * found.interval.estimate > 0 if not found.infinite else sign * found.rank_biserial > 0
    return HypothesisResult(
        description,
        unit,
        here,
        found.p,
        favours,
        excluded,
        per_seed.incomplete,
        diverged,
        found.g,
        found.detectable,
        seed_points(d),
        tuple(notes),
        per_seed.tied,
    )


def seed_points(d: pd.Series) -> tuple[tuple[int, float], ...]:
    """Every seed's own number: they are few, and all are shown."""
    return tuple((int(seed), float(value)) for seed, value in zip(d.index.to_numpy(), d.to_numpy(), strict=True))


def detectable_effect(numbers: np.ndarray, criteria: DecisionCriteria) -> float:
    """The minimum detectable effect of numbers of which some may be infinite."""
    if not np.isfinite(numbers).all():
        return math.nan
    return min_detectable_effect(
        len(numbers), float(numbers.std(ddof=1)) if len(numbers) > 1 else math.nan, criteria.strictest_alpha, criteria.power
    )


# The hypotheses that a study file can state, as predicates that a machine can check.
#
# Written down before the runs, one metric each, they come out supported, refuted or inconclusive
# (``verdicts.evaluate_hypotheses``). What may stand in ``hypotheses:`` is what this file exports. A selection is ``{factor:
# level}`` or ``{factor: [levels]}``; ``{iid: true}`` chooses the IID twins, which are left out otherwise. Two sides are paired
# inside each seed by all the factors that neither names, and averaged to one number a seed.

FactorLevels = dict[str, Any]
NonNegative = Annotated[float, Ge(0)]


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """What all have. ``contrast: iid_baseline`` takes each run's own IID baseline away; ``worst_end`` is the end at which a
    diverged run counts: the one that is bad for the metric, if it is left out."""

    name: str
    claim: Annotated[str, MaxLen(10_000)] = ""  # the claim in words
    family: str = "main"  # Holm runs inside it
    metric: str = ""
    where: FactorLevels = field(default_factory=dict)
    contrast: Contrast = "none"
    worst_end: WorstEnd | None = None

    def evaluate(self, runs: pd.DataFrame, factors: Sequence[str], criteria: DecisionCriteria) -> HypothesisResult:
        """The numbers, and which way they point."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Greater(Hypothesis):
    """``metric`` of one side above the other's by more than ``margin``; without ``reference``, above ``margin`` itself.

    ``min_effect`` is the smallest effect that matters: where the data rule out even that, the hypothesis is refuted. In
    ``scale: ratio`` log-ratios are compared, and both are natural logarithms (0.1: about 10 %).
    """

    group: FactorLevels = field(default_factory=dict)
    reference: FactorLevels = field(default_factory=dict)
    margin: NonNegative = 0.0
    min_effect: NonNegative = 0.0
    scale: Scale = "difference"
    sign: ClassVar[int] = 1

    def evaluate(self, runs: pd.DataFrame, factors: Sequence[str], criteria: DecisionCriteria) -> HypothesisResult:
        return evaluate_difference(self, runs, factors, criteria)


@dataclass(frozen=True, kw_only=True)
class Less(Greater):
    """The same, below."""

    sign: ClassVar[int] = -1


@dataclass(frozen=True, kw_only=True)
class Interaction(Hypothesis):
    """``group`` less ``reference`` is larger (or smaller) ``inside`` than ``outside``: a difference of differences, by seed."""

    group: FactorLevels
    reference: FactorLevels
    inside: FactorLevels
    outside: FactorLevels
    direction: Literal["greater", "less"] = "greater"
    min_effect: NonNegative = 0.0

    def evaluate(self, runs: pd.DataFrame, factors: Sequence[str], criteria: DecisionCriteria) -> HypothesisResult:
        return evaluate_interaction(self, runs, factors, criteria)


@dataclass(frozen=True, kw_only=True)
class Trend(Hypothesis):
    """``metric`` rises (or falls) with ``predictor``: Page's L over three or more levels of a factor, seeds as blocks; where
    the dial is measured and each run has its own value, Spearman's rho, permuted inside the seeds.

    Two levels are no trend: then it is the paired contrast of the two, with its own test, interval and power.
    """

    predictor: str
    direction: Literal["up", "down"] = "up"

    def evaluate(self, runs: pd.DataFrame, factors: Sequence[str], criteria: DecisionCriteria) -> HypothesisResult:
        return evaluate_trend(self, runs, factors, criteria)


@dataclass(frozen=True, kw_only=True)
class Equivalent(Hypothesis):
    """``metric`` of both sides the same up to ``margin`` (TOST); without ``reference``, within it of 0. ``margin`` has to
    be said before the runs."""

    margin: Annotated[float, Gt(0)]
    group: FactorLevels = field(default_factory=dict)
    reference: FactorLevels = field(default_factory=dict)

    def evaluate(self, runs: pd.DataFrame, factors: Sequence[str], criteria: DecisionCriteria) -> HypothesisResult:
        return evaluate_equivalence(self, runs, factors, criteria)


@dataclass(frozen=True, kw_only=True)
class RecoveredFraction(Hypothesis):
    """``group`` recovers more than ``min_fraction`` of the way from ``reference`` to ``target``; without ``target``, to the
    IID baselines of ``reference``."""

    group: FactorLevels
    reference: FactorLevels
    target: FactorLevels = field(default_factory=dict)
    min_fraction: NonNegative = 0.0

    def evaluate(self, runs: pd.DataFrame, factors: Sequence[str], criteria: DecisionCriteria) -> HypothesisResult:
        return evaluate_recovered_fraction(self, runs, factors, criteria)


@dataclass(frozen=True, kw_only=True)
class RateGreater(Hypothesis):
    """An event strikes more seeds of one side: ``metric`` true (``diverged``), or above ``threshold``. Without
    ``reference``, more than of the IID baselines."""

    group: FactorLevels
    reference: FactorLevels = field(default_factory=dict)
    threshold: float | None = None

    def evaluate(self, runs: pd.DataFrame, factors: Sequence[str], criteria: DecisionCriteria) -> HypothesisResult:
        return evaluate_event_rates(self, runs, factors, criteria)


@dataclass(frozen=True, kw_only=True)
class All(Hypothesis):
    """Every part holds. Intersection-union (Berger, Technometrics 24, 1982): the largest p of the parts, and no price
    for their number."""

    parts: Annotated[tuple[Hypothesis, ...], MinLen(1)]

    def evaluate(self, runs: pd.DataFrame, factors: Sequence[str], criteria: DecisionCriteria) -> HypothesisResult:
        return combine_parts(self, [part.evaluate(runs, factors, criteria) for part in self.parts])


@dataclass(frozen=True, kw_only=True)
class ContrastTerm:
    """``weight`` times the mean over the runs that ``select`` names, in each seed."""

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
        return evaluate_linear_contrast(self, runs, factors, criteria)


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
        return evaluate_matched_difference(self, runs, factors, criteria)


# How each kind of hypothesis is weighed: from the frame of runs to one number a seed, and to a test of them.


def group_difference(
    hypothesis: Hypothesis,
    runs: pd.DataFrame,
    factors: Sequence[str],
    group: Selection,
    reference: Selection,
    *also: Selection,
    scale: str = "difference",
) -> tuple[PerSeedValues, int]:
    """``group`` less ``reference`` by seed (``group`` alone where ``reference`` is empty), and how many of all the runs
    diverged."""
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
    """How many runs of some sides diverged, and with ``contrast: iid_baseline`` of their IID twins too; each run counts once."""
    baselines = [side["iid_baseline"] for side in sides if contrast == "iid_baseline"]
    names = set().union(*(side["run"] for side in sides), *baselines)
    return int(runs.drop_duplicates("run").set_index("run")["diverged"].reindex(sorted(map(str, names))).eq(True).sum())


def metric_label(hypothesis: Hypothesis) -> str:
    return hypothesis.metric + (" less the IID baseline's" if hypothesis.contrast == "iid_baseline" else "")


def format_groups(group: Selection, reference: Selection) -> str:
    """The two sides in words."""
    first = f" of {format_selection(group)}" if group else ""
    return f"{first} against {format_selection(reference)}" if reference else first


def evaluate_difference(hypothesis: Greater, runs: pd.DataFrame, factors: Sequence[str], criteria: DecisionCriteria) -> HypothesisResult:
    """Greater, Less: one paired difference."""
    d, diverged = group_difference(hypothesis, runs, factors, hypothesis.group, hypothesis.reference, scale=hypothesis.scale)
    found = directional_result(
        d,
        hypothesis.sign,
        hypothesis.margin,
        hypothesis.min_effect,
        criteria,
        metric_label(hypothesis) + format_groups(hypothesis.group, hypothesis.reference),
        "difference",
        diverged,
    )
    return to_ratio(found) if hypothesis.scale == "ratio" else found


def to_ratio(result: HypothesisResult) -> HypothesisResult:
    """Logarithms taken back."""
    i = result.interval
    return replace(
        result,
        unit="ratio",
        interval=Interval(np.exp(i.estimate), np.exp(i.low), np.exp(i.high), i.confidence_level),
        detectable=float(np.exp(result.detectable)),
        points=tuple((seed, float(np.exp(v))) for seed, v in result.points),
    )


def evaluate_interaction(
    hypothesis: Interaction, runs: pd.DataFrame, factors: Sequence[str], criteria: DecisionCriteria
) -> HypothesisResult:
    """A difference of two paired differences, by seed."""
    inside, bad = group_difference(hypothesis, runs, factors, hypothesis.group, hypothesis.reference, hypothesis.inside)
    outside, bad_there = group_difference(hypothesis, runs, factors, hypothesis.group, hypothesis.reference, hypothesis.outside)
    seeds = inside.values.index.intersection(outside.values.index)
    a, b = inside.values[seeds].to_numpy(float), outside.values[seeds].to_numpy(float)
    both = both_diverged(a, b)
    d = PerSeedValues(
        pd.Series(paired_differences(a, b)[~both], index=seeds[~both]),
        max(inside.incomplete, outside.incomplete),
        max(inside.tied, outside.tied) + int(both.sum()),
    )
    words = (
        f"{metric_label(hypothesis)}{format_groups(hypothesis.group, hypothesis.reference)}, "
        f"in {format_selection(hypothesis.inside)} less in {format_selection(hypothesis.outside)}"
    )
    sign = 1 if hypothesis.direction == "greater" else -1
    return directional_result(d, sign, 0.0, hypothesis.min_effect, criteria, words, "difference", bad + bad_there)


def evaluate_equivalence(
    hypothesis: Equivalent, runs: pd.DataFrame, factors: Sequence[str], criteria: DecisionCriteria
) -> HypothesisResult:
    """TOST; refuted where the interval lies wholly beyond the margin."""
    per_seed, diverged = group_difference(hypothesis, runs, factors, hypothesis.group, hypothesis.reference)
    words = f"{metric_label(hypothesis)}{format_groups(hypothesis.group, hypothesis.reference)}"
    return equivalence_result(per_seed, hypothesis.margin, criteria, words, diverged)


def equivalence_result(
    per_seed: PerSeedValues, margin: float, criteria: DecisionCriteria, description: str, diverged: int
) -> HypothesisResult:
    """TOST of one number a seed; refuted where the interval lies wholly beyond the margin."""
    d, incomplete, tied = per_seed
    words = f"{description} within {margin:g}"
    if not len(d):
        return empty_result(words, "difference", incomplete, diverged=diverged, tied=tied)
    numbers = d.to_numpy(float)
    if not np.isfinite(numbers).all():
        return replace(
            empty_result(words, "difference", incomplete, "a run diverged on one side only: not equivalent there", diverged, tied),
            points=seed_points(d),
        )
    found, wide = tost(numbers, margin, criteria.alpha), mean_ci(numbers, 1 - 2 * criteria.strictest_alpha)
    beyond = (wide.low > margin or wide.high < -margin) and found.p.min_attainable_p <= criteria.strictest_alpha
    sd = float(numbers.std(ddof=1)) if len(numbers) > 1 else math.nan
    inside = bool(abs(numbers.mean()) < margin)
    return HypothesisResult(
        words,
        "difference",
        found.interval,
        found.p,
        inside,
        bool(beyond),
        incomplete,
        diverged,
        detectable=detectable_margin(len(numbers), sd, criteria.strictest_alpha, criteria.power),
        points=seed_points(d),
        tied=tied,
    )


def evaluate_recovered_fraction(
    hypothesis: RecoveredFraction, runs: pd.DataFrame, factors: Sequence[str], criteria: DecisionCriteria
) -> HypothesisResult:
    """(reference - group) / (reference - target), its interval by Fieller; the test is the sign-flip of
    (reference - group) - min_fraction (reference - target)."""
    (gain, missing, tied), bad = group_difference(hypothesis, runs, factors, hypothesis.reference, hypothesis.group)
    target = replace(hypothesis, contrast="iid_baseline") if not hypothesis.target else hypothesis
    (whole, missing_there, tied_there), bad_there = group_difference(target, runs, factors, hypothesis.reference, hypothesis.target)
    tied = max(tied, tied_there)
    goal = format_selection(hypothesis.target) or "its IID baseline"
    words = (
        f"share of {hypothesis.metric} that {format_selection(hypothesis.group)} recovers, "
        f"from {format_selection(hypothesis.reference)} to {goal}"
    )
    seeds = gain.index.intersection(whole.index)
    incomplete = max(missing, missing_there)
    if not len(seeds):
        return empty_result(words, "share", incomplete, diverged=bad + bad_there, tied=tied)
    part, full = gain[seeds].to_numpy(float), whole[seeds].to_numpy(float)
    if not (np.isfinite(part).all() and np.isfinite(full).all()):
        return empty_result(words, "share", incomplete, "a run diverged, and there is no share of an infinite loss", bad + bad_there, tied)
    sign = (
        1.0 if (hypothesis.worst_end or default_worst_end(hypothesis.metric)) == "high" else -1.0
    )  # what is lost is above 0 where high is bad
    there, left = sign_flip_test(full), part - hypothesis.min_fraction * full
    p, notes = sign_flip_test(left), [f"more than {hypothesis.min_fraction:.0%} was foretold"] if hypothesis.min_fraction else []
    p = replace(p, value=max(p.value, there.value))
    if sign * full.mean() <= 0 or not there.is_significant(criteria.strictest_alpha):
        notes.insert(0, f"there may be nothing to recover a share of: the whole is {full.mean():.3g} ({there})")
    if sign * full.mean() <= 0:
        p = replace(p, value=1.0)
    found, favours = ratio_ci(part, full, 1 - criteria.alpha), bool(sign * left.mean() > 0)
    points = tuple((int(seed), float(a / b)) for seed, a, b in zip(seeds, part, full, strict=True) if b)
    seen = hypothesis.min_fraction + detectable_effect(left, criteria) / abs(full.mean()) if full.mean() else math.inf
    return HypothesisResult(
        words, "share", found, p, favours, False, incomplete, bad + bad_there, detectable=seen, points=points, notes=tuple(notes), tied=tied
    )


def evaluate_event_rates(
    hypothesis: RateGreater, runs: pd.DataFrame, factors: Sequence[str], criteria: DecisionCriteria
) -> HypothesisResult:
    """Seeds that the event strikes on one side and not on the other; a seed is struck if any of its runs is."""
    require_columns(runs, [hypothesis.metric, "iid_baseline", *REQUIRED_COLUMNS])
    struck = (
        runs[hypothesis.metric].astype(float)
        if hypothesis.threshold is None
        else (runs[hypothesis.metric] > hypothesis.threshold).astype(float)
    )
    diverged = runs["diverged"].astype(bool)
    struck = struck.where(runs[hypothesis.metric].notna(), np.nan).where(~diverged, 1.0)  # diverged: struck, whatever it last said
    events = runs.assign(event=struck)
    left = select_runs(events, hypothesis.where, hypothesis.group)
    right = (
        select_runs(events, hypothesis.where, hypothesis.reference)
        if hypothesis.reference
        else events[events["run"].isin(set(left["iid_baseline"]))]
    )
    beyond = "" if hypothesis.threshold is None else f" above {hypothesis.threshold:g}"
    words = f"seeds with {hypothesis.metric}{beyond}{format_groups(hypothesis.group, hypothesis.reference or {'iid': True})}"
    first, second = (rows.groupby("seed")["event"].agg(lambda e: e.max(skipna=False)).dropna() for rows in (left, right))
    seeds = first.index.intersection(second.index)
    incomplete = len(set(left["seed"])) - len(seeds)
    if not len(seeds):
        return empty_result(words, "rate", incomplete)
    a, b = first[seeds].to_numpy(bool), second[seeds].to_numpy(bool)
    count, here, there = len(seeds), clopper_pearson(int(a.sum()), len(seeds)), clopper_pearson(int(b.sum()), len(seeds))
    needed = min_seeds(criteria.alpha, criteria.family_size)
    shown = (
        f"{int(a.sum())} of {count} ({here.low:.2f} to {here.high:.2f}) against "
        f"{int(b.sum())} of {count} ({there.low:.2f} to {there.high:.2f})"
    )
    return HypothesisResult(
        words,
        "rate",
        Interval(here.estimate - there.estimate, math.nan, math.nan, math.nan),
        mcnemar(a, b),
        bool(a.sum() > b.sum()),
        False,
        incomplete,
        int(left["diverged"].sum() + right["diverged"].sum()),
        detectable=needed / count if needed <= count else math.inf,
        points=tuple((int(s), float(x) - float(y)) for s, x, y in zip(seeds, a, b, strict=True)),
        notes=(shown,),
    )


def combine_parts(hypothesis: All, results: Sequence[HypothesisResult]) -> HypothesisResult:
    """Intersection-union: all must hold; one that points the other way is what refutes."""
    against = [part for part in results if not part.has_predicted_sign]
    if against:
        weakest = min(against, key=lambda part: part.p.value if not math.isnan(part.p.value) else 2.0)
        p = replace(weakest.p, value=min(1.0, weakest.p.value * len(results)))
    else:
        weakest = max(results, key=lambda part: part.p.value)
        p = replace(weakest.p, min_attainable_p=max(part.p.min_attainable_p for part in results))
    notes = tuple(
        f"{inner.name}: {part.description} {part.interval.estimate:.3g} ({part.p})"
        for inner, part in zip(hypothesis.parts, results, strict=True)
    )
    return replace(
        weakest,
        p=p,
        has_predicted_sign=not against,
        is_ruled_out=any(part.is_ruled_out for part in results),
        incomplete=max(part.incomplete for part in results),
        diverged=max(part.diverged for part in results),
        detectable=max(part.detectable for part in results),
        notes=notes,
        tied=max(part.tied for part in results),
        description=f"the weakest of {len(results)} parts, {weakest.description}",
    )


# How a weighted sum of means, and a difference at a matched value, are weighed.


def directed_result(
    hypothesis: LinearContrast | MatchedDifference, per_seed: PerSeedValues, criteria: DecisionCriteria, description: str, diverged: int
) -> HypothesisResult:
    """One number a seed, judged in the direction that the hypothesis states."""
    if hypothesis.direction == "equivalent":
        return equivalence_result(per_seed, hypothesis.margin, criteria, description, diverged)
    sign = 1 if hypothesis.direction == "greater" else -1
    return directional_result(per_seed, sign, hypothesis.margin, hypothesis.min_effect, criteria, description, "difference", diverged)


def evaluate_linear_contrast(
    hypothesis: LinearContrast, runs: pd.DataFrame, factors: Sequence[str], criteria: DecisionCriteria
) -> HypothesisResult:
    """The weighted sum of the terms' means, by seed."""
    table = outcome_values(runs, hypothesis.metric, None, hypothesis.contrast, hypothesis.worst_end, include_baselines=True)
    sides = [select_runs(table, hypothesis.where, term.select) for term in hypothesis.terms]
    found = [
        values_per_seed(side, None, [factor for factor in factors if factor not in term.select])
        for side, term in zip(sides, hypothesis.terms, strict=True)
    ]
    words = f"{metric_label(hypothesis)}, " + " ".join(f"{term.weight:+g} x ({format_selection(term.select)})" for term in hypothesis.terms)
    diverged = count_diverged(runs, hypothesis.contrast, *sides)
    columns = [values.values * term.weight for values, term in zip(found, hypothesis.terms, strict=True)]
    joined = pd.concat(columns, axis=1, join="inner").to_numpy(dtype=np.float64) if all(len(one) for one in columns) else np.zeros((0, 1))
    seeds = pd.concat(columns, axis=1, join="inner").index
    up, down = np.isposinf(joined).any(axis=1), np.isneginf(joined).any(axis=1)
    both = up & down
    total = np.where(up, np.inf, np.where(down, -np.inf, np.where(np.isfinite(joined), joined, 0.0).sum(axis=1)))
    every = set().union(*(set(side["seed"]) for side in sides))
    tied = max(values.tied for values in found) + int(both.sum())
    values = pd.Series(total[~both], index=seeds[: len(total)][~both], dtype=float)
    return directed_result(hypothesis, PerSeedValues(values, len(every) - len(values) - tied, tied), criteria, words, diverged)


def evaluate_matched_difference(
    hypothesis: MatchedDifference, runs: pd.DataFrame, factors: Sequence[str], criteria: DecisionCriteria
) -> HypothesisResult:
    """``group`` less the interpolated ladder of ``reference``, by seed."""
    table = outcome_values(runs, hypothesis.metric, None, hypothesis.contrast, hypothesis.worst_end, include_baselines=True)
    require_columns(table, [hypothesis.match], "outcome")
    left = select_runs(table, hypothesis.where, hypothesis.group)
    right = select_runs(table, hypothesis.where, hypothesis.reference)
    key = ["seed", *shared_factors(left, right, factors, [*hypothesis.group, *hypothesis.reference])]
    ladders = {name: rows for name, rows in right.groupby(key, dropna=False, observed=True)}
    differences, seeds = [], []
    for name, rows in left.groupby(key, dropna=False, observed=True):
        there = interpolate_ladder(ladders.get(name), hypothesis.match, float(rows[hypothesis.match].mean()))
        differences.append(float(rows["value"].mean()) - there)
        seeds.append(name[0])
    by_cell = pd.DataFrame({"seed": seeds, "value": differences}).groupby("seed")["value"]
    values = by_cell.agg(lambda cells: cells.mean(skipna=False)).astype(float)
    complete = values[np.isfinite(values.to_numpy(dtype=np.float64))]
    words = f"{metric_label(hypothesis)}{format_groups(hypothesis.group, hypothesis.reference)} at the same {hypothesis.match}"
    per_seed = PerSeedValues(complete, len(set(left["seed"]) | set(right["seed"])) - len(complete))
    return directed_result(hypothesis, per_seed, criteria, words, count_diverged(runs, hypothesis.contrast, left, right))


def interpolate_ladder(rows: pd.DataFrame | None, match: str, at: float) -> float:
    """The value of a ladder of runs at ``match`` = ``at``, linear in its logarithm; NaN outside the ladder."""
    if rows is None:
        return math.nan
    place, value = rows[match].to_numpy(dtype=np.float64), rows["value"].to_numpy(dtype=np.float64)
    known = (place > 0) & np.isfinite(place) & np.isfinite(value)
    order = np.argsort(place[known])
    steps, heights = place[known][order], value[known][order]
    if not len(steps) or not at > 0 or not steps[0] <= at <= steps[-1]:
        return math.nan
    return float(np.interp(math.log(at), np.log(steps), heights))


# How a trend is weighed: by the levels of a factor, or along a dial that every run has its own value of.

MIN_TREND_SEEDS = 3  # seeds: fewer do not make a trend that holds beyond them, whatever its p


def evaluate_trend(hypothesis: Trend, runs: pd.DataFrame, factors: Sequence[str], criteria: DecisionCriteria) -> HypothesisResult:
    """Three or more levels of a factor by Page's L, two by their paired contrast, a measured dial by Spearman's rho."""
    table = select_runs(
        outcome_values(runs, hypothesis.metric, None, hypothesis.contrast, hypothesis.worst_end, include_baselines=True), hypothesis.where
    )
    words = f"{metric_label(hypothesis)} along {hypothesis.predictor}" + (
        f", {format_selection(hypothesis.where)}" if hypothesis.where else ""
    )
    sign = 1 if hypothesis.direction == "up" else -1
    diverged = count_diverged(runs, hypothesis.contrast, table)
    rows = table.dropna(subset=["value", hypothesis.predictor])
    tied = len(set(table.loc[table["tied"], "seed"]))
    if not len(rows):
        return empty_result(words, "slope", diverged=diverged, tied=tied)
    if hypothesis.predictor in factors:
        complete, incomplete = average_by_level(
            rows, hypothesis.predictor, [f for f in factors if f not in {hypothesis.predictor, *hypothesis.where}]
        )
        if not len(complete):
            return empty_result(words, "slope", incomplete, "no seed has a run at each of two or more levels", diverged, tied)
        missing = len(set(table["seed"])) - len(complete) - tied
        seeds, names = complete.index.to_numpy(), numeric_levels(complete.columns, hypothesis.predictor)
        if len(names) == 2:
            return evaluate_two_levels(
                complete, names, PerSeedValues(pd.Series(dtype=float), missing, tied), sign, criteria, words, diverged
            )
        monotone = spearman_within_blocks(np.tile(names, len(seeds)), complete.to_numpy().ravel(), np.repeat(seeds, len(names)))
        p, steps = page_trend_test(complete.to_numpy()), np.array([median(column) for column in complete.to_numpy().T])
    else:
        monotone = spearman_within_blocks(
            rows[hypothesis.predictor].to_numpy(float), rows["value"].to_numpy(float), rows["seed"].to_numpy()
        )
        p, missing, steps, names = monotone.p, len(set(table["seed"])) - monotone.p.seeds - tied, np.zeros(0), np.zeros(0)
        seeds = np.unique(rows["seed"].to_numpy())
    slopes = np.array(monotone.slopes)
    notes = [f"mean rank correlation over seeds {monotone.rho:+.2f}"]
    back = [f"{names[k]:g} to {names[k + 1]:g}" for k in range(len(steps) - 1) if sign * steps[k + 1] < sign * steps[k]]
    if back:
        notes.append(f"not at every step: the median turns back from {', '.join(back)}")
    few = p.seeds < MIN_TREND_SEEDS
    if few:
        notes.append(f"a trend inside {p.seeds} seed{'s' * (p.seeds != 1)} is not replicated; it wants {MIN_TREND_SEEDS}")
        p = replace(p, min_attainable_p=1.0)
    points = tuple((int(seed), float(value)) for seed, value in zip(seeds, slopes, strict=False))
    return HypothesisResult(
        words,
        "slope",
        mean_ci(slopes, 1 - criteria.alpha),
        p,
        sign * monotone.rho > 0,
        False,
        missing,
        diverged,
        detectable=math.inf if few else math.nan,
        points=points,
        notes=tuple(notes),
        tied=tied,
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
    """Two levels are no trend: the upper less the lower, by seed, with the test, interval and power of a paired difference.

    ``excluded`` has the seeds that were left out before.
    """
    low, high = (complete.iloc[:, place].to_numpy(dtype=np.float64) for place in (0, 1))
    both = both_diverged(high, low)
    d = PerSeedValues(
        pd.Series(paired_differences(high, low)[~both], index=complete.index[~both]), excluded.incomplete, excluded.tied + int(both.sum())
    )
    found = directional_result(d, sign, 0.0, 0.0, criteria, f"{description}, {levels[1]:g} less {levels[0]:g}", "difference", diverged)
    return replace(found, notes=("two levels are no trend: this is their paired contrast", *found.notes))


def numeric_levels(levels: pd.Index, predictor: str) -> np.ndarray:
    """The levels as numbers."""
    try:
        return levels.to_numpy(dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError(
            f"predictor: a trend takes a factor whose levels are numbers; those of {predictor!r} are {', '.join(map(str, levels))[:80]}"
        ) from None


def average_by_level(rows: pd.DataFrame, predictor: str, factors: Sequence[str]) -> tuple[pd.DataFrame, int]:
    """Means ``[seeds, levels]`` over the cells of the other factors that every level has; seeds that lack one are
    counted, not used."""
    shared = [factor for factor in factors if rows[factor].notna().any()]
    tidy = rows.assign(cell=list(map(str, rows[shared].itertuples(index=False, name=None))))
    wide = average_cells(tidy, ["seed", "cell", predictor]).pivot(index="seed", columns=["cell", predictor], values="value")
    levels = sorted(tidy[predictor].unique())
    whole = [cell for cell in wide.columns.unique("cell") if len(wide[cell].columns) == len(levels)]
    if not whole or len(levels) < 2:
        return pd.DataFrame(), len(wide)
    complete = wide[whole].dropna()
    means = {level: complete.xs(level, axis=1, level=predictor).to_numpy(dtype=np.float64).mean(axis=1) for level in levels}
    return pd.DataFrame(means, index=complete.index), len(wide) - len(complete)


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
