"""What a partitioner is and what it gives: who holds which documents, and how each client rewrites its own.

A partitioner is a frozen dataclass with ``clients`` and ``severity``. Called with a corpus and a named stream
it deals that corpus. Two laws hold for all of them (tests/partition/test_laws.py):

- severity 0 is the corpus in small for every client, so ``replace(p, severity=0)`` is the IID baseline of ``p``;
- the same stream makes the same choices for any corpus: deal the train and the test documents with two equal
  streams and each client is tested on the mix that it trains on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Annotated, Any, Protocol, TypeAlias

import numpy as np
from annotated_types import Interval
from scipy.sparse import csr_array

from ..core.errors import UserError
from ..data.corpus import Corpus
from ..data.tables import format_columns

Rewrite: TypeAlias = Callable[[str, str], str]
"""(text, sha256 hex of the text) -> text. Pure: the same two strings always give the same third."""

NumClients: TypeAlias = Annotated[int, Interval(ge=1, le=100_000)]
Severity: TypeAlias = Annotated[float, Interval(ge=0, le=1)]


@dataclass(frozen=True, eq=False)
class Partition:
    """A corpus dealt to N clients.

    ``rows``: N sorted arrays of document indices into the corpus that was dealt; no document is in two of
    them. ``rewrites``: N rewrites, None where a client leaves its texts alone; empty where nobody rewrites.
    """

    rows: tuple[np.ndarray, ...]
    rewrites: tuple[Rewrite | None, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def document_owners(self, num_documents: int) -> np.ndarray:
        """Which client holds each of the ``documents``, [D] int64; -1 where nobody does."""
        owner = np.full(num_documents, -1, dtype=np.int64)
        for client, rows in enumerate(self.rows):
            owner[rows] = client
        return owner

    def budgets(self, corpus: Corpus) -> np.ndarray:
        """Tokens of each client, [N] int64, before any rewriting."""
        return np.array([corpus.size[rows].sum() for rows in self.rows], dtype=np.int64)


class Partitioner(Protocol):
    """Deals a corpus; every class in ``fedrift.partition.__all__`` is one."""

    @property
    def num_clients(self) -> int: ...
    @property
    def severity(self) -> float: ...
    def __call__(self, corpus: Corpus, rng: np.random.Generator) -> Partition: ...


def display_name(partitioner: Partitioner) -> str:
    """A regime's name for tables: its class, with what is inside where it is made of another (its ``name_detail``)."""
    return " ".join([type(partitioner).__name__, *filter(None, [getattr(partitioner, "name_detail", "")])])


def document_id(text: str) -> str:
    """The name of a document: sha256 hex of its text before any rewriting."""
    return sha256(text.encode()).hexdigest()


def document_sizes(corpus: Corpus, num_clients: int) -> np.ndarray:
    """Tokens of each document, [D] float64, an empty one counting as one token; refuses too many clients."""
    if num_clients > len(corpus):
        raise UserError(
            f"{num_clients} clients cannot share the {len(corpus)} documents of corpus {corpus.name!r}: "
            f"each needs at least one. Ask for at most {len(corpus)} clients, or take a larger corpus."
        )
    return np.maximum(np.asarray(corpus.size, dtype=np.float64), 1.0)


def document_topics(corpus: Corpus, min_topics: int = 2) -> tuple[np.ndarray, tuple[str, ...]]:
    """The topic of each document, [D] int64 in 0..T-1, and the T names; an empty topic is none."""
    missing = int((corpus.label < 0).sum())
    if missing == len(corpus) and corpus.columns:
        raise UserError(
            f"a deal by topic needs a label for every document, and no document of corpus {corpus.name!r} has one (its columns: "
            f"{format_columns(corpus.columns)}). Name the column of labels with dataset.label_column, find topics by clustering "
            "(dataset.num_clusters=8), or choose a regime that needs no labels: TokenTilt, Quantity, Length."
        )
    if missing:
        raise UserError(
            f"a deal by topic needs a label for every document, but {missing} of the {len(corpus)} documents "
            f"of corpus {corpus.name!r} have none (labels such as NA, None and null count as none). Find topics "
            "by clustering (dataset.num_clusters=8), keep only its labelled domains, or choose a regime that "
            "needs no labels: TokenTilt, Quantity, Length."
        )
    present, topic = np.unique(corpus.label, return_inverse=True)
    names = tuple(corpus.domains[label] for label in present)
    if len(names) < min_topics:
        raise UserError(
            f"this deal needs at least {min_topics} topics, but corpus {corpus.name!r} has {len(names)}: "
            f"{', '.join(names) or 'none'}. Keep more of its domains, or choose a regime that needs none: "
            "TokenTilt, Quantity, Length."
        )
    return topic.astype(np.int64), names


# What the clients of a partition hold, counted: texts as written, tokens by domain, words by client.


def rewritten_texts(corpus: Corpus, partition: Partition, owner: np.ndarray) -> list[str]:
    """The texts as their owners write them."""
    if not partition.rewrites:
        return list(corpus.text)
    rewrites = [partition.rewrites[client] for client in owner]
    return [text if r is None else r(text, document_id(text)) for text, r in zip(corpus.text, rewrites, strict=True)]


def tokens_by_label(corpus: Corpus, size: np.ndarray, owner: np.ndarray, num_clients: int) -> np.ndarray:
    """Tokens of each client and domain, [N, T]; documents without a label are left out."""
    table = np.zeros((num_clients, len(corpus.domains)))
    known = corpus.label >= 0
    np.add.at(table, (owner[known], corpus.label[known]), size[known])
    return table


def counts_by_client(counts: csr_array, owner: np.ndarray, num_clients: int) -> csr_array:
    """Word counts of each client, [N, V]."""
    documents = np.arange(len(owner))
    return csr_array((np.ones(len(owner)), (owner, documents)), shape=(num_clients, len(owner))) @ counts


# A deal that is IID although its severity is not 0: refused, for its results would be reported as those of skewed clients.


def partition_corpus(partitioner: Partitioner, corpus: Corpus, make_rng: Callable[[], np.random.Generator]) -> Partition:
    """Deal a corpus, and make sure that the clients differ where the severity says that they do.

    Args:
        partitioner: The regime.
        corpus: The training documents.
        make_rng: Gives a fresh generator of one name at each call, as for ``calibrate_severity``.

    Raises:
        UserError: The severity is not 0, there are two clients or more, and yet the deal is that of severity 0, or nothing
            tells the documents or the clients apart in what the regime deals by.
    """
    dealt = partitioner(corpus, make_rng())
    if partitioner.severity == 0 or partitioner.num_clients == 1:
        return dealt
    why = getattr(partitioner, "iid_reason", no_iid_reason)(corpus)
    if not why and has_identical_rewrites(partitioner, dealt):
        why = "every client rewrites its texts alike"
    if not why and is_iid_baseline(partitioner, corpus, dealt, make_rng):
        why = "nothing in the texts can be rewritten" if dealt.rewrites else "the deal is exactly that of severity 0"
    if why:
        raise UserError(
            f"partition {display_name(partitioner)} with severity {partitioner.severity:g} deals corpus {corpus.name!r} "
            f"IID: {why}. Change its settings, raise its severity, choose another regime or corpus, or take "
            "severity 0"
        )
    return dealt


def partition_notes(partitioner: Partitioner) -> list[str]:
    """What a reader of the results must know of the deal."""
    if partitioner.severity == 0 or partitioner.num_clients > 1:
        return []
    return [f"partition {display_name(partitioner)} has one client, which holds all documents: no severity makes it non-IID"]


def no_iid_reason(corpus: Corpus) -> str:
    return ""


def has_identical_rewrites(partitioner: Partitioner, partition: Partition) -> bool:
    """Whether all clients rewrite in one way, and not as the homogeneous control, which is to do so."""
    return bool(partition.rewrites) and len(set(partition.rewrites)) == 1 and not getattr(partitioner, "homogeneous", False)


def is_iid_baseline(partitioner: Partitioner, corpus: Corpus, partition: Partition, make_rng: Callable[[], np.random.Generator]) -> bool:
    """Whether each client holds, as it writes them, just the documents that it holds at severity 0."""
    changeable: Any = partitioner
    twin: Partition = replace(changeable, severity=0.0)(corpus, make_rng())
    if not all(np.array_equal(one, other) for one, other in zip(partition.rows, twin.rows, strict=True)):
        return False
    ways = partition.rewrites or (None,) * len(partition)
    return not any(
        way is not None and way(text, document_id(text)) != text
        for way, rows in zip(ways, partition.rows, strict=True)
        for text in (corpus.text[row] for row in rows)
    )


__all__ = ["partition_corpus", "partition_notes"]
