"""Divergence: the loss leaves for infinity, or a number already is there.

Any of these: a global loss that is not finite, or an infinity in a client's loss or update; a loss above both ``rise`` times its
start and ``climb`` nats over its lowest, ``in_a_row`` evaluations running; a server step that grows by ``growth`` a round for
``growing`` rounds while the loss rises; a round of which no client's update was a number, for the server leaves those out and
the loss may stay finite where nobody is left to train; a dead model (see ``dead``), whose loss is finite and may be low; an end,
the mean of the last evaluations, more than ``above`` nats over the loss of the untrained model in round 0. The last needs no
baseline, so that no scatter of the run widens it: held-out text is the same at every evaluation.

That heterogeneity is the cause shows where the IID baseline stays: on quadratics of curvature 1 and 9.5 the baseline is stable up
to a rate of .381, the skewed run to .2176 (ten local steps). If both end above their start, heterogeneity is not the cause.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..records import Columns, Trajectory, at_the_end
from .curves import evaluated, table
from .dead import death
from .finding import Case, Finding, judged, not_measured, series

WATCHED = ("loss", "loss.before", "train.loss", "update.norm", "update.step")
READ = (*WATCHED, "failed", "gradient.norm", "loss.uniform", "model.norm", "update.relative")  # what ``runaway`` reads


def divergence(case: Case) -> list[Finding]:
    rounds, loss = evaluated(case.run)
    words, since = failure(case.run, case.limits)
    if not words and len(loss) < case.limits["common"]["shortest"]:
        return not_measured("divergence", f"{case.limits['common']['shortest']:.0f} evaluations of loss; there are {len(loss)}")
    theirs = failure(case.twin, case.limits)[0] if case.twin is not None else ""
    if words and case.twin is not None:
        if above_start(case.run, case.limits) is not None and above_start(case.twin, case.limits) is not None:
            words += ", and its IID baseline ends above its start too: heterogeneity is not the cause"
        elif theirs:
            words += ", and its IID baseline breaks too: heterogeneity is not the cause"
    shown = None if case.twin is None else bool(theirs)
    base = float(bool(theirs)) if case.twin is not None else np.nan
    return [judged("divergence", float(bool(words)), base, 0.5, "diverged", positive=bool(words), said=words or "no divergence",
                   shown=shown, since=since, event=True, evidence=(series("loss", rounds, loss),))]


def failure(run: Trajectory | None, limits: Mapping[str, Mapping[str, float]]) -> tuple[str, int | None]:
    """Say what diverged and since when, an end above the untrained model's loss included; ("", None) if nothing did."""
    words, since = runaway(run, limits)
    above = None if words else above_start(run, limits)
    if above is None:
        return words, since
    assert run is not None
    rounds, loss = evaluated(run)
    level, within = loss[0], limits["divergence"]["above"]
    below = np.flatnonzero(loss <= level + within)
    return (f"the run ends {above:.3f} nats above the loss of the untrained model ({level:.3f}): it would be better not to train",
            int(rounds[min(int(below[-1]) + 1, len(rounds) - 1)]))


def above_start(run: Trajectory | None, limits: Mapping[str, Mapping[str, float]]) -> float | None:
    """How far the mean of the last evaluations lies above the loss in round 0; None if by no more than the limit, or unknown."""
    rounds, loss = evaluated(run)
    if len(loss) < limits["common"]["shortest"] or rounds[0] != 0:
        return None
    above = float(loss[at_the_end(rounds, int(limits["common"]["last"]))].mean() - loss[0])
    return above if above > limits["divergence"]["above"] else None


def runaway(run: Trajectory | None, limits: Mapping[str, Mapping[str, float]]) -> tuple[str, int | None]:
    """What diverged, in words, and since when; ("", None) if nothing did."""
    limit, (rounds, loss) = limits["divergence"], evaluated(run)
    if run is None:
        return "", None
    dead = death(run, limits)
    if dead[0]:
        return dead
    odd = rounds[~np.isfinite(loss)]
    if len(odd):
        return f"the loss is not a finite number in round {odd[0]}", int(odd[0])
    records = Columns.of(run.records)
    for place in np.flatnonzero(np.isinf(records.value)):
        record = records[int(place)]
        if record.metric in WATCHED:
            where = record.domain or (f"client {record.client}" if record.client >= 0 else "the federation")
            return f"{record.metric} of {where} is infinite in round {record.round}", record.round
    failed = table(run, "failed")
    gone = np.isfinite(failed).any(axis=1) & (np.nan_to_num(failed, nan=1.0) > 0).all(axis=1) if len(failed) else np.zeros(0)
    lost = begins(gone, int(limit["in_a_row"]))  # a lone client that fails once is a client's failure
    if lost is None and gone.any() and gone[np.isfinite(failed).any(axis=1)].all():  # nobody has ever trained
        lost = int(gone.argmax())
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
