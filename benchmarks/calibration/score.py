"""Score the detectors: false alarms on healthy runs, and recall and lead on runs with injected failures.

Thresholds may be set on ``TUNING_SEEDS`` and are reported on ``REPORT_SEEDS``, which are disjoint. The rate of "called" counts runs,
and that of "confirmed" counts groups of ``GROUP_SIZE`` seeds. Intervals are exact (Clopper-Pearson), so they hold for any number of
runs.

A placebo test exchanges the labels "run" and "control" of an injected failure in some of its seeds, in all ways but the true one.
The share of exchanges that confirm the failure estimates how often random labels would confirm it. With n seeds this test cannot
give less than about 1 in 2^n, so three seeds cannot reach 5 %, but five seeds can.
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
from fedrift.core.records import Trajectory
from fedrift.diagnosis import diagnose
from fedrift.diagnosis.across_seeds import combine_seeds
from fedrift.diagnosis.detectors import run_detectors
from fedrift.diagnosis.finding import RunEvidence, load_thresholds

TUNING_SEEDS, REPORT_SEEDS, GROUP_SIZE = range(20), range(100, 120), 5
MessageCallback = Callable[[str], None]


@dataclass(frozen=True)
class FalseAlarms:
    """The false alarms of one failure on healthy runs."""

    failure: str
    called: int  # runs in which the failure was suspected
    runs: int  # runs in which it was measured
    low: float  # lower end of the 95 % interval of called / runs
    high: float
    confirmed: int  # groups of seeds in which it was confirmed
    groups: int
    highest: float  # the largest excess over the control, in units of the threshold


@dataclass(frozen=True)
class Recall:
    """The recall of one injected failure."""

    injected: str  # the name of the injected failure
    failure: str  # the failure that a detector must find
    found: int  # seeds in which it was found
    seeds: int
    grade: str  # the grade over all seeds
    side_effects: tuple[str, ...]  # documented side effects that were confirmed too
    off_target: tuple[str, ...]  # other confirmed failures, which are false alarms
    first: float  # median of the first round whose records are sufficient
    lead: float  # rounds from there to the end of the run
    placebo: float  # share of exchanged labels that confirm the failure; NaN if no control is needed


def count_false_alarms(
    null_runs: Mapping[str, Callable[[int], RunEvidence]],
    seeds: Iterable[int] = REPORT_SEEDS,
    on_message: MessageCallback = lambda message: None,
) -> list[FalseAlarms]:
    """Count the false alarms of all detectors on healthy runs.

    Args:
        null_runs: Creates a healthy run with its control, given a seed; by name.
        seeds: The seeds. Groups of seeds never mix runs of different names.
        on_message: Receives a message per run.
    """
    seeds, called, excesses, confirmed = list(seeds), dict[str, list[bool]](), dict[str, list[float]](), dict[str, list[bool]]()
    for name, make_evidence in null_runs.items():
        cases = []
        for seed in seeds:
            on_message(f"healthy: {name}, seed {seed}")
            cases.append(make_evidence(seed))
        for evidence in cases:
            for finding in run_detectors(evidence):
                if finding.grade != "not measured":
                    called.setdefault(finding.failure, []).append(finding.grade == "suspected")
                    excesses.setdefault(finding.failure, []).append(finding.excess / finding.threshold)
        for start in range(0, len(cases) - GROUP_SIZE + 1, GROUP_SIZE):
            for diagnosis in diagnose(cases[start : start + GROUP_SIZE]):
                if diagnosis.num_seeds:
                    confirmed.setdefault(diagnosis.failure, []).append(diagnosis.grade == "confirmed")
    return [
        FalseAlarms(
            failure,
            sum(alarms),
            len(alarms),
            *exact_interval(sum(alarms), len(alarms)),
            sum(confirmed.get(failure, ())),
            len(confirmed.get(failure, ())),
            finite_max(excesses[failure]),
        )
        for failure, alarms in called.items()
    ]


def measure_recall(
    failures: Iterable[InjectedFailure],
    seeds: Iterable[int] = range(100, 100 + GROUP_SIZE),
    on_message: MessageCallback = lambda message: None,
) -> list[Recall]:
    """Measure the recall of injected failures.

    Args:
        failures: The injected failures.
        seeds: The seeds of each failure.
        on_message: Receives a message per run.
    """
    seeds, recalls = list(seeds), []
    for injected in failures:
        cases = []
        for seed in seeds:
            on_message(f"injected: {injected.name} ({injected.failure}), seed {seed}")
            cases.append(injected.make_evidence(seed))
        diagnoses = {diagnosis.failure: diagnosis for diagnosis in diagnose(cases)}
        target = diagnoses[injected.failure]
        others = sorted(name for name, other in diagnoses.items() if other.grade == "confirmed" and name != injected.failure)
        first_rounds = [round for evidence in cases if (round := first_detected(evidence, injected.failure)) is not None]
        first, end = float(np.median(first_rounds)) if first_rounds else np.nan, float(cases[0].run.rounds.max())
        recalls.append(
            Recall(
                injected.name,
                injected.failure,
                target.num_positive,
                len(seeds),
                target.grade,
                tuple(name for name in others if name in injected.side_effects),
                tuple(name for name in others if name not in injected.side_effects),
                first,
                end - first,
                placebo_rate(cases, injected.failure),
            )
        )
    return recalls


def placebo_rate(cases: Sequence[RunEvidence], failure: str) -> float:
    """Return the share of wrong assignments of run and control that confirm a failure.

    Returns:
        The share, or NaN if the failure is an implementation error, which needs no control, or if there is no control.
    """
    findings = [next(finding for finding in run_detectors(evidence) if finding.failure == failure) for evidence in cases]
    if findings[0].is_implementation_error:
        return float("nan")
    exchanged = [
        replace(evidence, run=evidence.iid_baseline, iid_baseline=evidence.run) for evidence in cases if evidence.iid_baseline is not None
    ]
    exchanged_findings = [next(finding for finding in run_detectors(evidence) if finding.failure == failure) for evidence in exchanged]
    if len(exchanged_findings) < len(findings):
        return float("nan")
    assignments = list(product((True, False), repeat=len(cases)))[1:]
    grades = [
        combine_seeds(
            [original if is_true else swapped for is_true, original, swapped in zip(assignment, findings, exchanged_findings, strict=True)]
        ).grade
        for assignment in assignments
    ]
    return float(np.mean([grade == "confirmed" for grade in grades]))


def truncate_trajectory(run: Trajectory | None, round: int) -> Trajectory | None:
    """Return the records of a run up to and including a round."""
    if run is None:
        return None
    return Trajectory(tuple(record for record in run.records if record.round <= round))


def first_detected(evidence: RunEvidence, failure: str, num_checks: int = 12) -> int | None:
    """Find the first round from which on the records up to that round are sufficient to detect a failure.

    Args:
        evidence: The run and its control.
        failure: The failure.
        num_checks: The number of rounds to test.

    Returns:
        The round, or None if the failure is not detected.
    """
    rounds = evidence.run.rounds
    first = None
    for round in sorted({int(rounds[int(k)]) for k in np.linspace(0, len(rounds) - 1, num_checks)}, reverse=True):
        run = truncate_trajectory(evidence.run, round)
        assert run is not None
        partial_case = RunEvidence(
            run,
            truncate_trajectory(evidence.iid_baseline, round),
            evidence.centralized,
            evidence.local_only,
            evidence.fedsgd,
            evidence.best_lr,
            evidence.local_steps_sweep,
            evidence.info,
            evidence.seed,
            evidence.thresholds,
        )
        if not any(finding.failure == failure and finding.is_positive for finding in run_detectors(partial_case)):
            break
        first = round
    return first


def exact_interval(count: int, total: int) -> tuple[float, float]:
    """Return the Clopper-Pearson 95 % interval of a rate."""
    interval = binomtest(count, total).proportion_ci(method="exact")
    return float(interval.low), float(interval.high)


def finite_max(values: Iterable[float]) -> float:
    """Return the largest finite value; NaN if there is none."""
    finite = [value for value in values if np.isfinite(value)]
    return max(finite) if finite else float("nan")


# Results as Markdown and as JSON.

Calibration = dict[str, Any]
DESCRIPTIONS = {
    "analytic": "This collection has quadratics, small adapters and random hidden states. Their properties are known exactly, and the "
    "round loop and the probes are the real ones.",
    "synthetic": "This collection has a synthetic language with exactly known properties, and a tiny language model that was pretrained "
    "on it. Its runs are complete experiments with LoRA and all probes.",
    "lm": "This collection trains `pocket` with LoRA on three topics of BBC News, one topic per client. Its runs are complete experiments "
    "with all probes.",
}
INJECTION_LABELS = {  # stored name of an injected failure -> its label on the page
    "curvatures 1 and 9.5": "two clients of curvature 1 and 9.5, learning rate 0.22",
    "one of two a round": "one of two clients per round",
    "lower-bound pair": "two opposing clients (SCAFFOLD, section 7)",
    "mu = 100, exact": "FedProx with mu = 100 and the exact proximal step",
    "lr / 1000": "learning rate divided by 1000",
    "c divided by the cohort": "SCAFFOLD's c divided by the cohort size",
    "two of 24 a round": "SCAFFOLD with two of 24 clients per round",
    "server rate 4.65, momentum .9": "server learning rate 4.65, server momentum 0.9",
    "adapters, 50 steps": "adapters after 50 local steps",
    "nine to one": "nine clients of one domain, one of another",
    "a client that is NaN": "one client that computes NaN",
    "scheduled absence": "each domain absent in three of twelve rounds",
    "one domain only": "only clients of one domain participate",
    "onto one direction": "hidden states moved towards one direction",
    "lr x 30": "learning rate multiplied by 30",
    "one client a round, in turn": "one client per round, in a fixed order",
    "no function words": "only a client without function words participates",
    "four to one": "the only client of a domain never participates",
    "factors turned": "both adapter factors negated in every second client",
}
PAGE_HEADER = """# Calibration: how often are the detectors wrong?

This page answers two questions about the [detectors](detectors.md). How often do they report a failure in a healthy run? How reliably do
they find a failure that was injected on purpose?

## Example

Run these commands in the root of the repository:

```sh
python -m benchmarks.calibration                          # quadratics, adapters and hidden states: about three minutes
python -m benchmarks.calibration --collection synthetic   # a tiny language model: about ten minutes
python -m benchmarks.calibration --tune                   # only false alarms, on the seeds that may be used to set thresholds
make calibrate                                            # all collections; writes this page
```

A command exits with code 1 if an injected failure is not confirmed, or if an unexpected failure is confirmed."""
PAGE_REFERENCE = """## Reference

| collection | runs | healthy runs, 20 seeds each |
|---|---|---|
| `analytic` | quadratics, small adapters, random hidden states | FedAvg with all and with half of the clients; \
FedAvgM; FedProx; SCAFFOLD; FedDyn; adapters; hidden states |
| `synthetic` | a tiny language model on a synthetic language | FedAvg; SCAFFOLD with two of four clients per round |
| `lm` | `pocket` on BBC News | FedAvg; SCAFFOLD with two of three clients per round |

The tables of false alarms have these columns:

| column | meaning | unit |
|---|---|---|
| suspected | healthy runs in which the detector raised a suspicion, of the runs in which it was measured | runs |
| 95 % interval | exact interval of that rate (Clopper and Pearson) | share of runs |
| confirmed | groups of {group} healthy seeds in which the failure was confirmed | groups |
| largest excess | largest excess over the control, divided by the threshold | |

The tables of injected failures have these columns:

| column | meaning | unit |
|---|---|---|
| found | seeds in which the detector found the failure | seeds |
| grade | grade over all {group} seeds together | |
| first round | median round from which on the records are sufficient to find the failure | rounds |
| lead | rounds from there to the end of the run | rounds |
| side effects | other confirmed failures that are documented as side effects of the injected failure | |
| unexpected | other confirmed failures that are not documented, i.e. false alarms | |
| placebo | share of wrong assignments of the labels "run" and "control" that confirm the failure too | share |

## How it is measured

- **Seeds.** The page uses seeds 100 and above. Thresholds may only be set on seeds 0 to 19 (`--tune`), never on the runs that this page
  reports.
- **Healthy runs.** All clients have the same mixture of documents. The control repeats the run with other noise, cohorts and partitions.
- **Injected failures.** Where the partition causes the failure, the control is the matched IID baseline. Where something else causes it,
  such as an error or a learning rate, the control is the same experiment without it.
- **Placebo.** With n seeds, the placebo share cannot be below about 1 in 2^n. A violated invariant of control variates is a bug
  regardless of the control, so no placebo is computed for it."""


def to_dict(collection: str, alarms: Sequence[FalseAlarms], recalls: Sequence[Recall]) -> Calibration:
    """Return the results of a collection as plain values."""
    return {
        "collection": collection,
        "date": date.today().isoformat(),
        "fedrift": __version__,
        "numpy": version("numpy"),
        "torch": version("torch"),
        "thresholds": describe_thresholds(),
        "false_alarms": [asdict(each) for each in alarms],
        "recall": [asdict(each) for each in recalls],
    }


def describe_thresholds() -> dict[str, Any]:
    """Return version and date of the thresholds that the detectors use now."""
    thresholds = load_thresholds()
    return {"version": thresholds["version"], "date": str(thresholds["date"])}


def render_page(calibrations: Iterable[Calibration]) -> str:
    """Return a Markdown page with a summary, an explanation, and two tables per collection."""
    calibrations = list(calibrations)
    parts = [PAGE_HEADER, render_summary(calibrations), PAGE_REFERENCE.format(group=GROUP_SIZE), *map(render_section, calibrations)]
    return "\n\n".join(parts) + "\n"


def render_summary(calibrations: Iterable[Calibration]) -> str:
    """Return one row per collection: its false alarms, and how many of its injected failures were confirmed."""
    lines = [
        "## Result",
        "",
        "| collection | false alarms of single healthy runs | most frequent false alarm | confirmed false alarms | "
        "injected failures confirmed | unexpected confirmations |",
        "|---|---|---|---|---|---|",
    ]
    for calibration in calibrations:
        alarms, recalls = calibration["false_alarms"], calibration["recall"]
        total = {key: sum(alarm[key] for alarm in alarms) for key in ("called", "runs", "confirmed", "groups")}
        most = max(alarms, key=lambda alarm: alarm["called"] / alarm["runs"])
        num_confirmed = sum(recall["grade"] == "confirmed" for recall in recalls)
        lines.append(
            f"| `{calibration['collection']}` | {total['called']} of {total['runs']} | "
            f"{most['failure']}, {most['called']} of {most['runs']} | {total['confirmed']} of {total['groups']} | "
            f"{num_confirmed} of {len(recalls)} | {sum(len(recall['off_target']) for recall in recalls)} |"
        )
    note = (
        f"False alarms are counted over all detectors: single runs that raised a suspicion, and groups of {GROUP_SIZE} seeds that "
        "confirmed a failure."
    )
    return "\n".join([*lines, "", note])


def render_section(calibration: Calibration) -> str:
    """Return the section of one collection."""
    thresholds, current = calibration["thresholds"], describe_thresholds()
    rows = [
        f"| {alarm['failure']} | {alarm['called']} of {alarm['runs']} | {100 * alarm['low']:.1f} % to {100 * alarm['high']:.1f} % | "
        f"{alarm['confirmed']} of {alarm['groups']} | {format_value(alarm['highest'], '.2f')} |"
        for alarm in calibration["false_alarms"]
    ]
    recall_rows = [
        f"| {INJECTION_LABELS.get(row['injected'], row['injected'])} | {row['failure']} | {row['found']} of {row['seeds']} | "
        f"{row['grade']} | {format_value(row['first'], '.0f')} | {format_value(row['lead'], '.0f')} | "
        f"{', '.join(row['side_effects']) or '–'} | {', '.join(row['off_target']) or '–'} | {format_value(row['placebo'], '.0%')} |"
        for row in calibration["recall"]
    ]
    return "\n".join(
        [
            f"## {calibration['collection']}",
            "",
            DESCRIPTIONS[calibration["collection"]],
            f"It was measured on {calibration['date']} with fedrift {calibration['fedrift']}, torch {calibration['torch']} and thresholds "
            f"version {thresholds['version']} of {thresholds['date']}."
            + (
                ""
                if thresholds == current
                else f" The current version {current['version']} of {current['date']} has not been measured with this collection."
            ),
            "",
            "False alarms on healthy runs:",
            "",
            "| failure | suspected | 95 % interval | confirmed | largest excess |",
            "|---|---|---|---|---|",
            *rows,
            "",
            *(
                [
                    "Injected failures:",
                    "",
                    "| injected failure | expected finding | found | grade | first round | lead | side effects | unexpected | placebo |",
                    "|---|---|---|---|---|---|---|---|---|",
                    *recall_rows,
                ]
                if recall_rows
                else []
            ),
        ]
    )


def format_value(value: float | None, format_spec: str) -> str:
    """Format a number; missing and non-finite values become a dash."""
    return "–" if value is None or not math.isfinite(value) else format(value, format_spec).replace("%", " %")


def load_calibrations(folder: Path) -> list[Calibration]:
    """Load the calibrations in a folder, in the order of ``DESCRIPTIONS``."""
    return [json.loads(path.read_text()) for name in DESCRIPTIONS if (path := folder / f"calibration-{name}.json").exists()]
