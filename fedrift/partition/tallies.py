"""What the clients of a partition hold, counted: texts as written, tokens by domain, words by client."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

from ..corpus.corpus import Corpus
from .partition import Partition, document_id


def written(dealt: Corpus, partition: Partition, owner: np.ndarray) -> list[str]:
    """The texts as their owners write them."""
    if not partition.rewrite:
        return list(dealt.text)
    rewrites = [partition.rewrite[client] for client in owner]
    return [
        text if r is None else r(text, document_id(text))
        for text, r in zip(dealt.text, rewrites, strict=True)
    ]


def label_table(corpus: Corpus, size: np.ndarray, owner: np.ndarray, clients: int) -> np.ndarray:
    """Tokens of each client and domain, [N, T]; documents without a label are left out."""
    table = np.zeros((clients, len(corpus.domains)))
    known = corpus.label >= 0
    np.add.at(table, (owner[known], corpus.label[known]), size[known])
    return table


def pooled(counts: csr_array, owner: np.ndarray, clients: int) -> csr_array:
    """Word counts of each client, [N, V]."""
    documents = np.arange(len(owner))
    return csr_array((np.ones(len(owner)), (owner, documents)), shape=(clients, len(owner))) @ counts
