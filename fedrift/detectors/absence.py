"""Forgetting of absent domains: a domain gets worse while none of its holders takes part, and better when one returns.

An absence is a stretch of evaluated rounds in which no client of the cohort holds the domain; a client holds it if its share
of it is at least half the pool's. The rise of the domain's loss from the last round with a holder to the end of the absence,
less the twin's over the same rounds, is averaged over the absences; and it must grow with their length: the slope of rise
against rounds absent, after each domain's own mean (a regression with domains as fixed effects), one-sided.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import stats

from ..records import Trajectory
from .curves import table
from .divergence import runaway
from .finding import Case, Finding, judged, not_measured, series
from .holding import holders

FAILURE = "forgetting of absent domains"


class Absence(NamedTuple):
    domain: str
    since: int  # the last round in which a holder took part
    rounds: int  # of absence
    rise: float  # nats since then


def forgetting_absent(case: Case) -> list[Finding]:
    limit = case.limits["forgetting"]
    if runaway(case.run, case.limits)[0]:
        return not_measured(FAILURE, "a run that has not diverged")
    if not case.facts.domains or not len(present(case.run)):
        return not_measured(FAILURE, "who holds which domain, and who took part (`train.steps` or `update.norm`)")
    held = holders(case.facts, limit["holder"])
    every = absences(case.run, case.facts.domains, held, case.twin)
    ends = [absence for number, absence in enumerate(every)  # of each stretch the last: it is followed by a return or the end
            if number + 1 == len(every) or every[number + 1][:2] != absence[:2]]
    if len(ends) < limit["episodes"]:
        return not_measured(FAILURE, f"{limit['episodes']:.0f} absences of a domain's holders; there are {len(ends)}")
    rise = float(np.mean([absence.rise for absence in ends]))
    slope, p = trend(every)
    positive = rise > limit["absent"] and p < limit["p"]
    worst = {name: np.mean([absence.rise for absence in ends if absence.domain == name])
             for name in sorted({absence.domain for absence in ends})}
    order = tuple(sorted((name for name in worst if worst[name] > limit["absent"]), key=lambda name: -worst[name]))
    mine = {client for name in order for client in np.flatnonzero(held[:, case.facts.domains.index(name)])}
    beyond = " beyond the twin" if case.twin is not None else ""
    said = (f"a domain loses {rise:.3f} nats{beyond} while its holders sit out, {slope:.3f} a round of absence" if positive else
            f"domains lose {rise:.3f} nats{beyond} while their holders sit out")
    base = math.nan if case.twin is None else 0.0
    return [judged(FAILURE, rise, base, limit["absent"], "nats", positive=positive, said=said,
                   shown=None if case.twin is None else False, since=ends[0].since if positive else None,
                   clients=tuple(sorted(map(int, mine))) if positive else (), where=order if positive else (),
                   evidence=(series("rounds absent", [a.since + a.rounds for a in every], [a.rounds for a in every]),
                                          series("rise", [a.since + a.rounds for a in every], [a.rise for a in every])))]


def present(run: Trajectory) -> np.ndarray:
    """Who took part in which round, ``[rounds, N]`` bool; no rounds if that was not recorded."""
    for metric in ("train.steps", "update.norm", "train.loss"):
        seen = table(run, metric)
        if len(seen):
            return np.isfinite(seen) & (seen > 0)
    return np.zeros((0, 0), dtype=bool)


def absences(run: Trajectory, domains: tuple[str, ...], held: np.ndarray, twin: Trajectory | None) -> list[Absence]:
    """Every evaluated round of every absence, in order of domain and round."""
    there, found = present(run), []
    there = there[:, :len(held)] if there.shape[1] >= len(held) else np.pad(there, ((0, 0), (0, len(held) - there.shape[1])))
    for number, name in enumerate(domains):
        if not run.has("loss", name):
            continue
        loss = run.curve("loss", name)
        if twin is not None:
            loss = loss - at(twin, name, run.rounds)
        last, value, gone = -1, math.nan, 0
        for row in range(len(run.rounds)):
            if (there[row] & held[:, number]).any():
                last, value, gone = int(run.rounds[row]), loss[row], 0
            elif last >= 0:
                gone += 1
                if math.isfinite(loss[row]) and math.isfinite(value):
                    found.append(Absence(name, last, gone, float(loss[row] - value)))
    return found


def at(twin: Trajectory, name: str, rounds: np.ndarray) -> np.ndarray:
    """The twin's loss of a domain in some rounds, NaN where it has none."""
    values = np.full(len(rounds), np.nan)
    if twin.has("loss", name):
        _, ours, theirs = np.intersect1d(rounds, twin.rounds, return_indices=True)
        values[ours] = twin.curve("loss", name)[theirs]
    return values


def trend(every: list[Absence]) -> tuple[float, float]:
    """Slope of the rise in the rounds of absence within domains, and its one-sided p."""
    names = sorted({absence.domain for absence in every})
    x, y = [np.array([getattr(absence, field) for absence in every], dtype=float) for field in ("rounds", "rise")]
    for name in names:
        rows = np.array([absence.domain == name for absence in every])
        x[rows], y[rows] = x[rows] - x[rows].mean(), y[rows] - y[rows].mean()
    freedom = len(every) - len(names) - 1
    if freedom < 1 or not (x @ x) > 0:
        return 0.0, 1.0
    slope = float(x @ y / (x @ x))
    spread = float(np.sqrt(((y - slope * x) ** 2).sum() / freedom / (x @ x)))
    return slope, float(stats.t.sf(slope / spread, freedom)) if spread > 0 else float(slope <= 0)
