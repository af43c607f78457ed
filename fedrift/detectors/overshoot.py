"""Server overshoot: the server's own memory drives it past the goal and back.

Successive server steps point against each other (the median cosine is below -.2) while the server's memory, its momentum |v| or
FedDyn's correction |h| / alpha, grows with the rounds (Kendall's tau, one-sided). Either alone is ordinary: steps turn
wherever a run is at rest, memories fill in the beginning.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from ..records import Trajectory
from .curves import evaluated
from .finding import Case, Finding, judged, not_measured, series

MEMORIES = ("server.momentum", "server.correction")


def overshoot(case: Case) -> list[Finding]:
    limit, kept = case.limits["overshoot"], [name for name in MEMORIES if case.run.has(name)]
    rounds, turn = evaluated(case.run, "update.turn")
    sound = np.isfinite(turn)
    if not kept or sound.sum() < limit["rounds"]:
        return not_measured("server overshoot", f"`update.turn` in {limit['rounds']:.0f} rounds, and a server that remembers "
                                                "(`server.momentum` or `server.correction`)")
    back, memory = -float(np.median(turn[sound])), evaluated(case.run, kept[0])
    tau, p = rising(case.run, kept[0])
    positive = back > limit["turn"] and tau > 0 and p < limit["p"]
    base = turned(case.twin)
    said = (f"server steps turn back on each other (median cosine {-back:.2f}) while {kept[0]} grows" if positive else
            f"the server does not overshoot (median cosine of its steps {-back:.2f})")
    shown = None
    if case.twin is not None and math.isfinite(base):
        shown = base > limit["turn"] and case.twin.has(kept[0]) and rises(case.twin, kept[0], limit["p"])
    first = np.flatnonzero(turn < -limit["turn"])
    return [judged("server overshoot", back, base, limit["turn"], "minus cosine", positive=positive, said=said, shown=shown,
                   since=int(rounds[first[0]]) if positive and len(first) else None,
                   evidence=(series("update.turn", rounds, turn), series(kept[0], *memory)))]


def turned(run: Trajectory | None) -> float:
    turn = evaluated(run, "update.turn")[1]
    turn = turn[np.isfinite(turn)]
    return -float(np.median(turn)) if len(turn) else math.nan


def rising(run: Trajectory, metric: str) -> tuple[float, float]:
    """Kendall's tau of a curve against the round, and its one-sided p."""
    rounds, values = evaluated(run, metric)
    sound = np.isfinite(values)
    if sound.sum() < 3 or np.ptp(values[sound]) == 0:
        return 0.0, 1.0
    found = stats.kendalltau(rounds[sound], values[sound], alternative="greater")
    return float(found.statistic), float(found.pvalue)


def rises(run: Trajectory, metric: str, p: float) -> bool:
    tau, value = rising(run, metric)
    return tau > 0 and value < p
