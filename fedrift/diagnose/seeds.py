"""What runs of several seeds say together: none, suspected, or confirmed as the skew's doing.

Confirmed needs three seeds or more, most of them positive each by itself, and the contrast: their IID twins do not show it, and
the excess over the twin, paired by seed, has a t-interval above zero. The excess is the difference in differences
[M(run) - M(ref)] - [M(twin) - M(ref)]: a deal moves the same documents about, so the pooled reference is one for both and falls
out. For what either happens or not (divergence) the pairs in which only one of the two shows it must all point one way. A broken
identity of an algorithm needs no twin. One or two seeds are suspected at most; where most twins show it too it is a failure, but
not the skew's.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
from scipy import stats

from ..detectors import findings
from ..detectors.finding import LIMITS, Case, Finding, Grade, Limits

Name = TypeVar("Name", int, str)
Cause = Literal["skew", "shared", "unknown", "bug"]
CAUSES: dict[Cause, str] = {
    "skew": "The IID twin does not show it.",
    "shared": "The IID twin shows it too, so the skew did not cause it.",
    "unknown": "There is no IID twin to tell whether the skew caused it.",
    "bug": "It is a mistake in an implementation, whatever the data.",
}


FACTS = ("dead model", "divergence")  # that training failed is a fact of one run; what caused it is not


@dataclass(frozen=True)
class Judgement:
    """What all seeds say of one failure. ``excess`` over the twin with its interval; NaN where there is none."""

    failure: str
    grade: Grade
    cause: Cause
    findings: tuple[Finding, ...]  # one a seed
    sentence: str = ""
    seeds: int = 0  # in which it was measured
    positive: int = 0
    shown: int = 0  # by twins
    excess: float = math.nan
    low: float = math.nan
    high: float = math.nan
    detectable: float = math.nan  # the smallest effect that could have been called
    unit: str = ""
    strength: float = math.nan  # median statistic in units of its limit
    since: int | None = None
    clients: tuple[int, ...] = ()
    where: tuple[str, ...] = ()
    needs: str = ""


def diagnose(cases: Sequence[Case]) -> list[Judgement]:
    """All detectors over the seeds of one experiment, the gravest first."""
    found: dict[str, list[Finding]] = {}
    limits = cases[0].limits if cases else LIMITS
    for case in cases:
        for finding in findings(case):
            found.setdefault(finding.failure, []).append(finding)
    order: tuple[Grade, ...] = ("confirmed", "suspected", "none", "not measured")
    return sorted((combine(each, limits) for each in found.values()), key=lambda said: order.index(said.grade))


def combine(every: Sequence[Finding], limits: Limits = LIMITS) -> Judgement:
    """One failure over seeds."""
    common, first = limits["common"], every[0]
    measured = [finding for finding in every if finding.grade != "not measured"]
    if not measured:
        return Judgement(first.failure, "not measured", "unknown", tuple(every), needs=first.needs,
                         sentence=f"Not measured: {first.failure} needs {first.needs}.")
    positive = [finding for finding in measured if finding.positive]
    called = positive or [finding for finding in measured if finding.grade == "suspected"]
    excess, low, high, least = contrast(measured, common["level"], common["power"])
    cause = caused(measured, positive)
    enough = len(measured) >= common["seeds"] and 2 * len(positive) > len(measured)
    wanting = sorted({finding.needs for finding in positive if not finding.confirmable})
    apart = only_one_way(measured) if first.event else low > 0
    if enough and (cause == "bug" or (cause == "skew" and apart and not wanting)):
        grade: Grade = "confirmed"
    elif called and (first.event or len(measured) < common["seeds"] or 2 * len(called) >= len(measured)):
        grade = "suspected"
    else:
        grade = "none"
    told = called if grade != "none" else measured
    middle = sorted(told, key=lambda finding: finding.statistic)[len(told) // 2]
    starts = sorted(finding.since for finding in told if finding.since is not None)
    judgement = Judgement(
        first.failure, grade, cause, tuple(every), "", len(measured), len(positive), sum(bool(each.shown) for each in measured),
        excess, low, high, middle.limit if math.isnan(least) else max(middle.limit, least), middle.unit,
        float(np.median([finding.strength for finding in measured])),
        starts[len(starts) // 2] if starts and grade != "none" else None,
        most(finding.clients for finding in told), most(finding.where for finding in told), "; ".join(wanting))
    return replace(judgement, sentence=sentence(judgement, middle, len(called), int(common["seeds"])))


def caused(measured: Sequence[Finding], positive: Sequence[Finding]) -> Cause:
    """Whose doing it is, by what most of the twins of the positive seeds show."""
    if measured[0].bug:
        return "bug"
    told = [finding for finding in positive or measured if finding.shown is not None]
    if not told:
        return "unknown"
    return "shared" if 2 * sum(bool(finding.shown) for finding in told) >= len(told) else "skew"


def contrast(measured: Sequence[Finding], level: float, power: float) -> tuple[float, float, float, float]:
    """Mean excess over the twin, its paired t-interval, and the smallest excess that so many seeds would have shown."""
    excess = np.array([finding.excess for finding in measured])
    excess = excess[np.isfinite(excess)]
    if not len(excess):
        return math.nan, math.nan, math.nan, math.nan
    mean, freedom = float(excess.mean()), len(excess) - 1
    if not freedom:
        return mean, math.nan, math.nan, math.nan
    wide, error = float(stats.t.ppf((1 + level) / 2, freedom)), float(excess.std(ddof=1) / np.sqrt(len(excess)))
    return mean, mean - wide * error, mean + wide * error, (wide + float(stats.t.ppf(power, freedom))) * error


def only_one_way(measured: Sequence[Finding]) -> bool:
    """Whether no twin shows what its run does not: McNemar's discordant pairs, all on one side."""
    return not any(finding.shown and not finding.positive for finding in measured)


def most(named: Iterable[tuple[Name, ...]]) -> tuple[Name, ...]:
    """What is named in most of the seeds, the most often named first."""
    every = list(named)
    counts = Counter(name for names in every for name in names)
    return tuple(name for name, count in counts.most_common() if 2 * count > len(every))


def sentence(said: Judgement, middle: Finding, called: int, least: int) -> str:
    """The judgement in plain English."""
    seeds = f"{said.seeds} seed{'s' if said.seeds > 1 else ''}"
    size = f"{said.detectable:.3g} {said.unit}"
    if said.grade == "none":
        some = f" ({called} of {said.seeds} seeds hint at it.)" if called else ""
        return f"No {said.failure} in {seeds}: {middle.said}. An effect under {size} would not have been called.{some}"
    lead = "Training failed" if said.failure in FACTS and said.grade == "suspected" else said.grade.capitalize()
    words = f"{lead}: {middle.said}; in {called} of {seeds}. {CAUSES[said.cause]}"
    if said.grade == "confirmed":
        return words
    if said.seeds < least and said.failure in FACTS:
        words += f" That is a fact of {'this run' if said.seeds == 1 else 'these runs'}; to tell its cause takes {least} seeds."
    elif said.seeds < least:
        words += f" {'One seed raises' if said.seeds == 1 else 'Two seeds raise'} a suspicion; to confirm it takes {least}."
    elif said.needs:
        words += f" To confirm it takes {said.needs}."
    return words
