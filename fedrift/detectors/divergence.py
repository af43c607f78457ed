"""Divergence: the loss leaves for infinity, or a number already is there.

Any of these: a global loss that is not finite, or an infinity in a client's loss or update; a loss above both ``rise`` times its
start and ``climb`` nats over its lowest, ``in_a_row`` evaluations running; a server step that grows by ``growth`` a round for
``growing`` rounds while the loss rises; a round of which no client's update was a number, for the server leaves those out and
the loss may stay finite where nobody is left to train. That it is the skew's doing shows where the IID twin stays: on
quadratics of curvature 1 and 9.5 the twin is stable up to a rate of .381, the skewed run to .2176 (ten local steps).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from ..records import Trajectory
from .curves import evaluated, table
from .finding import Case, Finding, judged, not_measured, series

WATCHED = ("loss", "loss.before", "train.loss", "update.norm", "update.step")


def divergence(case: Case) -> list[Finding]:
    rounds, loss = evaluated(case.run)
    words, since = runaway(case.run, case.limits)
    if not words and len(loss) < case.limits["common"]["shortest"]:
        return not_measured("divergence", f"{case.limits['common']['shortest']:.0f} evaluations of loss; there are {len(loss)}")
    theirs = runaway(case.twin, case.limits)[0] if case.twin is not None else ""
    shown = None if case.twin is None else bool(theirs)
    base = float(bool(theirs)) if case.twin is not None else math.nan
    return [judged("divergence", float(bool(words)), base, 0.5, "diverged", positive=bool(words), said=words or "no divergence",
                   shown=shown, since=since, event=True, evidence=(series("loss", rounds, loss),))]


def runaway(run: Trajectory, limits: Mapping[str, Mapping[str, float]]) -> tuple[str, int | None]:
    """What diverged, in words, and since when; ("", None) if nothing did."""
    limit, (rounds, loss) = limits["divergence"], evaluated(run)
    odd = rounds[~np.isfinite(loss)]
    if len(odd):
        return f"the loss is not a finite number in round {odd[0]}", int(odd[0])
    for record in run.records:
        if math.isinf(record.value) and record.metric in WATCHED:
            where = record.domain or (f"client {record.client}" if record.client >= 0 else "the federation")
            return f"{record.metric} of {where} is infinite in round {record.round}", record.round
    failed = table(run, "failed")
    gone = np.isfinite(failed).any(axis=1) & (np.nan_to_num(failed, nan=1.0) > 0).all(axis=1) if len(failed) else np.zeros(0)
    lost = begins(gone, int(limit["in_a_row"]))  # a lone client that fails once is a client's failure
    if lost is not None:
        return f"no client's update is a number from round {run.rounds[lost]} on", int(run.rounds[lost])
    if len(loss) < limits["common"]["shortest"]:
        return "", None
    high = loss > np.maximum(limit["rise"] * loss[0], np.minimum.accumulate(loss) + limit["climb"])
    first = begins(high, int(limit["in_a_row"]))
    if first is not None:
        return f"the loss runs away from round {rounds[first]} on", int(rounds[first])
    at, step = evaluated(run, "update.step")
    if len(step) > limit["growing"]:
        first = begins((step[1:] >= limit["growth"] * step[:-1]) & (step[1:] > 0), int(limit["growing"]))
        if first is not None:
            early, late = np.searchsorted(rounds, [at[first], at[first + int(limit["growing"])]])
            if late < len(loss) and loss[late] > loss[early]:
                return f"the server's steps grow from round {at[first]} on, and the loss with them", int(at[first])
    return "", None


def lost(run: Trajectory, last: int = 3) -> bool:
    """Whether the mean of the ``last`` evaluations lies above the loss before round 1: training left less than there was.

    No finding, for a little of that is noise. A search for what a run survives needs it beside ``runaway``: a wrecked language
    model's loss is bounded (`pocket`: 7, where it began at 4.6), so that a ruined run need not come to ``rise`` times its start.
    """
    _, loss = evaluated(run)
    return bool(len(loss) > last and loss[-last:].mean() > loss[0])


def begins(mask: np.ndarray, running: int) -> int | None:
    """Where a mask is first true so many times running."""
    if len(mask) < running:
        return None
    whole = np.convolve(mask, np.ones(running), "valid") == running
    return int(whole.argmax()) if whole.any() else None
