"""Quantity skew and length skew.

Quantity skew draws the clients' budgets b_k ~ Dir(alpha) as shares of the corpus's tokens, with alpha = 100^(1 - s) 0.01^s.
Li, Diao, Chen & He, "Federated Learning on Non-IID Data Silos: An Experimental Study", ICDE 2022, arXiv:2102.02079, section 4
(``q ~ Dir(beta)``).
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
    """Quantity skew: all clients have the same distribution of documents but different numbers of tokens.

    At severity 0 all budgets are equal. At severity 1 alpha is 0.01, and nearly all tokens belong to one client. If the corpus has
    labels, each client holds its topics in the proportions of the whole corpus.

    The training settings decide how the skew acts. Equal local steps and equal local epochs are two different studies of the same
    partition; the second is the setting of FedNova (arXiv:2007.07481).

    Attributes:
        num_clients: N, the number of clients.
        severity: Degree of the skew, in [0, 1].
        min_share: Smallest budget of a client, as a share of an equal budget.

    Example:
        >>> partition = Quantity(num_clients=3, severity=0.5)(corpus, rng)
        >>> partition.budgets(corpus).tolist()
        [1045, 335, 58]
    """

    num_clients: NumClients = 10
    severity: Severity = 1.0
    min_share: Annotated[float, Interval(ge=0, le=1)] = 0.02

    def __call__(self, corpus: Corpus, rng: np.random.Generator) -> Partition:
        size = document_sizes(corpus, self.num_clients)
        group = corpus.label + 1  # documents without a label form group 0
        rows = sample_budget_shares(self.num_clients, self.severity, self.min_share, rng.random(self.num_clients)) * size.sum()
        return assign_documents(uniform_table(rows, tokens_per_group(group, size)), group, size, rng)


def sample_budget_shares(num_clients: int, severity: float, min_share: float, uniform: np.ndarray) -> np.ndarray:
    """Return each client's share of the corpus's tokens, [N]; the shares sum to 1.

    Args:
        num_clients: N, the number of clients.
        severity: Degree of the skew, in [0, 1].
        min_share: Smallest share of a client, relative to an equal share.
        uniform: Uniform random numbers in [0, 1) from which the shares are computed, [N].
    """
    equal = np.full(num_clients, 1 / num_clients)
    share = sample_dirichlet(np.full(num_clients, alpha_from_severity(severity)), uniform) if severity > 0 else equal
    return min_share * equal + (1 - min_share) * share


# Length skew: clients hold documents of different lengths.


@dataclass(frozen=True)
class Length:
    """Length skew: some clients hold short documents and others long ones, with equal budgets of tokens.

    At severity 0 every client holds documents of all lengths. At severity 1 client k holds only the k-th of N quantiles.

    The documents are sorted by length and cut into N pieces with equal numbers of tokens. A share 1 - s of client k's tokens is an IID
    sample of the corpus, and a share s comes from piece k. Documents of equal length are ordered randomly.

    Attributes:
        num_clients: N, the number of clients.
        severity: Degree of the skew, in [0, 1].

    Example:
        >>> partition = Length(num_clients=3)(corpus, rng)
        >>> [int(corpus.size[rows].max()) for rows in partition.rows]
        [22, 29, 39]
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
        """Return why partitions by length cannot separate these documents; "" if they can."""
        return "all documents have the same length" if len(np.unique(corpus.size)) == 1 else ""
