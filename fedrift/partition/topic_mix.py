"""Topic skew, the plain dial: from the corpus in small to one topic a client.

q_k(s) = (1 - s) pi + s e_d(k), d(k) = k mod T, where pi is the pool's mix of T topics and e_d is topic d
alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..corpus.corpus import Corpus
from ..errors import UserError
from .margins import deal, even, fit, totals
from .partition import Clients, Partition, Severity, topics, weights


@dataclass(frozen=True)
class TopicMix:
    """Severity 0: every client is the corpus in small. Severity 1: client k holds topic k mod T alone.

    With fewer clients than topics, topic t belongs to client t mod N, so that a client has several topics of
    its own.

    A pool whose topics differ in size cannot at once be dealt whole, in equal budgets, and one topic a
    client. ``budgets`` says what gives way; whichever it is, budgets and pool are the same at every severity:

    - ``domain``: a client's budget is its share of its own topics. Nothing is left out, severity 1 is pure.
    - ``equal``: all budgets are equal. Nothing is left out, but at severity 1 clients of small topics are
      filled up from large ones, as little as the sums allow.
    - ``trimmed``: all budgets are equal and severity 1 is pure. Documents of the larger topics are left out,
      drawn once and the same ones at every severity.
    """

    clients: Clients = 10
    severity: Severity = 1.0
    budgets: Literal["domain", "equal", "trimmed"] = "domain"

    def __call__(self, corpus: Corpus, rng: np.random.Generator) -> Partition:
        size = weights(corpus, self.clients)
        topic, names = topics(corpus)
        own = holders(self.clients, len(names))
        if self.budgets == "trimmed":
            rows = trim(topic, size, (own / own.sum(axis=1, keepdims=True)).sum(axis=0), rng)
            if len(rows) < self.clients:
                raise UserError(
                    f"trimmed to equal topics, corpus {corpus.name!r} has {len(rows)} documents for "
                    f"{self.clients} clients. Ask for fewer clients, drop its smallest domain, or choose "
                    "budgets 'domain' or 'equal'."
                )
            topic, size = topic[rows], size[rows]
            dealt = deal(self._table(own, totals(topic, size)), topic, size, rng)
            return Partition(tuple(rows[held] for held in dealt.rows))
        return deal(self._table(own, totals(topic, size)), topic, size, rng)

    def _table(self, own: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Tokens of each client and topic, [N, T]."""
        pure = own * (columns / own.sum(axis=0))  # each topic in equal parts to its holders
        if self.budgets != "equal":
            return (1 - self.severity) * even(pure.sum(axis=1), columns) + self.severity * pure
        rows = np.full(self.clients, columns.sum() / self.clients)
        pure = pure * (rows / pure.sum(axis=1))[:, None]
        return fit((1 - self.severity) * even(rows, columns) + self.severity * pure, rows, columns)


def holders(clients: int, count: int) -> np.ndarray:
    """Which topics are a client's own, [N, T] bool: k mod T, or, with N < T, all t with t mod N = k."""
    return (np.arange(clients)[:, None] - np.arange(count)) % min(clients, count) == 0


def trim(group: np.ndarray, size: np.ndarray, unit: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sorted rows to keep so that the groups' tokens stand as ``unit`` [T]; at least one row of each."""
    columns = totals(group, size)
    keep = unit * (columns / unit).min()
    mixed = rng.permutation(len(group))
    mixed = mixed[np.argsort(group[mixed], kind="stable")]
    middle = np.cumsum(size[mixed]) - size[mixed] / 2 - (np.cumsum(columns) - columns)[group[mixed]]
    first = np.diff(group[mixed], prepend=-1) > 0
    return np.sort(mixed[first | (middle < keep[group[mixed]])])
