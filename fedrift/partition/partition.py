"""What a partitioner is and what it gives: who holds which documents, and how each client rewrites its own.

A partitioner is a frozen dataclass with ``clients`` and ``severity``. Called with a corpus and a named stream
it deals that corpus. Two laws hold for all of them (tests/partition/test_laws.py):

- severity 0 is the corpus in small for every client, so ``replace(p, severity=0)`` is the IID twin of ``p``;
- the same stream makes the same choices for any corpus: deal the train and the test documents with two equal
  streams and each client is tested on the mix that it trains on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Protocol, TypeAlias

import numpy as np
from annotated_types import Interval

from ..corpus.corpus import Corpus
from ..corpus.tables import column_names
from ..errors import UserError

Rewrite: TypeAlias = Callable[[str, str], str]
"""(text, sha256 hex of the text) -> text. Pure: the same two strings always give the same third."""

Clients: TypeAlias = Annotated[int, Interval(ge=1, le=100_000)]
Severity: TypeAlias = Annotated[float, Interval(ge=0, le=1)]


@dataclass(frozen=True, eq=False)
class Partition:
    """A corpus dealt to N clients.

    ``rows``: N sorted arrays of document indices into the corpus that was dealt; no document is in two of
    them. ``rewrite``: N rewrites, None where a client leaves its texts alone; empty where nobody rewrites.
    """

    rows: tuple[np.ndarray, ...]
    rewrite: tuple[Rewrite | None, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def owner(self, documents: int) -> np.ndarray:
        """Which client holds each of the ``documents``, [D] int64; -1 where nobody does."""
        owner = np.full(documents, -1, dtype=np.int64)
        for client, rows in enumerate(self.rows):
            owner[rows] = client
        return owner

    def budgets(self, corpus: Corpus) -> np.ndarray:
        """Tokens of each client, [N] int64, before any rewriting."""
        return np.array([corpus.size[rows].sum() for rows in self.rows], dtype=np.int64)


class Partitioner(Protocol):
    """Deals a corpus; every class in ``fedrift.partition.__all__`` is one."""

    @property
    def clients(self) -> int: ...
    @property
    def severity(self) -> float: ...
    def __call__(self, corpus: Corpus, rng: np.random.Generator) -> Partition: ...


def called(partitioner: Partitioner) -> str:
    """A regime's name for tables: its class, with what is inside where it is made of another (its ``inner``)."""
    return " ".join([type(partitioner).__name__, *filter(None, [getattr(partitioner, "inner", "")])])


def document_id(text: str) -> str:
    """The name of a document: sha256 hex of its text before any rewriting."""
    return sha256(text.encode()).hexdigest()


def weights(corpus: Corpus, clients: int) -> np.ndarray:
    """Tokens of each document, [D] float64, an empty one counting as one token; refuses too many clients."""
    if clients > len(corpus):
        raise UserError(
            f"{clients} clients cannot share the {len(corpus)} documents of corpus {corpus.name!r}: "
            f"each needs at least one. Ask for at most {len(corpus)} clients, or take a larger corpus."
        )
    return np.maximum(np.asarray(corpus.size, dtype=np.float64), 1.0)


def topics(corpus: Corpus, at_least: int = 2) -> tuple[np.ndarray, tuple[str, ...]]:
    """The topic of each document, [D] int64 in 0..T-1, and the T names; an empty topic is none."""
    missing = int((corpus.label < 0).sum())
    if missing == len(corpus) and corpus.columns:
        raise UserError(
            f"a deal by topic needs a label for every document, and no document of corpus {corpus.name!r} has one (its columns: "
            f"{column_names(corpus.columns)}). Name the column of labels with corpus.label, find topics by clustering "
            "(corpus.clusters=8), or choose a regime that needs no labels: TokenTilt, Quantity, Length."
        )
    if missing:
        raise UserError(
            f"a deal by topic needs a label for every document, but {missing} of the {len(corpus)} documents "
            f"of corpus {corpus.name!r} have none (labels such as NA, None and null count as none). Find topics "
            "by clustering (corpus.clusters=8), keep only its labelled domains, or choose a regime that "
            "needs no labels: TokenTilt, Quantity, Length."
        )
    present, topic = np.unique(corpus.label, return_inverse=True)
    names = tuple(corpus.domains[label] for label in present)
    if len(names) < at_least:
        raise UserError(
            f"this deal needs at least {at_least} topics, but corpus {corpus.name!r} has {len(names)}: "
            f"{', '.join(names) or 'none'}. Keep more of its domains, or choose a regime that needs none: "
            "TokenTilt, Quantity, Length."
        )
    return topic.astype(np.int64), names
