"""Topic skew by chance: each client's mix of topics is one draw from a Dirichlet distribution.

q_k ~ Dir(alpha T pi), alpha = 100^(1 - s) 0.01^s. Hsu, Qi & Brown, "Measuring the Effects of Non-Identical
Data Distribution for Federated Visual Classification", 2019, arXiv:1909.06335.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import gammaincinv, gammaln

from ..corpus.corpus import Corpus
from .margins import deal, even, fit, totals
from .partition import Clients, Partition, Severity, topics, weights


@dataclass(frozen=True)
class Dirichlet:
    """Severity 0: every client is the corpus in small. Severity 1: alpha 0.01, nearly one topic a client.

    Budgets are equal. The drawn table is fitted to them and to the topics' tokens, and never drawn again. The
    same stream gives the same uniform numbers at every severity, so that the clients' mixes grow apart, not
    elsewhere. Severity 0 is alpha = infinity and not 100, which is already 0.03 in total variation from the
    pool.
    """

    clients: Clients = 10
    severity: Severity = 1.0

    @property
    def alpha(self) -> float:
        """The concentration that papers quote: near 100 at severity 0+, 1 at 0.5, 0.1 at 0.75, 0.01 at 1."""
        return alpha(self.severity)

    def __call__(self, corpus: Corpus, rng: np.random.Generator) -> Partition:
        size = weights(corpus, self.clients)
        topic, names = topics(corpus)
        columns = totals(topic, size)
        rows = np.full(self.clients, columns.sum() / self.clients)
        uniform = rng.random((self.clients, len(names)))
        table = even(rows, columns)
        if self.severity > 0:
            share = dirichlet(self.alpha * len(names) * columns / columns.sum(), uniform)
            table = fit(share * rows[:, None], rows, columns)
        return deal(table, topic, size, rng)


def alpha(severity: float) -> float:
    """100^(1 - s) 0.01^s; infinite at severity 0."""
    return 100 ** (1 - severity) * 0.01**severity if severity > 0 else np.inf


def dirichlet(concentration: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Draws from Dir(concentration [T]) made of uniform numbers [..., T] by inversion; rows sum to one.

    In logarithms, because a gamma variable of shape 0.01 is often smaller than the smallest float: there
    P(a, x) = x^a / Gamma(a + 1) to first order, so log x = (log u + log Gamma(a + 1)) / a.
    """
    uniform = np.clip(uniform, 1e-300, 1 - 1e-16)
    shape = np.broadcast_to(concentration, uniform.shape)
    small = (np.log(uniform) + gammaln(shape + 1)) / shape
    plain = np.log(np.maximum(gammaincinv(shape, uniform), 1e-300))
    drawn = np.where(small < -30, small, plain)
    share = np.exp(drawn - drawn.max(axis=-1, keepdims=True))
    return share / share.sum(axis=-1, keepdims=True)
