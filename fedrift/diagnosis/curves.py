"""Readings of trajectories that several detectors share: what was evaluated, ends, swings, slopes."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from ..core.records import Trajectory, final_round_indices

Curve = tuple[np.ndarray, np.ndarray]


def read_curve(run: Trajectory | None, metric: str = "loss", domain: str = "") -> Curve:
    """The rounds in which a metric of the federation was written, and its values; one written as NaN stays."""
    if run is None or not run.has_curve(metric, domain):
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    seen = run.observed_mask(metric, domain)
    return run.rounds[seen], run.curve(metric, domain)[seen]


def align_curves(
    run: Trajectory, baseline: Trajectory | None, metric: str = "loss", domain: str = ""
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rounds that both have, and both curves there."""
    (ours, mine), (theirs, other) = read_curve(run, metric, domain), read_curve(baseline, metric, domain)
    both = np.intersect1d(ours, theirs)
    return both, mine[np.searchsorted(ours, both)], other[np.searchsorted(theirs, both)]


def final_gap(run: Trajectory, baseline: Trajectory | None, domain: str = "", num_last: int = 5) -> float:
    """Mean loss of the last evaluations that both have (not of round 0), above the baseline's; NaN where there are none.

    Which rounds those are the global loss says, for domains too.
    """
    both = align_curves(run, baseline)[0]
    both = both[final_round_indices(both, num_last)]
    if baseline is None or not len(both) or not (run.has_curve("loss", domain) and baseline.has_curve("loss", domain)):
        return math.nan
    ours, theirs = np.searchsorted(run.rounds, both), np.searchsorted(baseline.rounds, both)
    return float(run.curve("loss", domain)[ours].mean() - baseline.curve("loss", domain)[theirs].mean())


def noise_interval(values: np.ndarray, num_last: int = 5, num_tests: int = 1, level: float = 0.95) -> float:
    """How far from 0 the mean of the last of some differences may lie by chance, in so many tests.

    The scatter is that of the second half around its straight line. Evaluations follow each other, so what is high stays high
    for a while: with correlation rho from one to the next (Kendall's correction for few of them), the mean of n has the variance
    s^2 / n (1 + 2 sum_k (1 - k/n) rho^k), and the second half counts for (1 - rho) / (1 + rho) of its number in Student's
    t (Bartlett, JRSS Suppl. 8, 1946). 0 where there are fewer than three, which tell nothing of their scatter.
    """
    values = values[np.isfinite(values)]
    late = values[-max(num_last, len(values) // 2) :]
    count, num_last = len(late), min(num_last, len(late))
    if count < 3:
        return 0.0
    line = np.polyfit(np.arange(count), late, 1) if count > 4 else np.array([0.0, late.mean()])
    rest = late - np.polyval(line, np.arange(count))
    free = count - (2 if count > 4 else 1)
    spread = float(np.sqrt((rest**2).sum() / free))
    rho = lag1_autocorrelation(rest)
    wide = 1 + 2 * sum((1 - k / num_last) * rho**k for k in range(1, num_last))
    independent = max(2.0, free * (1 - rho) / (1 + rho))
    return float(stats.t.ppf(1 - (1 - level) / 2 / max(num_tests, 1), independent) * spread * np.sqrt(wide / num_last))


def lag1_autocorrelation(residuals: np.ndarray) -> float:
    """Correlation of successive residuals, corrected for their small number, 0 to .9; 0 of too few to tell."""
    count, square = len(residuals), float((residuals**2).sum())
    if count < 6 or not square > 0:
        return 0.0
    found = float((residuals[1:] * residuals[:-1]).sum()) / square
    return float(np.clip(found + (1 + 3 * found) / count, 0.0, 0.9))


def domain_variability(run: Trajectory | None, rounds: np.ndarray) -> float:
    """How much the domains' losses move there and back between evaluations, in the second half of ``rounds``; NaN without any.

    The mean absolute change less the net change, over the domains: a loss that only falls does not swing, however fast (it has
    ``movement``, an outcome of studies, which is the mean absolute change alone). The rounds are given, so that a run and its
    twin are measured on the same ones.
    """
    if run is None or not run.has_curve("loss"):
        return math.nan
    late = np.isin(run.rounds, rounds[len(rounds) // 2 :])
    found = []
    for domain in run.domains_of("loss"):
        change = np.diff(run.curve("loss", domain)[late])
        change = change[np.isfinite(change)]
        found += [(np.abs(change).sum() - abs(change.sum())) / len(change)] if len(change) else []
    return float(np.mean(found)) if found else math.nan


def client_table(run: Trajectory | None, metric: str) -> np.ndarray:
    """A metric by client, ``[rounds, N]``; no rounds where it is not recorded so."""
    return run.client_table(metric) if run is not None and run.has_client_table(metric) else np.zeros((0, 0))


def find_last_layer(run: Trajectory, metric: str) -> str:
    """The last layer that a metric speaks of ("layer 03"); "" if it speaks of none."""
    layers = [domain for domain in run.domains_of(metric) if domain.startswith("layer") and "head" not in domain]
    return layers[-1] if layers else ""


def truncate_trajectory(run: Trajectory | None, round: int) -> Trajectory | None:
    """The run as it stood after a round."""
    if run is None:
        return None
    return Trajectory(tuple(record for record in run.records if record.round <= round))


def perplexity_change_percent(gap: float) -> float:
    """A difference of losses in nats as per cent of perplexity."""
    return math.inf if gap > 700 else 100 * math.expm1(gap)
