"""Several hypotheses at once: Holm inside a family of hypotheses, Benjamini-Hochberg over exploratory maps.

Holm, Scandinavian Journal of Statistics 6, 1979: the chance of any false call in the family stays at alpha. Benjamini &
Hochberg, JRSS B 57, 1995: the expected share of false ones among the calls does. A hypothesis that could not be tested
still counts, as p = 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from statsmodels.stats.multitest import multipletests


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Adjusted p, same order."""
    return adjusted(p, "holm")


def benjamini_hochberg(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Adjusted p (q-values), same order."""
    return adjusted(p, "fdr_bh")


def adjusted(p: Sequence[float] | np.ndarray, method: str) -> np.ndarray:
    given = np.asarray(p, dtype=np.float64)
    if not len(given):
        return given
    corrected = multipletests(np.where(np.isnan(given), 1.0, given), method=method)[1]
    return np.where(np.isnan(given), np.nan, corrected)
