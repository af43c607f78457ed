"""Whether an outcome rises with a dial: Page's L over seeds as blocks, and Spearman's rho permuted inside the seeds.

Page, JASA 58, 1963: L = sum_j j R_j, R_j the rank sums of the levels in the order that was foretold. Where the dial is
a measured one and each run has its own value: the mean over seeds of Spearman's rho, its null made by permuting the
outcomes inside each seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import permutations, product

import numpy as np
from scipy import stats

from ..seeds import numpy_stream
from .evidence import P, smallest_p

EXACT = 20_000  # orders in all; more than that are drawn


@dataclass(frozen=True)
class Monotone:
    """``rho``: mean over seeds of Spearman's rho, from -1 to 1. ``slopes``: least squares, one a seed; NaN with a
    diverged run."""

    rho: float
    slopes: tuple[float, ...]
    p: P


def page(table: np.ndarray) -> P:
    """Page's L of ``table [seeds, levels]``, two-sided: twice the smaller of rising and falling."""
    table = np.asarray(table, dtype=np.float64)
    seeds, levels = table.shape
    least = min(1.0, 2.0 / math.factorial(levels) ** seeds) if seeds else 1.0
    if seeds < 1 or levels < 2:
        return P(math.nan, 1.0, seeds, "Page's L")
    if levels == 2:  # not Page's
        return sign_test(table[:, 1] - table[:, 0])
    if seeds < 2:  # not Page's: the same permutations of the levels inside each seed
        return spearman(np.tile(np.arange(levels), seeds), table.ravel(), np.repeat(np.arange(seeds), levels)).p
    ranks = np.stack([stats.rankdata(row) for row in table])
    sides = [float(stats.page_trend_test(side, ranked=True).pvalue) for side in (ranks, levels + 1 - ranks)]
    return P(min(1.0, 2 * min(sides)), least, seeds, "Page's L")


def sign_test(d: np.ndarray) -> P:
    """The exact sign test: what permuting two levels inside each seed comes to. Seeds without a difference are dropped."""
    d = np.asarray(d, dtype=np.float64)
    up, down = int((d > 0).sum()), int((d < 0).sum())
    if not up + down:
        return P(1.0, 1.0, 0, "exact sign test")
    return P(float(stats.binomtest(up, up + down).pvalue), smallest_p(up + down), up + down, "exact sign test")


def spearman(x: np.ndarray, y: np.ndarray, blocks: np.ndarray, draws: int = 9_999, seed: int = 0) -> Monotone:
    """The dial ``x``, the outcome ``y`` and the seed of each run, ``[runs]``; infinite outcomes are the last ranks."""
    x, y, blocks = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64), np.asarray(blocks)
    parts = [(x[blocks == block], y[blocks == block]) for block in np.unique(blocks)]
    parts = [(dial, outcome) for dial, outcome in parts if len(np.unique(dial)) > 1]
    if not parts:
        return Monotone(math.nan, (), P(1.0, 1.0, 0, "Spearman"))
    scored = [(standard(dial), standard(outcome)) for dial, outcome in parts]
    seen = sum(float(dial @ outcome) for dial, outcome in scored)
    orders = math.prod(math.factorial(len(dial)) for dial, _ in scored)
    if orders <= EXACT:
        each = [[float(dial @ outcome[list(order)]) for order in permutations(range(len(dial)))] for dial, outcome in scored]
        null = np.array([sum(choice) for choice in product(*each)])
        extra, total, name = 0, len(null), "Spearman, exact permutation"
    else:
        rng = numpy_stream(seed, "orders")
        null = sum((rng.permuted(np.tile(outcome, (draws, 1)), axis=1) @ dial for dial, outcome in scored), np.zeros(draws))
        extra, total, name = 1, draws + 1, f"Spearman, {draws} permutations"
    far = np.abs(null) >= abs(seen) - 1e-9
    value = float((far.sum() + extra) / total)
    least = max(2 / orders, 0.0) if orders <= EXACT else 1 / total
    slopes = tuple(slope(dial, outcome) for dial, outcome in parts)
    return Monotone(seen / len(scored), slopes, P(value, min(1.0, least), len(scored), name))


def standard(values: np.ndarray) -> np.ndarray:
    """Midranks, centred and of length 1 (0 if all are equal), so that products are Spearman's rho."""
    ranks = stats.rankdata(values)
    ranks = ranks - ranks.mean()
    length = math.sqrt(float(ranks @ ranks))
    return ranks / length if length else ranks


def slope(dial: np.ndarray, outcome: np.ndarray) -> float:
    """Least squares, outcome per unit of the dial."""
    if not np.isfinite(outcome).all():
        return math.nan
    centred = dial - dial.mean()
    return float(centred @ (outcome - outcome.mean()) / (centred @ centred))
