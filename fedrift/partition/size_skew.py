"""Quantity skew: every client is the corpus in small, but some are much smaller than others.

b_k ~ Dir(alpha) of the pool's tokens, alpha = 100^(1 - s) 0.01^s. Li, Diao, Chen & He, "Federated Learning on
Non-IID Data Silos: An Experimental Study", ICDE 2022, arXiv:2102.02079, section 4 (``q ~ Dir(beta)``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Interval

from ..data.corpus import Corpus
from .base import NumClients, Partition, Severity, document_sizes
from .margins import assign_documents, split_by_budget, tokens_per_group, uniform_table
from .topic_skew import alpha_from_severity, sample_dirichlet


@dataclass(frozen=True)
class Quantity:
    """Severity 0: equal budgets. Severity 1: alpha 0.01, nearly everything with one client.

    ``min_share`` is the least that a client gets, as a share of an equal budget. Where the corpus has labels,
    each client holds its topics in the pool's proportions. Local steps are the plan's: equal steps and equal
    epochs are two different studies of the same deal (the second is the regime of FedNova, arXiv:2007.07481).
    """

    num_clients: NumClients = 10
    severity: Severity = 1.0
    min_share: Annotated[float, Interval(ge=0, le=1)] = 0.02

    def __call__(self, corpus: Corpus, rng: np.random.Generator) -> Partition:
        size = document_sizes(corpus, self.num_clients)
        group = corpus.label + 1  # documents without a label are a group of their own
        rows = sample_budget_shares(self.num_clients, self.severity, self.min_share, rng.random(self.num_clients)) * size.sum()
        return assign_documents(uniform_table(rows, tokens_per_group(group, size)), group, size, rng)


def sample_budget_shares(num_clients: int, severity: float, min_share: float, uniform: np.ndarray) -> np.ndarray:
    """Each client's share of the pool, [N], summing to one, drawn from the numbers ``uniform`` [N]."""
    equal = np.full(num_clients, 1 / num_clients)
    share = sample_dirichlet(np.full(num_clients, alpha_from_severity(severity)), uniform) if severity > 0 else equal
    return min_share * equal + (1 - min_share) * share


# Length skew: some clients hold short documents and some long ones, with equal budgets of tokens.


@dataclass(frozen=True)
class Length:
    """Severity 0: every client holds all lengths. Severity 1: client k holds the k-th N-quantile alone.

    The documents in order of length are cut into N pieces of equal tokens; client k gets (1 - s) of the pool
    in small and s of piece k. Documents of one length are ordered by chance.
    """

    num_clients: NumClients = 10
    severity: Severity = 1.0

    def __call__(self, corpus: Corpus, rng: np.random.Generator) -> Partition:
        size = document_sizes(corpus, self.num_clients)
        order = np.lexsort((rng.permutation(len(size)), size))
        piece = np.empty(len(size), dtype=np.int64)
        piece[order] = split_by_budget(size[order], np.ones(self.num_clients))
        columns = np.zeros(self.num_clients)
        columns[: piece.max() + 1] = tokens_per_group(piece, size)
        rows = np.full(self.num_clients, columns.sum() / self.num_clients)
        table = (1 - self.severity) * uniform_table(rows, columns) + self.severity * np.diag(columns)
        return assign_documents(table, piece, size, rng)

    def iid_reason(self, corpus: Corpus) -> str:
        """Why no deal by length tells these documents apart; "" where one does."""
        return "all documents are of one length" if len(np.unique(corpus.size)) == 1 else ""
