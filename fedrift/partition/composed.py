"""Topic skew and quantity skew at once: some clients are small, and all are one-sided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from annotated_types import Interval

from ..corpus.corpus import Corpus
from .dirichlet import alpha, dirichlet
from .margins import deal, even, fit, totals
from .partition import Clients, Partition, Severity, topics, weights
from .quantity import amounts
from .topic_mix import holders


@dataclass(frozen=True)
class Composed:
    """Severity 0: the corpus in small, equal budgets. Severity 1: ``topic`` and ``quantity`` in full.

    ``topic`` and ``quantity`` are the severities of the two skews at severity 1; in between both are scaled
    by s. ``by`` says how topics are mixed: ``mix`` as TopicMix does, ``dirichlet`` as Dirichlet does. Budgets
    are those of Quantity exactly; a client that is larger than its topic is filled up with others, as little
    as the sums allow.
    """

    clients: Clients = 10
    severity: Severity = 1.0
    topic: Annotated[float, Interval(ge=0, le=1)] = 1.0
    quantity: Annotated[float, Interval(ge=0, le=1)] = 0.5
    by: Literal["mix", "dirichlet"] = "mix"
    floor: Annotated[float, Interval(ge=0, le=1)] = 0.02

    @property
    def inner(self) -> str:
        """How much of what is composed."""
        return f"{self.by} {self.topic:g} quantity {self.quantity:g}"

    def __call__(self, corpus: Corpus, rng: np.random.Generator) -> Partition:
        size = weights(corpus, self.clients)
        group, names = topics(corpus)
        columns = totals(group, size)
        share = amounts(self.clients, self.severity * self.quantity, self.floor, rng.random(self.clients))
        rows = share * columns.sum()
        uniform = rng.random((self.clients, len(names)))
        table = even(rows, columns)
        severity = self.severity * self.topic
        if self.by == "mix":
            own = holders(self.clients, len(names)) * columns
            own = own * (rows / own.sum(axis=1))[:, None]
            table = fit((1 - severity) * table + severity * own, rows, columns)
        elif severity > 0:
            drawn = dirichlet(alpha(severity) * len(names) * columns / columns.sum(), uniform)
            table = fit(drawn * rows[:, None], rows, columns)
        return deal(table, group, size, rng)
