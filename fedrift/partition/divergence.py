"""How far distributions lie apart: the plain functions behind the heterogeneity report.

All divergences are in bits. A table holds one client's counts in each row, [N, V], dense or sparse.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

CountTable = np.ndarray | csr_array


def entropy(table: CountTable) -> np.ndarray:
    """Shannon entropy of each row's distribution in bits, [N]; NaN for an empty row."""
    sparse: csr_array = csr_array(table).astype(np.float64)
    mass = np.asarray(sparse.sum(axis=1)).ravel()
    each = csr_array((_xlogx(sparse.data), sparse.indices, sparse.indptr), shape=sparse.shape)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.log2(mass) - np.asarray(each.sum(axis=1)).ravel() / mass


def generalized_jsd(table: CountTable) -> float:
    """H(sum_k p_k P_k) - sum_k p_k H(P_k) in bits, with p_k the rows' shares of all counts.

    It is the mutual information of "which client" and "which word". Lin, "Divergence measures based on the
    Shannon entropy", IEEE Trans. Information Theory 37(1), 1991. From samples it is biased upwards by about
    (V - 1)(N - 1) / (2 n ln 2) bits: read it beside its null band.
    """
    share = np.asarray(table.sum(axis=1)).ravel()
    held = share > 0
    pooled = entropy(np.asarray(table.sum(axis=0)).reshape(1, -1))[0]
    return float(pooled - (share[held] / share.sum()) @ entropy(table[held]))


def normalized_jsd(table: CountTable) -> float:
    """``generalized_jsd`` over its most, log2 min(N, V): in [0, 1]; 0 where either is one."""
    least = min(int((np.asarray(table.sum(axis=axis)).ravel() > 0).sum()) for axis in (0, 1))
    return generalized_jsd(table) / np.log2(least) if least > 1 else 0.0


def pairwise_jsd(table: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence of each two rows with equal weights, [N, N] in bits."""
    mixes = table / table.sum(axis=1, keepdims=True)
    own = _xlogx(mixes).sum(axis=1)
    found = np.zeros((len(mixes), len(mixes)))
    for row in range(len(mixes)):
        middle = _xlogx((mixes[row] + mixes[row + 1 :]) / 2).sum(axis=1)
        found[row, row + 1 :] = (own[row] + own[row + 1 :]) / 2 - middle
    return found + found.T


def total_variation(table: CountTable) -> np.ndarray:
    """Half the L1 distance of each row's distribution to the pooled one, [N]; NaN for an empty row."""
    dense = np.asarray(table, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        mixes = dense / dense.sum(axis=1, keepdims=True)
    return np.abs(mixes - dense.sum(axis=0) / dense.sum()).sum(axis=1) / 2


def jaccard(table: csr_array) -> np.ndarray:
    """Words that two clients share over words that either has, [N, N]."""
    has = (table > 0).astype(np.float64)
    both = (has @ has.T).toarray()
    size = np.diag(both)
    return both / np.maximum(size[:, None] + size[None, :] - both, 1.0)


def coverage(table: csr_array) -> np.ndarray:
    """Share of client i's word occurrences whose word client j has at least twice, [N, N]."""
    often = (table >= 2).astype(np.float64)
    return (table @ often.T).toarray() / np.maximum(np.asarray(table.sum(axis=1)).reshape(-1, 1), 1.0)


def off_diagonal(matrix: np.ndarray) -> np.ndarray:
    """The entries of a square matrix beside its diagonal."""
    return matrix[~np.eye(len(matrix), dtype=bool)]


def _xlogx(values: np.ndarray) -> np.ndarray:
    return values * np.log2(np.where(values > 0, values, 1.0))
