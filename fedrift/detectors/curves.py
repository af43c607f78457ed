"""Readings of trajectories that several detectors share: what was evaluated, ends, swings, slopes."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from ..records import Trajectory, at_the_end

Pair = tuple[np.ndarray, np.ndarray]


def evaluated(run: Trajectory | None, metric: str = "loss", domain: str = "") -> Pair:
    """The rounds in which a metric of the federation was written, and its values; one written as NaN stays."""
    if run is None or not run.has(metric, domain):
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    seen = run.seen(metric, domain)
    return run.rounds[seen], run.curve(metric, domain)[seen]


def together(run: Trajectory, twin: Trajectory | None, metric: str = "loss",
             domain: str = "") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rounds that both have, and both curves there."""
    (ours, mine), (theirs, other) = evaluated(run, metric, domain), evaluated(twin, metric, domain)
    both = np.intersect1d(ours, theirs)
    return both, mine[np.searchsorted(ours, both)], other[np.searchsorted(theirs, both)]


def end_gap(run: Trajectory, twin: Trajectory | None, domain: str = "", last: int = 5) -> float:
    """Mean loss of the last evaluations that both have (not of round 0), above the twin's; NaN where there are none.

    Which rounds those are the global loss says, for domains too.
    """
    both = together(run, twin)[0]
    both = both[at_the_end(both, last)]
    if twin is None or not len(both) or not (run.has("loss", domain) and twin.has("loss", domain)):
        return math.nan
    ours, theirs = np.searchsorted(run.rounds, both), np.searchsorted(twin.rounds, both)
    return float(run.curve("loss", domain)[ours].mean() - twin.curve("loss", domain)[theirs].mean())


def chance(values: np.ndarray, last: int = 5, tests: int = 1, level: float = 0.95) -> float:
    """How far from 0 the mean of the last of some differences may lie by chance, in so many tests.

    The scatter is that of the second half around its straight line. Evaluations follow each other, so what is high stays high
    for a while: with correlation rho from one to the next (Kendall's correction for few of them), the mean of n has the variance
    s^2 / n (1 + 2 sum_k (1 - k/n) rho^k), and the second half counts for (1 - rho) / (1 + rho) of its number in Student's
    t (Bartlett, JRSS Suppl. 8, 1946). 0 where there are fewer than three, which tell nothing of their scatter.
    """
    values = values[np.isfinite(values)]
    late = values[-max(last, len(values) // 2):]
    count, last = len(late), min(last, len(late))
    if count < 3:
        return 0.0
    line = np.polyfit(np.arange(count), late, 1) if count > 4 else np.array([0.0, late.mean()])
    rest = late - np.polyval(line, np.arange(count))
    free = count - (2 if count > 4 else 1)
    spread = float(np.sqrt((rest ** 2).sum() / free))
    rho = follows(rest)
    wide = 1 + 2 * sum((1 - k / last) * rho ** k for k in range(1, last))
    independent = max(2.0, free * (1 - rho) / (1 + rho))
    return float(stats.t.ppf(1 - (1 - level) / 2 / max(tests, 1), independent) * spread * np.sqrt(wide / last))


def follows(rest: np.ndarray) -> float:
    """Correlation of successive residuals, corrected for their small number, 0 to .9; 0 of too few to tell."""
    count, square = len(rest), float((rest ** 2).sum())
    if count < 6 or not square > 0:
        return 0.0
    found = float((rest[1:] * rest[:-1]).sum()) / square
    return float(np.clip(found + (1 + 3 * found) / count, 0.0, 0.9))


def swing(run: Trajectory | None, rounds: np.ndarray) -> float:
    """How much the domains' losses move there and back between evaluations, in the second half of ``rounds``; NaN without any.

    The mean absolute change less the net change, over the domains: a loss that only falls does not swing, however fast (it has
    ``movement``, an outcome of studies, which is the mean absolute change alone). The rounds are given, so that a run and its
    twin are measured on the same ones.
    """
    if run is None or not run.has("loss"):
        return math.nan
    late = np.isin(run.rounds, rounds[len(rounds) // 2:])
    found = []
    for domain in run.domains_of("loss"):
        change = np.diff(run.curve("loss", domain)[late])
        change = change[np.isfinite(change)]
        found += [(np.abs(change).sum() - abs(change.sum())) / len(change)] if len(change) else []
    return float(np.mean(found)) if found else math.nan


def table(run: Trajectory | None, metric: str) -> np.ndarray:
    """A metric by client, ``[rounds, N]``; no rounds where it is not recorded so."""
    return run.table(metric) if run is not None and run.has_table(metric) else np.zeros((0, 0))


def last_layer(run: Trajectory, metric: str) -> str:
    """The last layer that a metric speaks of ("layer 03"); "" if it speaks of none."""
    layers = [domain for domain in run.domains_of(metric) if domain.startswith("layer") and "head" not in domain]
    return layers[-1] if layers else ""


def until(run: Trajectory | None, round: int) -> Trajectory | None:
    """The run as it stood after a round."""
    if run is None:
        return None
    return Trajectory(tuple(record for record in run.records if record.round <= round))


def percent(gap: float) -> float:
    """A difference of losses in nats as per cent of perplexity."""
    return math.inf if gap > 700 else 100 * math.expm1(gap)
