"""Length skew: some clients hold short documents and some long ones, with equal budgets of tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..corpus.corpus import Corpus
from .margins import cut, deal, even, totals
from .partition import Clients, Partition, Severity, weights


@dataclass(frozen=True)
class Length:
    """Severity 0: every client holds all lengths. Severity 1: client k holds the k-th N-quantile alone.

    The documents in order of length are cut into N pieces of equal tokens; client k gets (1 - s) of the pool
    in small and s of piece k. Documents of one length are ordered by chance.
    """

    clients: Clients = 10
    severity: Severity = 1.0

    def __call__(self, corpus: Corpus, rng: np.random.Generator) -> Partition:
        size = weights(corpus, self.clients)
        order = np.lexsort((rng.permutation(len(size)), size))
        piece = np.empty(len(size), dtype=np.int64)
        piece[order] = cut(size[order], np.ones(self.clients))
        columns = np.zeros(self.clients)
        columns[: piece.max() + 1] = totals(piece, size)
        rows = np.full(self.clients, columns.sum() / self.clients)
        table = (1 - self.severity) * even(rows, columns) + self.severity * np.diag(columns)
        return deal(table, piece, size, rng)

    def missing(self, corpus: Corpus) -> str:
        """Why no deal by length tells these documents apart; "" where one does."""
        return "all documents are of one length" if len(np.unique(corpus.size)) == 1 else ""
