"""Combine the findings of several seeds into a diagnosis: none, suspected, or confirmed as an effect of heterogeneity.

A confirmation requires at least three seeds with an IID baseline, most of which are positive on their own. In addition, the baselines must
not show the failure, and the excess over the baseline, paired by seed, must have a t-interval above zero. The excess is the difference in
differences [M(run) - M(ref)] - [M(baseline) - M(ref)]. A partition only assigns the same documents to different clients, so the
centralized reference is the same for both and cancels.

Failures that either occur or not, such as training divergence, are tested by discordant pairs: all pairs in which only one run shows the
failure must be in the same direction. A violated invariant of an algorithm needs no baseline. One or two seeds give at most a
suspicion. If most baselines also show the failure, it is reported but heterogeneity is not its cause.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np

from ..core.lazy_imports import stats
from .detectors import Detector, run_detectors
from .finding import THRESHOLDS, Finding, Grade, RunEvidence, Thresholds

Name = TypeVar("Name", int, str)
Cause = Literal["heterogeneity", "also in IID baseline", "no baseline", "implementation error"]
CAUSE_MESSAGES: dict[Cause, str] = {
    "heterogeneity": "The IID baseline does not show it.",
    "also in IID baseline": "The IID baseline shows it too, so the heterogeneity did not cause it.",
    "no baseline": "Without an IID baseline, it is unknown whether the heterogeneity caused it.",
    "implementation error": "It is an error in the implementation and does not depend on the data.",
}


COUNTED_UNITS, LOG_RATIO = ("occurrences", "updates"), "log ratio to the baseline"  # units of findings
FACTUAL_FAILURES = ("dead model", "divergence")  # one run is enough to state these, but not their cause


@dataclass(frozen=True)
class Diagnosis:
    """The combined result of all seeds for one failure mode.

    Attributes:
        failure: Name of the failure mode.
        grade: The grade.
        cause: Whether heterogeneity is the cause.
        findings: One finding per seed.
        sentence: The diagnosis in plain English.
        num_seeds: Seeds in which the failure mode was measured.
        num_positive: Seeds in which the finding is positive.
        num_in_baseline: Seeds in which the IID baseline shows the failure.
        excess: Mean excess over the baseline; NaN without baselines.
        low: Lower bound of its t-interval.
        high: Upper bound of its t-interval.
        detectable_effect: The smallest effect that would have been detected.
        unit: Unit of the effects.
        strength: Median statistic divided by its threshold.
        first_round: Median first round with signs of the failure.
        clients: Clients that are affected in most seeds.
        locations: Domains, layers or phenomena that are affected in most seeds.
        missing_input: Measurements that are missing for a confirmation.

    Example:
        >>> [diagnosis.grade for diagnosis in fedrift.diagnose(run) if diagnosis.failure == "dead model"]
        ['none']
    """

    failure: str
    grade: Grade
    cause: Cause
    findings: tuple[Finding, ...]
    sentence: str = ""
    num_seeds: int = 0
    num_positive: int = 0
    num_in_baseline: int = 0
    excess: float = math.nan
    low: float = math.nan
    high: float = math.nan
    detectable_effect: float = math.nan
    unit: str = ""
    strength: float = math.nan
    first_round: int | None = None
    clients: tuple[int, ...] = ()
    locations: tuple[str, ...] = ()
    missing_input: str = ""


def diagnose(cases: Sequence[RunEvidence], own_detectors: Sequence[Detector] = ()) -> list[Diagnosis]:
    """Run all detectors on the seeds of one experiment.

    Args:
        cases: Evidence for each seed.
        own_detectors: Detectors that are neither part of fedrift nor registered.

    Returns:
        One diagnosis per failure mode, the most severe grade first.
    """
    by_failure: dict[str, list[Finding]] = {}
    thresholds = cases[0].thresholds if cases else THRESHOLDS
    for evidence in cases:
        for finding in run_detectors(evidence, own_detectors):
            by_failure.setdefault(finding.failure, []).append(finding)
    order: tuple[Grade, ...] = ("confirmed", "suspected", "none", "not measured")
    return sorted(
        (combine_seeds(findings, thresholds) for findings in by_failure.values()), key=lambda diagnosis: order.index(diagnosis.grade)
    )


def combine_seeds(seed_findings: Sequence[Finding], thresholds: Thresholds = THRESHOLDS) -> Diagnosis:
    """Combine the findings of one failure mode over seeds."""
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
    suspected = positive or [finding for finding in measured if finding.grade == "suspected"]
    excess, low, high, detectable = paired_excess(measured, common["level"], common["power"])
    cause = attribute_cause(measured, positive)
    enough = len(measured) >= common["seeds"] and 2 * len(positive) > len(measured)
    missing = sorted({finding.missing_input for finding in positive if not finding.is_confirmable})
    paired = [finding for finding in measured if finding.in_baseline is not None]
    has_pairs = len(paired) >= common["seeds"] and 2 * sum(finding.is_positive for finding in paired) > len(paired)
    exceeds_baseline = has_one_sided_discordance(measured) if first.is_event else low > 0
    if enough and (cause == "implementation error" or (cause == "heterogeneity" and has_pairs and exceeds_baseline and not missing)):
        grade: Grade = "confirmed"
    elif suspected and (first.is_event or len(measured) < common["seeds"] or 2 * len(suspected) >= len(measured)):
        grade = "suspected"
    else:
        grade = "none"
    relevant = suspected if grade != "none" else measured
    median_finding = sorted(relevant, key=lambda finding: finding.statistic)[len(relevant) // 2]
    first_rounds = sorted(finding.first_round for finding in relevant if finding.first_round is not None)
    diagnosis = Diagnosis(
        first.failure,
        grade,
        cause,
        tuple(seed_findings),
        "",
        len(measured),
        len(positive),
        sum(bool(finding.in_baseline) for finding in measured),
        excess,
        low,
        high,
        median_finding.threshold if math.isnan(detectable) else max(median_finding.threshold, detectable),
        median_finding.unit,
        float(np.median([finding.strength for finding in measured])),
        first_rounds[len(first_rounds) // 2] if first_rounds and grade != "none" else None,
        majority_names(finding.clients for finding in relevant),
        majority_names(finding.locations for finding in relevant),
        "; ".join(missing),
    )
    return replace(diagnosis, sentence=write_sentence(diagnosis, median_finding, len(suspected), int(common["seeds"])))


def attribute_cause(measured: Sequence[Finding], positive: Sequence[Finding]) -> Cause:
    """Determine the cause from the baselines of the positive seeds, or of all measured seeds if none is positive."""
    if measured[0].is_implementation_error:
        return "implementation error"
    with_baseline = [finding for finding in positive or measured if finding.in_baseline is not None]
    if not with_baseline:
        return "no baseline"
    return (
        "also in IID baseline" if 2 * sum(bool(finding.in_baseline) for finding in with_baseline) >= len(with_baseline) else "heterogeneity"
    )


def paired_excess(measured: Sequence[Finding], level: float, power: float) -> tuple[float, float, float, float]:
    """Compute the mean excess over the baseline and its paired t-interval.

    Args:
        measured: One finding per seed.
        level: Level of the interval.
        power: Power of the smallest detectable excess.

    Returns:
        Mean, lower bound, upper bound, and the smallest excess that this number of seeds detects. Missing values are NaN.
    """
    excess = np.array([finding.excess for finding in measured])
    excess = excess[np.isfinite(excess)]
    if not len(excess):
        return math.nan, math.nan, math.nan, math.nan
    mean, degrees_of_freedom = float(excess.mean()), len(excess) - 1
    if not degrees_of_freedom:
        return mean, math.nan, math.nan, math.nan
    quantile, error = float(stats.t.ppf((1 + level) / 2, degrees_of_freedom)), float(excess.std(ddof=1) / np.sqrt(len(excess)))
    return mean, mean - quantile * error, mean + quantile * error, (quantile + float(stats.t.ppf(power, degrees_of_freedom))) * error


def has_one_sided_discordance(measured: Sequence[Finding]) -> bool:
    """Return whether no baseline shows the failure without its run: all discordant pairs (McNemar) have the same direction."""
    return not any(finding.in_baseline and not finding.is_positive for finding in measured)


def majority_names(name_lists: Iterable[tuple[Name, ...]]) -> tuple[Name, ...]:
    """Return the names that occur in most of the lists, the most frequent first."""
    lists = list(name_lists)
    counts = Counter(name for names in lists for name in names)
    return tuple(name for name, count in counts.most_common() if 2 * count > len(lists))


def write_sentence(diagnosis: Diagnosis, median_finding: Finding, num_suspected: int, min_seeds: int) -> str:
    """Write a diagnosis in plain English.

    Args:
        diagnosis: The diagnosis.
        median_finding: The finding with the median statistic, whose message is used.
        num_suspected: Seeds in which the failure is at least suspected.
        min_seeds: Seeds that a confirmation requires.
    """
    seeds = f"{diagnosis.num_seeds} seed{'s' if diagnosis.num_seeds > 1 else ''}"
    size = format_effect(diagnosis.detectable_effect, diagnosis.unit)
    if diagnosis.grade == "none":
        hint = f" Signs of it appear in {num_suspected} of {diagnosis.num_seeds} seeds." if num_suspected else ""
        return f"No {diagnosis.failure} in {seeds}: {median_finding.message}. Effects below {size} would not have been detected.{hint}"
    lead = "Training failed" if diagnosis.failure in FACTUAL_FAILURES and diagnosis.grade == "suspected" else diagnosis.grade.capitalize()
    sentence = f"{lead}: {median_finding.message} ({num_suspected} of {seeds}). {CAUSE_MESSAGES[diagnosis.cause]}"
    if diagnosis.grade == "confirmed":
        return sentence
    if diagnosis.num_seeds < min_seeds and diagnosis.failure in FACTUAL_FAILURES:
        these = "this run" if diagnosis.num_seeds == 1 else "these runs"
        sentence += f" The failure of {these} is certain, but identifying its cause requires {min_seeds} seeds."
    elif diagnosis.num_seeds < min_seeds:
        subject = "One seed" if diagnosis.num_seeds == 1 else "Two seeds"
        sentence += f" {subject} can only raise a suspicion; a confirmation requires {min_seeds} seeds."
    elif diagnosis.missing_input:
        sentence += f" A confirmation requires {diagnosis.missing_input}."
    elif diagnosis.cause == "heterogeneity" and sum(finding.in_baseline is not None for finding in diagnosis.findings) < min_seeds:
        sentence += f" A confirmation requires {min_seeds} seeds with an IID baseline."
    return sentence


def format_effect(effect: float, unit: str) -> str:
    """Format the smallest effect that would have been detected: a count as a whole number, and a logarithm of a ratio as the ratio."""
    if unit in COUNTED_UNITS and math.isfinite(effect):
        count = math.floor(effect) + 1  # a count is a finding if it exceeds the threshold
        return f"{count} {unit.removesuffix('s') if count == 1 else unit}"
    if unit == LOG_RATIO:
        return f"{math.exp(effect):.3g} times the baseline"
    return f"{effect:.3g} {unit}"


# Conversion of diagnoses to JSON.


def diagnoses_to_json(diagnoses: Sequence[Diagnosis]) -> list[dict[str, Any]]:
    """Convert diagnoses with the findings of every seed to JSON values; missing numbers are null."""
    return [to_json_value(asdict(diagnosis)) for diagnosis in diagnoses]


def to_json_value(value: Any) -> Any:
    """Convert NaN to None, infinities to text, and tuples to lists, because JSON does not have them."""
    if isinstance(value, dict):
        return {key: to_json_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json_value(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
