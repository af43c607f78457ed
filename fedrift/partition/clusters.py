"""Topics for a corpus without labels: clusters of its documents' embeddings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from sklearn.cluster import KMeans

from ..corpus.corpus import Corpus
from ..errors import UserError


def by_cluster(corpus: Corpus, vectors: np.ndarray, count: int, rng: np.random.Generator) -> Corpus:
    """The same documents labelled by k-means on their ``vectors`` [D, E] of length one; ``count`` domains.

    Cluster 0 is the largest. Label the whole corpus, then take its splits: they share the clusters.
    Source: MacQueen 1967; seeding of Arthur & Vassilvitskii, "k-means++", SODA 2007.
    """
    if len(vectors) != len(corpus):
        raise ValueError(f"wanted one vector for each of {len(corpus)} documents, got {len(vectors)}")
    if not 1 < count <= len(corpus):
        raise UserError(
            f"corpus {corpus.name!r} of {len(corpus)} documents cannot be cut into {count} clusters: "
            f"ask for 2 to {len(corpus)}"
        )
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    found = KMeans(count, n_init=4, random_state=int(rng.integers(2**31))).fit_predict(vectors)
    by_size = np.argsort(-np.bincount(found, minlength=count), kind="stable")
    names = tuple(f"cluster{i:0{len(str(count - 1))}d}" for i in range(count))
    return replace(corpus, label=np.argsort(by_size)[found].astype(np.int64), domains=names)
