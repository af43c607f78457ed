"""Topics for a corpus without labels: clusters of its documents' embeddings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..errors import UserError
from .corpus import TRAIN, Corpus


def by_cluster(corpus: Corpus, vectors: np.ndarray, count: int, rng: np.random.Generator) -> Corpus:
    """The same documents labelled by k-means on their ``vectors`` [D, E] of length one; ``count`` domains.

    Centres are found in the training documents; all documents, of whatever split, go to the nearest one. Cluster 0
    is the largest. Source: MacQueen 1967; seeding of Arthur & Vassilvitskii, "k-means++", SODA 2007.
    """
    if len(vectors) != len(corpus):
        raise ValueError(f"wanted one vector for each of {len(corpus)} documents, got {len(vectors)}")
    train = corpus.split == TRAIN
    if not 1 < count <= train.sum():
        raise UserError(
            f"corpus {corpus.name!r} of {train.sum()} training documents cannot be cut into {count} clusters: "
            f"ask for 2 to {train.sum()}"
        )
    from sklearn.cluster import KMeans  # a second that no other corpus needs to wait for

    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    means = KMeans(count, n_init=4, random_state=int(rng.integers(2**31))).fit(vectors[train])
    found = means.predict(vectors)
    by_size = np.argsort(-np.bincount(found, minlength=count), kind="stable")
    names = tuple(f"cluster{i:0{len(str(count - 1))}d}" for i in range(count))
    return replace(corpus, label=np.argsort(by_size)[found].astype(np.int64), domains=names)
