"""How many groups, and which: k-means on clients' mean embeddings, with one group admitted first.

1. Permutation of documents over clients: is the scatter of the means, sum_k |mu_k - mu|^2, larger than 99 times out of 99
   when the same documents are dealt at random? If not (p > .01), k = 1: there is nothing to group by.
2. Else k in 2..min(8, N - 1) by the largest silhouette (Rousseeuw, J. Comp. Appl. Math. 20, 1987) among the solutions in
   which every group has two clients or more; k = 1 if it is not above .25.
3. Stability: 30 bootstraps of the documents within clients, mean pairwise adjusted Rand index of the groups; below .6 the
   verdict is "unstable" (Ben-Hur, Elisseeff & Guyon, PSB 2002; Hennig, CSDA 52, 2007).

The gap statistic is not used: over so few points it finds one group where there are four. Clients are sorted by their numbers
first, so that the groups do not depend on the order in which clients come.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..seeds import number, numpy_stream
from .descriptor import Descriptors, means

PERMUTATIONS, BOOTSTRAPS, RESTARTS = 99, 30, 20
LEVEL, LEAST, MOST, CONVINCING, STABLE = 0.01, 2, 8, 0.25, 0.6


@dataclass(frozen=True, eq=False)
class Choice:
    """The groups that were found, and the evidence for them. Missing is NaN."""

    group: np.ndarray  # [N]
    centroids: np.ndarray  # [k, E]
    p_value: float = float("nan")
    silhouettes: dict[int, float] = field(default_factory=dict)  # by k
    stability: float = float("nan")
    counted: int = 1  # how many there are by the rules above, whatever was asked for

    @property
    def k(self) -> int:
        return len(self.centroids)

    @property
    def verdict(self) -> str:
        """In two words."""
        if self.k == 1:
            return "one group"
        return "stable" if self.stability >= STABLE else "unstable"


def choose(found: Descriptors, seed: int, k: int | None = None) -> Choice:
    """The groups of N clients; ``k`` says how many, or they are counted."""
    points = found.means
    order = np.lexsort(points.T[::-1])
    vectors = [found.vectors[client] for client in order]
    sigma, sorted_points = found.sigma[order], points[order]
    p_value = permutation_test(vectors, sorted_points, sigma, seed)
    counted, silhouettes = count(sorted_points, p_value, seed)
    k = counted if k is None else k
    if k > len(points):
        raise ValueError(f"{len(points)} clients cannot be cut into {k} groups")
    labels, centroids = k_means(sorted_points, k, seed)
    group = np.empty(len(points), dtype=np.int64)
    group[order] = labels
    stability = bootstrap(vectors, sigma, k, seed) if 1 < k < len(points) else float("nan")
    return Choice(group, centroids, p_value, silhouettes, stability, counted)


def permutation_test(vectors: Sequence[np.ndarray], points: np.ndarray, sigma: np.ndarray, seed: int) -> float:
    """Share of random deals of the documents whose means scatter at least as far, counting the one there is."""
    pooled, sizes = np.concatenate(vectors), np.array([len(own) for own in vectors])
    owner, there = np.repeat(np.arange(len(sizes)), sizes), sizes > 0
    draw = numpy_stream(seed, "permutations of documents")
    one_hot = np.zeros((len(sizes), len(pooled)))
    one_hot[owner, np.arange(len(pooled))] = 1 / sizes[owner]

    def scatter(rows: np.ndarray) -> float:
        rows = rows[there]
        return float(((rows - rows.mean(axis=0)) ** 2).sum())

    here, above = scatter(points), 0
    for _ in range(PERMUTATIONS):
        dealt = one_hot[:, draw.permutation(len(pooled))] @ pooled
        if sigma.any():
            dealt = dealt + sigma[:, None] * draw.standard_normal(dealt.shape)
        above += scatter(dealt) >= here * (1 - 1e-12)
    return (1 + above) / (1 + PERMUTATIONS)


def count(points: np.ndarray, p_value: float, seed: int) -> tuple[int, dict[int, float]]:
    """k, and the silhouette of every k that was in question."""
    if p_value > LEVEL:
        return 1, {}
    return most_silhouette({k: k_means(points, k, seed)[0] for k in candidates(len(points))}, distances(points))


def candidates(size: int) -> range:
    return range(2, min(MOST, size - 1) + 1)


def most_silhouette(solutions: dict[int, np.ndarray], apart: np.ndarray) -> tuple[int, dict[int, float]]:
    """The k whose groups stand apart most clearly, 1 if none does; ``apart [N, N]`` are distances."""
    from sklearn.metrics import silhouette_score

    found = {}
    for k, labels in solutions.items():
        held = np.bincount(labels, minlength=k)
        if held.min() >= LEAST:
            found[k] = float(silhouette_score(apart, labels, metric="precomputed"))
    best = max(found, key=lambda k: found[k], default=1)
    return (best if best > 1 and found[best] > CONVINCING else 1), found


def distances(points: np.ndarray) -> np.ndarray:
    """Euclidean, [N, N]."""
    return np.asarray(np.linalg.norm(points[:, None] - points[None], axis=-1))


def k_means(points: np.ndarray, k: int, seed: int, starts: int = RESTARTS) -> tuple[np.ndarray, np.ndarray]:
    """Lloyd's k-means from the best of some starts by k-means++: labels [N], centroids [k, E]; group 0 has the most."""
    if k == 1:
        return np.zeros(len(points), dtype=np.int64), points.mean(axis=0, keepdims=True)
    from sklearn.cluster import KMeans

    fitted = KMeans(k, n_init=starts, random_state=number(seed, "k-means", k) % 2**31).fit(points)
    by_size = np.argsort(-np.bincount(fitted.labels_, minlength=k), kind="stable")
    return np.argsort(by_size)[fitted.labels_].astype(np.int64), fitted.cluster_centers_[by_size]


def bootstrap(vectors: Sequence[np.ndarray], sigma: np.ndarray, k: int, seed: int, rounds: int = BOOTSTRAPS) -> float:
    """Mean pairwise adjusted Rand index of the groups of resampled documents."""
    draw, labels = numpy_stream(seed, "bootstraps of documents"), []
    for _ in range(rounds):
        points = means([own[draw.integers(len(own), size=len(own))] if len(own) else own for own in vectors])
        points = points + sigma[:, None] * draw.standard_normal(points.shape)
        labels.append(k_means(points, k, seed, starts=RESTARTS // 4)[0])
    return agreement(np.stack(labels))


def agreement(labels: np.ndarray) -> float:
    """Mean adjusted Rand index over all pairs of groupings, ``labels [rounds, N]`` (Hubert & Arabie 1985, all pairs at once)."""
    one, two = np.triu_indices(labels.shape[1], 1)
    same = (labels[:, one] == labels[:, two]).astype(np.float64)  # [rounds, pairs of clients]
    both, each = same @ same.T, same.sum(axis=1)  # clients together in both, in each
    by_chance = np.outer(each, each) / same.shape[1]
    most = (each[:, None] + each[None]) / 2
    index = np.where(most == by_chance, 1.0, (both - by_chance) / np.where(most == by_chance, 1.0, most - by_chance))
    return float(index[np.triu_indices(len(labels), 1)].mean())


__all__ = ["Choice", "agreement", "bootstrap", "choose", "distances", "k_means", "most_silhouette", "permutation_test"]
