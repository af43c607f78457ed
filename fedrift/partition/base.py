"""Interface of partitioners, which assign the documents of a corpus to clients, and helpers that all of them share.

A partitioner is a frozen dataclass with the fields ``num_clients`` and ``severity``. It is called with a corpus and a
random generator and returns a ``Partition``. Every partitioner satisfies two laws (tests/partition/test_laws.py):

- At severity 0 every client holds an IID sample of the corpus, so ``replace(p, severity=0)`` is the IID baseline of ``p``.
- Equal random streams give equal choices for any corpus. If the training and the test documents are partitioned with equal
  streams, each client is tested on the mixture of domains that it trains on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, is_dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeAlias

import numpy as np
from annotated_types import Interval

from ..core.errors import UserError, quote_value
from ..core.lazy_imports import sparse
from ..data.corpus import Corpus
from ..data.tables import format_columns

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Rewrite: TypeAlias = Callable[[str, str], str]
"""Function from (text, SHA-256 hex digest of the text) to the rewritten text. It must be pure: equal inputs give equal outputs."""

NumClients: TypeAlias = Annotated[int, Interval(ge=1, le=100_000)]
Severity: TypeAlias = Annotated[float, Interval(ge=0, le=1)]


@dataclass(frozen=True, eq=False)
class Partition:
    """An assignment of a corpus's documents to N clients.

    Attributes:
        rows: N sorted arrays of document indices into the corpus. No document belongs to two clients.
        rewrites: One rewrite per client, or None for a client whose texts stay unchanged. The tuple is empty if no client rewrites.

    Example:
        >>> partition = Partition((np.array([0, 2]), np.array([1])))
        >>> partition.document_owners(num_documents=4).tolist()
        [0, 1, 0, -1]
    """

    rows: tuple[np.ndarray, ...]
    rewrites: tuple[Rewrite | None, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def document_owners(self, num_documents: int) -> np.ndarray:
        """Return the client that holds each document.

        Args:
            num_documents: D, the number of documents in the corpus.

        Returns:
            Client indices, [D] int64; -1 for a document that no client holds.
        """
        owner = np.full(num_documents, -1, dtype=np.int64)
        for client, rows in enumerate(self.rows):
            owner[rows] = client
        return owner

    def budgets(self, corpus: Corpus) -> np.ndarray:
        """Return the number of tokens that each client holds before any rewriting, [N] int64."""
        return np.array([corpus.size[rows].sum() for rows in self.rows], dtype=np.int64)


class Partitioner(Protocol):
    """Protocol of classes that assign the documents of a corpus to clients.

    Every class in ``fedrift.partition.__all__`` implements it.

    Example:
        >>> @dataclass(frozen=True)
        ... class RoundRobin:  # it ignores its severity, so it is always IID
        ...     num_clients: int = 10
        ...     severity: float = 0.0
        ...
        ...     def __call__(self, corpus: Corpus, rng: np.random.Generator) -> Partition:
        ...         order = rng.permutation(len(corpus))
        ...         return Partition(tuple(np.sort(order[k :: self.num_clients]) for k in range(self.num_clients)))
        >>> len(RoundRobin(num_clients=3)(corpus, rng))
        3
    """

    @property
    def num_clients(self) -> int:
        """Return N, the number of clients."""
        ...

    @property
    def severity(self) -> float:
        """Return the degree of heterogeneity in [0, 1]; 0 is IID."""
        ...

    def __call__(self, corpus: Corpus, rng: np.random.Generator) -> Partition:
        """Assign the documents of ``corpus`` to clients, with random numbers from ``rng``."""
        ...


def display_name(partitioner: Partitioner) -> str:
    """Return the name of a partitioner for tables.

    The name is the class name, followed by the partitioner's ``name_detail`` if it has one.
    """
    return " ".join([type(partitioner).__name__, *filter(None, [getattr(partitioner, "name_detail", "")])])


def depends_on_sources(partitioner: Partitioner) -> bool:
    """Return whether the clients can depend on the sources of the documents.

    They can with `BySource`, with a partitioner from outside fedrift, and with a partitioner that contains one of these.
    """
    kind = type(partitioner)
    return (
        kind.__module__.partition(".")[0] != __name__.partition(".")[0]
        or bool(getattr(kind, "uses_sources", False))
        or any(is_dataclass(part) and depends_on_sources(part) for part in vars(partitioner).values())  # type: ignore[arg-type]
    )


def document_id(text: str) -> str:
    """Return the identifier of a document: the SHA-256 hex digest of its text before any rewriting."""
    return sha256(text.encode()).hexdigest()


def document_sizes(corpus: Corpus, num_clients: int) -> np.ndarray:
    """Return the number of tokens of each document, [D] float64. An empty document counts as one token.

    Raises:
        UserError: The corpus has fewer documents than there are clients.
    """
    if num_clients > len(corpus):
        raise UserError(
            f"{num_clients} clients cannot share the {len(corpus)} documents of corpus {corpus.name!r}, because each client "
            f"needs at least one document. Set partition.num_clients to at most {len(corpus)}, or use a larger corpus."
        )
    return np.maximum(np.asarray(corpus.size, dtype=np.float64), 1.0)


def document_topics(corpus: Corpus, min_topics: int = 2) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the topic of each document and the names of the topics.

    Topics without a document are dropped, so the indices are contiguous.

    Args:
        corpus: The corpus; every document needs a label.
        min_topics: Smallest number of distinct topics that the partitioner accepts.

    Returns:
        Topic indices in 0..T-1, [D] int64, and the T topic names.

    Raises:
        UserError: A document has no label, or the corpus has fewer than ``min_topics`` topics.
    """
    missing = int((corpus.label < 0).sum())
    if missing == len(corpus) and corpus.columns:
        raise UserError(
            f"A partition by topic needs a label for every document, but no document of corpus {corpus.name!r} has one (its columns: "
            f"{format_columns(corpus.columns)}). Name the column of labels with dataset.label_column, find topics by clustering "
            "(dataset.num_clusters=8), or choose a partition that needs no labels: TokenTilt, Quantity, Length."
        )
    if missing:
        raise UserError(
            f"A partition by topic needs a label for every document, but {missing} of the {len(corpus)} documents "
            f"of corpus {corpus.name!r} have none (labels such as NA, None and null count as missing). Find topics "
            "by clustering (dataset.num_clusters=8), keep only the labeled domains, or choose a partition that "
            "needs no labels: TokenTilt, Quantity, Length."
        )
    is_present = np.bincount(corpus.label, minlength=len(corpus.domains)) > 0
    present = np.flatnonzero(is_present)
    names = tuple(corpus.domains[label] for label in present)
    if len(names) < min_topics:
        raise UserError(
            f"This partition needs at least {min_topics} topics, but corpus {corpus.name!r} has {len(names)}: "
            f"{', '.join(names) or 'none'}. Keep more of its domains, or choose a partition that needs no topics: "
            "TokenTilt, Quantity, Length."
        )
    return (np.cumsum(is_present) - 1)[corpus.label], names


# Counts over the documents of each client.


def rewritten_texts(corpus: Corpus, partition: Partition, owner: np.ndarray) -> list[str]:
    """Return the text of each document after its owner's rewrite.

    Args:
        corpus: The corpus with D documents.
        partition: The partition, which holds the rewrites.
        owner: Client that holds each document, [D].
    """
    if not partition.rewrites:
        return list(corpus.text)
    rewrites = [partition.rewrites[client] for client in owner]
    return [text if r is None else r(text, document_id(text)) for text, r in zip(corpus.text, rewrites, strict=True)]


def tokens_by_label(corpus: Corpus, size: np.ndarray, owner: np.ndarray, num_clients: int) -> np.ndarray:
    """Return the number of tokens of each client and domain.

    Args:
        corpus: The corpus with D documents.
        size: Number of tokens of each document, [D].
        owner: Client that holds each document, [D].
        num_clients: N, the number of clients.

    Returns:
        Token counts, [N, T]. Documents without a label are not counted.
    """
    table = np.zeros((num_clients, len(corpus.domains)))
    known = corpus.label >= 0
    np.add.at(table, (owner[known], corpus.label[known]), size[known])
    return table


def counts_by_client(counts: csr_array, owner: np.ndarray, num_clients: int) -> csr_array:
    """Sum the word counts of documents over the documents of each client.

    Args:
        counts: Word counts of the documents, [D, V].
        owner: Client that holds each document, [D].
        num_clients: N, the number of clients.

    Returns:
        Word counts of the clients, [N, V].
    """
    documents = np.arange(len(owner))
    return sparse.csr_array((np.ones(len(owner)), (owner, documents)), shape=(num_clients, len(owner))) @ counts


def call_partitioner(partitioner: Partitioner, corpus: Corpus, rng: np.random.Generator) -> Partition:
    """Partition a corpus and check that the result is a partition, which a partitioner from outside fedrift may violate.

    Args:
        partitioner: The partitioner.
        corpus: The documents.
        rng: The random generator.

    Raises:
        UserError: The result is no `Partition`, has another number of clients or rewrites, or gives a document to two clients, no
            document to a client, or a document that does not exist.
    """
    partition: Any = partitioner(corpus, rng)
    name, num_clients = display_name(partitioner), partitioner.num_clients
    if not isinstance(partition, Partition):
        raise UserError(
            f"Partition {name} returned {quote_value(partition)}. It must return a fedrift.partition.Partition with rows for each client."
        )
    if len(partition) != num_clients or len(partition.rewrites) not in (0, num_clients):
        raise UserError(
            f"Partition {name} returned rows for {len(partition)} clients and {len(partition.rewrites)} rewrites, but num_clients is "
            f"{num_clients}. It must return rows for each client, and a rewrite (or None) for each client or no rewrites at all."
        )
    rows = np.concatenate([np.asarray(own).ravel() for own in partition.rows])
    problem = ""
    if empty := [client for client, own in enumerate(partition.rows) if not len(own)]:
        problem = f"client {empty[0]} holds no document"
    elif rows.dtype.kind not in "iu":
        problem = f"its rows have the type {rows.dtype}"
    elif rows.min() < 0 or rows.max() >= len(corpus):
        problem = f"it holds row {rows[(rows < 0) | (rows >= len(corpus))][0]}"
    elif np.bincount(rows).max() > 1:
        problem = f"it holds row {np.bincount(rows).argmax()} more than once"
    if problem:
        raise UserError(
            f"Partition {name} returned invalid rows on corpus {corpus.name!r}: {problem}. Each client needs at least one whole number "
            f"from 0 to {len(corpus) - 1}, the index of a document, and no document may belong to two clients."
        )
    return partition


# A partition with severity > 0 that is nevertheless IID is an error, because its results would be reported as those of
# non-IID clients.


def partition_corpus(partitioner: Partitioner, corpus: Corpus, make_rng: Callable[[], np.random.Generator]) -> Partition:
    """Partition a corpus and check that the clients differ if the severity is above 0.

    Args:
        partitioner: The partitioner.
        corpus: The training documents.
        make_rng: Returns a fresh generator of the same random stream at each call, as for ``calibrate_severity``.

    Raises:
        UserError: The partition is not valid (`call_partitioner`), or the clients do not differ although the severity is above 0 and there
            are at least two clients. This happens if the partition equals that of severity 0, or if the corpus does not vary in the
            property that the partitioner uses.
    """
    partition = call_partitioner(partitioner, corpus, make_rng())
    if partition.rewrites and corpus.examples is not None:
        raise UserError(
            f"Partition {display_name(partitioner)} rewrites texts, but corpus {corpus.name!r} holds conversations, whose prompts "
            "must stay as they are: choose a partition that rewrites nothing, such as TopicMix, Dirichlet, TokenTilt, Quantity or BySource"
        )
    if partitioner.severity == 0 or partitioner.num_clients == 1:
        return partition
    reason = getattr(partitioner, "iid_reason", no_iid_reason)(corpus)
    if not reason and has_identical_rewrites(partitioner, partition):
        reason = "every client rewrites its texts in the same way"
    if not reason and is_iid_baseline(partitioner, corpus, partition, make_rng):
        reason = (
            "the texts contain nothing that can be rewritten" if partition.rewrites else "it is identical to the partition of severity 0"
        )
    if reason:
        raise UserError(
            f"Partition {display_name(partitioner)} with severity {partitioner.severity:g} gives IID clients on corpus "
            f"{corpus.name!r}: {reason}. Change its settings, raise its severity, choose another partition or corpus, or set "
            "partition.severity=0."
        )
    return partition


def partition_notes(partitioner: Partitioner) -> list[str]:
    """Return notes about the partition that a reader of the results needs; the list is usually empty."""
    if partitioner.severity == 0 or partitioner.num_clients > 1:
        return []
    return [f"Partition {display_name(partitioner)} has one client, which holds all documents, so no severity makes it non-IID."]


def no_iid_reason(corpus: Corpus) -> str:
    """Return an empty reason; the default for partitioners without a method ``iid_reason``."""
    return ""


def has_identical_rewrites(partitioner: Partitioner, partition: Partition) -> bool:
    """Return whether all clients rewrite their texts in the same way.

    The homogeneous control (``homogeneous=True``) has identical rewrites by design and does not count.
    """
    return bool(partition.rewrites) and len(set(partition.rewrites)) == 1 and not getattr(partitioner, "homogeneous", False)


def is_iid_baseline(partitioner: Partitioner, corpus: Corpus, partition: Partition, make_rng: Callable[[], np.random.Generator]) -> bool:
    """Return whether each client holds the same documents with the same texts as at severity 0.

    Args:
        partitioner: The partitioner.
        corpus: The corpus that was partitioned.
        partition: The partition at the partitioner's severity.
        make_rng: Returns a fresh generator of the same random stream at each call.
    """
    dataclass_instance: Any = partitioner
    baseline = call_partitioner(replace(dataclass_instance, severity=0.0), corpus, make_rng())
    if not all(np.array_equal(own_rows, baseline_rows) for own_rows, baseline_rows in zip(partition.rows, baseline.rows, strict=True)):
        return False
    rewrites = partition.rewrites or (None,) * len(partition)
    return not any(
        rewrite is not None and rewrite(text, document_id(text)) != text
        for rewrite, rows in zip(rewrites, partition.rows, strict=True)
        for text in (corpus.text[row] for row in rows)
    )
