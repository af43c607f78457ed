"""Quantity skew: every client is the corpus in small, but some are much smaller than others.

b_k ~ Dir(alpha) of the pool's tokens, alpha = 100^(1 - s) 0.01^s. Li, Diao, Chen & He, "Federated Learning on
Non-IID Data Silos: An Experimental Study", ICDE 2022, arXiv:2102.02079, section 4 (``q ~ Dir(beta)``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Interval

from ..corpus.corpus import Corpus
from .dirichlet import alpha, dirichlet
from .margins import deal, even, totals
from .partition import Clients, Partition, Severity, weights


@dataclass(frozen=True)
class Quantity:
    """Severity 0: equal budgets. Severity 1: alpha 0.01, nearly everything with one client.

    ``floor`` is the least that a client gets, as a share of an equal budget. Where the corpus has labels,
    each client holds its topics in the pool's proportions. Local steps are the plan's: equal steps and equal
    epochs are two different studies of the same deal (the second is the regime of FedNova, arXiv:2007.07481).
    """

    clients: Clients = 10
    severity: Severity = 1.0
    floor: Annotated[float, Interval(ge=0, le=1)] = 0.02

    def __call__(self, corpus: Corpus, rng: np.random.Generator) -> Partition:
        size = weights(corpus, self.clients)
        group = corpus.label + 1  # documents without a label are a group of their own
        rows = amounts(self.clients, self.severity, self.floor, rng.random(self.clients)) * size.sum()
        return deal(even(rows, totals(group, size)), group, size, rng)


def amounts(clients: int, severity: float, floor: float, uniform: np.ndarray) -> np.ndarray:
    """Each client's share of the pool, [N], summing to one, drawn from the numbers ``uniform`` [N]."""
    equal = np.full(clients, 1 / clients)
    share = dirichlet(np.full(clients, alpha(severity)), uniform) if severity > 0 else equal
    return floor * equal + (1 - floor) * share
