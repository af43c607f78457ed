"""What a run came to, as numbers fixed before the study is run: never the best round, always the mean of the last five.

Round 0, which no training has touched, is no part of an end, nor of a moment.

- ``loss``, or any recorded metric: the mean of its last five evaluations; ``metric@domain`` of one domain, layer or
  phenomenon; a metric that only clients have is first averaged over the clients that took part. ``metric:mean``,
  ``:max``, ``:min`` and ``:last`` take other moments of the run.
- ``gap``: ``loss`` above the IID baseline's over the evaluations that both have; ``gap.worst``: of the worst domain.
- ``oscillation``: the oscillation index, sum of upward moves of the loss after three tenths of the run, by its whole descent.
- ``movement``: mean absolute change of a domain's loss between evaluations, in the second half; a fast fall is movement too.
  What reports and detectors call a swing is movement there and back, the net change taken off
  (``fedrift.diagnosis.curves.domain_variability``).
- ``loss.under:bytes=2e6``, ``bytes.to:4.2`` and the like: quality under a budget and cost to a target (``studies/costs.py``).
- ``rounds.to:4.2``: the first evaluated round with a loss not above 4.2; infinite if there is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..core.errors import UserError
from ..core.records import RecordColumns, Trajectory, final_round_indices
from ..diagnosis.failures import DIVERGENCE_METRICS, find_runaway
from ..diagnosis.finding import THRESHOLDS
from ..stats import Verdict, evaluate_hypotheses
from ..stats.hypotheses import Hypothesis
from ..storage import Run, connect
from ..storage.query import find_faults, flatten
from .costs import COST_RECORDS, parse_cost_metric, summarize_cost
from .manifest import ManifestEntry, StudyManifest, merge_shared_baselines
from .spec import parse_study

FINAL_EVALUATIONS = 5  # evaluations in the end of a run
BURN_IN = 0.3  # share of a run before oscillation counts
MOMENTS: dict[str, Callable[[np.ndarray], float]] = {
    "mean": np.nanmean,
    "max": np.nanmax,
    "min": np.nanmin,
    "last": lambda values: values[-1],
}
LOSS_METRICS = ("gap", "gap.worst", "oscillation", "movement")


def list_recorded_metrics(metrics: Iterable[str]) -> list[str]:
    """The recorded metrics that some outcomes are made of, those included that tell whether a run diverged."""
    names = list(metrics)
    about_costs = [name for name in names if parse_cost_metric(name)]
    return sorted(
        {
            *DIVERGENCE_METRICS,
            *(COST_RECORDS if about_costs else ()),
            *(
                parse_metric_name(name)[0]
                for name in names
                if name not in about_costs and name not in LOSS_METRICS and not name.startswith("rounds.to:")
            ),
        }
    )


def parse_metric_name(name: str) -> tuple[str, str, str]:
    """``metric@domain:moment`` taken apart."""
    rest, _, moment = name.partition(":")
    metric, _, domain = rest.partition("@")
    if moment and moment not in MOMENTS:
        raise UserError(
            f"metrics: {name!r} ends in {moment!r}; there are {', '.join(MOMENTS)}, and without one the mean of the last five evaluations"
        )
    return metric, domain, moment


def summarize_metric(
    name: str, run: Trajectory, iid_baseline: Trajectory | None = None, timings: Sequence[Mapping[str, Any]] = ()
) -> float:
    """One outcome of a run; NaN where it has no such number."""
    if cost_metric := parse_cost_metric(name):
        return summarize_cost(cost_metric, run, timings)
    if name == "gap":
        return compute_gap(run, iid_baseline)
    if name == "gap.worst":
        gaps = [compute_gap(run, iid_baseline, domain) for domain in (run.domains_of("loss") if "loss" in run.metrics else ())]
        return max((value for value in gaps if not math.isnan(value)), default=math.nan)
    if name == "oscillation":
        return compute_oscillation_index(get_loss_series(run)[1])
    if name == "movement":
        return compute_movement(run)
    if name.startswith("rounds.to:"):
        return find_round_below(run, parse_threshold(name))
    metric, domain, moment = parse_metric_name(name)
    rounds, values = get_series(run, metric, domain)
    if not len(values):
        return math.nan
    if moment:
        trained = values[final_round_indices(rounds, len(rounds))]
        return float(MOMENTS[moment](trained)) if not np.isnan(trained).all() else math.nan
    return float(values[final_round_indices(rounds, FINAL_EVALUATIONS)].mean())


def get_series(run: Trajectory, metric: str, domain: str = "") -> tuple[np.ndarray, np.ndarray]:
    """The rounds in which a metric was written and its values; of clients the mean over those that took part."""
    if run.has_curve(metric, domain):
        written = run.observed_mask(metric, domain)
        return run.rounds[written], run.curve(metric, domain)[written]
    if domain or not run.has_client_table(metric):
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    table = run.client_table(metric)
    seen: np.ndarray = ~np.isnan(table).all(axis=1)
    return run.rounds[seen], np.nanmean(table[seen], axis=1) if seen.any() else np.zeros(0)


def get_loss_series(run: Trajectory, domain: str = "") -> tuple[np.ndarray, np.ndarray]:
    """The rounds with a loss, and the loss, NaN where it was written as NaN."""
    if not run.has_curve("loss", domain):
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    seen = run.observed_mask("loss", domain)
    return run.rounds[seen], run.curve("loss", domain)[seen]


def compute_gap(run: Trajectory, iid_baseline: Trajectory | None, domain: str = "") -> float:
    """The end loss above the twin's, over the last evaluations that both have."""
    if iid_baseline is None:
        return math.nan
    (ours, loss), (theirs, base) = get_loss_series(run, domain), get_loss_series(iid_baseline, domain)
    both = np.intersect1d(ours, theirs)
    both = both[final_round_indices(both, FINAL_EVALUATIONS)]
    if not len(both):
        return math.nan
    return float(loss[np.searchsorted(ours, both)].mean() - base[np.searchsorted(theirs, both)].mean())


def compute_oscillation_index(loss: np.ndarray) -> float:
    """The oscillation index; NaN where the loss never fell."""
    if len(loss) < 3 or not np.isfinite(loss).all() or loss[0] <= loss.min():
        return math.nan
    late = loss[int(BURN_IN * len(loss)) :]
    return float(np.maximum(np.diff(late), 0).sum() / (loss[0] - loss.min()))


def compute_movement(run: Trajectory) -> float:
    """The mean absolute change of a domain's loss between evaluations, in the second half of a run."""
    rounds, _ = get_loss_series(run)
    late = np.isin(run.rounds, rounds[len(rounds) // 2 :])
    changes = [np.abs(np.diff(run.curve("loss", domain)[late])) for domain in (run.domains_of("loss") if len(rounds) else ())]
    every = np.concatenate(changes) if changes else np.zeros(0)
    every = every[np.isfinite(every)]
    return float(every.mean()) if len(every) else math.nan


def find_round_below(run: Trajectory, threshold: float) -> float:
    rounds, loss = get_loss_series(run)
    there = rounds[loss <= threshold]
    return float(there[0]) if len(there) else math.inf if len(rounds) else math.nan


def parse_threshold(name: str) -> float:
    try:
        return float(name.removeprefix("rounds.to:"))
    except ValueError:
        raise UserError(f"metrics: {name!r} wants a loss, e.g. rounds.to:4.2") from None


def has_diverged(run: Trajectory) -> bool:
    """Whether a run diverged or its model died, by the rules and thresholds of the detectors.

    A run that merely ends above its start has not: its end loss is in the table.
    """
    return bool(find_runaway(run, THRESHOLDS)[0])


# The tidy frame of a study: one row a run, with its place in the design and what it came to.

METADATA_COLUMNS = ("run", "study", "role", "stage", "condition", "seed", "iid", "iid_baseline", "status", "failure", "diverged")


def build_study_table(manifest: StudyManifest, metrics: Sequence[str] = (), roles: Sequence[str] = ("run", "iid_baseline")) -> pd.DataFrame:
    """``run, study, role, stage, condition, seed, iid, iid_baseline, status, failure, diverged``, a column a factor, a column
    a metric.

    ``metrics``: those of the study if none are named. An IID baseline that serves several conditions is one row with the levels
    that they agree on, its severity 0. What is not finished has NaN outcomes; a run that failed counts as diverged only if its
    loss did. A run that cannot be read has failed, whatever it was.
    """
    said = manifest.read()
    names = list(metrics or said["study"]["metrics"])
    entries = [entry for entry in merge_shared_baselines(said["runs"]) if entry.role in roles]
    trajectories = load_trajectories(manifest, entries, list_recorded_metrics(names))
    faults = find_faults(kept for entry in entries if ((kept := manifest.get_run(entry)).folder / "experiment.json").exists())
    rows = []
    for entry in entries:
        fault = f"it cannot be read: {faults[entry.run]}" if entry.run in faults else ""
        state, run = "failed" if fault else manifest.get_status(entry.run), trajectories.get(entry.run)
        ended, twin = state in ("finished", "failed"), trajectories.get(entry.iid_baseline)
        row = {
            "run": entry.run,
            "study": manifest.name,
            "role": entry.role,
            "stage": entry.stage,
            "condition": entry.condition,
            "seed": entry.seed,
            "iid": entry.iid,
            "iid_baseline": entry.iid_baseline,
            "status": state,
            "failure": fault or manifest.get_failure(entry.run),
            "diverged": bool(ended and run and has_diverged(run)),
        }
        row |= {factor: entry.factors.get(factor) for factor in said["factors"]}
        timings = manifest.get_run(entry).timings() if any("seconds" in name for name in names) and state == "finished" else ()
        row |= {name: summarize_metric(name, run, twin, timings) if state == "finished" and run else math.nan for name in names}
        rows.append(row)
    frame = pd.DataFrame(rows, columns=[*METADATA_COLUMNS, *said["factors"], *names])
    return frame.astype({"iid": bool, "diverged": bool, **{name: "float64" for name in names}})


def load_trajectories(manifest: StudyManifest, entries: Iterable[ManifestEntry], metrics: Sequence[str]) -> dict[str, Trajectory]:
    """The trajectories of some runs, with these metrics only; all files are read in one query."""
    runs = {entry.run: manifest.get_run(entry) for entry in entries}
    there = [run for run in runs.values() if (run.folder / "experiment.json").exists()]
    with connect(Path(manifest.root), there) as connection:
        marks = ", ".join("?" * len(metrics))
        frame = connection.execute(
            f"SELECT run, round, metric, domain, client, value FROM records WHERE metric IN ({marks}) ORDER BY run, round", list(metrics)
        ).df()
    codes = {column: pd.factorize(frame[column].astype("object")) for column in ("metric", "domain")}
    ends: list[int] = (np.flatnonzero(np.diff(pd.factorize(frame["run"].astype("object"))[0], append=-1)) + 1).tolist()
    found = {}
    for begin, end in zip([0, *ends], ends, strict=False):
        rows = slice(begin, end)
        numbers = [frame[column].to_numpy()[rows] for column in ("round", "client", "value")]
        found[str(frame["run"].iloc[begin])] = Trajectory(
            RecordColumns(
                numbers[0],
                codes["metric"][0][rows],
                codes["domain"][0][rows],
                numbers[1],
                numbers[2],
                tuple(map(str, codes["metric"][1])),
                tuple(map(str, codes["domain"][1])),
            )
        )
    return found


# What a study's hypotheses come to, from the runs that there are.


def judge_hypotheses(manifest: StudyManifest) -> tuple[pd.DataFrame, tuple[Verdict, ...]]:
    """The study's tidy frame and the verdict on each of its hypotheses; outcomes that only these name are columns too."""
    said = manifest.read()
    study = parse_study(said["study"])
    named = [metric for hypothesis in study.hypotheses for metric in list_hypothesis_metrics(hypothesis)]
    frame = build_study_table(manifest, tuple(dict.fromkeys([*study.metrics, *named])))
    return frame, evaluate_hypotheses(study.hypotheses, frame, said["factors"]) if study.hypotheses else ()


def list_hypothesis_metrics(hypothesis: Hypothesis) -> list[str]:
    """The outcomes that a hypothesis and its parts are about, those aside that every run has."""
    parts = [metric for part in getattr(hypothesis, "parts", ()) for metric in list_hypothesis_metrics(part)]
    return [metric for metric in (hypothesis.metric, *parts) if metric and metric not in METADATA_COLUMNS]


# Two runs beside each other: what differs in what was asked, and in what came, over the rounds that both have.

NOT_SET = "(none)"
FINAL_SHARED_EVALUATIONS = 5


@dataclass(frozen=True)
class MetricDifference:
    """Of one metric of the federation or of a domain: the mean over the last shared rounds of each, and of other less one."""

    metric: str
    domain: str
    first: float
    second: float
    mean_difference: float
    max_difference: float  # the difference of largest size in any shared round
    max_difference_round: int  # and its round
    num_shared_rounds: int


def compare_configs(first: Run, second: Run) -> dict[str, tuple[Any, Any]]:
    """What differs in the experiments, by path."""
    left, right = (
        flatten({key: value for key, value in run.config.items() if key not in ("id", "partition_table")}) for run in (first, second)
    )
    return {
        path: (left.get(path, NOT_SET), right.get(path, NOT_SET))
        for path in {**left, **right}
        if left.get(path, NOT_SET) != right.get(path, NOT_SET)
    }


def compare_metrics(first: Run, second: Run) -> list[MetricDifference]:
    """What differs in the outcomes: every number of the federation and of domains that both runs have."""
    found = []
    left, right = first.trajectory(), second.trajectory()
    for metric in sorted(set(left.metrics) & set(right.metrics)):
        domains = sorted(set(left.domains_of(metric)) & set(right.domains_of(metric)))
        for domain in ([""] if left.has_curve(metric) and right.has_curve(metric) else []) + domains:
            a, b = left.observed_mask(metric, domain), right.observed_mask(metric, domain)
            both, ours, theirs = np.intersect1d(left.rounds[a], right.rounds[b], return_indices=True)
            if not len(both):
                continue
            x, y = left.curve(metric, domain)[a][ours], right.curve(metric, domain)[b][theirs]
            apart = y - x
            worst = int(np.nanargmax(np.abs(apart))) if not np.isnan(apart).all() else 0
            late = final_round_indices(both, FINAL_SHARED_EVALUATIONS)
            found.append(
                MetricDifference(
                    metric,
                    domain,
                    float(x[late].mean()),
                    float(y[late].mean()),
                    float(apart[late].mean()),
                    float(apart[worst]),
                    int(both[worst]),
                    len(both),
                )
            )
    return found
