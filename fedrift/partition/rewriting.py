"""Deals whose clients rewrite their texts: who rewrites how, and how the budgets stay equal.

A rewrite cannot keep the pool as it is, so two controls belong to every such regime (science: "bad data"
against "different data"). ``refill``: a client whose texts shrink gets more documents, so that all clients
have about equally many words after rewriting. ``everybody``: the same rewrites spread over all clients alike,
document by document, so that all clients have one distribution and the pool is changed just as much.

The rewrites of a train deal are those of its clients: use them for their validation and test documents too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..corpus.corpus import Corpus
from .margins import deal, even, totals
from .partition import Partition, Rewrite, document_id, weights
from .sites import site

SAMPLE = 300  # documents that are rewritten to learn how much texts shrink


@dataclass(frozen=True)
class Blend:
    """The homogeneous control: each document is rewritten by one of the variants, chosen by its id."""

    variants: tuple[
        Rewrite | None, ...
    ]  # one entry a client: a variant is chosen as often as clients have it
    key: bytes

    def __call__(self, text: str, document: str) -> str:
        chosen = self.variants[int(site(self.key, document, "variant") * len(self.variants))]
        return text if chosen is None else chosen(text, document)


def deal_rewriting(
    corpus: Corpus,
    variants: Sequence[Rewrite | None],
    rng: np.random.Generator,
    *,
    refill: bool,
    everybody: bool,
    key: bytes,
) -> Partition:
    """Every client the corpus in small; client k rewrites by ``variants[k]``, or all by a blend of them."""
    clients = len(variants)
    size = weights(corpus, clients)
    group = corpus.label + 1  # documents without a label are a group of their own
    sample = rng.permutation(len(corpus))[:SAMPLE]
    rows = np.ones(clients)
    if refill and not everybody:
        kept = {variant: shrinkage(corpus, sample, variant) for variant in dict.fromkeys(variants)}
        rows = np.array([1 / kept[variant] for variant in variants])
    dealt = deal(even(rows / rows.sum() * size.sum(), totals(group, size)), group, size, rng)
    if all(variant is None for variant in variants):
        return dealt
    blend = Blend(tuple(variants), key)
    return replace(dealt, rewrite=(blend,) * clients if everybody else tuple(variants))


def shrinkage(corpus: Corpus, sample: np.ndarray, variant: Rewrite | None) -> float:
    """Words after rewriting as a share of the words before, over the sample; at least 1/1000."""
    if variant is None:
        return 1.0
    before = sum(len(corpus.text[row].split()) for row in sample)
    after = sum(len(variant(corpus.text[row], document_id(corpus.text[row])).split()) for row in sample)
    return max(after / max(before, 1), 1e-3)
