"""Can one tell from a document whose it is? The plainest measure of heterogeneity, whatever its kind."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array
from sklearn.naive_bayes import MultinomialNB


def identification(counts: csr_array, owner: np.ndarray, clients: int, rng: np.random.Generator) -> float:
    """Balanced accuracy of naive Bayes on bags of words [D, V], trained on half of them; 1/N is chance.

    Clients are weighed alike, by training with an even prior and averaging each client's own accuracy. NaN
    where no client has documents in both halves.
    """
    half = rng.permutation(len(owner)) % 2 == 0
    model = MultinomialNB(fit_prior=False).fit(counts[half], owner[half])
    right = model.predict(counts[~half]) == owner[~half]
    asked = np.bincount(owner[~half], minlength=clients)
    correct = np.bincount(owner[~half], weights=right, minlength=clients)
    known = (asked > 0) & (np.bincount(owner[half], minlength=clients) > 0)
    return float((correct[known] / asked[known]).mean()) if known.any() else float("nan")
