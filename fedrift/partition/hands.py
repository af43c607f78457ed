"""Hands: the different ways in which the clients of a deal write, and texts as a hand writes them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..corpus.corpus import Corpus
from .partition import Partition, Rewrite, document_id


@dataclass(frozen=True, eq=False)
class Hands:
    """H hands, the first of which leaves texts as they are found; clients that rewrite alike have one hand."""

    ways: tuple[Rewrite | None, ...]  # [H]
    client: np.ndarray  # [N] int64: the hand of each client

    def __len__(self) -> int:
        return len(self.ways)


def hands(partition: Partition) -> Hands:
    """Who writes how in this deal."""
    rewrites = partition.rewrite or (None,) * len(partition)
    ways = tuple(dict.fromkeys((None, *rewrites)))
    number = {way: hand for hand, way in enumerate(ways)}
    return Hands(ways, np.array([number[rewrite] for rewrite in rewrites], dtype=np.int64))


def in_hand(corpus: Corpus, way: Rewrite | None) -> Corpus:
    """The corpus with every text written in one way; sizes stay those of the texts as found."""
    if way is None:
        return corpus
    return with_texts(corpus, [way(text, document_id(text)) for text in corpus.text])


def as_written(corpus: Corpus, partition: Partition) -> Corpus:
    """The corpus with every dealt text as its owner writes it; sizes stay those of the texts as found."""
    if not partition.rewrite:
        return corpus
    texts = list(corpus.text)
    for rows, way in zip(partition.rows, partition.rewrite, strict=True):
        if way is not None:
            for row in rows:
                texts[row] = way(texts[row], document_id(texts[row]))
    return with_texts(corpus, texts)


def with_texts(corpus: Corpus, texts: list[str]) -> Corpus:
    written = np.empty(len(corpus), dtype=object)
    written[:] = texts
    return replace(corpus, text=written)
