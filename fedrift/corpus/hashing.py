"""Hashed words, randomly projected: an encoder that needs no weights, learns nothing and shares no data.

Words fall into 2^14 buckets by a hash (Weinberger, Dasgupta, Langford, Smola & Attenberg, "Feature Hashing for Large
Scale Multitask Learning", ICML 2009, arXiv:0902.2206), count 1 + log of how often they stand in the document, and are projected
to 64 numbers by a Gaussian matrix that everybody draws from the same seed (Johnson & Lindenstrauss 1984). There is no inverse
document frequency: it would have to be told from all clients' documents together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..seeds import numpy_stream

BUCKETS, DIMENSIONS = 2**14, 64


def hashing(texts: Sequence[str]) -> np.ndarray:
    """The texts, each by itself, [D, 64]."""
    from sklearn.feature_extraction.text import HashingVectorizer

    count = HashingVectorizer(n_features=BUCKETS, stop_words="english", alternate_sign=True, norm=None,
                              token_pattern=r"(?u)[^\W\d_][^\W_]+").transform(texts)
    count.data = np.sign(count.data) * (1 + np.log(np.maximum(np.abs(count.data), 1)))
    project = numpy_stream(0, "hashing").standard_normal((BUCKETS, DIMENSIONS)) / np.sqrt(DIMENSIONS)
    return np.asarray(count @ project)


__all__ = ["hashing"]
