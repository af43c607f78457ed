"""Stale control variates (SCAFFOLD): a client's memory of its gradient is of a model long gone.

The distance of a control c_k from the client's gradient, in lengths of that gradient, grows with the rounds since the client last
took part. Minibatch noise puts any control off, a fresh one too: where there is a twin, it must be further off than there. Beside
it the identity c = mean c_k, which holds in every round whoever takes part: where it is broken the
algorithm is (a sum divided by the cohort, not the fleet), and nothing that it does is a phenomenon.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from scipy import stats

from ..records import Trajectory
from .curves import evaluated, table
from .finding import Case, Finding, judged, not_measured, series


def staleness(case: Case) -> list[Finding]:
    return [*stale(case), *imbalance(case)]


def stale(case: Case) -> list[Finding]:
    limit, (age, far) = case.limits["staleness"], pairs(case.run)
    if len(age) < limit["pairs"]:
        return not_measured("stale controls", f"`control.age` and `control.staleness` {limit['pairs']:.0f} times; "
                                              f"there are {len(age)}")
    if np.ptp(age) == 0:
        return not_measured("stale controls", "partial participation: every control has the same age")
    rho, ratio = follows(age, far), float(np.median(far))
    others, other = pairs(case.twin)
    base = float(np.median(other)) if len(other) else math.nan
    positive = rho > limit["correlation"] and ratio > limit["ratio"] and not ratio - base <= limit["beyond"]
    said = (f"controls are {ratio:.1f} gradients off, the more the older (rho {rho:.2f})" if positive else
            f"controls are {ratio:.2f} gradients off, rho {rho:.2f} with their age")
    ages, distances = table(case.run, "control.age"), table(case.run, "control.staleness")
    seen = np.isfinite(ages) & np.isfinite(distances) if positive else np.zeros((0, 0), dtype=bool)
    far_off = np.where(seen, distances, 0.0).sum(axis=0) / seen.sum(axis=0).clip(1) if positive else np.zeros(0)  # [N]
    shown = base > limit["ratio"] and follows(others, other) > limit["correlation"]
    return [judged("stale controls", ratio, base, limit["ratio"], "lengths of the gradient", positive=positive, said=said,
                   shown=None if math.isnan(base) else shown, since=since(case.run, limit) if positive else None,
                   clients=tuple(int(k) for k in np.flatnonzero(far_off > limit["ratio"])),
                   evidence=(series("control.age", range(len(age)), age), series("control.staleness", range(len(far)), far)))]


def follows(age: np.ndarray, far: np.ndarray) -> float:
    """Spearman's correlation of age and distance; 0 where either is all the same."""
    return float(stats.spearmanr(age, far).statistic) if np.ptp(age) > 0 and np.ptp(far) > 0 else 0.0


def since(run: Trajectory, limit: Mapping[str, float]) -> int | None:
    """The first round in which a control was further off than allowed."""
    far = np.nan_to_num(table(run, "control.staleness"), nan=0.0)
    over = np.flatnonzero((far > limit["ratio"]).any(axis=1))
    return int(run.rounds[over[0]]) if len(over) else None


def pairs(run: Trajectory | None) -> tuple[np.ndarray, np.ndarray]:
    """Age and distance wherever both were seen."""
    age, far = table(run, "control.age"), table(run, "control.staleness")
    if not len(age) or not len(far):
        return np.zeros(0), np.zeros(0)
    both = np.isfinite(age) & np.isfinite(far)
    return age[both], far[both]


def imbalance(case: Case) -> list[Finding]:
    rounds, off = evaluated(case.run, "control.imbalance")
    if not len(off):
        return not_measured("broken controls", "`control.imbalance`")
    limit = case.limits["staleness"]
    most = float(np.nanmedian(off[:int(limit["first"])]))
    positive = most > limit["imbalance"]
    said = f"c lies {most:.2g} of its length off the mean of the c_k"
    return [judged("broken controls", most, 0.0, limit["imbalance"], "of |c|", positive=positive, said=said, shown=False,
                   bug=True, since=int(rounds[np.flatnonzero(off > limit["imbalance"])[0]]) if positive else None,
                   evidence=(series("control.imbalance", rounds, off),))]
