"""Oscillation: the loss goes up and down instead of down, as cohorts come and go.

After a burn-in: the index, upward moves of the loss over all that it ever came down; the share of successive steps with
another sign; and the deviation of the residual around a running median of five, beside the baseline's. On two quadratics,
one a round, x goes on moving with a deviation of .406 around its mean while the IID baseline comes to rest.

Domains may swing where the mean stays calm, each falling behind while its holders sit out. So a second finding compares the
swing of the domains' losses with the baseline's: the mean absolute change between evaluations less the net change.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from ..core.records import Trajectory, final_round_indices
from .curves import domain_variability, final_gap, read_curve
from .failures import find_runaway
from .finding import Finding, RunEvidence, clients_holding, make_finding, make_not_measured, make_series

EPSILON = 1e-12


def oscillation(case: RunEvidence) -> list[Finding]:
    limit, (rounds, loss) = case.thresholds["oscillation"], read_curve(case.run)
    if find_runaway(case.run, case.thresholds)[0]:
        return make_not_measured("oscillation", "a run that has not diverged")
    late = len(loss) - round(limit["burn_in"] * len(loss))
    found = domain_oscillation(case)
    if late < limit["evaluations"]:
        needs = f"{limit['evaluations']:.0f} evaluations after the burn-in; there are {late}"
        return make_not_measured("oscillation", needs) + found
    index, changes, spread = measure_oscillation(case.run, limit["burn_in"])
    other, other_changes, base = (
        measure_oscillation(case.iid_baseline, limit["burn_in"]) if case.iid_baseline is not None else (math.nan,) * 3
    )
    wild = changes >= limit["changes"] and spread > limit["floor"] and not spread <= limit["spread"] * base
    positive = wild and index > limit["index"]
    notice = wild and index > limit["suspected"] and case.iid_baseline is not None
    said = (
        f"the loss goes up and down: upward moves are {index:.2f} of all it came down, {changes:.0%} of the steps turn back"
        if positive or notice
        else "the loss does not go up and down"
    )
    restless = other > limit["index"] and other_changes >= limit["changes"] and base > limit["floor"]
    shown = None if math.isnan(other) else bool(restless)
    up = np.flatnonzero(np.diff(loss) > 0)
    first = up[up >= len(loss) - late]
    return [
        make_finding(
            "oscillation",
            index_to_share(index),
            index_to_share(other),
            index_to_share(limit["index"]),
            "of all moves",
            is_positive=positive,
            noteworthy=notice,
            message=said,
            in_baseline=shown,
            first_round=int(rounds[first[0]]) if len(first) and (positive or notice) else None,
            evidence=(make_series("loss", rounds, loss),),
        ),
        *found,
    ]


def index_to_share(index: float) -> float:
    """Upward moves as a share of these and the way down: the index again, but it cannot run away where there was no way down."""
    return index / (1 + index)


def measure_oscillation(run: Trajectory, burn_in: float) -> tuple[float, float, float]:
    """Oscillation index, share of sign changes, residual deviation; the way is up in a run that only rises."""
    loss = read_curve(run)[1]
    late = loss[round(burn_in * len(loss)) :]
    if len(late) < 5 or not np.isfinite(loss).all():
        return math.nan, math.nan, math.nan
    steps = np.diff(late)
    signs = np.sign(steps[np.abs(steps) > EPSILON])
    turned = float((signs[1:] != signs[:-1]).mean()) if len(signs) > 1 else 0.0
    middle = np.median(np.lib.stride_tricks.sliding_window_view(late, 5), axis=1)
    return float(steps.clip(0).sum() / max(np.ptp(loss), EPSILON)), turned, float((late[2:-2] - middle).std())


def domain_oscillation(case: RunEvidence) -> list[Finding]:
    limit, rounds = case.thresholds["oscillation"], read_curve(case.run)[0]
    if len(rounds) < case.thresholds["common"]["shortest"] or case.iid_baseline is None or len(case.run.domains_of("loss")) == 0:
        return []
    ours, theirs = domain_variability(case.run, rounds), domain_variability(case.iid_baseline, rounds)
    if math.isnan(ours) or math.isnan(theirs):
        return []
    ratio = ours / max(theirs, limit["swing_floor"] / 10)  # below that a twin is at rest, and how much so is of no interest
    positive = ratio > limit["swing"] and ours > limit["swing_floor"]
    said = f"domains swing {ratio:.1f} times as much as in the baseline" if positive else "domains swing no more than in the baseline"
    each = {name: loss_changes(case.run, name) for name in case.run.domains_of("loss") if len(loss_changes(case.run, name))}
    order = tuple(sorted(each, key=lambda name: -float(np.nanmean(each[name]))))
    wild = {
        name: limit["swing"] * max(float(np.nanmean(other)), limit["swing_floor"])
        for name in order
        if len(other := loss_changes(case.iid_baseline, name))
    }
    where = tuple(name for name in order if name in wild and np.nanmean(each[name]) > wild[name]) or order[:1]
    begun = [read_curve(case.run, "loss", name)[0][1:][each[name] > wild[name]] for name in where if name in wild]
    return [
        make_finding(
            "domain oscillation",
            math.log(max(ratio, EPSILON)),
            0.0,
            math.log(limit["swing"]),
            "log ratio to the baseline",
            is_positive=positive,
            message=said,
            in_baseline=False,
            locations=where if positive else (),
            clients=clients_holding(case, where) if positive else (),
            first_round=min((int(rounds[0]) for rounds in begun if len(rounds)), default=None) if positive else None,
            evidence=tuple(make_series(f"loss of {name}", *read_curve(case.run, "loss", name)) for name in order[:4]),
        )
    ]


def loss_changes(run: Trajectory | None, domain: str) -> np.ndarray:
    """How far a domain's loss moved between evaluations."""
    return np.abs(np.diff(read_curve(run, "loss", domain)[1]))


# Server overshoot: the server's own memory drives it past the goal and back.
#
# Successive server steps point against each other (the median cosine is below -.2) while the server's memory, its momentum |v| or
# FedDyn's correction |h| / alpha, grows with the rounds (Kendall's tau, one-sided). Either alone is ordinary: steps turn
# wherever a run is at rest, memories fill in the beginning.

SERVER_MEMORY_METRICS = ("server.momentum", "server.correction")


def server_overshoot(case: RunEvidence) -> list[Finding]:
    limit, kept = case.thresholds["overshoot"], [name for name in SERVER_MEMORY_METRICS if case.run.has_curve(name)]
    rounds, turn = read_curve(case.run, "update.turn")
    sound = np.isfinite(turn)
    if not kept or sound.sum() < limit["rounds"]:
        return make_not_measured(
            "server overshoot",
            f"`update.turn` in {limit['rounds']:.0f} rounds, and a server that remembers (`server.momentum` or `server.correction`)",
        )
    back, memory = -float(np.median(turn[sound])), read_curve(case.run, kept[0])
    tau, p = kendall_trend(case.run, kept[0])
    positive = back > limit["turn"] and tau > 0 and p < limit["p"]
    base = median_turn(case.iid_baseline)
    said = (
        f"server steps turn back on each other (median cosine {-back:.2f}) while {kept[0]} grows"
        if positive
        else f"the server does not overshoot (median cosine of its steps {-back:.2f})"
    )
    shown = None
    if case.iid_baseline is not None and math.isfinite(base):
        shown = base > limit["turn"] and case.iid_baseline.has_curve(kept[0]) and is_rising(case.iid_baseline, kept[0], limit["p"])
    first = np.flatnonzero(turn < -limit["turn"])
    return [
        make_finding(
            "server overshoot",
            back,
            base,
            limit["turn"],
            "minus cosine",
            is_positive=positive,
            message=said,
            in_baseline=shown,
            first_round=int(rounds[first[0]]) if positive and len(first) else None,
            evidence=(make_series("update.turn", rounds, turn), make_series(kept[0], *memory)),
        )
    ]


def median_turn(run: Trajectory | None) -> float:
    turn = read_curve(run, "update.turn")[1]
    turn = turn[np.isfinite(turn)]
    return -float(np.median(turn)) if len(turn) else math.nan


def kendall_trend(run: Trajectory, metric: str) -> tuple[float, float]:
    """Kendall's tau of a curve against the round, and its one-sided p."""
    rounds, values = read_curve(run, metric)
    sound = np.isfinite(values)
    if sound.sum() < 3 or np.ptp(values[sound]) == 0:
        return 0.0, 1.0
    found = stats.kendalltau(rounds[sound], values[sound], alternative="greater")
    return float(found.statistic), float(found.pvalue)


def is_rising(run: Trajectory, metric: str, p: float) -> bool:
    tau, value = kendall_trend(run, metric)
    return tau > 0 and value < p


# Stall: the loss stands still where others go on.
#
# The Theil-Sen slope of the last evaluations is flat, in nats or in the way from the start to the anchor; and the end is above
# the anchors: the pooled run, the best learning rate of a grid, and, if neither is there, the control. A run that has converged
# is flat too: so without any of them nothing is said.


def stalled_convergence(case: RunEvidence) -> list[Finding]:
    limit, (rounds, loss) = case.thresholds["stall"], read_curve(case.run)
    if len(loss) < limit["evaluations"]:
        return make_not_measured("stalled convergence", f"{limit['evaluations']:.0f} evaluations; there are {len(loss)}")
    anchors = {"the pooled run": case.centralized, "the best learning rate": case.best_lr}
    there = {name: run for name, run in anchors.items() if run is not None} or (
        {"the baseline": case.iid_baseline} if case.iid_baseline else {}
    )
    gaps = {name: final_gap(case.run, run, num_last=int(case.thresholds["common"]["last"])) for name, run in there.items()}
    if not gaps or any(math.isnan(value) for value in gaps.values()) or find_runaway(case.run, case.thresholds)[0]:
        return make_not_measured(
            "stalled convergence", "a run that has not diverged, and one to be above: pooled, the best of a grid, or the baseline"
        )
    nearest = min(gaps, key=lambda name: gaps[name])
    above, slope = gaps[nearest], theil_sen_slope(case.run, limit["window"])
    way = loss[0] - (
        loss[final_round_indices(rounds, int(case.thresholds["common"]["last"]))].mean() - above
    )  # from the start to the anchor
    still = abs(slope) <= max(limit["slope"], limit["way"] * max(way, 0.0))
    late = loss[-max(2, round(limit["window"] * len(loss))) :]
    rest = late - slope * np.arange(len(late))
    positive = bool(still and above > limit["gap"] and 2 * rest.std() < above)  # what swings does not stand still
    said = (
        f"the loss stands still {above:.3f} nats above {nearest} ({slope:+.4f} an evaluation)"
        if positive
        else f"the loss has not stalled ({slope:+.4f} nats an evaluation, {above:.3f} above {nearest})"
    )
    control = 0.0 if case.iid_baseline is not None else math.nan
    if case.iid_baseline is not None and nearest != "the baseline":
        control = final_gap(case.iid_baseline, there[nearest], num_last=int(case.thresholds["common"]["last"]))
    wanting = "the pooled run, or other learning rates: what drifts to a wrong place stands still there too"
    return [
        make_finding(
            "stalled convergence",
            above,
            control,
            limit["gap"],
            "nats above the anchor",
            is_positive=positive,
            message=said,
            in_baseline=None if math.isnan(control) else bool(control > limit["gap"]),
            first_round=int(rounds[-max(2, round(limit["window"] * len(rounds)))]) if positive else None,
            is_confirmable=nearest != "the baseline",
            missing_input=wanting if nearest == "the baseline" else "",
            evidence=(make_series("loss", rounds, loss),),
        )
    ]


def theil_sen_slope(run: Trajectory, window: float) -> float:
    """Theil-Sen slope of the last share of the evaluations, nats an evaluation."""
    loss = read_curve(run)[1]
    late = loss[-max(2, round(window * len(loss))) :]
    return float(stats.theilslopes(late, np.arange(len(late))).slope) if np.isfinite(late).all() else math.nan
