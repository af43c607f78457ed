"""Detect oscillation of the loss, server overshoot and stalled convergence.

Oscillation: the loss repeatedly increases and decreases instead of decreasing, e.g. because cohorts alternate. After a burn-in,
three numbers are computed: the index, i.e. the sum of all increases of the loss divided by its range; the share of successive steps
with opposite signs; and the standard deviation of the residual around a running median of five, relative to the IID baseline's. On
two quadratics with one client per round, x keeps moving with a standard deviation of 0.406 around its mean, while the IID baseline
converges.

Domain losses may fluctuate although their mean does not, because a domain gets worse while its clients do not participate. A second
finding therefore compares the fluctuation of the domain losses (the mean absolute change between evaluations minus the net change)
with the baseline's.
"""

from __future__ import annotations

import math

import numpy as np

from ..core.lazy_imports import stats
from ..core.records import Trajectory, final_round_indices
from .failures import find_training_divergence
from .finding import (
    Finding,
    RunEvidence,
    clients_holding,
    domain_variability,
    final_gap,
    make_not_measured,
    make_series,
    read_curve,
    single_run_grade,
)

EPSILON = 1e-12


def oscillation(evidence: RunEvidence) -> list[Finding]:
    """Detect oscillation of the global loss and of the domain losses."""
    limit, (rounds, loss) = evidence.thresholds["oscillation"], read_curve(evidence.run)
    if find_training_divergence(evidence.run, evidence.thresholds)[0]:
        return make_not_measured("oscillation", "a run that has not diverged")
    num_late = len(loss) - round(limit["burn_in"] * len(loss))
    domain_findings = domain_oscillation(evidence)
    if num_late < limit["evaluations"]:
        missing = f"at least {limit['evaluations']:.0f} evaluations after the burn-in; there are {num_late}"
        return make_not_measured("oscillation", missing) + domain_findings
    index, changes, spread = measure_oscillation(evidence.run, limit["burn_in"])
    baseline_index, baseline_changes, baseline_spread = (
        measure_oscillation(evidence.iid_baseline, limit["burn_in"]) if evidence.iid_baseline is not None else (math.nan,) * 3
    )
    is_unstable = changes >= limit["changes"] and spread > limit["floor"] and not spread <= limit["spread"] * baseline_spread
    positive = is_unstable and index > limit["index"]
    noteworthy = is_unstable and index > limit["suspected"] and evidence.iid_baseline is not None
    message = (
        f"the loss oscillates: its increases sum to {index:.2f} times its range, and {100 * changes:.0f} % of the steps change direction"
        if positive or noteworthy
        else "the loss does not oscillate"
    )
    baseline_unstable = baseline_index > limit["index"] and baseline_changes >= limit["changes"] and baseline_spread > limit["floor"]
    in_baseline = None if math.isnan(baseline_index) else bool(baseline_unstable)
    increases = np.flatnonzero(np.diff(loss) > 0)
    late_increases = increases[increases >= len(loss) - num_late]
    return [
        Finding(
            "oscillation",
            single_run_grade(positive, noteworthy=noteworthy),
            message,
            index_to_share(index),
            index_to_share(baseline_index),
            index_to_share(limit["index"]),
            "share of increases",
            is_positive=positive,
            in_baseline=in_baseline,
            first_round=int(rounds[late_increases[0]]) if len(late_increases) and (positive or noteworthy) else None,
            evidence=(make_series("loss", rounds, loss),),
        ),
        *domain_findings,
    ]


def index_to_share(index: float) -> float:
    """Convert the index to the share index / (1 + index), which stays bounded if the range of the loss is near zero."""
    return index / (1 + index)


def measure_oscillation(run: Trajectory, burn_in: float) -> tuple[float, float, float]:
    """Measure oscillation after the burn-in.

    Args:
        run: The run.
        burn_in: Share of the evaluations that is skipped.

    Returns:
        Oscillation index, share of sign changes, and residual standard deviation; NaN with too few or non-finite losses.
    """
    loss = read_curve(run)[1]
    late = loss[round(burn_in * len(loss)) :]
    if len(late) < 5 or not np.isfinite(loss).all():
        return math.nan, math.nan, math.nan
    steps = np.diff(late)
    signs = np.sign(steps[np.abs(steps) > EPSILON])
    sign_changes = float((signs[1:] != signs[:-1]).mean()) if len(signs) > 1 else 0.0
    medians = np.median(np.lib.stride_tricks.sliding_window_view(late, 5), axis=1)
    return float(steps.clip(0).sum() / max(np.ptp(loss), EPSILON)), sign_changes, float((late[2:-2] - medians).std())


def domain_oscillation(evidence: RunEvidence) -> list[Finding]:
    """Detect domain losses that fluctuate more than in the IID baseline."""
    limit, rounds = evidence.thresholds["oscillation"], read_curve(evidence.run)[0]
    if (
        len(rounds) < evidence.thresholds["common"]["shortest"]
        or evidence.iid_baseline is None
        or len(evidence.run.domains_of("loss")) == 0
    ):
        return []
    variability, baseline_variability = domain_variability(evidence.run, rounds), domain_variability(evidence.iid_baseline, rounds)
    if math.isnan(variability) or math.isnan(baseline_variability):
        return []
    # A smaller fluctuation of the baseline is noise and would inflate the ratio.
    ratio = variability / max(baseline_variability, limit["domain_floor"] / 10)
    positive = ratio > limit["ratio"] and variability > limit["domain_floor"]
    message = (
        f"domain losses fluctuate {ratio:.1f} times as much as in the IID baseline"
        if positive
        else "domain losses do not fluctuate notably more than in the IID baseline"
    )
    changes = {name: loss_changes(evidence.run, name) for name in evidence.run.domains_of("loss") if len(loss_changes(evidence.run, name))}
    ranked = tuple(sorted(changes, key=lambda name: -float(np.nanmean(changes[name]))))
    limits = {
        name: limit["ratio"] * max(float(np.nanmean(baseline_changes)), limit["domain_floor"])
        for name in ranked
        if len(baseline_changes := loss_changes(evidence.iid_baseline, name))
    }
    domains = tuple(name for name in ranked if name in limits and np.nanmean(changes[name]) > limits[name]) or ranked[:1]
    exceeding_rounds = [read_curve(evidence.run, "loss", name)[0][1:][changes[name] > limits[name]] for name in domains if name in limits]
    return [
        Finding(
            "domain oscillation",
            single_run_grade(positive),
            message,
            math.log(max(ratio, EPSILON)),
            0.0,
            math.log(limit["ratio"]),
            "log ratio to the baseline",
            is_positive=positive,
            in_baseline=False,
            locations=domains if positive else (),
            clients=clients_holding(evidence, domains) if positive else (),
            first_round=min((int(rounds[0]) for rounds in exceeding_rounds if len(rounds)), default=None) if positive else None,
            evidence=tuple(make_series(f"loss of {name}", *read_curve(evidence.run, "loss", name)) for name in ranked[:4]),
        )
    ]


def loss_changes(run: Trajectory | None, domain: str) -> np.ndarray:
    """Compute the absolute change of a domain's loss between successive evaluations."""
    return np.abs(np.diff(read_curve(run, "loss", domain)[1]))


# Server overshoot: the state of the server optimizer moves the model past the optimum and back.
#
# Two conditions must hold: successive server steps have opposite directions (median cosine below -0.2), and the server's state, its
# momentum |v| or FedDyn's correction |h| / alpha, grows with the rounds (Kendall's tau, one-sided). Either condition alone is normal:
# steps change direction near an optimum, and the state grows at the start of a run.

SERVER_STATE_METRICS = ("server.momentum", "server.correction")


def server_overshoot(evidence: RunEvidence) -> list[Finding]:
    """Detect a server optimizer that overshoots."""
    limit, state_metrics = evidence.thresholds["overshoot"], [name for name in SERVER_STATE_METRICS if evidence.run.has_curve(name)]
    rounds, turn = read_curve(evidence.run, "update.turn")
    valid = np.isfinite(turn)
    if not state_metrics or valid.sum() < limit["rounds"]:
        return make_not_measured(
            "server overshoot",
            f"`update.turn` in at least {limit['rounds']:.0f} rounds, and a stateful server (`server.momentum` or `server.correction`)",
        )
    reversal, state_curve = -float(np.median(turn[valid])), read_curve(evidence.run, state_metrics[0])
    tau, p = kendall_trend(evidence.run, state_metrics[0])
    positive = reversal > limit["turn"] and tau > 0 and p < limit["p"]
    baseline_reversal = median_turn(evidence.iid_baseline)
    message = (
        f"successive server steps have opposite directions (median cosine {-reversal:.2f}) while {state_metrics[0]} grows"
        if positive
        else f"the server does not overshoot (median cosine of successive steps {-reversal:.2f})"
    )
    in_baseline = None
    if evidence.iid_baseline is not None and math.isfinite(baseline_reversal):
        in_baseline = (
            baseline_reversal > limit["turn"]
            and evidence.iid_baseline.has_curve(state_metrics[0])
            and is_rising(evidence.iid_baseline, state_metrics[0], limit["p"])
        )
    reversals = np.flatnonzero(turn < -limit["turn"])
    return [
        Finding(
            "server overshoot",
            single_run_grade(positive),
            message,
            reversal,
            baseline_reversal,
            limit["turn"],
            "negated cosine",
            is_positive=positive,
            in_baseline=in_baseline,
            first_round=int(rounds[reversals[0]]) if positive and len(reversals) else None,
            evidence=(make_series("update.turn", rounds, turn), make_series(state_metrics[0], *state_curve)),
        )
    ]


def median_turn(run: Trajectory | None) -> float:
    """Compute the negated median cosine of successive server steps; NaN if it was not recorded."""
    turn = read_curve(run, "update.turn")[1]
    turn = turn[np.isfinite(turn)]
    return -float(np.median(turn)) if len(turn) else math.nan


def kendall_trend(run: Trajectory, metric: str) -> tuple[float, float]:
    """Compute Kendall's tau of a metric against the round, and its one-sided p-value."""
    rounds, values = read_curve(run, metric)
    valid = np.isfinite(values)
    if valid.sum() < 3 or np.ptp(values[valid]) == 0:
        return 0.0, 1.0
    result = stats.kendalltau(rounds[valid], values[valid], alternative="greater")
    return float(result.statistic), float(result.pvalue)


def is_rising(run: Trajectory, metric: str, p: float) -> bool:
    """Return whether a metric increases with the rounds at significance level ``p``."""
    tau, value = kendall_trend(run, metric)
    return tau > 0 and value < p


# Stalled convergence: the loss no longer decreases although a reference run reaches a lower loss.
#
# Two conditions must hold: the Theil-Sen slope of the last evaluations is flat, in nats or relative to the total decrease that the
# reference run achieves, and the final loss is above that of the reference runs. These are the centralized run and the run with the
# best learning rate of a grid or, if there is neither, the IID baseline. A converged run is flat too, so a reference is required.


def stalled_convergence(evidence: RunEvidence) -> list[Finding]:
    """Detect a loss that is flat above the loss of a reference run."""
    limit, (rounds, loss) = evidence.thresholds["stall"], read_curve(evidence.run)
    if len(loss) < limit["evaluations"]:
        return make_not_measured("stalled convergence", f"at least {limit['evaluations']:.0f} evaluations; there are {len(loss)}")
    references = {"the centralized run": evidence.centralized, "the run with the best learning rate": evidence.best_lr}
    available = {name: run for name, run in references.items() if run is not None} or (
        {"the IID baseline": evidence.iid_baseline} if evidence.iid_baseline else {}
    )
    gaps = {name: final_gap(evidence.run, run, num_last=int(evidence.thresholds["common"]["last"])) for name, run in available.items()}
    if not gaps or any(math.isnan(value) for value in gaps.values()) or find_training_divergence(evidence.run, evidence.thresholds)[0]:
        return make_not_measured(
            "stalled convergence",
            "a run that has not diverged, and a reference run: a centralized run, runs with other learning rates, or an IID baseline",
        )
    nearest = min(gaps, key=lambda name: gaps[name])
    excess, slope = gaps[nearest], theil_sen_slope(evidence.run, limit["window"])
    total_decrease = loss[0] - (
        loss[final_round_indices(rounds, int(evidence.thresholds["common"]["last"]))].mean() - excess
    )  # of the reference run
    is_flat = abs(slope) <= max(limit["slope"], limit["relative_slope"] * max(total_decrease, 0.0))
    late = loss[-max(2, round(limit["window"] * len(loss))) :]
    residuals = late - slope * np.arange(len(late))
    positive = bool(is_flat and excess > limit["gap"] and 2 * residuals.std() < excess)  # an oscillating loss is not flat
    message = (
        f"the loss has stalled {excess:.3f} nats per token above {nearest} ({slope:+.4f} nats per token and evaluation)"
        if positive
        else f"the loss has not stalled ({slope:+.4f} nats per token and evaluation, {excess:.3f} nats per token above {nearest})"
    )
    baseline_excess = 0.0 if evidence.iid_baseline is not None else math.nan
    if evidence.iid_baseline is not None and nearest != "the IID baseline":
        baseline_excess = final_gap(evidence.iid_baseline, available[nearest], num_last=int(evidence.thresholds["common"]["last"]))
    missing = "a centralized run or runs with other learning rates, because a loss is also flat after convergence to a poor solution"
    return [
        Finding(
            "stalled convergence",
            single_run_grade(positive),
            message,
            excess,
            baseline_excess,
            limit["gap"],
            "nats per token above the reference run",
            is_positive=positive,
            in_baseline=None if math.isnan(baseline_excess) else bool(baseline_excess > limit["gap"]),
            first_round=int(rounds[-max(2, round(limit["window"] * len(rounds)))]) if positive else None,
            is_confirmable=nearest != "the IID baseline",
            missing_input=missing if nearest == "the IID baseline" else "",
            evidence=(make_series("loss", rounds, loss),),
        )
    ]


def theil_sen_slope(run: Trajectory, window: float) -> float:
    """Compute the Theil-Sen slope of the last share of the evaluations, in nats per evaluation."""
    loss = read_curve(run)[1]
    late = loss[-max(2, round(window * len(loss))) :]
    return float(stats.theilslopes(late, np.arange(len(late))).slope) if np.isfinite(late).all() else math.nan
