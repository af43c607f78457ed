"""Detect client drift, stale control variates and the aggregation error of adapters.

Client drift: local steps move the clients apart, so that the mean of their models differs from the path of the mean gradient. The
statistic is the diversity of the updates, R = mean |d_k|^2 / |mean d|^2, relative to the IID baseline (the log ratio of the medians
over rounds). With sampling noise alone, both have the same diversity. The drift grows with the number K of local steps. If runs with
other K are available, the distance sqrt(mean |d_k|^2 (1 - 1 / R)) must therefore grow with K on a log-log scale. Harm is confirmed
only by the run without local steps (FedSGD), which must close half of the loss gap to the baseline.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

import numpy as np

from ..core.lazy_imports import stats
from ..core.records import Trajectory
from .finding import (
    Finding,
    RunEvidence,
    align_curves,
    client_table,
    final_gap,
    make_not_measured,
    make_series,
    read_curve,
    single_run_grade,
)

MAX_DIVERSITY = 1e6  # upper limit of R, which is unbounded as the mean update approaches zero


def client_drift(evidence: RunEvidence) -> list[Finding]:
    """Detect client drift from the diversity of the clients' updates."""
    limit = evidence.thresholds["drift"]
    rounds, run_values, baseline_values = align_curves(evidence.run, evidence.iid_baseline, "update.diversity")
    valid = np.isfinite(run_values) & np.isfinite(baseline_values)
    if valid.sum() < limit["rounds"]:
        return make_not_measured(
            "client drift", f"`update.diversity` of the run and of an IID baseline in at least {limit['rounds']:.0f} rounds"
        )
    ratio = float(np.median(run_values[valid].clip(1, MAX_DIVERSITY)) / np.median(baseline_values[valid].clip(1, MAX_DIVERSITY)))
    exponent, closed_share = drift_growth_exponent(evidence), closed_gap_share(evidence)
    # ``not x <= limit``: a value that was not measured (NaN) does not contradict the finding
    positive = ratio > limit["ratio"] and not exponent <= limit["slope"] and not closed_share < limit["closed_gap_share"]
    missing = []
    if math.isnan(exponent):
        missing.append("runs with other numbers of local steps")
    if math.isnan(closed_share):
        missing.append("the same run with FedSGD, i.e. without local steps, and a loss gap to the baseline")
    message = f"the clients' updates are {ratio:.2f} times as diverse as in the IID baseline"
    if positive and math.isfinite(exponent):
        message += f"; their distance grows as K^{exponent:.2f} with the number of local steps K"
    if positive and math.isfinite(closed_share):
        message += f"; FedSGD, without local steps, closes {100 * closed_share:.0f} % of the loss gap"
    return [
        Finding(
            "client drift",
            single_run_grade(positive),
            message,
            math.log(ratio),
            0.0,
            math.log(limit["ratio"]),
            "log ratio to the baseline",
            is_positive=positive,
            in_baseline=False,
            first_round=int(rounds[valid][0]) if positive else None,
            clients=opposing_clients(evidence),
            locations=most_diverse_layers(evidence, limit["ratio"]) if positive else (),
            is_confirmable=not missing,
            missing_input=" and ".join(missing),
            evidence=(
                make_series("update.diversity", rounds, run_values),
                make_series("update.diversity of the IID baseline", rounds, baseline_values),
            ),
        )
    ]


def drift_growth_exponent(evidence: RunEvidence) -> float:
    """Fit the exponent with which the distance between clients grows with the number of local steps.

    Returns:
        The slope of log distance over log local steps; NaN with fewer than two numbers of local steps.
    """
    points = {steps: client_spread(run) for steps, run in evidence.local_steps_sweep.items()}
    if evidence.info.local_steps:
        points[evidence.info.local_steps] = client_spread(evidence.run)
    valid = {steps: distance for steps, distance in points.items() if distance > 0 and math.isfinite(distance)}
    if len(valid) < 2:
        return math.nan
    return float(np.polyfit(np.log(list(valid)), np.log(list(valid.values())), 1)[0])


def client_spread(run: Trajectory) -> float:
    """Compute the root mean square distance of the trained clients from their mean, as the median over rounds."""
    diversity = read_curve(run, "update.diversity")[1]
    norm = client_table(run, "update.norm")
    if not len(diversity) or not len(norm):
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # rounds in which no client trained
        square = np.nanmean(norm[run.observed_mask("update.diversity")] ** 2, axis=1)
        return float(np.nanmedian(np.sqrt(square * (1 - 1 / diversity.clip(1, None)))))


def closed_gap_share(evidence: RunEvidence) -> float:
    """Compute the share of the loss gap to the IID baseline that the run without local steps closes.

    Returns:
        The share; NaN without such a run or without a gap.
    """
    last = int(evidence.thresholds["common"]["last"])
    gap, closed_gap = (
        final_gap(evidence.run, evidence.iid_baseline, num_last=last),
        final_gap(evidence.run, evidence.fedsgd, num_last=last) if evidence.fedsgd else math.nan,
    )
    return closed_gap / gap if math.isfinite(closed_gap) and gap > evidence.thresholds["drift"]["floor"] else math.nan


def most_diverse_layers(evidence: RunEvidence, ratio: float) -> tuple[str, ...]:
    """Return the layers whose diversity exceeds ``ratio`` times the IID baseline's, the largest first."""
    ratios = {}
    for name in evidence.run.domains_of("update.diversity"):
        _, run_values, baseline_values = align_curves(evidence.run, evidence.iid_baseline, "update.diversity", name)
        if len(run_values):
            ratios[name] = float(np.nanmedian(run_values.clip(1, MAX_DIVERSITY)) / np.nanmedian(baseline_values.clip(1, MAX_DIVERSITY)))
    return tuple(sorted((name for name in ratios if ratios[name] > ratio), key=lambda name: -ratios[name]))


def opposing_clients(evidence: RunEvidence) -> tuple[int, ...]:
    """Return the clients whose updates have a negative mean cosine with the mean update."""
    cosine = client_table(evidence.run, "update.cosine")
    if not len(cosine):
        return ()
    measured = np.isfinite(cosine).any(axis=0)
    return tuple(int(client) for client in np.flatnonzero(measured) if np.nanmean(cosine[:, client]) < 0)


# Stale control variates (SCAFFOLD).
#
# The distance of a control variate c_k from the client's gradient, relative to the norm of that gradient, grows with the number of
# rounds since the client last participated. Minibatch noise adds to the distance at any age, so the distance must also exceed the
# IID baseline's. A second finding tests the invariant c = mean c_k, which holds in every round for any cohort. A violation is an
# implementation error, e.g. a sum that is divided by the cohort size instead of the number of clients.


def control_variates(evidence: RunEvidence) -> list[Finding]:
    """Detect stale control variates and violations of the invariant c = mean c_k."""
    return [*stale_control_variates(evidence), *control_variate_invariant(evidence)]


def stale_control_variates(evidence: RunEvidence) -> list[Finding]:
    """Detect control variates whose distance from the client's gradient grows with their age."""
    limit, (age, distance) = evidence.thresholds["staleness"], age_distance_pairs(evidence.run)
    if len(age) < limit["pairs"]:
        return make_not_measured(
            "stale control variates", f"at least {limit['pairs']:.0f} values of `control.age` and `control.staleness`; there are {len(age)}"
        )
    if np.ptp(age) == 0:
        return make_not_measured("stale control variates", "partial participation; all control variates of this run have the same age")
    rho, ratio = rank_correlation(age, distance), float(np.median(distance))
    baseline_age, baseline_distance = age_distance_pairs(evidence.iid_baseline)
    baseline_ratio = float(np.median(baseline_distance)) if len(baseline_distance) else math.nan
    positive = rho > limit["correlation"] and ratio > limit["ratio"] and not ratio - baseline_ratio <= limit["excess"]
    message = (
        f"control variates differ from the gradients by {ratio:.1f} gradient norms, and the difference grows with age (rho {rho:.2f})"
        if positive
        else f"control variates differ from the gradients by {ratio:.2f} gradient norms (rho {rho:.2f} with age)"
    )
    ages, distances = client_table(evidence.run, "control.age"), client_table(evidence.run, "control.staleness")
    measured = np.isfinite(ages) & np.isfinite(distances) if positive else np.zeros((0, 0), dtype=bool)
    mean_distance = np.where(measured, distances, 0.0).sum(axis=0) / measured.sum(axis=0).clip(1) if positive else np.zeros(0)  # [N]
    has_pair = (np.isfinite(ages) & np.isfinite(distances)).any(axis=1)  # rounds in which a client took part that had before
    in_baseline = baseline_ratio > limit["ratio"] and rank_correlation(baseline_age, baseline_distance) > limit["correlation"]
    return [
        Finding(
            "stale control variates",
            single_run_grade(positive),
            message,
            ratio,
            baseline_ratio,
            limit["ratio"],
            "gradient norms",
            is_positive=positive,
            in_baseline=None if math.isnan(baseline_ratio) else in_baseline,
            first_round=first_stale_round(evidence.run, limit) if positive else None,
            clients=tuple(int(k) for k in np.flatnonzero(mean_distance > limit["ratio"])),
            evidence=(
                make_series("control.age", evidence.run.rounds[has_pair], np.nanmean(ages[has_pair], axis=1)),
                make_series("control.staleness", evidence.run.rounds[has_pair], np.nanmean(distances[has_pair], axis=1)),
            ),
        )
    ]


def rank_correlation(age: np.ndarray, distance: np.ndarray) -> float:
    """Compute Spearman's correlation of age and distance; 0 if either is constant."""
    return float(stats.spearmanr(age, distance).statistic) if np.ptp(age) > 0 and np.ptp(distance) > 0 else 0.0


def first_stale_round(run: Trajectory, thresholds: Mapping[str, float]) -> int | None:
    """Return the first round in which the distance of a control variate exceeds the threshold."""
    distance = np.nan_to_num(client_table(run, "control.staleness"), nan=0.0)
    rows = np.flatnonzero((distance > thresholds["ratio"]).any(axis=1))
    return int(run.rounds[rows[0]]) if len(rows) else None


def age_distance_pairs(run: Trajectory | None) -> tuple[np.ndarray, np.ndarray]:
    """Return age and distance of all control variates for which both were recorded, each ``[pairs]``."""
    age, distance = client_table(run, "control.age"), client_table(run, "control.staleness")
    if not len(age) or not len(distance):
        return np.zeros(0), np.zeros(0)
    both = np.isfinite(age) & np.isfinite(distance)
    return age[both], distance[both]


def control_variate_invariant(evidence: RunEvidence) -> list[Finding]:
    """Detect violations of the invariant c = mean c_k of SCAFFOLD."""
    rounds, imbalance = read_curve(evidence.run, "control.imbalance")
    if not len(imbalance):
        return make_not_measured("control-variate invariant violated", "`control.imbalance`")
    limit = evidence.thresholds["staleness"]
    median_imbalance = float(np.nanmedian(imbalance[: int(limit["first"])]))
    positive = median_imbalance > limit["imbalance"]
    message = f"c differs from the mean of the c_k by {median_imbalance:.2g} of |c|"
    return [
        Finding(
            "control-variate invariant violated",
            single_run_grade(positive),
            message,
            median_imbalance,
            0.0,
            limit["imbalance"],
            "of |c|",
            is_positive=positive,
            in_baseline=False,
            is_implementation_error=True,
            first_round=int(rounds[np.flatnonzero(imbalance > limit["imbalance"])[0]]) if positive else None,
            evidence=(make_series("control.imbalance", rounds, imbalance),),
        )
    ]


# Aggregation error of low-rank adapters: the product of the mean factors differs from the mean of the products.
#
# The error |mean of products - product of means|, relative to the change in the round, must exceed 0.1. It must also be harmful:
# exact averaging in the same round would have reduced the loss by more than 0.01 nats per token. The error also occurs on IID data
# and grows with the number of local steps, so it is compared with the IID baseline's. Without the counterfactual loss
# (`adapters.error.loss`) it can only be suspected.


def aggregation_error(evidence: RunEvidence) -> list[Finding]:
    """Detect a harmful error from averaging adapter factors separately."""
    rounds, error = read_curve(evidence.run, "adapters.error.update")
    if len(error) < evidence.thresholds["common"]["shortest"]:
        return make_not_measured(
            "aggregation error",
            f"`adapters.error.update` in at least {evidence.thresholds['common']['shortest']:.0f} rounds; it is recorded only for adapters",
        )
    limit = evidence.thresholds["aggregation"]
    run_error, baseline_error = (
        median_over_rounds(evidence.run, "adapters.error.update"),
        median_over_rounds(evidence.iid_baseline, "adapters.error.update"),
    )
    cost = median_over_rounds(evidence.run, "adapters.error.loss")
    positive = run_error > limit["error"] and not cost <= limit["loss"]
    message = f"averaging adapter factors separately causes an error of {100 * run_error:.1f} % of a round's change"
    if math.isfinite(baseline_error):
        message += f" ({100 * baseline_error:.1f} % in the IID baseline)"
    if positive and math.isfinite(cost):
        message += f"; exact averaging would reduce the loss by {cost:.3f} nats per token"
    missing = "" if math.isfinite(cost) else "`adapters.error.loss`, the loss that exact aggregation would have saved in the same round"
    rows = np.flatnonzero(error > limit["error"])
    in_baseline = None if math.isnan(baseline_error) else bool(baseline_error > limit["error"] and baseline_error > run_error / 2)
    return [
        Finding(
            "aggregation error",
            single_run_grade(positive),
            message,
            run_error,
            baseline_error,
            limit["error"],
            "of a round's change",
            is_positive=positive,
            in_baseline=in_baseline,
            first_round=int(rounds[rows[0]]) if positive and len(rows) else None,
            is_confirmable=not missing,
            missing_input=missing,
            evidence=(make_series("adapters.error.update", rounds, error),),
        )
    ]


def median_over_rounds(run: Trajectory | None, metric: str) -> float:
    """Compute the median of a metric over rounds, ignoring values that are not finite."""
    values = read_curve(run, metric)[1]
    values = values[np.isfinite(values)]
    return float(np.median(values)) if len(values) else math.nan
