"""Outcomes that no study registers: other ends of a run, single rounds, and what happens to clients that are away.

They serve two purposes: to show how the verdicts of a study depend on the metric, and to describe stored runs beyond the hypotheses. All of
it is exploratory.
"""

from __future__ import annotations

import math
import re
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
    *("loss", "final.loss", "final.loss.own", "syntax.accuracy", "update.step", "cluster.id", PARTICIPATION_METRIC),
    *(DISTANCE, *REPRESENTATION),
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
        name: A registered outcome of the study, or ``last.loss``, ``last.gap``, ``last.clients``, ``last.gain`` (the last evaluation in
            place of the mean of the last five), the same with ``final.`` (the final evaluation, on more text), ``METRIC in round N`` (a
            recorded metric, or ``loss.clients``, in one evaluated round), ``step`` (mean norm of the change of the shared model in a
            round), ``undrawn`` (number of clients that never take part), ``gap.drawn`` (the gap over the domains whose client takes part),
            ``rise after K`` (the change of a client's own loss from its last round to the round that is its K-th without it),
            ``worst client`` (the largest loss of a client on its own text, each a mean of the last five evaluations), ``METRIC at equal
            distance`` (the difference to the IID baseline at equal distance from the pretrained model, `at_equal_distance`), or
            ``style.ari`` (the adjusted Rand index of the clusters against the clients' styles, where client k has style k mod S).

    Returns:
        The outcome by run; NaN where a run does not have it.

    Raises:
        UserError: No such outcome is known.
    """
    if name in data.frame:
        return data.outcome_by_run(name)
    baselines = {run: baseline for run, baseline in zip(data.frame["run"], data.frame["iid_baseline"], strict=True) if baseline}
    runs = trajectories(data)
    if match := re.fullmatch(r"(last|final)\.(loss|gap|clients|gain)", name):
        end, kind = match[1], match[2]
        values = {run: end_loss(each, end, kind == "clients") for run, each in runs.items()}  # type: ignore[arg-type]
        if kind == "gap":
            return {run: value - values.get(baselines.get(run, ""), math.nan) for run, value in values.items()}
        # the final evaluation is on other text than round 0, so that it has no gain
        starts = {run: value_in_round(each, "loss", 0) if end == "last" else math.nan for run, each in runs.items()}
        return {run: starts[run] - value for run, value in values.items()} if kind == "gain" else values
    if match := re.fullmatch(r"(\S+) in round (\d+)", name):
        return {run: value_in_round(each, match[1], int(match[2])) for run, each in runs.items()}
    if match := re.fullmatch(r"rise after (\d+)", name):
        return {run: rise_after(each, int(match[1])) for run, each in runs.items()}
    if name == "worst client":
        return {run: worst_client(each) for run, each in runs.items()}
    if match := re.fullmatch(r"(\S+) at equal distance", name):
        return {run: at_equal_distance(runs[run], runs[base], match[1]) for run, base in baselines.items() if {run, base} <= runs.keys()}
    if name == "step":
        return {run: float(get_series(each, "update.step")[1].mean()) for run, each in runs.items() if "update.step" in each.metrics}
    if name == "style.ari":
        return {run: style_agreement(data, run) for run, each in runs.items() if each.has_client_table("cluster.id")}
    if name == "undrawn":
        return {run: float((~took_part(each).any(axis=0)).sum()) for run, each in runs.items()}
    if name == "gap.drawn":
        return {run: gap_of_drawn(data, run, runs[baselines[run]]) for run in runs if baselines.get(run) in runs}
    raise UserError(f"unknown outcome {name!r}; the study has {', '.join(data.study_config['metrics'])}, and find_outcome names others")


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
    metric = "loss" if end == "last" else "final.loss.own"
    if metric not in run.metrics or not run.has_client_table(metric):
        return math.nan
    table = run.client_table(metric)
    table = table[~np.isnan(table).all(axis=1)]
    return float(table[-1].mean()) if len(table) else math.nan


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


def rise_after(run: Trajectory, num_absent: int) -> float:
    """Return how much a client's own loss rises from its last round to the round that is its ``num_absent``-th without it; a mean."""
    if "loss" not in run.metrics or not run.has_client_table("loss"):
        return math.nan
    present, loss = took_part(run), run.client_table("loss")
    width = min(loss.shape[1], present.shape[1])
    changes = []
    for client in range(width):
        places = np.flatnonzero(present[:, client])
        for place, following in pairwise([*places, len(loss)]):
            if place + num_absent < following:
                changes.append(loss[place + num_absent, client] - loss[place, client])
    known = [change for change in changes if not math.isnan(change)]
    return float(np.mean(known)) if known else math.nan


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
