"""Where a rewrite strikes: a place in a text has a number in [0, 1) and is rewritten where that is below s.

So what severity 0.3 rewrites, severity 0.6 rewrites too, whatever the order of documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np

from ..data.corpus import Corpus
from .base import Partition, Rewrite, document_id, document_sizes
from .margins import assign_documents, tokens_per_group, uniform_table


def stable_uniform(key: bytes, document: str, position: int | str) -> float:
    """The number of a place in a document (sha256 hex), uniform in [0, 1)."""
    digest = blake2b(f"{document}:{position}".encode(), digest_size=8, key=key).digest()
    return int.from_bytes(digest) / 2.0**64


# Hands: the different ways in which the clients of a deal write, and texts as a hand writes them.


@dataclass(frozen=True, eq=False)
class RewriteGroups:
    """H hands, the first of which leaves texts as they are found; clients that rewrite alike have one hand."""

    rewrites: tuple[Rewrite | None, ...]  # [H]
    client_group: np.ndarray  # [N] int64: the hand of each client

    def __len__(self) -> int:
        return len(self.rewrites)


def rewrite_groups(partition: Partition) -> RewriteGroups:
    """Who writes how in this deal."""
    rewrites = partition.rewrites or (None,) * len(partition)
    ways = tuple(dict.fromkeys((None, *rewrites)))
    number = {way: hand for hand, way in enumerate(ways)}
    return RewriteGroups(ways, np.array([number[rewrite] for rewrite in rewrites], dtype=np.int64))


def rewrite_corpus(corpus: Corpus, rewrite: Rewrite | None) -> Corpus:
    """The corpus with every text written in one way; sizes stay those of the texts as found."""
    if rewrite is None:
        return corpus
    return with_texts(corpus, [rewrite(text, document_id(text)) for text in corpus.text])


def apply_rewrites(corpus: Corpus, partition: Partition) -> Corpus:
    """The corpus with every dealt text as its owner writes it; sizes stay those of the texts as found."""
    if not partition.rewrites:
        return corpus
    texts = list(corpus.text)
    for rows, way in zip(partition.rows, partition.rewrites, strict=True):
        if way is not None:
            for row in rows:
                texts[row] = way(texts[row], document_id(texts[row]))
    return with_texts(corpus, texts)


def with_texts(corpus: Corpus, texts: list[str]) -> Corpus:
    written = np.empty(len(corpus), dtype=object)
    written[:] = texts
    return replace(corpus, text=written)


# Deals whose clients rewrite their texts: who rewrites how, and how the budgets stay equal.
#
# A rewrite cannot keep the pool as it is, so two controls belong to every such regime (science: "bad data"
# against "different data"). ``equalize_words``: a client whose texts shrink gets more documents, so that all clients
# have about equally many words after rewriting. ``homogeneous``: the same rewrites spread over all clients alike,
# document by document, so that all clients have one distribution and the pool is changed just as much.
#
# The rewrites of a train deal are those of its clients: use them for their validation and test documents too.

RETENTION_SAMPLE = 300  # documents that are rewritten to learn how much texts shrink


@dataclass(frozen=True)
class BlendRewrite:
    """The homogeneous control: each document is rewritten by one of the variants, chosen by its id."""

    variants: tuple[Rewrite | None, ...]  # one entry a client: a variant is chosen as often as clients have it
    key: bytes

    def __call__(self, text: str, document: str) -> str:
        chosen = self.variants[int(stable_uniform(self.key, document, "variant") * len(self.variants))]
        return text if chosen is None else chosen(text, document)


def partition_with_rewrites(
    corpus: Corpus, variants: Sequence[Rewrite | None], rng: np.random.Generator, *, equalize_words: bool, homogeneous: bool, key: bytes
) -> Partition:
    """Every client the corpus in small; client k rewrites by ``variants[k]``, or all by a blend of them."""
    clients = len(variants)
    size = document_sizes(corpus, clients)
    group = corpus.label + 1  # documents without a label are a group of their own
    sample = rng.permutation(len(corpus))[:RETENTION_SAMPLE]
    rows = np.ones(clients)
    if equalize_words and not homogeneous:
        kept = {variant: retained_share(corpus, sample, variant) for variant in dict.fromkeys(variants)}
        rows = np.array([1 / kept[variant] for variant in variants])
    dealt = assign_documents(uniform_table(rows / rows.sum() * size.sum(), tokens_per_group(group, size)), group, size, rng)
    if all(variant is None for variant in variants):
        return dealt
    blend = BlendRewrite(tuple(variants), key)
    return replace(dealt, rewrites=(blend,) * clients if homogeneous else tuple(variants))


def retained_share(corpus: Corpus, sample: np.ndarray, variant: Rewrite | None) -> float:
    """Words after rewriting as a share of the words before, over the sample; at least 1/1000."""
    if variant is None:
        return 1.0
    before = sum(len(corpus.text[row].split()) for row in sample)
    after = sum(len(variant(corpus.text[row], document_id(corpus.text[row])).split()) for row in sample)
    return max(after / max(before, 1), 1e-3)
