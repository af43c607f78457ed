"""Topic skew by count: each client holds k of the T topics, from all of them down to one.

The "pathological" split of McMahan et al., "Communication-Efficient Learning of Deep Networks from
Decentralized Data", AISTATS 2017, arXiv:1602.05629, section 3 (there: two digits a client), dealt round-robin
instead of by chance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..corpus.corpus import Corpus
from .margins import deal, spread, totals
from .partition import Clients, Partition, Severity, topics, weights


@dataclass(frozen=True)
class KDomains:
    """Severity 0: all T topics. Severity 1: one topic a client, or as few as N clients need to hold all T.

    Severity s is k = T - s (T - 1) topics, rounded. Each topic has equally many holders where T divides N k.
    Where T divides N, a client's budget is its share of the topic that it holds at severity 1, the same at
    every severity; elsewhere budgets are as equal as k topics a client allow. Topics of one size: equal
    budgets.
    """

    clients: Clients = 10
    severity: Severity = 1.0

    def __call__(self, corpus: Corpus, rng: np.random.Generator) -> Partition:
        size = weights(corpus, self.clients)
        topic, names = topics(corpus)
        columns = totals(topic, size)
        rows = np.full(self.clients, columns.sum() / self.clients)
        if self.clients % len(names) == 0:
            rows = np.resize(columns, self.clients) * len(names) / self.clients
        held = round_robin(self.clients, len(names), self.topics_each(len(names)))
        return deal(spread(held * columns, rows, columns), topic, size, rng)

    def topics_each(self, count: int) -> int:
        """How many of ``count`` topics a client holds."""
        fewest = -(-count // self.clients)  # all topics have to be somewhere
        return max(fewest, round(count - self.severity * (count - 1)))


def round_robin(clients: int, count: int, each: int) -> np.ndarray:
    """Which topics each client holds, [N, T] bool: ``each`` in a row (mod T), from where the last one ended.

    Where T divides N the clients begin one topic apart instead: holders are as equal, and k topics contain k
    - 1.
    """
    start = np.arange(clients) * (1 if clients % count == 0 else each)
    held = np.zeros((clients, count), dtype=bool)
    held[np.arange(clients)[:, None], (start[:, None] + np.arange(each)) % count] = True
    return held
