"""What a client tells of its text so that others like it can be found: the mean embedding of some of its training documents.

mu_k = mean over n <= 200 training documents of phi(document), phi a frozen encoder with |phi| = 1. Sent once, it costs four
bytes a dimension. With a budget epsilon, Gaussian noise of sigma = 2 sqrt(2 ln(1.25 / delta)) / (n epsilon) is added:
replacing one document moves a mean of n unit vectors by 2 / n at most (Dwork & Roth, "The Algorithmic Foundations of
Differential Privacy", 2014, theorem A.1, proved for epsilon < 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log, sqrt

import numpy as np

from ..core.errors import UserError
from ..core.random import derive_seed, numpy_stream
from .base import ClientInfo


@dataclass(frozen=True, eq=False)
class ClientEmbeddings:
    """N clients' documents as vectors, and what is added to their means. The server sees ``means`` and nothing else."""

    document_embeddings: tuple[np.ndarray, ...]  # N of [D, E], of length one
    noise_std: np.ndarray  # [N] noise on each client's mean; 0: none
    noise: np.ndarray  # [N, E]

    @property
    def means(self) -> np.ndarray:
        """[N, E]; zeros, but for the noise, of a client without documents."""
        return mean_embeddings(self.document_embeddings) + self.noise

    @property
    def num_bytes(self) -> int:
        """What each client sends, once: a float32 a dimension."""
        return 4 * self.noise.shape[1]


def mean_embeddings(document_embeddings: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of each client's vectors, [N, E]."""
    return np.stack([own.mean(axis=0) if len(own) else np.zeros(own.shape[1]) for own in document_embeddings]).astype(np.float64)


def embed_clients(
    client_info: ClientInfo, encoder: str, max_documents: int, epsilon: float | None = None, delta: float = 1e-5
) -> ClientEmbeddings:
    """The descriptors of all clients, from at most ``max_documents`` of each."""
    texts = []
    for client in range(client_info.num_clients):
        own = list(client_info.documents(client))
        picks = numpy_stream(client_info.seed, "descriptor", client).permutation(len(own))[:max_documents]
        texts.append([own[pick] for pick in np.sort(picks)])
    if not any(texts):
        raise UserError("no client has a document: there is nothing to describe them by")
    all_of_them = np.asarray(client_info.embed([text for own in texts for text in own], encoder), dtype=np.float64)
    vectors = tuple(np.split(all_of_them, np.cumsum([len(own) for own in texts])[:-1]))
    return add_privacy_noise(vectors, client_info.seed, epsilon, delta)


def add_privacy_noise(
    document_embeddings: tuple[np.ndarray, ...], seed: int, epsilon: float | None, delta: float = 1e-5
) -> ClientEmbeddings:
    """The descriptors with the noise of a privacy budget, if there is one."""
    width = document_embeddings[0].shape[1]
    sigma = np.array([gaussian_noise_std(len(own), epsilon, delta) if epsilon else 0.0 for own in document_embeddings])
    noise = np.stack(
        [spread * numpy_stream(seed, "descriptor noise", client).standard_normal(width) for client, spread in enumerate(sigma)]
    )
    return ClientEmbeddings(document_embeddings, sigma, noise)


def document_identification_rate(document_embeddings: Sequence[np.ndarray], seed: int) -> float:
    """How often a document is nearest to its own client's mean, told from halves of the documents: each half's documents from
    the means of the other, every client counting the same. 1/N is chance; clients that are alike share what there is.

    NaN where no client has two documents.
    """
    halves = []
    for client, own in enumerate(document_embeddings):
        mixed = numpy_stream(seed, "halves of documents", client).permutation(len(own))
        halves.append((own[mixed[: len(own) // 2]], own[mixed[len(own) // 2 :]]))
    there = [client for client, (one, other) in enumerate(halves) if len(one) and len(other)]
    right = []
    for side in (0, 1) if there else ():
        centres = mean_embeddings([halves[client][1 - side] for client in there])
        for place, client in enumerate(there):
            apart = ((halves[client][side][:, None] - centres[None]) ** 2).sum(axis=-1)
            right.append(float((apart.argmin(axis=1) == place).mean()))
    return float(np.mean(right)) if right else float("nan")


def gaussian_noise_std(num_documents: int, epsilon: float, delta: float) -> float:
    """Standard deviation of the noise on each number of a mean of unit vectors."""
    return 2 * sqrt(2 * log(1.25 / delta)) / (max(num_documents, 1) * epsilon)


def privacy_statement(embeddings: ClientEmbeddings, epsilon: float | None, delta: float) -> str:
    """What a descriptor gives away, in words."""
    count = [len(own) for own in embeddings.document_embeddings]
    if epsilon is None:
        return (
            f"Each client sends the mean embedding of {min(count)} to {max(count)} training documents, {embeddings.num_bytes} "
            "bytes, once, without noise: it tells what the client writes about, and has no privacy guarantee."
        )
    proved = "" if epsilon < 1 else " The proof of this noise holds for epsilon < 1 only: read the number as the noise's scale."
    return (
        f"Each client's descriptor is ({epsilon:g}, {delta:g})-differentially private with respect to replacing one document "
        f"(Gaussian noise of sigma {embeddings.noise_std.min():.3g} to {embeddings.noise_std.max():.3g} on each of "
        f"{embeddings.noise.shape[1]} numbers), sent once. The choice of the number of groups and its stability are told from the "
        f"documents, which only a simulation sees, with the same noise on every resample; they are outside the guarantee.{proved}"
    )


# How many groups, and which: k-means on clients' mean embeddings, with one group admitted first.
#
# 1. Permutation of documents over clients: is the scatter of the means, sum_k |mu_k - mu|^2, larger than 99 times out of 99
# when the same documents are dealt at random? If not (p > .01), k = 1: there is nothing to group by.
# 2. Else k in 2..min(8, N - 1) by the largest silhouette (Rousseeuw, J. Comp. Appl. Math. 20, 1987) among the solutions in
# which every group has two clients or more; k = 1 if it is not above .25.
# 3. Stability: 30 bootstraps of the documents within clients, mean pairwise adjusted Rand index of the groups; below .6 the
# verdict is "unstable" (Ben-Hur, Elisseeff & Guyon, PSB 2002; Hennig, CSDA 52, 2007).
#
# The gap statistic is not used: over so few points it finds one group where there are four. Clients are sorted by their numbers
# first, so that the groups do not depend on the order in which clients come.

NUM_PERMUTATIONS, NUM_BOOTSTRAPS, KMEANS_RESTARTS = 99, 30, 20
SIGNIFICANCE_LEVEL, MIN_CLUSTER_SIZE, MAX_CLUSTERS, MIN_SILHOUETTE, MIN_STABILITY = 0.01, 2, 8, 0.25, 0.6


@dataclass(frozen=True, eq=False)
class ClusteringResult:
    """The groups that were found, and the evidence for them. Missing is NaN."""

    cluster_ids: np.ndarray  # [N]
    centroids: np.ndarray  # [k, E]
    p_value: float = float("nan")
    silhouettes: dict[int, float] = field(default_factory=dict)  # by k
    stability: float = float("nan")
    estimated_k: int = 1  # how many there are by the rules above, whatever was asked for

    @property
    def k(self) -> int:
        return len(self.centroids)

    @property
    def verdict(self) -> str:
        """In two words."""
        if self.k == 1:
            return "one group"
        return "stable" if self.stability >= MIN_STABILITY else "unstable"


def cluster_clients(embeddings: ClientEmbeddings, seed: int, k: int | None = None) -> ClusteringResult:
    """The groups of N clients; ``k`` says how many, or they are counted."""
    points = embeddings.means
    order = np.lexsort(points.T[::-1])
    vectors = [embeddings.document_embeddings[client] for client in order]
    sigma, sorted_points = embeddings.noise_std[order], points[order]
    p_value = permutation_test(vectors, sorted_points, sigma, seed)
    counted, silhouettes = choose_k(sorted_points, p_value, seed)
    k = counted if k is None else k
    if k > len(points):
        raise ValueError(f"{len(points)} clients cannot be cut into {k} groups")
    labels, centroids = kmeans(sorted_points, k, seed)
    group = np.empty(len(points), dtype=np.int64)
    group[order] = labels
    stability = bootstrap_stability(vectors, sigma, k, seed) if 1 < k < len(points) else float("nan")
    return ClusteringResult(group, centroids, p_value, silhouettes, stability, counted)


def permutation_test(document_embeddings: Sequence[np.ndarray], points: np.ndarray, noise_std: np.ndarray, seed: int) -> float:
    """Share of random deals of the documents whose means scatter at least as far, counting the one there is."""
    pooled, sizes = np.concatenate(document_embeddings), np.array([len(own) for own in document_embeddings])
    owner, there = np.repeat(np.arange(len(sizes)), sizes), sizes > 0
    draw = numpy_stream(seed, "permutations of documents")
    one_hot = np.zeros((len(sizes), len(pooled)))
    one_hot[owner, np.arange(len(pooled))] = 1 / sizes[owner]

    def scatter(rows: np.ndarray) -> float:
        rows = rows[there]
        return float(((rows - rows.mean(axis=0)) ** 2).sum())

    here, above = scatter(points), 0
    for _ in range(NUM_PERMUTATIONS):
        dealt = one_hot[:, draw.permutation(len(pooled))] @ pooled
        if noise_std.any():
            dealt = dealt + noise_std[:, None] * draw.standard_normal(dealt.shape)
        above += scatter(dealt) >= here * (1 - 1e-12)
    return (1 + above) / (1 + NUM_PERMUTATIONS)


def choose_k(points: np.ndarray, p_value: float, seed: int) -> tuple[int, dict[int, float]]:
    """k, and the silhouette of every k that was in question."""
    if p_value > SIGNIFICANCE_LEVEL:
        return 1, {}
    return best_silhouette_k({k: kmeans(points, k, seed)[0] for k in candidate_ks(len(points))}, pairwise_distances(points))


def candidate_ks(num_clients: int) -> range:
    return range(2, min(MAX_CLUSTERS, num_clients - 1) + 1)


def best_silhouette_k(solutions: dict[int, np.ndarray], distance_matrix: np.ndarray) -> tuple[int, dict[int, float]]:
    """The k whose groups stand apart most clearly, 1 if none does; ``distance_matrix [N, N]``."""
    from sklearn.metrics import silhouette_score

    found = {}
    for k, labels in solutions.items():
        held = np.bincount(labels, minlength=k)
        if held.min() >= MIN_CLUSTER_SIZE:
            found[k] = float(silhouette_score(distance_matrix, labels, metric="precomputed"))
    best = max(found, key=lambda k: found[k], default=1)
    return (best if best > 1 and found[best] > MIN_SILHOUETTE else 1), found


def pairwise_distances(points: np.ndarray) -> np.ndarray:
    """Euclidean, [N, N]."""
    return np.asarray(np.linalg.norm(points[:, None] - points[None], axis=-1))


def kmeans(points: np.ndarray, k: int, seed: int, num_init: int = KMEANS_RESTARTS) -> tuple[np.ndarray, np.ndarray]:
    """Lloyd's k-means from the best of some starts by k-means++: labels [N], centroids [k, E]; group 0 has the most."""
    if k == 1:
        return np.zeros(len(points), dtype=np.int64), points.mean(axis=0, keepdims=True)
    from sklearn.cluster import KMeans

    fitted = KMeans(k, n_init=num_init, random_state=derive_seed(seed, "k-means", k) % 2**31).fit(points)
    by_size = np.argsort(-np.bincount(fitted.labels_, minlength=k), kind="stable")
    return np.argsort(by_size)[fitted.labels_].astype(np.int64), fitted.cluster_centers_[by_size]


def bootstrap_stability(
    document_embeddings: Sequence[np.ndarray], noise_std: np.ndarray, k: int, seed: int, num_bootstraps: int = NUM_BOOTSTRAPS
) -> float:
    """Mean pairwise adjusted Rand index of the groups of resampled documents."""
    draw, labels = numpy_stream(seed, "bootstraps of documents"), []
    for _ in range(num_bootstraps):
        points = mean_embeddings([own[draw.integers(len(own), size=len(own))] if len(own) else own for own in document_embeddings])
        points = points + noise_std[:, None] * draw.standard_normal(points.shape)
        labels.append(kmeans(points, k, seed, num_init=KMEANS_RESTARTS // 4)[0])
    return mean_adjusted_rand_index(np.stack(labels))


def mean_adjusted_rand_index(labels: np.ndarray) -> float:
    """Mean adjusted Rand index over all pairs of groupings, ``labels [rounds, N]`` (Hubert & Arabie 1985, all pairs at once)."""
    one, two = np.triu_indices(labels.shape[1], 1)
    same = (labels[:, one] == labels[:, two]).astype(np.float64)  # [rounds, pairs of clients]
    both, each = same @ same.T, same.sum(axis=1)  # clients together in both, in each
    by_chance = np.outer(each, each) / same.shape[1]
    most = (each[:, None] + each[None]) / 2
    index = np.where(most == by_chance, 1.0, (both - by_chance) / np.where(most == by_chance, 1.0, most - by_chance))
    return float(index[np.triu_indices(len(labels), 1)].mean())


__all__ = [
    "ClientEmbeddings",
    "ClusteringResult",
    "add_privacy_noise",
    "best_silhouette_k",
    "bootstrap_stability",
    "cluster_clients",
    "document_identification_rate",
    "embed_clients",
    "gaussian_noise_std",
    "kmeans",
    "mean_adjusted_rand_index",
    "mean_embeddings",
    "pairwise_distances",
    "permutation_test",
    "privacy_statement",
]
