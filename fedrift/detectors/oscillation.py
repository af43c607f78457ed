"""Oscillation: the loss goes up and down instead of down, as cohorts come and go.

After a burn-in: the index, upward moves of the loss over all that it ever came down; the share of successive steps with
another sign; and the deviation of the residual around a running median of five, beside the twin's. On two quadratics,
one a round, x goes on moving with a deviation of .406 around its mean while the IID twin comes to rest.

Domains may swing where the mean stays calm, each falling behind while its holders sit out. So a second finding compares the
swing of the domains' losses with the twin's: the mean absolute change between evaluations less the net change.
"""

from __future__ import annotations

import math

import numpy as np

from ..records import Trajectory
from .curves import evaluated, swing
from .divergence import runaway
from .finding import Case, Finding, judged, not_measured, series
from .holding import whose

FEW = 1e-12


def oscillation(case: Case) -> list[Finding]:
    limit, (rounds, loss) = case.limits["oscillation"], evaluated(case.run)
    if runaway(case.run, case.limits)[0]:
        return not_measured("oscillation", "a run that has not diverged")
    late = len(loss) - round(limit["burn_in"] * len(loss))
    found = domains(case)
    if late < limit["evaluations"]:
        needs = f"{limit['evaluations']:.0f} evaluations after the burn-in; there are {late}"
        return not_measured("oscillation", needs) + found
    index, changes, spread = swings(case.run, limit["burn_in"])
    other, other_changes, base = swings(case.twin, limit["burn_in"]) if case.twin is not None else (math.nan,) * 3
    wild = changes >= limit["changes"] and spread > limit["floor"] and not spread <= limit["spread"] * base
    positive = wild and index > limit["index"]
    notice = wild and index > limit["suspected"] and case.twin is not None
    said = (f"the loss goes up and down: upward moves are {index:.2f} of all it came down, {changes:.0%} of the steps turn back"
            if positive or notice else "the loss does not go up and down")
    restless = other > limit["index"] and other_changes >= limit["changes"] and base > limit["floor"]
    shown = None if math.isnan(other) else bool(restless)
    up = np.flatnonzero(np.diff(loss) > 0)
    first = up[up >= len(loss) - late]
    return [judged("oscillation", share(index), share(other), share(limit["index"]), "of all moves", positive=positive,
                   notice=notice, said=said,
                   shown=shown, since=int(rounds[first[0]]) if len(first) and (positive or notice) else None,
                   evidence=(series("loss", rounds, loss),)), *found]


def share(index: float) -> float:
    """Upward moves as a share of these and the way down: the index again, but it cannot run away where there was no way down."""
    return index / (1 + index)


def swings(run: Trajectory, burn_in: float) -> tuple[float, float, float]:
    """Oscillation index, share of sign changes, residual deviation; the way is up in a run that only rises."""
    loss = evaluated(run)[1]
    late = loss[round(burn_in * len(loss)):]
    if len(late) < 5 or not np.isfinite(loss).all():
        return math.nan, math.nan, math.nan
    steps = np.diff(late)
    signs = np.sign(steps[np.abs(steps) > FEW])
    turned = float((signs[1:] != signs[:-1]).mean()) if len(signs) > 1 else 0.0
    middle = np.median(np.lib.stride_tricks.sliding_window_view(late, 5), axis=1)
    return float(steps.clip(0).sum() / max(np.ptp(loss), FEW)), turned, float((late[2:-2] - middle).std())


def domains(case: Case) -> list[Finding]:
    limit, rounds = case.limits["oscillation"], evaluated(case.run)[0]
    if len(rounds) < case.limits["common"]["shortest"] or case.twin is None or len(case.run.domains_of("loss")) == 0:
        return []
    ours, theirs = swing(case.run, rounds), swing(case.twin, rounds)
    if math.isnan(ours) or math.isnan(theirs):
        return []
    ratio = ours / max(theirs, limit["swing_floor"] / 10)  # below that a twin is at rest, and how much so is of no interest
    positive = ratio > limit["swing"] and ours > limit["swing_floor"]
    said = f"domains swing {ratio:.1f} times as much as in the twin" if positive else "domains swing no more than in the twin"
    each = {name: moves(case.run, name) for name in case.run.domains_of("loss") if len(moves(case.run, name))}
    order = tuple(sorted(each, key=lambda name: -float(np.nanmean(each[name]))))
    wild = {name: limit["swing"] * max(float(np.nanmean(other)), limit["swing_floor"]) for name in order
            if len(other := moves(case.twin, name))}
    where = tuple(name for name in order if name in wild and np.nanmean(each[name]) > wild[name]) or order[:1]
    begun = [evaluated(case.run, "loss", name)[0][1:][each[name] > wild[name]] for name in where if name in wild]
    return [judged("domain swings", math.log(max(ratio, FEW)), 0.0, math.log(limit["swing"]), "log ratio to the twin",
                   positive=positive, said=said, shown=False, where=where if positive else (),
                   clients=whose(case, where) if positive else (),
                   since=min((int(rounds[0]) for rounds in begun if len(rounds)), default=None) if positive else None,
                   evidence=tuple(series(f"loss of {name}", *evaluated(case.run, "loss", name)) for name in order[:4]))]


def moves(run: Trajectory | None, domain: str) -> np.ndarray:
    """How far a domain's loss moved between evaluations."""
    return np.abs(np.diff(evaluated(run, "loss", domain)[1]))
