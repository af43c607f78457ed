"""Several hypotheses at once: Holm inside a family of hypotheses, Benjamini-Hochberg over exploratory maps.

Holm, Scandinavian Journal of Statistics 6, 1979: the chance of any false call in the family stays at alpha. Benjamini &
Hochberg, JRSS B 57, 1995: the expected share of false ones among the calls does. A hypothesis that could not be tested
still counts, as p = 1. (statsmodels has Holm too, and collects the garbage of the process in each call: .2 s where torch is
loaded.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import false_discovery_control


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Adjusted p, same order."""
    given, counted = numbers(p)
    order = np.argsort(counted, kind="stable")
    steps = np.maximum.accumulate(counted[order] * np.arange(len(counted), 0, -1))
    adjusted = np.empty_like(counted)
    adjusted[order] = np.minimum(steps, 1.0)
    return np.where(np.isnan(given), np.nan, adjusted)


def benjamini_hochberg(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Adjusted p (q-values), same order."""
    given, counted = numbers(p)
    return np.where(np.isnan(given), np.nan, false_discovery_control(counted)) if len(given) else given


def numbers(p: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As given, and with 1 for what could not be tested."""
    given = np.asarray(p, dtype=np.float64)
    return given, np.where(np.isnan(given), 1.0, given)
