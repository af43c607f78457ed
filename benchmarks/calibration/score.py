"""How good the detectors are: false alarms on healthy runs, recall and lead on planted ones.

Thresholds are looked at on ``TUNING_SEEDS`` and reported on ``REPORT_SEEDS``, never the same. Rates are of runs for "called",
and of groups of ``GROUP_SIZE`` seeds for "confirmed"; intervals are Clopper and Pearson's, which hold at any number of runs.

A placebo asks the other way round: the tags "run" and "control" of a planted failure are exchanged in some of its seeds, in
every way but the true one. What is then confirmed, random tags would have confirmed. With n seeds the least that such a test can
come to is about 1 in 2^n, so three seeds cannot keep it under 5 %, and five can.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from benchmarks.calibration.analytic_failures import InjectedFailure
from fedrift import __version__
from fedrift.diagnosis import diagnose
from fedrift.diagnosis.across_seeds import combine_seeds
from fedrift.diagnosis.curves import truncate_trajectory
from fedrift.diagnosis.detectors import run_detectors
from fedrift.diagnosis.finding import RunEvidence, load_thresholds

TUNING_SEEDS, REPORT_SEEDS, GROUP_SIZE = range(20), range(100, 120), 5
MessageCallback = Callable[[str], None]


@dataclass(frozen=True)
class FalseAlarms:
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


def count_false_alarms(
    null_runs: Mapping[str, Callable[[int], RunEvidence]],
    seeds: Iterable[int] = REPORT_SEEDS,
    on_message: MessageCallback = lambda said: None,
) -> list[FalseAlarms]:
    """Every collection, every seed; groups never mix collections."""
    seeds, called, near, confirmed = list(seeds), dict[str, list[bool]](), dict[str, list[float]](), dict[str, list[bool]]()
    for name, make in null_runs.items():
        cases = []
        for seed in seeds:
            on_message(f"healthy: {name}, seed {seed}")
            cases.append(make(seed))
        for case in cases:
            for finding in run_detectors(case):
                if finding.grade != "not measured":
                    called.setdefault(finding.failure, []).append(finding.grade == "suspected")
                    near.setdefault(finding.failure, []).append(finding.excess / finding.threshold)
        for start in range(0, len(cases) - GROUP_SIZE + 1, GROUP_SIZE):
            for judgement in diagnose(cases[start : start + GROUP_SIZE]):
                if judgement.num_seeds:
                    confirmed.setdefault(judgement.failure, []).append(judgement.grade == "confirmed")
    return [
        FalseAlarms(
            failure,
            sum(alarms),
            len(alarms),
            *exact_interval(sum(alarms), len(alarms)),
            sum(confirmed.get(failure, ())),
            len(confirmed.get(failure, ())),
            finite_max(near[failure]),
        )
        for failure, alarms in called.items()
    ]


def measure_recall(
    failures: Iterable[InjectedFailure],
    seeds: Iterable[int] = range(100, 100 + GROUP_SIZE),
    on_message: MessageCallback = lambda said: None,
) -> list[Recall]:
    """Every plant over a few seeds."""
    seeds, found = list(seeds), []
    for plant in failures:
        cases = []
        for seed in seeds:
            on_message(f"planted: {plant.name} ({plant.failure}), seed {seed}")
            cases.append(plant.make_evidence(seed))
        judged = {judgement.failure: judgement for judgement in diagnose(cases)}
        asked = judged[plant.failure]
        also = sorted(name for name, each in judged.items() if each.grade == "confirmed" and name != plant.failure)
        firsts = [round for case in cases if (round := first_detected(case, plant.failure)) is not None]
        first, end = float(np.median(firsts)) if firsts else np.nan, float(cases[0].run.rounds.max())
        found.append(
            Recall(
                plant.name,
                plant.failure,
                asked.num_positive,
                len(seeds),
                asked.grade,
                tuple(name for name in also if name in plant.side_effects),
                tuple(name for name in also if name not in plant.side_effects),
                first,
                end - first,
                placebo_rate(cases, plant.failure),
            )
        )
    return found


def placebo_rate(cases: Sequence[RunEvidence], failure: str) -> float:
    """The share of all exchanges of run and control but the true one in which a failure is confirmed; NaN if it is a bug, which
    needs no control, or if there is no control."""
    told = [next(finding for finding in run_detectors(case) if finding.failure == failure) for case in cases]
    if told[0].is_implementation_error:
        return float("nan")
    exchanged = [replace(case, run=case.iid_baseline, iid_baseline=case.run) for case in cases if case.iid_baseline is not None]
    other = [next(finding for finding in run_detectors(case) if finding.failure == failure) for case in exchanged]
    if len(other) < len(told):
        return float("nan")
    every = list(product((True, False), repeat=len(cases)))[1:]
    grades = [combine_seeds([one if true else two for true, one, two in zip(tags, told, other, strict=True)]).grade for tags in every]
    return float(np.mean([grade == "confirmed" for grade in grades]))


def first_detected(case: RunEvidence, failure: str, num_checks: int = 12) -> int | None:
    """The first of some rounds after which the records so far were enough to call a failure, and remained so; None if never."""
    rounds = case.run.rounds
    first = None
    for round in sorted({int(rounds[int(k)]) for k in np.linspace(0, len(rounds) - 1, num_checks)}, reverse=True):
        run = truncate_trajectory(case.run, round)
        assert run is not None
        then = RunEvidence(
            run,
            truncate_trajectory(case.iid_baseline, round),
            case.centralized,
            case.local_only,
            case.fedsgd,
            case.best_lr,
            case.local_steps_sweep,
            case.info,
            case.seed,
            case.thresholds,
        )
        if not any(finding.failure == failure and finding.is_positive for finding in run_detectors(then)):
            break
        first = round
    return first


def exact_interval(count: int, total: int) -> tuple[float, float]:
    """Clopper and Pearson's 95 % interval of a rate."""
    interval = binomtest(count, total).proportion_ci(method="exact")
    return float(interval.low), float(interval.high)


def finite_max(values: Iterable[float]) -> float:
    kept = [value for value in values if np.isfinite(value)]
    return max(kept) if kept else float("nan")


# Calibrations as Markdown and as plain JSON, with what they were made with.

Calibration = dict[str, Any]
DESCRIPTIONS = {
    "analytic": "Quadratics, small adapters and drawn states of which everything is known, with the real round loop and probes.",
    "synthetic": "A made-up language of which everything is known, and a tiny language model that was raised on it; whole "
    "experiments with LoRA and the whole panel.",
    "lm": "`pocket` with LoRA on three topics of BBC News, a client each; whole experiments with the whole panel.",
}
PAGE_HEADER = """# Are the detectors right?

Made by `python -m benchmarks.calibration` (`make calibrate` does all of it). Seeds 100 and above; thresholds may only be
looked at on seeds 0 to 19 (`--tune`), and never are on the runs that they are reported on.

*False alarms*: healthy runs hold the same documents at every client, and the control is the same again with other noise,
cohorts and deals. *Called* is one run that raised a suspicion, with the exact 95 % interval of that rate; *confirmed* is of
groups of {group} seeds. *Nearest* is the largest excess over the control in units of the limit.

*Planted failures*: *first* is the round after which the records so far were enough, *lead* the rounds from there to the end.
*Beside* are confirmations that belong to the plant and are documented with it, *off target* those that do not. *Placebo*
is the share of other ways to tag the same runs as run and control that confirm the failure too; n seeds cannot bring it under
about 1 in 2^n. A broken control is a bug whatever its twin does, so no tags are exchanged there."""


def to_dict(collection: str, alarms: Sequence[FalseAlarms], recalls: Sequence[Recall]) -> Calibration:
    limits = load_thresholds()
    return {
        "collection": collection,
        "date": date.today().isoformat(),
        "fedrift": __version__,
        "numpy": version("numpy"),
        "torch": version("torch"),
        "thresholds": {"version": limits["version"], "date": str(limits["date"])},
        "false_alarms": [asdict(each) for each in alarms],
        "recall": [asdict(each) for each in recalls],
    }


def render_page(calibrations: Iterable[Calibration]) -> str:
    """How to read it, and two tables a collection."""
    return "\n\n".join([PAGE_HEADER.format(group=GROUP_SIZE), *map(render_section, calibrations)]) + "\n"


def render_section(calibration: Calibration) -> str:
    """One collection."""
    thresholds = calibration["thresholds"]
    rows = [
        f"| {a['failure']} | {a['called']} of {a['runs']} | {a['low']:.1%} to {a['high']:.1%} | "
        f"{a['confirmed']} of {a['groups']} | {format_value(a['highest'], '.2f')} |"
        for a in calibration["false_alarms"]
    ]
    found = [
        f"| {r['plant']} | {r['failure']} | {r['found']} of {r['seeds']} | {r['grade']} | {format_value(r['first'], '.0f')} | "
        f"{format_value(r['lead'], '.0f')} | {', '.join(r['beside']) or '–'} | {', '.join(r['off_target']) or '–'} | "
        f"{format_value(r['placebo'], '.0%')} |"
        for r in calibration["recall"]
    ]
    return "\n".join(
        [
            f"## {calibration['collection']}",
            "",
            DESCRIPTIONS[calibration["collection"]],
            f"{calibration['date']}, fedrift {calibration['fedrift']}, torch {calibration['torch']}, "
            f"thresholds version {thresholds['version']} of {thresholds['date']}.",
            "",
            "| failure | called | interval | confirmed | nearest |",
            "|---|---|---|---|---|",
            *rows,
            "",
            *(
                [
                    "| plant | failure | found | all seeds | first | lead | beside | off target | placebo |",
                    "|---|---|---|---|---|---|---|---|---|",
                    *found,
                ]
                if found
                else []
            ),
        ]
    )


def format_value(value: float | None, format_spec: str) -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None or not math.isfinite(value) else format(value, format_spec)


def load_calibrations(folder: Path) -> list[Calibration]:
    """The calibrations that are in a folder, in the order of ``DESCRIPTIONS``."""
    return [json.loads(place.read_text()) for name in DESCRIPTIONS if (place := folder / f"calibration-{name}.json").exists()]
