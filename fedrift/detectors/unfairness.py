"""Unfairness: the model serves some clients at the expense of others.

The worst client's loss lies further above the mean than in the twin, by .1 nats; and more than 15 % of the clients would have
been better off alone. What a client lay above the mean before the first round does not count: its text is harder, which training
has not done to it. Without the run in which everybody trains alone it is suspected only.
"""

from __future__ import annotations

import math

import numpy as np

from ..records import Trajectory, at_the_end
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
    above, other = harm(case.run, mine), harm(case.twin, theirs)
    worst, base = float(above.max()), float(other.max()) if len(other) else math.nan
    alone = losses(case.local, case)
    known = len(alone) == len(mine)
    harmed = np.flatnonzero(mine > alone + limit["margin"]) if known else np.zeros(0, dtype=int)
    share = len(harmed) / len(mine) if known else math.nan
    positive = bool(worst - (0 if math.isnan(base) else base) > limit["gap"] and not share <= limit["harmed"])
    order = np.argsort(-above)
    said = (f"client {order[0]} ends {worst:.3f} nats above the mean client, more than where it began" if positive else
            f"the worst client ends {worst:.3f} nats above the mean, more than where it began")
    said += f" ({base:.3f} in the twin)" if math.isfinite(base) else ""
    if known:
        said += f"; {share:.0%} of the clients would be better off alone"
    rounds = case.run.rounds
    every = table(case.run, "loss")
    gaps = top(every, case.run)
    evidence = (series("worst client above the mean", rounds, gaps),) if len(every) else ()
    over = rounds[gaps - (0 if math.isnan(base) else base) > limit["gap"]] if len(every) else rounds[:0]
    return [judged("unfairness", worst, base, limit["gap"], "nats", positive=positive, said=said,
                   shown=None if math.isnan(base) else base > limit["gap"],
                   since=int(over[0]) if positive and len(over) else None,
                   clients=tuple(int(k) for k in (harmed if known else order[:1])) if positive else (),
                   confirmable=known, needs="" if known else "the run in which every client trains alone", evidence=evidence)]


def losses(run: Trajectory | None, case: Case) -> np.ndarray:
    """The clients' losses at the end, ``[N]``: of the larger evaluation, else the mean of the last ones."""
    large = table(run, "final.loss")
    values = large if len(large) else table(run, "loss")
    if run is None or not np.isfinite(values).any():
        return np.zeros(0)
    seen = np.isfinite(values).any(axis=1)
    ends: np.ndarray = values[seen][at_the_end(run.rounds[seen], int(case.limits["common"]["last"]))].mean(axis=0)
    return ends


def harm(run: Trajectory | None, values: np.ndarray) -> np.ndarray:
    """How far losses ``[..., N]`` lie above their mean, less what the same client lay above it before the first round."""
    every, above = table(run, "loss"), values - values.mean(axis=-1, keepdims=True) if len(values) else values
    if not len(every) or run is None or run.rounds[0] != 0 or not np.isfinite(every[0]).all():
        return above
    harder: np.ndarray = (every[0] - every[0].mean()).clip(0)
    return above - harder if len(harder) == above.shape[-1] else above


def top(values: np.ndarray, run: Trajectory) -> np.ndarray:
    """The most harm in every round, NaN where nobody was measured."""
    seen = np.isfinite(values).all(axis=1)
    return np.where(seen, harm(run, np.where(seen[:, None], values, 0)).max(axis=1), np.nan)
