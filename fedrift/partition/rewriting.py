"""Partitioners that rewrite the clients' texts, and the rule that selects the rewritten positions.

Each position of a text has a fixed number in [0, 1) and is rewritten if this number is below the severity. Positions that are
rewritten at severity 0.3 are therefore also rewritten at severity 0.6, regardless of the order of the documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np

from ..core.cache import BoundedCache
from ..data.corpus import Corpus
from .base import Partition, Rewrite, document_id, document_sizes
from .margins import assign_documents, tokens_per_group, uniform_table


def stable_uniform(key: bytes, document: str, position: int | str) -> float:
    """Return a deterministic number in [0, 1) for a position of a document, uniformly distributed over positions.

    Args:
        key: Secret of the hash, drawn once per partition.
        document: Identifier of the document (SHA-256 hex digest).
        position: Position in the text, or any label that is unique in the document.
    """
    digest = blake2b(f"{document}:{position}".encode(), digest_size=8, key=key).digest()
    return int.from_bytes(digest) / 2.0**64


# Runs of one study often share documents and rewrites: conditions with the same seed do, and a partition itself rewrites a sample of the
# documents first. So the latest results are kept in memory.

REWRITTEN_TEXTS = BoundedCache(max_size=100_000_000)  # (rewrite, text) -> rewritten text; sizes in characters


def rewrite_text(rewrite: Rewrite, text: str) -> str:
    """Return a text as a rewrite changes it. A text that this process has rewritten recently is not rewritten again."""
    result: str = REWRITTEN_TEXTS.get_or_create(
        (rewrite, text), lambda: rewrite(text, document_id(text)), lambda rewritten: len(text) + len(rewritten)
    )
    return result


# Groups of clients that share a rewrite.


@dataclass(frozen=True, eq=False)
class RewriteGroups:
    """The H distinct rewrites of a partition and the rewrite of each client.

    The first rewrite is None, which leaves texts unchanged. Clients with equal rewrites belong to one group.
    """

    rewrites: tuple[Rewrite | None, ...]  # [H]
    client_group: np.ndarray  # [N] int64: index into ``rewrites``

    def __len__(self) -> int:
        return len(self.rewrites)


def rewrite_groups(partition: Partition) -> RewriteGroups:
    """Return the distinct rewrites of a partition and the rewrite of each client."""
    client_rewrites = partition.rewrites or (None,) * len(partition)
    distinct = tuple(dict.fromkeys((None, *client_rewrites)))
    index = {rewrite: position for position, rewrite in enumerate(distinct)}
    return RewriteGroups(distinct, np.array([index[client_rewrite] for client_rewrite in client_rewrites], dtype=np.int64))


def rewrite_corpus(corpus: Corpus, rewrite: Rewrite | None) -> Corpus:
    """Return the corpus with every text rewritten by one rewrite.

    Args:
        corpus: The corpus. Document sizes of the result remain those of the original texts.
        rewrite: The rewrite, or None to return the corpus unchanged.
    """
    if rewrite is None:
        return corpus
    return with_texts(corpus, [rewrite_text(rewrite, text) for text in corpus.text])


def apply_rewrites(corpus: Corpus, partition: Partition) -> Corpus:
    """Return the corpus with each text rewritten by the client that holds the document.

    Document sizes of the result remain those of the original texts.
    """
    if not partition.rewrites:
        return corpus
    texts = list(corpus.text)
    for rows, rewrite in zip(partition.rows, partition.rewrites, strict=True):
        if rewrite is not None:
            for row in rows:
                texts[row] = rewrite_text(rewrite, texts[row])
    return with_texts(corpus, texts)


def with_texts(corpus: Corpus, texts: list[str]) -> Corpus:
    """Return the corpus with other texts, one per document."""
    array = np.empty(len(corpus), dtype=object)
    array[:] = texts
    return replace(corpus, text=array)


# Rewriting changes the corpus as a whole, so two controls separate the effect of "bad data" from that of "different data":
# - ``equalize_words``: a client whose texts shrink receives more documents, so all clients have about equally many words.
# - ``homogeneous``: the same rewrites are spread over all clients, document by document. All clients then have one
#   distribution, and the corpus as a whole is changed by the same amount.
#
# The rewrites of a training partition belong to its clients. Apply them to the clients' validation and test documents as well.

RETENTION_SAMPLE = 300  # documents that are rewritten to estimate how much texts shrink


@dataclass(frozen=True)
class BlendRewrite:
    """The rewrite of the homogeneous control.

    Each document is rewritten by one of the variants, which its identifier selects.
    """

    variants: tuple[Rewrite | None, ...]  # [N] one variant per client, so a variant is chosen in proportion to its number of clients
    key: bytes

    def __call__(self, text: str, document: str) -> str:
        chosen = self.variants[int(stable_uniform(self.key, document, "variant") * len(self.variants))]
        return text if chosen is None else chosen(text, document)


def partition_with_rewrites(
    corpus: Corpus, variants: Sequence[Rewrite | None], rng: np.random.Generator, *, equalize_words: bool, homogeneous: bool, key: bytes
) -> Partition:
    """Return an IID partition in which client k rewrites its texts by ``variants[k]``.

    Args:
        corpus: The corpus.
        variants: One rewrite per client, or None for a client whose texts stay unchanged.
        rng: Random generator that selects the sample of documents and assigns all documents.
        equalize_words: Whether clients whose texts shrink receive more documents. It has no effect if ``homogeneous`` is True.
        homogeneous: Whether all clients rewrite by the same blend of the variants (the control).
        key: Secret of the hash that selects a variant for each document.
    """
    num_clients = len(variants)
    size = document_sizes(corpus, num_clients)
    group = corpus.label + 1  # documents without a label form group 0
    sample = rng.permutation(len(corpus))[:RETENTION_SAMPLE]
    rows = np.ones(num_clients)
    if equalize_words and not homogeneous:
        shares = {variant: retained_share(corpus, sample, variant) for variant in dict.fromkeys(variants)}
        rows = np.array([1 / shares[variant] for variant in variants])
    partition = assign_documents(uniform_table(rows / rows.sum() * size.sum(), tokens_per_group(group, size)), group, size, rng)
    if all(variant is None for variant in variants):
        return partition
    blend = BlendRewrite(tuple(variants), key)
    return replace(partition, rewrites=(blend,) * num_clients if homogeneous else tuple(variants))


def retained_share(corpus: Corpus, sample: np.ndarray, variant: Rewrite | None) -> float:
    """Return the number of words after rewriting as a share of the words before, at least 0.001.

    Args:
        corpus: The corpus.
        sample: Indices of the documents to rewrite.
        variant: The rewrite; None gives 1.
    """
    if variant is None:
        return 1.0
    before = sum(len(corpus.text[row].split()) for row in sample)
    after = sum(len(rewrite_text(variant, corpus.text[row]).split()) for row in sample)
    return max(after / max(before, 1), 1e-3)
