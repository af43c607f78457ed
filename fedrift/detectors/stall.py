"""Stall: the loss stands still where others go on.

The Theil-Sen slope of the last evaluations is flat, in nats or in the way from the start to the anchor; and the end is above the
anchors: the pooled run, the best learning rate of a grid, and, if neither is there, the control. A run that has converged is
flat too: so without any of them nothing is said.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from ..records import Trajectory, at_the_end
from .curves import end_gap, evaluated
from .divergence import runaway
from .finding import Case, Finding, judged, not_measured, series


def stall(case: Case) -> list[Finding]:
    limit, (rounds, loss) = case.limits["stall"], evaluated(case.run)
    if len(loss) < limit["evaluations"]:
        return not_measured("stall", f"{limit['evaluations']:.0f} evaluations; there are {len(loss)}")
    anchors = {"the pooled run": case.central, "the best learning rate": case.best}
    there = {name: run for name, run in anchors.items() if run is not None} or ({"the twin": case.twin} if case.twin else {})
    gaps = {name: end_gap(case.run, run, last=int(case.limits["common"]["last"])) for name, run in there.items()}
    if not gaps or any(math.isnan(value) for value in gaps.values()) or runaway(case.run, case.limits)[0]:
        return not_measured("stall", "a run that has not diverged, and one to be above: pooled, the best of a grid, or the twin")
    nearest = min(gaps, key=lambda name: gaps[name])
    above, slope = gaps[nearest], flat(case.run, limit["window"])
    way = loss[0] - (loss[at_the_end(rounds, int(case.limits["common"]["last"]))].mean() - above)  # from the start to the anchor
    still = abs(slope) <= max(limit["slope"], limit["way"] * max(way, 0.0))
    late = loss[-max(2, round(limit["window"] * len(loss))):]
    rest = late - slope * np.arange(len(late))
    positive = bool(still and above > limit["gap"] and 2 * rest.std() < above)  # what swings does not stand still
    said = (f"the loss stands still {above:.3f} nats above {nearest} ({slope:+.4f} an evaluation)" if positive else
            f"the loss has not stalled ({slope:+.4f} nats an evaluation, {above:.3f} above {nearest})")
    control = 0.0 if case.twin is not None else math.nan
    if case.twin is not None and nearest != "the twin":
        control = end_gap(case.twin, there[nearest], last=int(case.limits["common"]["last"]))
    wanting = "the pooled run, or other learning rates: what drifts to a wrong place stands still there too"
    return [judged("stall", above, control, limit["gap"], "nats above the anchor", positive=positive, said=said,
                   shown=None if math.isnan(control) else bool(control > limit["gap"]),
                   since=int(rounds[-max(2, round(limit["window"] * len(rounds)))]) if positive else None,
                   confirmable=nearest != "the twin", needs=wanting if nearest == "the twin" else "",
                   evidence=(series("loss", rounds, loss),))]


def flat(run: Trajectory, window: float) -> float:
    """Theil-Sen slope of the last share of the evaluations, nats an evaluation."""
    loss = evaluated(run)[1]
    late = loss[-max(2, round(window * len(loss))):]
    return float(stats.theilslopes(late, np.arange(len(late))).slope) if np.isfinite(late).all() else math.nan
