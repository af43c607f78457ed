"""Unfairness: the model serves some clients at the expense of others.

The worst client's loss lies further above the mean than in the twin, by .1 nats; and more than 15 % of the clients would have
been better off alone. Without the run in which everybody trains alone it is suspected only.
"""

from __future__ import annotations

import math

import numpy as np

from ..records import Trajectory
from .curves import table
from .divergence import runaway
from .finding import Case, Finding, judged, not_measured, series


def unfairness(case: Case) -> list[Finding]:
    if runaway(case.run, case.limits)[0]:
        return not_measured("unfairness", "a run that has not diverged")
    mine = losses(case.run, case)
    if len(mine) < 2 or not np.isfinite(mine).all():
        return not_measured("unfairness", "finite losses of two clients or more")
    limit, theirs = case.limits["unfairness"], losses(case.twin, case)
    worst = float(mine.max() - mine.mean())
    base = float(theirs.max() - theirs.mean()) if len(theirs) else math.nan
    alone = losses(case.local, case)
    known = len(alone) == len(mine)
    harmed = np.flatnonzero(mine > alone + limit["margin"]) if known else np.zeros(0, dtype=int)
    share = len(harmed) / len(mine) if known else math.nan
    positive = bool(worst - (0 if math.isnan(base) else base) > limit["gap"] and not share <= limit["harmed"])
    order = np.argsort(-mine)
    said = (f"client {order[0]} loses {worst:.3f} nats more than the mean client" if positive else
            f"the worst client lies {worst:.3f} nats above the mean")
    said += f" ({base:.3f} in the twin)" if math.isfinite(base) else ""
    if known:
        said += f"; {share:.0%} of the clients would be better off alone"
    rounds = case.run.rounds
    every = table(case.run, "loss")
    evidence = (series("worst client above the mean", rounds, top(every)),) if len(every) else ()
    return [judged("unfairness", worst, base, limit["gap"], "nats", positive=positive, said=said,
                   shown=None if math.isnan(base) else base > limit["gap"],
                   clients=tuple(int(k) for k in (harmed if known else order[:1])) if positive else (),
                   confirmable=known, needs="" if known else "the run in which every client trains alone", evidence=evidence)]


def losses(run: Trajectory | None, case: Case) -> np.ndarray:
    """The clients' losses at the end, ``[N]``: of the larger evaluation, else the mean of the last ones."""
    large = table(run, "final.loss")
    values = large if len(large) else table(run, "loss")
    seen = values[np.isfinite(values).any(axis=1)] if len(values) else values
    return seen[-int(case.limits["common"]["last"]):].mean(axis=0) if len(seen) else np.zeros(0)


def top(values: np.ndarray) -> np.ndarray:
    """Worst above mean in every round, NaN where nobody was measured."""
    seen = np.isfinite(values).all(axis=1)
    known = np.where(seen[:, None], values, 0)
    return np.where(seen, known.max(axis=1) - known.mean(axis=1), np.nan)
