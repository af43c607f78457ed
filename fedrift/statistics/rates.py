"""How often runs fail: exact intervals and exact tests, because failures are few.

Clopper & Pearson, Biometrika 26, 1934; McNemar, Psychometrika 12, 1947, in its exact (binomial) form, for the same
seeds on both sides; Fisher, JRSS 98, 1935, for independent ones.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as of_table

from .evidence import Interval, P, smallest_p


def clopper_pearson(failed: int, runs: int, level: float = 0.95) -> Interval:
    """A rate and its exact interval; [0, 1] of no runs."""
    if runs == 0:
        return Interval(math.nan, 0.0, 1.0, level)
    bounds = stats.binomtest(int(failed), int(runs)).proportion_ci(level, method="exact")
    return Interval(failed / runs, float(bounds.low), float(bounds.high), level)


def mcnemar(first: np.ndarray, second: np.ndarray) -> P:
    """Whether ``first [seeds]`` fails as often as ``second [seeds]`` of the same seeds; only seeds that differ say anything."""
    first, second = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    counts = [[int((first & second).sum()), int((first & ~second).sum())],
              [int((~first & second).sum()), int((~first & ~second).sum())]]
    value = float(of_table(counts, exact=True).pvalue) if counts[0][1] + counts[1][0] else 1.0
    return P(min(1.0, value), smallest_p(len(first)), len(first), "exact McNemar")


def fisher(failed: int, runs: int, failed_there: int, runs_there: int) -> P:
    """Fisher's exact test of two independent rates; the least p is that of "all here, none there"."""
    found = stats.fisher_exact(np.array([[failed, runs - failed], [failed_there, runs_there - failed_there]]))
    least = float(stats.fisher_exact(np.diag([runs, runs_there])).pvalue) if runs and runs_there else 1.0
    return P(float(found.pvalue), least, runs + runs_there, "Fisher's exact")
