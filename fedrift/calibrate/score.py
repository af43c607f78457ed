"""How good the detectors are: false alarms on healthy runs, recall and lead on planted ones.

Thresholds are looked at on the seeds ``TUNE`` and reported on ``REPORT``, never the same. Rates are of runs for "called", and of
groups of ``GROUP`` seeds for "confirmed"; intervals are Clopper and Pearson's, which hold at any number of runs.

A placebo asks the other way round: the tags "run" and "control" of a planted failure are exchanged in some of its seeds, in
every way but the true one. What is then confirmed, random tags would have confirmed. With n seeds the least that such a test can
come to is about 1 in 2^n, so three seeds cannot keep it under 5 %, and five can.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from scipy.stats import binomtest

from ..detectors import findings
from ..detectors.curves import until
from ..detectors.finding import Case
from ..diagnose import diagnose
from ..diagnose.seeds import combine
from .plants import Plant

TUNE, REPORT, GROUP = range(20), range(100, 120), 5
Say = Callable[[str], None]


@dataclass(frozen=True)
class Alarms:
    """Of one failure on healthy runs: how often it was called, in how many runs it was measured; and confirmed, of groups."""

    failure: str
    called: int
    runs: int
    low: float
    high: float
    confirmed: int
    groups: int
    highest: float  # statistic in units of its limit, above the placebo's: how near the nearest came


@dataclass(frozen=True)
class Recall:
    """Of one plant: seeds that found it, the grade of all together, what else was confirmed, and when it was first seen."""

    plant: str
    failure: str
    found: int
    seeds: int
    grade: str
    beside: tuple[str, ...]  # confirmed too, as documented
    off_target: tuple[str, ...]  # confirmed too, and a false alarm
    first: float  # median round in which the run so far was enough
    lead: float  # rounds from there to the end
    placebo: float  # share of the other tags that confirm it too; NaN where no control is asked for


def false_alarms(collections: Mapping[str, Callable[[int], Case]], seeds: Iterable[int] = REPORT,
                 say: Say = lambda said: None) -> list[Alarms]:
    """Every collection, every seed; groups never mix collections."""
    seeds, called, near, confirmed = list(seeds), dict[str, list[bool]](), dict[str, list[float]](), dict[str, list[bool]]()
    for name, make in collections.items():
        cases = []
        for seed in seeds:
            say(f"healthy: {name}, seed {seed}")
            cases.append(make(seed))
        for case in cases:
            for finding in findings(case):
                if finding.grade != "not measured":
                    called.setdefault(finding.failure, []).append(finding.grade == "suspected")
                    near.setdefault(finding.failure, []).append(finding.excess / finding.limit)
        for start in range(0, len(cases) - GROUP + 1, GROUP):
            for judgement in diagnose(cases[start:start + GROUP]):
                if judgement.seeds:
                    confirmed.setdefault(judgement.failure, []).append(judgement.grade == "confirmed")
    return [Alarms(failure, sum(alarms), len(alarms), *exact(sum(alarms), len(alarms)), sum(confirmed.get(failure, ())),
                   len(confirmed.get(failure, ())), finite_max(near[failure])) for failure, alarms in called.items()]


def recall(plants: Iterable[Plant], seeds: Iterable[int] = range(100, 100 + GROUP), say: Say = lambda said: None) -> list[Recall]:
    """Every plant over a few seeds."""
    seeds, found = list(seeds), []
    for plant in plants:
        cases = []
        for seed in seeds:
            say(f"planted: {plant.name} ({plant.failure}), seed {seed}")
            cases.append(plant.case(seed))
        judged = {judgement.failure: judgement for judgement in diagnose(cases)}
        asked = judged[plant.failure]
        also = sorted(name for name, each in judged.items() if each.grade == "confirmed" and name != plant.failure)
        firsts = [round for case in cases if (round := first_seen(case, plant.failure)) is not None]
        first, end = float(np.median(firsts)) if firsts else np.nan, float(cases[0].run.rounds.max())
        found.append(Recall(plant.name, plant.failure, asked.positive, len(seeds), asked.grade,
                            tuple(name for name in also if name in plant.beside),
                            tuple(name for name in also if name not in plant.beside), first, end - first,
                            placebo(cases, plant.failure)))
    return found


def placebo(cases: Sequence[Case], failure: str) -> float:
    """The share of all exchanges of run and control but the true one in which a failure is confirmed; NaN if it is a bug, which
    needs no control, or if there is no control."""
    told = [next(finding for finding in findings(case) if finding.failure == failure) for case in cases]
    if told[0].bug:
        return float("nan")
    exchanged = [replace(case, run=case.twin, twin=case.run) for case in cases if case.twin is not None]
    other = [next(finding for finding in findings(case) if finding.failure == failure) for case in exchanged]
    if len(other) < len(told):
        return float("nan")
    every = list(product((True, False), repeat=len(cases)))[1:]
    grades = [combine([one if true else two for true, one, two in zip(tags, told, other, strict=True)]).grade for tags in every]
    return float(np.mean([grade == "confirmed" for grade in grades]))


def first_seen(case: Case, failure: str, looks: int = 12) -> int | None:
    """The first of some rounds after which the records so far were enough to call a failure, and remained so; None if never."""
    rounds = case.run.rounds
    first = None
    for round in sorted({int(rounds[int(k)]) for k in np.linspace(0, len(rounds) - 1, looks)}, reverse=True):
        run = until(case.run, round)
        assert run is not None
        then = Case(run, until(case.twin, round), case.central, case.local, case.fedsgd, case.best, case.ladder, case.facts,
                    case.seed, case.limits)
        if not any(finding.failure == failure and finding.positive for finding in findings(then)):
            break
        first = round
    return first


def exact(count: int, of: int) -> tuple[float, float]:
    """Clopper and Pearson's 95 % interval of a rate."""
    interval = binomtest(count, of).proportion_ci(method="exact")
    return float(interval.low), float(interval.high)


def finite_max(values: Iterable[float]) -> float:
    kept = [value for value in values if np.isfinite(value)]
    return max(kept) if kept else float("nan")
