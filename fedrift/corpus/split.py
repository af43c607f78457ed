"""Which document goes into which split, and which stay when there are too many."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..seeds import numpy_stream
from .clean import Document
from .corpus import TEST, TRAIN, VALIDATION


def dealt(documents: Sequence[Document], *, validation: float, test: float, seed: int) -> np.ndarray:
    """The split of every document, [D] int8.

    Splits that the data has are kept. A missing one is carved out of train: the given share of its
    documents, by label in proportion, at least one where there are enough to leave one for training.
    """
    split = np.array([d.split for d in documents], dtype=np.int8)
    rows = np.flatnonzero(split == TRAIN)
    wanted = [
        (part, share)
        for part, share in ((TEST, test), (VALIDATION, validation))
        if share > 0 and not (split == part).any()
    ]
    if len(rows) <= len(wanted):
        return split
    order = rows[
        in_proportion(
            [d.label or "" for d in documents if d.split == TRAIN], numpy_stream(seed, "corpus", "split")
        )
    ]
    start = 0
    for still, (part, share) in zip(range(len(wanted), 0, -1), wanted, strict=True):
        count = min(max(1, round(share * len(rows))), len(rows) - start - still)
        split[order[start : start + count]] = part
        start += count
    return split


def limited(documents: Sequence[Document], limit: int, seed: int) -> list[Document]:
    """At most ``limit`` documents, splits and labels in proportion; a larger limit keeps a smaller one's."""
    if len(documents) <= limit:
        return list(documents)
    order = in_proportion(
        [f"{d.split} {d.label or ''}" for d in documents], numpy_stream(seed, "corpus", "limit")
    )
    return [documents[row] for row in np.sort(order[:limit])]


def in_proportion(strata: Sequence[str], rng: np.random.Generator) -> np.ndarray:
    """An order of the rows, [D], every beginning of which holds each stratum in about its share.

    Row r of a stratum of n stands at (r + u) / n of the way, with one u in [0, 1) for each stratum.
    """
    _, stratum = np.unique(np.asarray(strata), return_inverse=True)
    sizes = np.bincount(stratum)
    order = rng.permutation(len(stratum))
    by_stratum = np.argsort(stratum[order], kind="stable")
    rank = np.empty(len(order), dtype=np.int64)
    rank[by_stratum] = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    way = (rank + rng.random(len(sizes))[stratum[order]]) / sizes[stratum[order]]
    return order[np.argsort(way, kind="stable")]
