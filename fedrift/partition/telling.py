"""The words that tell a client from the others: log-odds ratios with an informative Dirichlet prior.

Monroe, Colaresi & Quinn, "Fightin' Words: Lexical Feature Selection and Evaluation for Identifying the Content
of Political Conflict", Political Analysis 16(4), 2008, equations 16, 20 and 22. For word w of client k against
all others j, with prior counts a_w = A p(w), p the pool's frequencies:

delta = log((y_kw + a_w) / (n_k + A - y_kw - a_w)) - log((y_jw + a_w) / (n_j + A - y_jw - a_w)),
variance ~ 1 / (y_kw + a_w) + 1 / (y_jw + a_w), and z = delta / its root.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

PRIOR = 1000.0  # A: prior words; rare words are shrunk towards what the pool says of them
MANY = 10


def log_odds(
    own: np.ndarray, pool: np.ndarray, total: float, everything: float, prior: float = PRIOR
) -> np.ndarray:
    """z of some words, [V]: ``own`` [V] occurrences at the client of ``total`` words, ``pool`` [V] in all of
    ``everything``; 0 where the client holds all there is."""
    rest, others = pool - own, everything - total
    if others <= 0:
        return np.zeros(len(own))
    expected = prior * pool / everything
    mine, theirs = own + expected, rest + expected
    delta = np.log(mine / (total + prior - mine)) - np.log(theirs / (others + prior - theirs))
    return np.asarray(delta / np.sqrt(1 / mine + 1 / theirs))


def telling_words(
    counts: csr_array, vocabulary: tuple[str, ...], many: int = MANY
) -> list[list[tuple[str, float]]]:
    """The ``many`` words of each client with the largest z above 0, from counts [N, V]; N lists of (word, z)."""
    pool = np.asarray(counts.sum(axis=0), dtype=np.float64)
    everything, found = float(pool.sum()), []
    for client in range(counts.shape[0]):
        start, end = counts.indptr[client : client + 2]
        held, own = counts.indices[start:end], counts.data[start:end]
        z = log_odds(own, pool[held], float(own.sum()), everything)
        best = np.lexsort((held, -z))[:many]
        found.append([(vocabulary[held[v]], float(z[v])) for v in best if z[v] > 0])
    return found
