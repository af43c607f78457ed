"""What runs of several seeds say together: none, suspected, or confirmed as the heterogeneity's doing.

Confirmed needs three seeds or more, most of them positive each by itself, and the contrast: their IID twins do not show it, and
the excess over the baseline, paired by seed, has a t-interval above zero. The excess is the difference in differences
[M(run) - M(ref)] - [M(twin) - M(ref)]: a deal moves the same documents about, so the pooled reference is one for both and falls
out. For what either happens or not (divergence) the pairs in which only one of the two shows it must all point one way. A broken
identity of an algorithm needs no twin. One or two seeds are suspected at most; where most twins show it too it is a failure, but
not the heterogeneity's.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np
from scipy import stats

from .detectors import run_detectors
from .finding import THRESHOLDS, Finding, Grade, RunEvidence, Thresholds

Name = TypeVar("Name", int, str)
Cause = Literal["heterogeneity", "also in IID baseline", "no baseline", "implementation error"]
CAUSE_MESSAGES: dict[Cause, str] = {
    "heterogeneity": "The IID baseline does not show it.",
    "also in IID baseline": "The IID baseline shows it too, so the heterogeneity did not cause it.",
    "no baseline": "There is no IID baseline to tell whether the heterogeneity caused it.",
    "implementation error": "It is a mistake in an implementation, whatever the data.",
}


FACTUAL_FAILURES = ("dead model", "divergence")  # that training failed is a fact of one run; what caused it is not


@dataclass(frozen=True)
class Diagnosis:
    """What all seeds say of one failure. ``excess`` over the baseline with its interval; NaN where there is none."""

    failure: str
    grade: Grade
    cause: Cause
    findings: tuple[Finding, ...]  # one a seed
    sentence: str = ""
    num_seeds: int = 0  # in which it was measured
    num_positive: int = 0
    num_in_baseline: int = 0  # by twins
    excess: float = math.nan
    low: float = math.nan
    high: float = math.nan
    detectable_effect: float = math.nan  # the smallest effect that could have been called
    unit: str = ""
    strength: float = math.nan  # median statistic in units of its limit
    first_round: int | None = None
    clients: tuple[int, ...] = ()
    locations: tuple[str, ...] = ()
    missing_input: str = ""


def diagnose(cases: Sequence[RunEvidence]) -> list[Diagnosis]:
    """All detectors over the seeds of one experiment, the gravest first."""
    found: dict[str, list[Finding]] = {}
    limits = cases[0].thresholds if cases else THRESHOLDS
    for case in cases:
        for finding in run_detectors(case):
            found.setdefault(finding.failure, []).append(finding)
    order: tuple[Grade, ...] = ("confirmed", "suspected", "none", "not measured")
    return sorted((combine_seeds(each, limits) for each in found.values()), key=lambda said: order.index(said.grade))


def combine_seeds(seed_findings: Sequence[Finding], thresholds: Thresholds = THRESHOLDS) -> Diagnosis:
    """One failure over seeds."""
    common, first = thresholds["common"], seed_findings[0]
    measured = [finding for finding in seed_findings if finding.grade != "not measured"]
    if not measured:
        return Diagnosis(
            first.failure,
            "not measured",
            "no baseline",
            tuple(seed_findings),
            missing_input=first.missing_input,
            sentence=f"Not measured: {first.failure} needs {first.missing_input}.",
        )
    positive = [finding for finding in measured if finding.is_positive]
    called = positive or [finding for finding in measured if finding.grade == "suspected"]
    excess, low, high, least = paired_excess(measured, common["level"], common["power"])
    cause = attribute_cause(measured, positive)
    enough = len(measured) >= common["seeds"] and 2 * len(positive) > len(measured)
    wanting = sorted({finding.missing_input for finding in positive if not finding.is_confirmable})
    apart = has_one_sided_discordance(measured) if first.is_event else low > 0
    if enough and (cause == "implementation error" or (cause == "heterogeneity" and apart and not wanting)):
        grade: Grade = "confirmed"
    elif called and (first.is_event or len(measured) < common["seeds"] or 2 * len(called) >= len(measured)):
        grade = "suspected"
    else:
        grade = "none"
    told = called if grade != "none" else measured
    middle = sorted(told, key=lambda finding: finding.statistic)[len(told) // 2]
    starts = sorted(finding.first_round for finding in told if finding.first_round is not None)
    judgement = Diagnosis(
        first.failure,
        grade,
        cause,
        tuple(seed_findings),
        "",
        len(measured),
        len(positive),
        sum(bool(each.in_baseline) for each in measured),
        excess,
        low,
        high,
        middle.threshold if math.isnan(least) else max(middle.threshold, least),
        middle.unit,
        float(np.median([finding.strength for finding in measured])),
        starts[len(starts) // 2] if starts and grade != "none" else None,
        majority_names(finding.clients for finding in told),
        majority_names(finding.locations for finding in told),
        "; ".join(wanting),
    )
    return replace(judgement, sentence=write_sentence(judgement, middle, len(called), int(common["seeds"])))


def attribute_cause(measured: Sequence[Finding], positive: Sequence[Finding]) -> Cause:
    """Whose doing it is, by what most of the twins of the positive seeds show."""
    if measured[0].is_implementation_error:
        return "implementation error"
    told = [finding for finding in positive or measured if finding.in_baseline is not None]
    if not told:
        return "no baseline"
    return "also in IID baseline" if 2 * sum(bool(finding.in_baseline) for finding in told) >= len(told) else "heterogeneity"


def paired_excess(measured: Sequence[Finding], level: float, power: float) -> tuple[float, float, float, float]:
    """Mean excess over the baseline, its paired t-interval, and the smallest excess that so many seeds would have shown."""
    excess = np.array([finding.excess for finding in measured])
    excess = excess[np.isfinite(excess)]
    if not len(excess):
        return math.nan, math.nan, math.nan, math.nan
    mean, freedom = float(excess.mean()), len(excess) - 1
    if not freedom:
        return mean, math.nan, math.nan, math.nan
    wide, error = float(stats.t.ppf((1 + level) / 2, freedom)), float(excess.std(ddof=1) / np.sqrt(len(excess)))
    return mean, mean - wide * error, mean + wide * error, (wide + float(stats.t.ppf(power, freedom))) * error


def has_one_sided_discordance(measured: Sequence[Finding]) -> bool:
    """Whether no twin shows what its run does not: McNemar's discordant pairs, all on one side."""
    return not any(finding.in_baseline and not finding.is_positive for finding in measured)


def majority_names(name_lists: Iterable[tuple[Name, ...]]) -> tuple[Name, ...]:
    """What is named in most of the seeds, the most often named first."""
    every = list(name_lists)
    counts = Counter(name for names in every for name in names)
    return tuple(name for name, count in counts.most_common() if 2 * count > len(every))


def write_sentence(diagnosis: Diagnosis, median_finding: Finding, num_called: int, min_seeds: int) -> str:
    """The judgement in plain English."""
    seeds = f"{diagnosis.num_seeds} seed{'s' if diagnosis.num_seeds > 1 else ''}"
    size = f"{diagnosis.detectable_effect:.3g} {diagnosis.unit}"
    if diagnosis.grade == "none":
        some = f" ({num_called} of {diagnosis.num_seeds} seeds hint at it.)" if num_called else ""
        return f"No {diagnosis.failure} in {seeds}: {median_finding.message}. An effect under {size} would not have been called.{some}"
    lead = "Training failed" if diagnosis.failure in FACTUAL_FAILURES and diagnosis.grade == "suspected" else diagnosis.grade.capitalize()
    words = f"{lead}: {median_finding.message}; in {num_called} of {seeds}. {CAUSE_MESSAGES[diagnosis.cause]}"
    if diagnosis.grade == "confirmed":
        return words
    if diagnosis.num_seeds < min_seeds and diagnosis.failure in FACTUAL_FAILURES:
        these = "this run" if diagnosis.num_seeds == 1 else "these runs"
        words += f" That is a fact of {these}; to tell its cause takes {min_seeds} seeds."
    elif diagnosis.num_seeds < min_seeds:
        raised = "One seed raises" if diagnosis.num_seeds == 1 else "Two seeds raise"
        words += f" {raised} a suspicion; to confirm it takes {min_seeds}."
    elif diagnosis.missing_input:
        words += f" To confirm it takes {diagnosis.missing_input}."
    return words


# Judgements as plain JSON.


def diagnoses_to_json(diagnoses: Sequence[Diagnosis]) -> list[dict[str, Any]]:
    """Everything that was found, the findings of every seed included; what is missing is null."""
    return [to_json_value(asdict(judgement)) for judgement in diagnoses]


def to_json_value(value: Any) -> Any:
    """The same with NaN as None, infinities as text, and tuples as lists: JSON has none of them."""
    if isinstance(value, dict):
        return {key: to_json_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json_value(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
