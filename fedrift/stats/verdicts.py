"""Verdicts in plain English."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import pandas as pd

from ..core.errors import UserError
from .hypotheses import DecisionCriteria, Hypothesis, HypothesisResult, empty_result
from .significance import ALPHA, count_seeds, format_p, holm, min_seeds


def format_verdict(name: str, verdict: str, result: HypothesisResult, adjusted_p: float, criteria: DecisionCriteria) -> str:
    """What was found, how sure it is, and what would have been missed."""
    lead = f"{name} is {verdict}."
    if not result.p.seeds or math.isnan(result.interval.estimate):
        why = f": {result.notes[0]}" if result.notes else ""
        return " ".join([f"{lead} Nothing to judge in {result.description}{why}.", *format_exclusions(result)])
    what = result.description[0].upper() + result.description[1:]
    said = f"{lead} {what}: {format_effect(result)} over {count_seeds(result.p.seeds)}, {format_p_value(result, adjusted_p, criteria)}."
    return " ".join([said, *format_limits(verdict, result, criteria)])


def format_effect(result: HypothesisResult) -> str:
    """``+0.123 (95 % interval +0.05 to +0.2)``, in the sign of its unit."""
    plus = "" if result.unit in ("ratio", "share") else "+"
    i = result.interval
    if result.unit == "share":
        text, ends = f"{i.estimate:.0%}", f"{i.low:.0%} to {i.high:.0%}" if math.isfinite(i.high - i.low) else "without bounds"
    else:
        text, ends = f"{i.estimate:{plus}.3g}", f"{i.low:{plus}.3g} to {i.high:{plus}.3g}"
    per, of = (" per unit", " of the seeds' slopes") if result.unit == "slope" else ("", "")
    what = "a ratio of " if result.unit == "ratio" else ""
    return f"{what}{text}{per}" + ("" if math.isnan(i.confidence_level) else f" ({i.confidence_level * 100:.3g} % interval{of} {ends})")


def format_p_value(result: HypothesisResult, adjusted_p: float, criteria: DecisionCriteria) -> str:
    """The p with its test, or why there is none."""
    if result.p.min_attainable_p > criteria.alpha or math.isnan(result.p.value):
        return str(result.p) if not math.isnan(result.p.value) else "no p"
    corrected = f", {format_p(adjusted_p)} by Holm over {criteria.family_size}" if criteria.family_size > 1 else ""
    return f"{result.p} ({result.p.test}{corrected})"


def format_limits(verdict: str, result: HypothesisResult, criteria: DecisionCriteria) -> list[str]:
    """What the seeds could not have shown, and what was left out."""
    told: list[str] = []
    if math.isinf(result.detectable):
        needed = f"{min_seeds(criteria.alpha, criteria.family_size)}" + (
            f" in a family of {criteria.family_size}" if criteria.family_size > 1 else ""
        )
        told.append(f"No effect, however large, can be called by {count_seeds(result.p.seeds)}: it takes {needed}.")
    elif verdict == "inconclusive" and not math.isnan(result.detectable):
        size = f"{result.detectable:.0%}" if result.unit == "share" else f"{result.detectable:.3g}"
        told.append(f"An effect of {size} would have been called with {criteria.power:.0%} probability; a smaller one may be there.")
    elif verdict == "inconclusive" and result.unit == "slope":
        told.append("The p is of ranks and the interval of slopes: no smallest effect that would have been called is known.")
    return [*told, *format_exclusions(result)]


def format_exclusions(result: HypothesisResult) -> list[str]:
    """Runs that diverged, and seeds that do not count."""
    told: list[str] = []
    if result.diverged:
        one = result.diverged == 1
        worst = result.unit != "rate" and (not result.tied or any(math.isinf(value) for _, value in result.points))
        told.append(f"{result.diverged} run{'' if one else 's'} diverged" + (f" and count{'s' if one else ''} as the worst" * worst) + ".")
    if result.tied and result.points:
        told.append(f"In {count_seeds(result.tied)} both sides diverged: no difference, and left out.")
    if result.incomplete:
        told.append(f"{count_seeds(result.incomplete).capitalize()} not complete.")
    return told


# The verdict on each hypothesis of a study: supported, refuted or inconclusive, by rules that were fixed before the
# runs.
#
# Supported: the estimate lies on the side that was foretold, and the p, by Holm inside the family, is at most alpha.
# Refuted: it lies on the other side as surely, or the data rule out the smallest effect that was said to matter.
# Everything else is inconclusive, and says how small an effect would have been seen.


@dataclass(frozen=True)
class Verdict:
    """One hypothesis, judged. ``effect`` in the ``unit`` that it says; NaN where there is nothing to say."""

    name: str
    claim: str
    family: str
    kind: str
    metric: str
    verdict: str  # supported, refuted, inconclusive
    effect: float
    low: float
    high: float
    confidence_level: float
    unit: str  # difference, ratio, slope, share, rate
    p: float
    holm: float  # p adjusted for the family
    min_attainable_p: float  # the smallest p that these seeds could have given
    test: str
    seeds: int
    incomplete: int  # seeds that lack a run of the comparison
    diverged: int  # runs that diverged, IID twins among them
    tied: int  # seeds in which both sides diverged: left out
    g: float  # paired Hedges g
    detectable: float  # minimum detectable effect; infinite: none, however large
    points: tuple[tuple[int, float], ...]  # seed and its own number
    sentence: str
    notes: tuple[str, ...]


def evaluate_hypotheses(
    hypotheses: Sequence[Hypothesis], runs: pd.DataFrame, factors: Sequence[str], alpha: float = ALPHA, power: float = 0.8
) -> tuple[Verdict, ...]:
    """Every hypothesis, in its order; ``runs`` as ``selection`` describes it, ``factors`` the columns by which runs are
    paired."""
    twice = [name for name, count in Counter(said.name for said in hypotheses).items() if count > 1]
    if twice:
        raise UserError(f"two hypotheses are named {twice[0]!r}; a verdict needs a name of its own")
    sizes = Counter(said.family for said in hypotheses)
    bars = {family: DecisionCriteria(alpha, power, size) for family, size in sizes.items()}
    found = [
        said.evaluate(runs, factors, bars[said.family]) if len(runs) else empty_result(said.metric, "difference", reason="no run has ended")
        for said in hypotheses
    ]
    adjusted = [math.nan] * len(found)
    for family in sizes:
        members = [place for place, said in enumerate(hypotheses) if said.family == family]
        for place, value in zip(members, holm([found[place].p.value for place in members]), strict=True):
            adjusted[place] = float(value)
    return tuple(
        build_verdict(said, measured, value, bars[said.family]) for said, measured, value in zip(hypotheses, found, adjusted, strict=True)
    )


def build_verdict(hypothesis: Hypothesis, result: HypothesisResult, adjusted_p: float, criteria: DecisionCriteria) -> Verdict:
    """One hypothesis, once its family is known."""
    grade = decide_verdict(result, adjusted_p, criteria)
    return Verdict(
        name=hypothesis.name,
        claim=hypothesis.claim,
        family=hypothesis.family,
        kind=type(hypothesis).__name__,
        metric=hypothesis.metric,
        verdict=grade,
        effect=result.interval.estimate,
        low=result.interval.low,
        high=result.interval.high,
        confidence_level=result.interval.confidence_level,
        unit=result.unit,
        p=result.p.value,
        holm=adjusted_p,
        min_attainable_p=result.p.min_attainable_p,
        test=result.p.test,
        seeds=result.p.seeds,
        incomplete=result.incomplete,
        diverged=result.diverged,
        tied=result.tied,
        g=result.g,
        detectable=result.detectable,
        points=result.points,
        sentence=format_verdict(hypothesis.name, grade, result, adjusted_p, criteria),
        notes=result.notes,
    )


def decide_verdict(result: HypothesisResult, adjusted_p: float, criteria: DecisionCriteria) -> str:
    sure = result.p.is_significant(criteria.alpha) and adjusted_p <= criteria.alpha
    if sure and result.has_predicted_sign and not result.is_ruled_out:
        return "supported"
    if result.is_ruled_out or (sure and not result.has_predicted_sign):
        return "refuted"
    return "inconclusive"


def verdict_table(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """One row a verdict; a p that the seeds could not have given is left out."""
    rows = [asdict(one) for one in verdicts]
    frame = pd.DataFrame(rows, columns=list(Verdict.__dataclass_fields__))
    hidden = (frame["min_attainable_p"] > ALPHA) & (frame["p"] <= frame["min_attainable_p"].clip(lower=ALPHA))
    frame.loc[hidden & (frame["p"] < frame["min_attainable_p"]), ["p", "holm"]] = math.nan
    return frame
