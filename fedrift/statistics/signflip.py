"""The exact sign-flip permutation test of paired differences: no normality, no variance, only signs that could have
fallen otherwise.

Fisher's permutation test of his Darwin data ("The Design of Experiments", 1935, section 21), over seeds: p is the share
of the 2^n sign patterns whose sum is at least as far from zero as the one that was seen. Exact to 20 seeds, beyond that
a named draw.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from ..seeds import numpy_stream
from .evidence import P, smallest_p

EXACT = 20
Side = Literal["two-sided", "greater", "less"]


def sign_flip(d: np.ndarray, about: float = 0.0, alternative: Side = "two-sided", draws: int = 99_999, seed: int = 0) -> P:
    """Whether the differences ``d [seeds]`` lie about ``about``; all finite. One-sided p can reach half of
    ``attainable``'s two-sided."""
    moved = np.asarray(d, dtype=np.float64) - about
    count = len(moved)
    name = "exact sign-flip" if count <= EXACT else f"sign-flip, {draws} draws"
    if count == 0:
        return P(1.0, 1.0, 0, name)
    seen = moved.sum()
    size = np.abs(moved)
    slack = 1e-12 * size.sum()  # equal sums that differ by rounding are equal
    if count <= EXACT:
        sums = patterns(size)
        extra, total = 0, len(sums)
    else:
        flips = numpy_stream(seed, "sign flips").integers(0, 2, (draws, count), dtype=np.int8) * 2 - 1
        sums = flips @ size
        extra, total = 1, draws + 1  # the pattern that was seen is one of them
    if alternative == "two-sided":
        far, floor = np.abs(sums) >= abs(seen) - slack, 2.0
    else:
        far, floor = (sums >= seen - slack if alternative == "greater" else sums <= seen + slack), 1.0
        name += f", one-sided ({alternative})"
    least = smallest_p(count) * floor / 2 if count <= EXACT else 1 / total
    return P(float((far.sum() + extra) / total), least, count, name)


def patterns(size: np.ndarray) -> np.ndarray:
    """The sums of all sign patterns of the sizes ``[n]``, ``[2^n]``."""
    sums = np.zeros(1)
    for value in size:
        sums = np.concatenate([sums + value, sums - value])
    return sums
