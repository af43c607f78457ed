"""Verdicts on the hypotheses of a study: supported, refuted or inconclusive, each with a sentence that explains it.

The rules are fixed before the runs:

- Supported: the estimate has the predicted sign, and both the p-value and its Holm adjustment within the family are at most alpha.
- Refuted: the same holds for the opposite sign, or the data exclude the smallest effect of interest.
- Inconclusive: everything else. The verdict then reports the minimum detectable effect.
- Void: the IID baseline of a condition learned too little, so that nothing that happens beside it is evidence (``Gate``).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast

import numpy as np

from ..core.errors import UserError
from ..core.lazy_imports import pd
from .hypotheses import MIN_TREND_SEEDS, Hypothesis, Interaction, evaluate_one, list_selections
from .results import DecisionCriteria, HypothesisResult, describe_infinite, empty_result
from .selection import outcome_values, require_columns, select_runs
from .significance import ALPHA, count_seeds, format_p, holm, is_at_most, is_below, min_seeds


def format_verdict(name: str, verdict: str, result: HypothesisResult, adjusted_p: float, criteria: DecisionCriteria) -> str:
    """Format the sentence of a verdict: the effect, its uncertainty, and what the seeds could not have shown."""
    opening = f"{name} is {verdict}."
    if not result.p.seeds or (math.isnan(result.interval.estimate) and result.unit != "slope"):
        reason = f": {result.notes[0]}" if result.notes else ""
        return " ".join([f"{opening} There are no results to test for {result.description}{reason}.", *format_exclusions(result)])
    first = result.description.partition(" ")[0]
    # The name of a metric, such as loss.clients, stays as it is.
    subject = result.description if "." in first else result.description[0].upper() + result.description[1:]
    estimate = f"{format_effect(result)} over {count_seeds(result.p.seeds)}"
    sentence = f"{opening} {subject}: {estimate}, {format_p_value(result, adjusted_p, criteria)}."
    return " ".join([sentence, *format_limits(verdict, result, criteria)])


def format_effect(result: HypothesisResult) -> str:
    """Format an estimate with its interval, for example ``+0.123 (95 % interval +0.05 to +0.2)``; ratios and shares have no plus sign."""
    plus = "" if result.unit in ("ratio", "share") else "+"
    interval = result.interval
    if math.isnan(interval.estimate):
        return "no slope, because every seed has a run without a finite value,"
    if result.unit == "share":
        estimate = f"{100 * interval.estimate:.0f} %"
        bounds = (
            f"{100 * interval.low:.0f} % to {100 * interval.high:.0f} %"
            if math.isfinite(interval.high - interval.low)
            else "without bounds"
        )
    else:
        estimate, bounds = f"{interval.estimate:{plus}.3g}", f"{interval.low:{plus}.3g} to {interval.high:{plus}.3g}"
    unit, interval_kind = (" per unit", " of the per-seed slopes") if result.unit == "slope" else ("", "")
    prefix = "a ratio of " if result.unit == "ratio" else ""
    level = interval.confidence_level
    return f"{prefix}{estimate}{unit}" + ("" if math.isnan(level) else f" ({level * 100:.3g} % interval{interval_kind} {bounds})")


def format_p_value(result: HypothesisResult, adjusted_p: float, criteria: DecisionCriteria) -> str:
    """Format the p-value with its test and its Holm adjustment, or the reason why there is no p-value."""
    if result.unit == "slope" and result.p.seeds < MIN_TREND_SEEDS:
        return "no p"
    if result.p.min_attainable_p > criteria.alpha or math.isnan(result.p.value):
        return str(result.p) if not math.isnan(result.p.value) else "no p"
    sign = "< " if adjusted_p < 0.0001 else ""
    adjusted = f", {sign}{format_p(max(adjusted_p, 0.0001))} after Holm correction over {criteria.family_size} hypotheses"
    corrected = adjusted if criteria.family_size > 1 else ""
    return f"{result.p} ({result.p.test}{corrected})"


def format_limits(verdict: str, result: HypothesisResult, criteria: DecisionCriteria) -> list[str]:
    """List the sentences on the smallest effect that the seeds could have shown, and on the runs that were excluded."""
    sentences: list[str] = []
    if math.isinf(result.detectable):
        is_tost = result.p.test == "TOST"
        is_trend = result.unit == "slope"
        needed = MIN_TREND_SEEDS if is_trend else min_seeds(criteria.alpha, criteria.family_size) - is_tost  # TOST is one-sided
        family = f" in a family of {criteria.family_size} hypotheses" if criteria.family_size > 1 and not is_trend else ""
        subject = (
            "No difference, however small, can be shown to be equivalent" if is_tost else "No effect, however large, can be significant"
        )
        sentences.append(f"{subject} with {count_seeds(result.p.seeds)}: at least {needed} are needed{family}.")
    elif verdict == "inconclusive" and not math.isnan(result.detectable):
        size = f"{100 * result.detectable:.0f} %" if result.unit == "share" else f"{result.detectable:.3g}"
        sentences.append(
            f"An effect of {size} would have been detected with {100 * criteria.power:.0f} % probability; a smaller effect may exist."
        )
    elif verdict == "inconclusive" and result.unit == "slope":
        sentences.append("The p-value comes from a rank test and the interval from slopes, so the minimum detectable effect is not known.")
    return [*sentences, *format_exclusions(result)]


def format_exclusions(result: HypothesisResult) -> list[str]:
    """List the sentences on diverged runs and on seeds that the test excludes."""
    sentences: list[str] = []
    if result.diverged:
        single = result.diverged == 1
        has_rank = not result.both_diverged or any(math.isinf(value) for _, value in result.points)
        rank = f" and count{'s' if single else ''} as the worst" if result.unit != "rate" and result.points and has_rank else ""
        sentences.append(f"{result.diverged} run{'' if single else 's'} diverged{rank}.")
    if result.both_diverged and result.points:
        pronoun = "it" if result.both_diverged == 1 else "them"
        event = describe_infinite(result.description)
        sentences.append(f"In {count_seeds(result.both_diverged)} both sides {event}, and the test excludes {pronoun}.")
    if result.incomplete:
        sentences.append(f"{count_seeds(result.incomplete)} {'is' if result.incomplete == 1 else 'are'} incomplete.")
    return sentences


@dataclass(frozen=True)
class HypothesisVerdict:
    """The verdict on one hypothesis. ``effect``, ``low`` and ``high`` are in ``unit``; numbers that do not exist are NaN."""

    name: str
    claim: str
    family: str
    kind: str
    metric: str
    verdict: str  # supported, refuted, inconclusive, void
    effect: float
    low: float
    high: float
    confidence_level: float
    unit: str  # difference, ratio, slope, share, rate
    p: float
    p_holm: float  # p-value after Holm correction over the family
    min_attainable_p: float  # the smallest p-value that this number of seeds can produce
    test: str
    seeds: int
    incomplete: int  # seeds that lack a run of the comparison
    diverged: int  # diverged runs, including IID baselines
    both_diverged: int  # seeds in which both sides diverged; the test excludes them
    g: float  # paired Hedges' g
    detectable: float  # minimum detectable effect; infinite if no effect, however large, can be significant
    points: tuple[tuple[int, float], ...]  # (seed, value of that seed)
    sentence: str
    notes: tuple[str, ...]


def evaluate_hypotheses(
    hypotheses: Sequence[Hypothesis], runs: pd.DataFrame, factors: Sequence[str], alpha: float = ALPHA, power: float = 0.8
) -> tuple[HypothesisVerdict, ...]:
    """Evaluate every hypothesis and correct the p-values by Holm within each family.

    Args:
        hypotheses: The hypotheses of a study. Their names must differ.
        runs: The table of runs, with one row per run and the columns that ``fedrift.stats.selection`` describes.
        factors: The columns by which runs are paired.
        alpha: The significance level of a family.
        power: The probability of detection that defines the minimum detectable effect.

    Returns:
        One verdict per hypothesis, in the order of ``hypotheses``.

    Raises:
        UserError: Two hypotheses have the same name, or a hypothesis names a column that ``runs`` does not have.

    Example:
        >>> hypothesis = Greater(name="drift", metric="gap", group={"algorithm": "FedAvg"}, reference={"algorithm": "Scaffold"})
        >>> (verdict,) = evaluate_hypotheses([hypothesis], runs, factors=["algorithm"])
        >>> print(verdict.sentence)
    """
    duplicates = [name for name, count in Counter(hypothesis.name for hypothesis in hypotheses).items() if count > 1]
    if duplicates:
        raise UserError(f"two hypotheses are named {duplicates[0]!r}; give each hypothesis a unique name")
    sizes = Counter(hypothesis.family for hypothesis in hypotheses)
    criteria = {family: DecisionCriteria(alpha, power, size) for family, size in sizes.items()}
    results = [
        evaluate_one(hypothesis, runs, factors, criteria[hypothesis.family])
        if len(runs)
        else empty_result(hypothesis.metric, "difference", reason="no run has ended")
        for hypothesis in hypotheses
    ]
    adjusted = [math.nan] * len(results)
    for family in sizes:
        members = [index for index, hypothesis in enumerate(hypotheses) if hypothesis.family == family]
        # a t test can give a p-value below the smallest one that its seeds can produce; the correction must not start there
        bounded = [np.maximum(results[index].p.value, results[index].p.min_attainable_p) for index in members]
        for index, value in zip(members, holm(bounded), strict=True):
            adjusted[index] = float(value)
    return tuple(
        build_verdict(hypothesis, result, value, criteria[hypothesis.family])
        for hypothesis, result, value in zip(hypotheses, results, adjusted, strict=True)
    )


def build_verdict(hypothesis: Hypothesis, result: HypothesisResult, adjusted_p: float, criteria: DecisionCriteria) -> HypothesisVerdict:
    """Build the verdict on one hypothesis from its result and its p-value adjusted over the family."""
    verdict = decide_verdict(result, adjusted_p, criteria)
    return HypothesisVerdict(
        name=hypothesis.name,
        claim=hypothesis.claim,
        family=hypothesis.family,
        kind=type(hypothesis).__name__,
        metric=hypothesis.metric,
        verdict=verdict,
        effect=result.interval.estimate,
        low=result.interval.low,
        high=result.interval.high,
        confidence_level=result.interval.confidence_level,
        unit=result.unit,
        p=result.p.value,
        p_holm=adjusted_p,
        min_attainable_p=result.p.min_attainable_p,
        test=result.p.test,
        seeds=result.p.seeds,
        incomplete=result.incomplete,
        diverged=result.diverged,
        both_diverged=result.both_diverged,
        g=result.g,
        detectable=result.detectable,
        points=result.points,
        sentence=format_verdict(hypothesis.name, verdict, result, adjusted_p, criteria),
        notes=result.notes,
    )


def decide_verdict(result: HypothesisResult, adjusted_p: float, criteria: DecisionCriteria) -> str:
    """Decide between supported, refuted and inconclusive by the rules of this module."""
    is_significant = result.p.is_significant(criteria.alpha) and is_at_most(adjusted_p, criteria.alpha)
    if is_significant and result.has_predicted_sign and not result.is_ruled_out:
        return "supported"
    if result.is_ruled_out or (is_significant and not result.has_predicted_sign):
        return "refuted"
    return "inconclusive"


def verdict_table(verdicts: Sequence[HypothesisVerdict]) -> pd.DataFrame:
    """Return the verdicts as a table with one row per verdict.

    A p-value below the smallest one that its seeds can produce is replaced by NaN.
    """
    rows = [asdict(verdict) for verdict in verdicts]
    frame = pd.DataFrame(rows, columns=list(HypothesisVerdict.__dataclass_fields__))
    hidden = (frame["min_attainable_p"] > ALPHA) & (frame["p"] <= frame["min_attainable_p"].clip(lower=ALPHA))
    frame.loc[hidden & (frame["p"] < frame["min_attainable_p"]), ["p", "p_holm"]] = math.nan
    return frame


@dataclass(frozen=True)
class Gate:
    """A condition counts only where the mean of ``metric`` over its seeds is at least ``min``.

    Attributes:
        metric: The outcome that is asked; by default what the IID baseline gained from its start to its end, in nats.
        min: The least mean that counts.
        action: ``void``: a hypothesis that uses a void condition has no verdict but "void". ``drop``: void conditions are left out, and
            the hypothesis is judged on the others, if any are left on each side. A difference of unpaired means, such as a main effect of
            an orthogonal array, is void if the others are not balanced.
    """

    metric: str = "baseline.gain"
    min: float = 0.15
    action: Literal["void", "drop"] = "void"


def find_void_conditions(runs: pd.DataFrame, gate: Gate) -> dict[tuple[Any, Any], float]:
    """The conditions, by stage and name, whose mean is below the gate's, and their means; those without a number count."""
    require_columns(runs, ["stage", "condition"])
    rows = outcome_values(runs, gate.metric)
    means = rows.groupby(["stage", "condition"], observed=True)["value"].agg(_mean_of_known)
    return {cast(tuple[Any, Any], name): float(value) for name, value in means.items() if is_below(float(value), gate.min)}


def _mean_of_known(values: pd.Series) -> float:
    known = values.dropna().to_numpy(dtype=np.float64)
    return float(known.mean()) if len(known) else math.nan


def list_used_conditions(hypothesis: Hypothesis, runs: pd.DataFrame) -> set[tuple[Any, Any]]:
    """The conditions whose runs a hypothesis compares, by stage and name."""
    found: set[tuple[Any, Any]] = set()
    for selections in list_selections(hypothesis):
        rows = select_runs(runs, *selections)
        found |= set(zip(rows["stage"], rows["condition"], strict=True))
    return found


def evaluate_gated(
    hypotheses: Sequence[Hypothesis], runs: pd.DataFrame, factors: Sequence[str], gate: Gate | None = None
) -> tuple[HypothesisVerdict, ...]:
    """The verdict on every hypothesis; "void" where a condition that it uses did not pass the gate.

    A void hypothesis keeps its place in its family: Holm's correction is for all that were registered.
    """
    if gate is None or not len(runs):
        return evaluate_hypotheses(hypotheses, runs, factors)
    void = find_void_conditions(runs, gate)
    names = list(zip(runs["stage"], runs["condition"], strict=True))
    outside = np.array([name in void for name in names], dtype=bool) & ~runs["iid"].to_numpy(dtype=bool)
    remaining = runs[~outside] if gate.action == "drop" else runs
    found = []
    for hypothesis, verdict in zip(hypotheses, evaluate_hypotheses(hypotheses, remaining, factors), strict=True):
        used = list_used_conditions(hypothesis, runs)
        bad = sorted(((void[name], name[1]) for name in used if name in void), key=lambda pair: (pair[0], str(pair[1])))
        left_out = f"{len(bad)} of {len(used)} conditions are void and left out: {describe_gate(bad, gate)}" if bad else ""
        if bad and (gate.action == "void" or len(bad) == len(used)):
            verdict = void_verdict(verdict, describe_gate(bad, gate))
        elif bad and (factor := find_unbalanced_factor(hypothesis, runs, remaining, factors)):
            verdict = void_verdict(
                verdict, f"{left_out}; the others are not balanced over {factor}, whose effect the difference would contain"
            )
        elif bad:
            verdict = replace(verdict, notes=(*verdict.notes, left_out))
        found.append(verdict)
    return tuple(found)


def find_unbalanced_factor(hypothesis: Hypothesis, runs: pd.DataFrame, remaining: pd.DataFrame, factors: Sequence[str]) -> str:
    """Return a factor over which the sides of a hypothesis were balanced before conditions were left out, and are not now; "" if none."""
    for sides in list_unpaired_sides(hypothesis):
        rows = [select_runs(remaining, *side) for side in sides]
        named = {factor for side in sides for selection in side for factor in selection}
        for factor in (name for name in factors if name not in named and all(map(len, rows))):
            if is_balanced([select_runs(runs, *side) for side in sides], factor) and not is_balanced(rows, factor):
                return factor
    return ""


def list_unpaired_sides(hypothesis: Hypothesis) -> Iterator[list[tuple[dict[str, Any], ...]]]:
    """Every list of selections whose means a hypothesis compares, and whose conditions it does not pair."""
    for part in getattr(hypothesis, "parts", ()):
        yield from list_unpaired_sides(part)
    if terms := getattr(hypothesis, "terms", ()):
        yield [(hypothesis.where, term.select) for term in terms]
    if isinstance(hypothesis, Interaction):
        for side in (hypothesis.group, hypothesis.reference):
            yield [(hypothesis.where, side, hypothesis.inside), (hypothesis.where, side, hypothesis.outside)]


def is_balanced(sides: Sequence[pd.DataFrame], factor: str) -> bool:
    """Return whether every side has each level of a factor in the same share of its conditions."""
    levels = [rows.drop_duplicates(["stage", "condition"])[factor].astype(str) for rows in sides]
    shares = [one.value_counts(normalize=True).round(9).to_dict() for one in levels]
    return all(share == shares[0] for share in shares)


def void_verdict(verdict: HypothesisVerdict, reason: str) -> HypothesisVerdict:
    """The same numbers without a judgment."""
    return replace(verdict, verdict="void", sentence=f"{verdict.name} is void: {reason}.", notes=(verdict.sentence, *verdict.notes))


def describe_gate(conditions: Sequence[tuple[float, str]], gate: Gate) -> str:
    """By how much the weakest condition failed, in words."""
    value, name = conditions[0]
    if gate.metric == "baseline.gain":
        return f"the baseline gained only {value:.3g} nats per token in {name}, and {gate.min:g} were needed"
    return f"{gate.metric} is only {value:.3g} in {name}, and {gate.min:g} was needed"
