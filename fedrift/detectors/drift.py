"""Client drift: local steps carry the clients apart, and the mean of where they end is not where the mean would go.

The statistic is the diversity of the updates, R = mean |d_k|^2 / |mean d|^2, in the twin's (log of the ratio of the medians
over the rounds): with sampling noise alone both have the same. It grows with the number K of local steps: where runs with
other K are at hand, the distance apart sqrt(mean |d_k|^2 (1 - 1 / R)) must grow with K, log against log. That it costs
anything is confirmed only by the arm without local steps (FedSGD), which must close half of the loss gap to the twin.
"""

from __future__ import annotations

import math
import warnings

import numpy as np

from ..records import Trajectory
from .curves import end_gap, evaluated, table, together
from .finding import Case, Finding, judged, not_measured, series

MOST = 1e6  # of R: it has no upper end where the mean update vanishes


def drift(case: Case) -> list[Finding]:
    limit = case.limits["drift"]
    rounds, ours, theirs = together(case.run, case.twin, "update.diversity")
    sound = np.isfinite(ours) & np.isfinite(theirs)
    if sound.sum() < limit["rounds"]:
        return not_measured("client drift", f"`update.diversity` of the run and of an IID twin in {limit['rounds']:.0f} rounds")
    ratio = float(np.median(ours[sound].clip(1, MOST)) / np.median(theirs[sound].clip(1, MOST)))
    rises, closed = slope(case), share_closed(case)
    positive = ratio > limit["ratio"] and not rises <= limit["slope"] and not closed < limit["closes"]
    wanting = []
    if math.isnan(rises):
        wanting.append("runs with another number of local steps")
    if math.isnan(closed):
        wanting.append("the same run without local steps (FedSGD) and a loss gap for it to close")
    said = f"the clients' updates are {ratio:.2f} times as diverse as in the twin"
    if positive and math.isfinite(rises):
        said += f"; they part as K^{rises:.2f} with the local steps K"
    if positive and math.isfinite(closed):
        said += f"; without local steps {closed:.0%} of the loss gap closes"
    return [judged("client drift", math.log(ratio), 0.0, math.log(limit["ratio"]), "log ratio to the twin", positive=positive,
                   said=said, shown=False, since=int(rounds[sound][0]) if positive else None, clients=astray(case),
                   where=layers(case, limit["ratio"]) if positive else (),
                   confirmable=not wanting, needs=" and ".join(wanting),
                   evidence=(series("update.diversity", rounds, ours), series("update.diversity of the twin", rounds, theirs)))]


def slope(case: Case) -> float:
    """Of log distance apart in log local steps, over the run and its ladder; NaN without two numbers of steps."""
    points = {steps: apart(run) for steps, run in case.ladder.items()}
    if case.facts.steps:
        points[case.facts.steps] = apart(case.run)
    sound = {steps: far for steps, far in points.items() if far > 0 and math.isfinite(far)}
    if len(sound) < 2:
        return math.nan
    return float(np.polyfit(np.log(list(sound)), np.log(list(sound.values())), 1)[0])


def apart(run: Trajectory) -> float:
    """How far the clients of a round end from their mean, root mean square, median over the rounds."""
    diversity = evaluated(run, "update.diversity")[1]
    norm = table(run, "update.norm")
    if not len(diversity) or not len(norm):
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # rounds in which nobody trained
        square = np.nanmean(norm[run.seen("update.diversity")] ** 2, axis=1)
        return float(np.nanmedian(np.sqrt(square * (1 - 1 / diversity.clip(1, None)))))


def share_closed(case: Case) -> float:
    """The share of the loss gap to the twin that the arm without local steps does not have; NaN where there is none to close."""
    last = int(case.limits["common"]["last"])
    whole, left = end_gap(case.run, case.twin, last=last), end_gap(case.run, case.fedsgd, last=last) if case.fedsgd else math.nan
    return left / whole if math.isfinite(left) and whole > case.limits["drift"]["floor"] else math.nan


def layers(case: Case, ratio: float) -> tuple[str, ...]:
    """The layers whose updates are that much more diverse than in the twin, the worst first."""
    found = {}
    for name in case.run.domains_of("update.diversity"):
        _, ours, theirs = together(case.run, case.twin, "update.diversity", name)
        if len(ours):
            found[name] = float(np.nanmedian(ours.clip(1, MOST)) / np.nanmedian(theirs.clip(1, MOST)))
    return tuple(sorted((name for name in found if found[name] > ratio), key=lambda name: -found[name]))


def astray(case: Case) -> tuple[int, ...]:
    """Clients whose updates point against the mean update, on average."""
    cosine = table(case.run, "update.cosine")
    if not len(cosine):
        return ()
    there = np.isfinite(cosine).any(axis=0)
    return tuple(int(client) for client in np.flatnonzero(there) if np.nanmean(cosine[:, client]) < 0)
