"""Tests and effects by rank, which diverged runs can enter: as the worst of all ranks, not dropped.

Wilcoxon's signed ranks (Biometrics Bulletin 1, 1945) as a sign-flip of midranks, exact with ties; the matched-pairs
rank-biserial correlation (Kerby, Comprehensive Psychology 3, 2014); Cliff's delta (Psychological Bulletin 114, 1993).
Worst rank: Lachin, Controlled Clinical Trials 20, 1999.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import numpy as np
from scipy.stats import rankdata

from .evidence import P
from .signflip import sign_flip

Worst = Literal["high", "low"]


def worst_rank(values: np.ndarray, diverged: np.ndarray, worst: Worst = "high") -> np.ndarray:
    """``values [runs]`` with those that diverged at the bad end, whatever they last said."""
    end = math.inf if worst == "high" else -math.inf
    return np.where(np.asarray(diverged, dtype=bool), end, np.asarray(values, dtype=np.float64))


def signed_ranks(d: np.ndarray) -> np.ndarray:
    """The ranks of |d| with d's signs; equal ones share the mean of their ranks, zeros stay 0 and rank lowest (Pratt)."""
    d = np.asarray(d, dtype=np.float64)
    return np.sign(d) * rankdata(np.abs(d)) if len(d) else d


def wilcoxon(d: np.ndarray) -> P:
    """Wilcoxon's signed-rank test of the differences ``d [seeds]``, infinities allowed."""
    found = sign_flip(signed_ranks(d))
    return replace(found, test=found.test.replace("sign-flip", "signed-rank"))


def rank_biserial(d: np.ndarray) -> float:
    """From -1 (all differences below zero) to 1: the share of the rank sum above zero, less the share below."""
    ranks = signed_ranks(d)
    total = np.abs(ranks).sum()
    return float(ranks.sum() / total) if total else math.nan if not len(ranks) else 0.0


def cliffs_delta(x: np.ndarray, y: np.ndarray) -> float:
    """P(x > y) - P(x < y) over all pairs of two independent samples."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if not len(x) or not len(y):
        return math.nan
    return float((x[:, None] > y).mean() - (x[:, None] < y).mean())
