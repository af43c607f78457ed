"""The heterogeneity report: how non-IID a partition is, each number beside what chance alone would give."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.sparse import csr_array

from ..corpus.corpus import Corpus
from . import divergence as apart
from .embeddings import SAMPLE, distances, principal
from .function_words import FUNCTION_WORDS, is_content
from .heterogeneity import Heterogeneity, Measured
from .identification import identification
from .margins import cut
from .partition import Partition
from .tallies import label_table, pooled, written
from .words import Words, count_words

RESPLITS = 20  # IID re-splits behind a null band
LEADING = 10_000  # most frequent words: all that pairwise divergence and identification look at
ASKED = 20_000  # documents that identification looks at
CHARACTERISTIC = 10  # words to show of each client
LENGTHS = 10  # quantiles of document length


def measure(
    corpus: Corpus,
    partition: Partition,
    rng: np.random.Generator,
    *,
    vectors: np.ndarray | None = None,
    resplits: int = RESPLITS,
) -> Heterogeneity:
    """Measure a partition of ``corpus``, with ``vectors`` [D, E] if its documents have embeddings; NaN: it has none.

    The null of a number are ``resplits`` random deals of the same documents, as their owners write them, in
    the same budgets. Documents that the partition leaves out count for nothing. Budgets are in the corpus's
    own unit, but in words as written where clients rewrite.
    """
    clients = len(partition)
    rows = np.sort(np.concatenate(partition.rows))
    owner = partition.owner(len(corpus))[rows]
    dealt = corpus.take(rows)
    words = count_words(written(dealt, partition, owner))
    size = words.counts.sum(axis=1) if partition.rewrite else dealt.size.astype(np.float64)
    size = np.maximum(size, 1.0)
    known = slice(None) if vectors is None else np.isfinite(vectors[rows, 0])
    ask = np.minimum(np.bincount(owner[known], minlength=clients), SAMPLE)
    found_words = count_words(dealt.text) if partition.rewrite else words
    look = _measures(dealt, size, words, found_words, ask, None if vectors is None else vectors[rows])

    budgets = np.bincount(owner, weights=size, minlength=clients)
    found = look(owner, rng)
    nulls = []
    for _ in range(resplits):
        mixed = rng.permutation(len(rows))
        chance = np.empty_like(owner)
        chance[mixed] = cut(size[mixed], budgets)
        nulls.append(look(chance, rng))
    numbers = [Measured("budget.variation", float(budgets.std() / budgets.mean()))]
    for name, value in found.items():
        null = np.array([each[name] for each in nulls])
        numbers.append(
            Measured(name, value, float(null.mean()), float(null.std(ddof=1)))
            if len(null) > 1
            else Measured(name, value)
        )
    counts = pooled(words.counts, owner, clients)
    return Heterogeneity(
        numbers=tuple(numbers),
        clients=clients,
        domains=corpus.domains,
        table=label_table(dealt, size, owner, clients),
        budgets=budgets,
        documents=np.bincount(owner, minlength=clients),
        words=counts.sum(axis=1).astype(np.int64),
        pairwise=apart.pairwise_jsd(counts[:, leading(words)].toarray() + 1e-12),
        characteristic=characteristic(counts, words.vocabulary),
    )


Look = Callable[[np.ndarray, np.random.Generator], dict[str, float]]


def _measures(
    dealt: Corpus, size: np.ndarray, words: Words, as_found: Words, ask: np.ndarray, vectors: np.ndarray | None
) -> Look:
    """The numbers of a deal, as a function of who owns which document, [D]."""
    clients = len(ask)
    asked = np.arange(len(size))[:: max(1, -(-len(size) // ASKED))]
    few = words.counts[asked][:, leading(words)]
    content = as_found.counts[asked][:, [v for v in leading(as_found) if is_content(as_found.vocabulary[v])]]
    manner = words.counts[asked][:, [v for v in leading(words) if words.vocabulary[v] in FUNCTION_WORDS]]
    longer = np.minimum((np.argsort(np.argsort(size, kind="stable")) * LENGTHS) // len(size), LENGTHS - 1)
    there = np.flatnonzero(np.isfinite(vectors[:, 0])) if vectors is not None else np.empty(0, dtype=np.int64)
    axes = None if vectors is None or not len(there) else principal(vectors[there], vectors.shape[1])

    def look(owner: np.ndarray, rng: np.random.Generator) -> dict[str, float]:
        counts = pooled(words.counts, owner, clients)
        found = {"token.jsd": apart.generalised_jsd(counts)}
        if (dealt.label >= 0).any():
            table = label_table(dealt, size, owner, clients)
            share = table.sum(axis=1) / table.sum()
            found["label.jsd"] = apart.normalised_jsd(table)
            found["label.distance"] = float(np.nansum(share * apart.total_variation(table)))
        lengths = np.zeros((clients, LENGTHS))
        np.add.at(lengths, (owner, longer), size)
        found["length.jsd"] = apart.normalised_jsd(lengths)
        if clients > 1:
            found["vocabulary.jaccard"] = float(apart.off_diagonal(apart.jaccard(counts)).mean())
            found["vocabulary.coverage"] = float(apart.off_diagonal(apart.coverage(counts)).mean())
            found["identification"] = identification(few, owner[asked], clients, rng)
            for name, some in (("content", content), ("manner", manner)):
                if some.shape[1]:
                    found[f"identification.{name}"] = identification(some, owner[asked], clients, rng)
            if axes is not None:
                found |= distances(axes, owner[there], ask, rng)
        return found

    return look


def leading(words: Words) -> np.ndarray:
    """The most frequent words, at most ``LEADING`` of them."""
    return np.sort(np.argsort(-words.total, kind="stable")[:LEADING])


def characteristic(counts: csr_array, vocabulary: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """The words that tell most of each client: the largest terms of its divergence from the pool.

    The term of word v is q_k(v) log2(q_k(v) / p(v)).
    """
    pool = np.asarray(counts.sum(axis=0)) / max(float(counts.sum()), 1.0)
    found = []
    for client in range(counts.shape[0]):
        start, end = counts.indptr[client : client + 2]
        number, count = counts.indices[start:end], counts.data[start:end]
        own = count / max(count.sum(), 1.0)
        best = np.argsort(-own * np.log2(own / pool[number]), kind="stable")[:CHARACTERISTIC]
        found.append(tuple(vocabulary[v] for v in number[best]))
    return tuple(found)
