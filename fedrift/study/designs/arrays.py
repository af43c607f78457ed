"""Orthogonal arrays: tables in which every pair of columns holds every pair of levels equally often.

Those of p^r rows are the linear ones over GF(p) (Bose, Sankhya 8, 1947; Hedayat, Sloane & Stufken, *Orthogonal
Arrays*, 1999, Theorem 3.20): a row is a point x of GF(p)^r, a column a direction v (the first number of it that is not 0
being 1), the entry is v.x mod p. That makes (p^r - 1) / (p - 1) columns. L18 is Taguchi's table of one column of two
levels and seven of three.
"""

from __future__ import annotations

from itertools import product

import numpy as np

from ...errors import unknown

LINEAR = {"L4": (2, 2), "L8": (2, 3), "L16": (2, 4), "L9": (3, 2), "L27": (3, 3), "L81": (3, 4)}  # name: (p, r)
L18 = """
00000000 00111111 00222222 01001122 01112200 01220011 02010212 02121020 02202101
10022110 10100221 10211002 11012021 11120102 11201210 12021201 12102012 12210120
"""
NAMES = (*LINEAR, "L18")


def array(name: str) -> np.ndarray:
    """The array of that name, [rows, columns] int64 of levels from 0 on."""
    if name == "L18":
        return np.array([[int(digit) for digit in row] for row in L18.split()])
    if name not in LINEAR:
        raise unknown("orthogonal array", name, NAMES)
    p, r = LINEAR[name]
    points = np.array(list(product(range(p), repeat=r)))
    # Single coordinates first, then sums of two, and so on: the first r columns are a full grid of their own.
    directions = sorted((v for v in points.tolist() if next((n for n in v if n), 0) == 1),
                        key=lambda v: (sum(n > 0 for n in v), [-n for n in v]))
    return (points @ np.array(directions).T) % p


def contrasts(column: np.ndarray) -> np.ndarray:
    """An orthonormal basis of what a column's levels can differ by, [rows, levels - 1]."""
    one_hot = (column[:, None] == np.unique(column)).astype(float)
    return _basis(one_hot - one_hot.mean(axis=0))


def interaction(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """An orthonormal basis of the interaction of two columns, [rows, df]: their products, less their own effects."""
    a, b = contrasts(one), contrasts(other)
    products = (a[:, :, None] * b[:, None, :]).reshape(len(one), -1)
    own = _basis(np.column_stack([np.ones(len(one)), a, b]))
    return _basis(products - own @ (own.T @ products))


def shared(effect: np.ndarray, other: np.ndarray) -> float:
    """How much of an effect cannot be told from another: 0 nothing, 1 all of it. Both orthonormal bases."""
    return float(((effect.T @ other) ** 2).sum() / effect.shape[1]) if effect.size and other.size else 0.0


def _basis(columns: np.ndarray) -> np.ndarray:
    u, size, _ = np.linalg.svd(columns, full_matrices=False)
    return u[:, size > 1e-9]
