"""Divergences between the clients' distributions, as used by the heterogeneity report.

All divergences are in bits. A count table has one row of counts per client, [N, V], dense or sparse.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ..core.lazy_imports import sparse

if TYPE_CHECKING:
    from scipy.sparse import csr_array

CountTable: TypeAlias = "np.ndarray | csr_array"


def entropy(table: CountTable) -> np.ndarray:
    """Return the Shannon entropy of each row's distribution in bits, [N]; NaN for an empty row."""
    matrix: csr_array = sparse.csr_array(table).astype(np.float64)
    mass = np.asarray(matrix.sum(axis=1)).ravel()
    terms = sparse.csr_array((_xlogx(matrix.data), matrix.indices, matrix.indptr), shape=matrix.shape)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.log2(mass) - np.asarray(terms.sum(axis=1)).ravel() / mass


def generalized_jsd(table: CountTable) -> float:
    """Return the generalized Jensen-Shannon divergence of the rows in bits.

    It is H(sum_k p_k P_k) - sum_k p_k H(P_k), where p_k is the share of row k in all counts. It equals the mutual information of
    client and word. Lin, "Divergence measures based on the Shannon entropy", IEEE Trans. Information Theory 37(1), 1991.

    The estimate from samples is biased upward by about (V - 1)(N - 1) / (2 n ln 2) bits for n counts, so compare it with its null
    distribution.

    Args:
        table: Counts, [N, V].
    """
    share = np.asarray(table.sum(axis=1)).ravel()
    nonempty = share > 0
    pooled_entropy = entropy(np.asarray(table.sum(axis=0)).reshape(1, -1))[0]
    return float(pooled_entropy - (share[nonempty] / share.sum()) @ entropy(table[nonempty]))


def normalized_jsd(table: CountTable) -> float:
    """Return ``generalized_jsd`` divided by its maximum, log2 min(N, V), where N and V count the nonempty rows and columns.

    The value lies in [0, 1]. It is 0 if only one row or one column is nonempty.
    """
    num_outcomes = min(int((np.asarray(table.sum(axis=axis)).ravel() > 0).sum()) for axis in (0, 1))
    return generalized_jsd(table) / np.log2(num_outcomes) if num_outcomes > 1 else 0.0


def pairwise_jsd(table: np.ndarray) -> np.ndarray:
    """Return the Jensen-Shannon divergence of each pair of rows with equal weights, [N, N] in bits."""
    distributions = table / table.sum(axis=1, keepdims=True)
    neg_entropy = _xlogx(distributions).sum(axis=1)
    divergence = np.zeros((len(distributions), len(distributions)))
    for row in range(len(distributions)):
        mixture_neg_entropy = _xlogx((distributions[row] + distributions[row + 1 :]) / 2).sum(axis=1)
        divergence[row, row + 1 :] = (neg_entropy[row] + neg_entropy[row + 1 :]) / 2 - mixture_neg_entropy
    return divergence + divergence.T


def total_variation(table: CountTable) -> np.ndarray:
    """Return the total variation distance of each row's distribution to the pooled one, [N]; NaN for an empty row."""
    dense = np.asarray(table, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        distributions = dense / dense.sum(axis=1, keepdims=True)
    return np.abs(distributions - dense.sum(axis=0) / dense.sum()).sum(axis=1) / 2


def jaccard(table: csr_array) -> np.ndarray:
    """Return the Jaccard index of each pair of clients' vocabularies, [N, N]: shared words divided by words of either client."""
    present = (table > 0).astype(np.float64)
    shared = (present @ present.T).toarray()
    size = np.diag(shared)
    return shared / np.maximum(size[:, None] + size[None, :] - shared, 1.0)


def coverage(table: csr_array) -> np.ndarray:
    """Return the share of client i's word occurrences whose word occurs at least twice at client j, [N, N]."""
    repeated = (table >= 2).astype(np.float64)
    return (table @ repeated.T).toarray() / np.maximum(np.asarray(table.sum(axis=1)).reshape(-1, 1), 1.0)


def off_diagonal(matrix: np.ndarray) -> np.ndarray:
    """Return the off-diagonal entries of a square matrix, [N (N - 1)]."""
    return matrix[~np.eye(len(matrix), dtype=bool)]


def _xlogx(values: np.ndarray) -> np.ndarray:
    return values * np.log2(np.where(values > 0, values, 1.0))
