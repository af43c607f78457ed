"""Outcomes that no study registers: other ends of a run, single rounds, and what happens to clients that are away.

They serve two purposes: to show how the verdicts of a study depend on the metric, and to describe stored runs beyond the hypotheses. All of
it is exploratory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from functools import cache
from itertools import pairwise
from typing import Literal

import numpy as np

from ..core.errors import UserError
from ..core.records import Trajectory
from ..stats import HypothesisVerdict
from ..stats.verdicts import evaluate_gated
from ..studies import parse_study
from ..studies.outcomes import PARTICIPATION_METRIC, get_series, load_trajectories
from .study_data import StudyData

End = Literal["last", "final"]
# The losses that a study registers -> the same at another end of the run.
LOSSES: dict[str, str] = {"loss": "loss", "gap": "gap", "loss.clients": "clients", "gain": "gain"}
DISTANCE = "update.distance_from_start"
# The metrics that are compared at equal distance from the pretrained model.
REPRESENTATION = ("hidden.cka.pretrained", "attention.shift")
RECORDED = (
    *(
        "loss",
        "final.loss",
        "final.loss.own",
        "final.loss.personalized",
        "syntax.accuracy",
        "update.step",
        "cluster.id",
        PARTICIPATION_METRIC,
    ),
    *(DISTANCE, *REPRESENTATION, "adapters.error.update"),
)


@cache
def trajectories(data: StudyData) -> dict[str, Trajectory]:
    """Return the trajectories of all finished runs and IID baselines of a study by run, with the metrics of this module."""
    entries = [entry for entry in data.manifest_values["runs"] if entry.role != "trial" and entry.run in data.finished]
    return load_trajectories(data.manifest, entries, RECORDED)


def find_outcome(data: StudyData, name: str) -> dict[str, float]:
    """Return an outcome by run.

    Args:
        data: The study.
        name: A registered outcome of the study, or one of these:

            - ``last.loss``, ``last.gap``, ``last.clients``, ``last.gain``: the last evaluation in place of the mean of the last five; the
              same with ``final.``: the final evaluation, on more text;
            - ``METRIC in round N``: a recorded metric, or ``loss.clients``, in one evaluated round; ``mean of METRIC``: its mean;
            - ``METRIC at equal distance``: the difference to the IID baseline at equal distance from the pretrained model
              (`at_equal_distance`);
            - ``final.personalized``: the mean over clients of the loss on own text under their personalized models, at the end;
              ``gain.clients``: the loss on clients' own text before training minus that at the end; ``worst client``: the largest loss of a
              client on its own text, each a mean of the last five evaluations;
            - ``rise after K of N``: the change of a client's own loss in the first K rounds of its absences of at least N rounds;
              ``count of absences of N``: their number (`list_absences`; with styles a client is absent while none of its style trains);
            - ``step``: the mean norm of the change of the shared model in a round; ``undrawn``: the number of clients that never take part;
              ``gap.drawn``: the gap over the domains whose client takes part;
            - ``gap absent A to B``: the part of the gap over the last five evaluations that belongs to domains whose client last trained A
              to B rounds ago (``gap never drawn``: has not trained yet), and ``share absent A to B`` their share of these domains and
              rounds (`split_by_absence`). The parts of all absences sum to the gap;
            - ``style.ari``: the adjusted Rand index of the clusters against the clients' styles, where client k has style k mod S.

    Returns:
        The outcome by run; NaN where a run does not have it.

    Raises:
        UserError: No such outcome is known.
    """
    if name in data.frame:
        return data.outcome_by_run(name)
    runs = trajectories(data)
    if name in OF_A_RUN:
        return {run: OF_A_RUN[name](data, run, each) for run, each in runs.items()}
    for pattern, compute in PATTERNS.items():
        if match := re.fullmatch(pattern, name):
            return compute(data, runs, *match.groups())
    raise UserError(f"unknown outcome {name!r}; the study has {', '.join(data.study_config['metrics'])}, and find_outcome names others")


def find_baselines(data: StudyData) -> dict[str, str]:
    """Return the IID baseline of each run that has one."""
    return {run: baseline for run, baseline in zip(data.frame["run"], data.frame["iid_baseline"], strict=True) if baseline}


def outcome_at_end(data: StudyData, runs: Mapping[str, Trajectory], end: End, kind: str) -> dict[str, float]:
    """Return the loss, gap, gain or mean loss of clients at another end of the runs."""
    values = {run: end_loss(each, end, kind == "clients") for run, each in runs.items()}
    if kind == "gap":
        baselines = find_baselines(data)
        return {run: value - values.get(baselines.get(run, ""), math.nan) for run, value in values.items()}
    # the final evaluation is on other text than round 0, so that it has no gain
    starts = {run: value_in_round(each, "loss", 0) if end == "last" else math.nan for run, each in runs.items()}
    return {run: starts[run] - value for run, value in values.items()} if kind == "gain" else values


def outcome_at_equal_distance(data: StudyData, runs: Mapping[str, Trajectory], metric: str) -> dict[str, float]:
    """Return the difference of a metric to the IID baseline at equal distance from the pretrained model."""
    return {
        run: at_equal_distance(runs[run], runs[base], metric) for run, base in find_baselines(data).items() if {run, base} <= runs.keys()
    }


def mean_over_rounds(run: Trajectory, metric: str) -> float:
    """Return the mean of a recorded metric over rounds, or NaN."""
    return float(get_series(run, metric)[1].mean()) if metric in run.metrics else math.nan


def mean_over_clients(run: Trajectory, metric: str) -> float:
    """Return the mean over clients of a metric in its last evaluation, or NaN."""
    if metric not in run.metrics or not run.has_client_table(metric):
        return math.nan
    table = run.client_table(metric)
    table = table[~np.isnan(table).all(axis=1)]
    return float(table[-1].mean()) if len(table) else math.nan


def gain_of_clients(data: StudyData, run: str, trajectory: Trajectory) -> float:
    """Return the mean loss on clients' own text before training minus that at the end."""
    return value_in_round(trajectory, "loss.clients", 0) - data.outcome_by_run("loss.clients").get(run, math.nan)


def style_agreement(data: StudyData, run: str) -> float:
    """Return the adjusted Rand index of the last clusters of a run against the styles of its clients; NaN without styles."""
    from sklearn.metrics import adjusted_rand_score

    styles = data.experiments[run]["partition"].get("styles")
    clusters = trajectories(data)[run].client_table("cluster.id")
    clusters = clusters[~np.isnan(clusters).any(axis=1)]
    if not styles or not len(clusters):
        return math.nan
    return float(adjusted_rand_score(np.arange(clusters.shape[1]) % len(styles), clusters[-1].astype(int)))


def took_part(run: Trajectory) -> np.ndarray:
    """Return which clients trained in which round, ``[rounds, clients]`` bool."""
    return ~np.isnan(run.client_table(PARTICIPATION_METRIC))


def end_loss(run: Trajectory, end: End, is_own: bool = False) -> float:
    """Return the loss at the end of a run: of its last evaluation, or of the final evaluation, on more text.

    Args:
        run: The run.
        end: ``last`` or ``final``.
        is_own: Whether to return the mean over clients of the loss on each client's own text.
    """
    if not is_own:
        values = get_series(run, "loss" if end == "last" else "final.loss")[1]
        return float(values[-1]) if len(values) else math.nan
    return mean_over_clients(run, "loss" if end == "last" else "final.loss.own")


def value_in_round(run: Trajectory, metric: str, round_number: int) -> float:
    """Return a recorded metric in one round; ``loss.clients`` is the mean over clients of the loss on their own text."""
    if metric == "loss.clients":
        if not run.has_client_table("loss"):
            return math.nan
        rounds, values = run.rounds, run.client_table("loss").mean(axis=1)
    else:
        rounds, values = get_series(run, metric)
    found = values[rounds == round_number]
    return float(found[0]) if len(found) else math.nan


def worst_client(run: Trajectory) -> float:
    """Return the largest loss of a client on its own text, where the loss of a client is its mean over the last five evaluations."""
    if "loss" not in run.metrics or not run.has_client_table("loss"):
        return math.nan
    table = run.client_table("loss")
    table = table[~np.isnan(table).all(axis=1)]
    return float(table[-5:].mean(axis=0).max()) if len(table) else math.nan


def at_equal_distance(run: Trajectory, baseline: Trajectory, metric: str) -> float:
    """Return a metric of a run minus that of its IID baseline where both are equally far from the pretrained model.

    The run is read in its last measured round whose distance from the pretrained model lies between the distances of measured rounds of the
    baseline. The baseline is interpolated linearly in the distance.

    Returns:
        The difference, or NaN if no measured round lies so.
    """
    sides = []
    for each in (run, baseline):
        distances = dict(zip(*get_series(each, DISTANCE), strict=True)) if DISTANCE in each.metrics else {}
        measured = zip(*get_series(each, metric), strict=True) if metric in each.metrics else ()
        sides.append([(distances[number], value) for number, value in measured if number in distances])
    own, reference = sides[0], sorted(sides[1])
    for distance, value in reversed(own):
        if reference and reference[0][0] <= distance <= reference[-1][0]:
            return float(value - np.interp(distance, [point[0] for point in reference], [point[1] for point in reference]))
    return math.nan


def list_absences(run: Trajectory, num_rounds: int, num_styles: int = 0) -> list[np.ndarray]:
    """Return the losses of clients on their own text while they are absent.

    Args:
        run: The run.
        num_rounds: Only absences of at least this many rounds count.
        num_styles: The number of styles, where client k has style k mod ``num_styles``: a client is absent while no client of its style
            trains. 0: a client is absent while it does not train itself.

    Returns:
        For each absence of each client its losses from the last round with it to the last round of the absence.
    """
    if "loss" not in run.metrics or not run.has_client_table("loss"):
        return []
    present, loss = took_part(run), run.client_table("loss")
    absences = []
    for client in range(min(loss.shape[1], present.shape[1])):
        group = present[:, client % num_styles :: num_styles].any(axis=1) if num_styles else present[:, client]
        absences += [loss[start:end, client] for start, end in pairwise([*np.flatnonzero(group), len(loss)]) if end - start > num_rounds]
    return absences


def rise_after(run: Trajectory, num_absent: int, num_rounds: int, num_styles: int = 0) -> float:
    """Return the mean change of a client's own loss in the first ``num_absent`` rounds of its absences (`list_absences`)."""
    changes = [losses[num_absent] - losses[0] for losses in list_absences(run, max(num_absent, num_rounds), num_styles)]
    known = [change for change in changes if not math.isnan(change)]
    return float(np.mean(known)) if known else math.nan


def count_styles(data: StudyData, run: str) -> int:
    """Return the number of styles of the clients of a run, or 0."""
    return len(data.experiments[run]["partition"].get("styles") or ())


def gap_of_drawn(data: StudyData, run: str, baseline: Trajectory) -> float:
    """Return the gap over the last five evaluations and over those domains whose client takes part in some round."""
    own, table = trajectories(data)[run], data.experiments[run]["partition_table"]
    holders = np.array(table["tokens"]).argmax(axis=0)  # the client that has most of a domain
    drawn = np.asarray(took_part(own).any(axis=0))
    gaps = []
    for domain, holder in zip(table["domains"], holders, strict=True):
        if holder < len(drawn) and drawn[holder]:
            ends = [get_series(each, "loss", domain)[1][-5:] for each in (own, baseline)]
            gaps.append(float(ends[0].mean() - ends[1].mean()))
    return float(np.mean(gaps)) if gaps else math.nan


def split_by_absence(data: StudyData, run: str, baseline: Trajectory, kind: str, first: float, last: float) -> float:
    """Return the part of the gap that belongs to domains whose client last trained ``first`` to ``last`` rounds before the evaluation.

    Args:
        data: The study.
        run: The id of the run.
        baseline: The trajectory of its IID baseline.
        kind: ``gap``: the sum of the gaps of these domains in the last five evaluations, divided by the number of all domains and
            evaluations. ``share``: the number of these divided by that of all.
        first: The smallest number of rounds; 0 means that the client trained in this round.
        last: The largest number of rounds. A client that has not trained yet counts as infinitely many.
    """
    own, table = trajectories(data)[run], data.experiments[run]["partition_table"]
    holders = np.array(table["tokens"]).argmax(axis=0)  # the client that has most of a domain
    present, rounds = took_part(own), np.asarray(own.rounds)
    parts = []
    for domain, holder in zip(table["domains"], holders, strict=True):
        places, losses = get_series(own, "loss", domain)
        differences = losses[-5:] - get_series(baseline, "loss", domain)[1][-5:]
        for place, difference in zip(places[-5:], differences, strict=True):
            trained = rounds[present[:, holder] & (rounds <= place)] if holder < present.shape[1] else rounds[:0]
            absence = float(place - trained[-1]) if len(trained) else math.inf
            parts.append((difference if kind == "gap" else 1.0) if first <= absence <= last else 0.0)
    return float(np.mean(parts)) if parts else math.nan


def _outcome_by_absence(data: StudyData, kind: str, first: float, last: float) -> dict[str, float]:
    runs = trajectories(data)
    pairs = {run: base for run, base in find_baselines(data).items() if {run, base} <= runs.keys()}
    return {run: split_by_absence(data, run, runs[base], kind, first, last) for run, base in pairs.items()}


@cache
def verdicts_at_end(data: StudyData, end: End) -> tuple[HypothesisVerdict, ...]:
    """Return the verdicts with the same tests, margins, families and gate, where losses are read at another end of a run.

    Args:
        data: The study.
        end: ``last``: the last evaluation in place of the mean of the last five; ``final``: the final evaluation.

    Returns:
        One verdict for each hypothesis on a loss, in the order of the study.
    """
    study = parse_study(data.manifest_values["study"], is_stored=True)
    frame = data.frame.copy()
    for metric, name in LOSSES.items():
        if metric in frame:
            values = find_outcome(data, f"{end}.{name}")
            frame[metric] = [values.get(run, math.nan) for run in frame["run"]]
    return tuple(
        verdict
        for verdict in evaluate_gated(study.hypotheses, frame, data.manifest_values["factors"], study.gate)
        if verdict.metric in LOSSES
    )


def _gap_of_drawn_or_nan(data: StudyData, run: str, trajectory: Trajectory) -> float:
    baseline = trajectories(data).get(find_baselines(data).get(run, ""))
    return math.nan if baseline is None else gap_of_drawn(data, run, baseline)


# Outcomes of a single run -> the function of the study, the run's id and its trajectory.
OF_A_RUN: dict[str, Callable[[StudyData, str, Trajectory], float]] = {
    "step": lambda data, run, each: mean_over_rounds(each, "update.step"),
    "undrawn": lambda data, run, each: float((~took_part(each).any(axis=0)).sum()),
    "worst client": lambda data, run, each: worst_client(each),
    "gain.clients": gain_of_clients,
    "final.personalized": lambda data, run, each: mean_over_clients(each, "final.loss.personalized"),
    "style.ari": lambda data, run, each: style_agreement(data, run) if each.has_client_table("cluster.id") else math.nan,
    "gap.drawn": _gap_of_drawn_or_nan,
}
# Patterns of outcomes -> the function of the study, its trajectories and the groups of the pattern.
PATTERNS: dict[str, Callable[..., dict[str, float]]] = {
    r"(last|final)\.(loss|gap|clients|gain)": outcome_at_end,
    r"(\S+) in round (\d+)": lambda data, runs, metric, number: {
        run: value_in_round(each, metric, int(number)) for run, each in runs.items()
    },
    r"mean of (\S+)": lambda data, runs, metric: {run: mean_over_rounds(each, metric) for run, each in runs.items()},
    r"rise after (\d+) of (\d+)": lambda data, runs, count, least: {
        run: rise_after(each, int(count), int(least), count_styles(data, run)) for run, each in runs.items()
    },
    r"count of absences of (\d+)": lambda data, runs, least: {
        run: float(len(list_absences(each, int(least), count_styles(data, run)))) for run, each in runs.items()
    },
    r"(\S+) at equal distance": outcome_at_equal_distance,
    r"(gap|share) absent (\d+) to (\d+)": lambda data, runs, kind, first, last: _outcome_by_absence(data, kind, int(first), int(last)),
    r"(gap|share) never drawn": lambda data, runs, kind: _outcome_by_absence(data, kind, math.inf, math.inf),
}
