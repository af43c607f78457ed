"""Clustering of clients by the mean embedding of their training documents: the embeddings, their privacy noise and k-means.

A client's embedding is mu_k = mean over n <= 200 training documents of phi(document), where phi is a frozen encoder with |phi| = 1. It
is sent once, at four bytes per dimension. With a privacy budget epsilon, Gaussian noise of sigma = 2 sqrt(2 ln(1.25 / delta)) /
(n epsilon) is added, because replacing one document moves a mean of n unit vectors by 2 / n at most (Dwork & Roth, "The Algorithmic
Foundations of Differential Privacy", 2014, theorem A.1, proved for epsilon < 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from math import log, sqrt

import numpy as np

from ..core.cache import BoundedCache
from ..core.errors import UserError
from ..core.random import derive_seed, numpy_stream
from .base import ClientInfo


@dataclass(frozen=True, eq=False)
class ClientEmbeddings:
    """Document embeddings of N clients and the privacy noise on their means. The server receives only ``means``."""

    document_embeddings: tuple[np.ndarray, ...]  # unit-length embeddings of each client's documents, N arrays of shape [D, E]
    noise_std: np.ndarray  # standard deviation of the noise on each client's mean, [N]; 0 means no noise
    noise: np.ndarray  # the noise, [N, E]

    @property
    def means(self) -> np.ndarray:
        """Return each client's mean embedding plus noise, [N, E]; the mean is 0 for a client without documents."""
        return mean_embeddings(self.document_embeddings) + self.noise

    @property
    def num_bytes(self) -> int:
        """Return the number of bytes that each client sends once: a float32 per dimension."""
        return 4 * self.noise.shape[1]


def mean_embeddings(document_embeddings: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean of each client's vectors, [N, E]."""
    return np.stack([own.mean(axis=0) if len(own) else np.zeros(own.shape[1]) for own in document_embeddings]).astype(np.float64)


def embed_clients(
    client_info: ClientInfo, encoder: str, max_documents: int, epsilon: float | None = None, delta: float = 1e-5
) -> ClientEmbeddings:
    """Embed the clients' documents.

    Args:
        client_info: Information about the clients, with their documents and the encoder.
        encoder: Name of the encoder.
        max_documents: Largest number of documents per client; they are drawn randomly.
        epsilon: Privacy budget; None adds no noise.
        delta: Failure probability of the privacy guarantee.

    Raises:
        UserError: No client has a document.
    """
    texts = []
    for client in range(client_info.num_clients):
        documents = list(client_info.documents(client))
        chosen = numpy_stream(client_info.seed, "descriptor", client).permutation(len(documents))[:max_documents]
        texts.append([documents[row] for row in np.sort(chosen)])
    if not any(texts):
        raise UserError("no client has a document, so clients cannot be clustered by their documents. Check the dataset and the partition.")
    embeddings = np.asarray(client_info.embed([text for documents in texts for text in documents], encoder), dtype=np.float64)
    document_embeddings = tuple(np.split(embeddings, np.cumsum([len(documents) for documents in texts])[:-1]))
    return add_privacy_noise(document_embeddings, client_info.seed, epsilon, delta)


def add_privacy_noise(
    document_embeddings: tuple[np.ndarray, ...], seed: int, epsilon: float | None, delta: float = 1e-5
) -> ClientEmbeddings:
    """Return the embeddings with the noise of a privacy budget.

    Args:
        document_embeddings: Unit-length embeddings of each client's documents, N arrays of shape [D, E].
        seed: Seed of the noise.
        epsilon: Privacy budget; None adds no noise.
        delta: Failure probability of the privacy guarantee.
    """
    num_dimensions = document_embeddings[0].shape[1]
    sigma = np.array([gaussian_noise_std(len(embeddings), epsilon, delta) if epsilon else 0.0 for embeddings in document_embeddings])
    noise = np.stack(
        [std * numpy_stream(seed, "descriptor noise", client).standard_normal(num_dimensions) for client, std in enumerate(sigma)]
    )
    return ClientEmbeddings(document_embeddings, sigma, noise)


def document_identification_rate(document_embeddings: Sequence[np.ndarray], seed: int) -> float:
    """Return how often a document's embedding is closest to its own client's mean.

    Each client's documents are split into two random halves, and the documents of one half are compared with the means of the other half.
    Each client has equal weight. Chance level is 1/N, and m clients with equal distributions reach at most about 1/m.

    Args:
        document_embeddings: Embeddings of each client's documents, N arrays of shape [D, E].
        seed: Seed of the split.

    Returns:
        The rate in [0, 1], or NaN if no client has two documents.
    """
    halves = []
    for client, embeddings in enumerate(document_embeddings):
        order = numpy_stream(seed, "halves of documents", client).permutation(len(embeddings))
        halves.append((embeddings[order[: len(embeddings) // 2]], embeddings[order[len(embeddings) // 2 :]]))
    split_clients = [client for client, (first_half, second_half) in enumerate(halves) if len(first_half) and len(second_half)]
    rates = []
    for half in (0, 1) if split_clients else ():
        centers = mean_embeddings([halves[client][1 - half] for client in split_clients])
        for position, client in enumerate(split_clients):
            distances = ((halves[client][half][:, None] - centers[None]) ** 2).sum(axis=-1)
            rates.append(float((distances.argmin(axis=1) == position).mean()))
    return float(np.mean(rates)) if rates else float("nan")


def gaussian_noise_std(num_documents: int, epsilon: float, delta: float) -> float:
    """Return the standard deviation of the noise on each coordinate of a mean of unit vectors.

    Args:
        num_documents: n, the number of vectors in the mean.
        epsilon: Privacy budget.
        delta: Failure probability of the privacy guarantee.
    """
    return 2 * sqrt(2 * log(1.25 / delta)) / (max(num_documents, 1) * epsilon)


def privacy_statement(embeddings: ClientEmbeddings, epsilon: float | None, delta: float) -> str:
    """Return a statement in words about what the clients' embeddings reveal.

    Args:
        embeddings: The clients' embeddings.
        epsilon: Privacy budget; None means no noise.
        delta: Failure probability of the privacy guarantee.
    """
    num_documents = [len(vectors) for vectors in embeddings.document_embeddings]
    if epsilon is None:
        return (
            f"Each client sends the mean embedding of {min(num_documents)} to {max(num_documents)} training documents, "
            f"{embeddings.num_bytes} bytes, once and without noise. The embedding reveals what the client writes about and has no "
            "privacy guarantee."
        )
    warning = "" if epsilon < 1 else " This guarantee is proved only for epsilon < 1. For this epsilon, read it as the scale of the noise."
    return (
        f"Each client's mean embedding is ({epsilon:g}, {delta:g})-differentially private with respect to replacing one document "
        f"(Gaussian noise of sigma {embeddings.noise_std.min():.3g} to {embeddings.noise_std.max():.3g} on each of "
        f"{embeddings.noise.shape[1]} numbers) and is sent once. The number of clusters and their stability are computed from the "
        "documents, which are available only in simulation. They use noise of the same scale on every resample and are not covered "
        f"by the guarantee.{warning}"
    )


# K-means on the clients' mean embeddings with a data-driven number of clusters k.
#
# 1. A permutation test asks whether the scatter of the means, sum_k |mu_k - mu|^2, is larger than in each of 99 random
#    reassignments of the documents. If not (p > 0.01), k = 1.
# 2. Otherwise k in 2..min(8, N - 1) has the largest silhouette (Rousseeuw, J. Comp. Appl. Math. 20, 1987) among the solutions with at
#    least two clients per cluster. If the silhouette is not above 0.25, k = 1.
# 3. Stability is the mean pairwise adjusted Rand index over 30 bootstraps of the documents within clients. Below 0.6 the verdict is
#    "unstable" (Ben-Hur, Elisseeff & Guyon, PSB 2002; Hennig, CSDA 52, 2007).
#
# The gap statistic is not used, because with so few points it finds one cluster where there are four. Clients are first sorted by
# their embeddings, so that the clusters do not depend on the order of the clients.

NUM_PERMUTATIONS, NUM_BOOTSTRAPS, KMEANS_RESTARTS = 99, 30, 20
SIGNIFICANCE_LEVEL, MIN_CLUSTER_SIZE, MAX_CLUSTERS, MIN_SILHOUETTE, MIN_STABILITY = 0.01, 2, 8, 0.25, 0.6


@dataclass(frozen=True, eq=False)
class ClusteringResult:
    """Clusters of clients and the evidence for them. Missing numbers are NaN."""

    cluster_ids: np.ndarray  # cluster of each client, [N]
    centroids: np.ndarray  # centroids, [k, E]
    p_value: float = float("nan")  # p value of the permutation test
    silhouettes: dict[int, float] = field(default_factory=dict)  # silhouette of each candidate k
    stability: float = float("nan")  # mean pairwise adjusted Rand index over bootstraps
    estimated_k: int = 1  # number of clusters that the rules above give, even if another number was requested

    @property
    def k(self) -> int:
        """Return the number of clusters."""
        return len(self.centroids)

    @property
    def verdict(self) -> str:
        """Return "one cluster", "stable" or "unstable"."""
        if self.k == 1:
            return "one cluster"
        return "stable" if self.stability >= MIN_STABILITY else "unstable"


# Conditions of a comparison often cluster the same clients, and resampling and k-means take longer than the training of small models.
CLUSTERINGS = BoundedCache(max_size=10_000_000)  # (digest of the embeddings, seed, k) -> clusters; sizes in numbers


def digest_embeddings(embeddings: ClientEmbeddings) -> bytes:
    """Return a digest of all embeddings and of the noise, 16 bytes."""
    digest = blake2b(digest_size=16)
    for array in (*embeddings.document_embeddings, embeddings.noise_std, embeddings.noise):
        digest.update(f"{array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return digest.digest()


def cluster_clients(embeddings: ClientEmbeddings, seed: int, k: int | None = None) -> ClusteringResult:
    """Cluster N clients by their mean embeddings. Equal embeddings that this process has clustered recently are not clustered again.

    Args:
        embeddings: The clients' embeddings.
        seed: Seed of k-means and of the resampling.
        k: Number of clusters; None estimates it.

    Raises:
        ValueError: ``k`` exceeds the number of clients.
    """
    result: ClusteringResult = CLUSTERINGS.get_or_create(
        (digest_embeddings(embeddings), seed, k),
        lambda: compute_clusters(embeddings, seed, k),
        lambda clusters: clusters.cluster_ids.size + clusters.centroids.size,
    )
    return replace(result, cluster_ids=result.cluster_ids.copy(), centroids=result.centroids.copy(), silhouettes=dict(result.silhouettes))


def compute_clusters(embeddings: ClientEmbeddings, seed: int, k: int | None = None) -> ClusteringResult:
    """Cluster N clients by their mean embeddings, as ``cluster_clients`` does, whether or not they were clustered before.

    Args:
        embeddings: The clients' embeddings.
        seed: Seed of k-means and of the resampling.
        k: Number of clusters; None estimates it.

    Raises:
        ValueError: ``k`` exceeds the number of clients.
    """
    points = embeddings.means
    order = np.lexsort(points.T[::-1])
    document_embeddings = [embeddings.document_embeddings[client] for client in order]
    noise_std, sorted_points = embeddings.noise_std[order], points[order]
    p_value = permutation_test(document_embeddings, sorted_points, noise_std, seed)
    estimated_k, silhouettes = choose_k(sorted_points, p_value, seed)
    k = estimated_k if k is None else k
    if k > len(points):
        raise ValueError(f"{len(points)} clients cannot form {k} clusters; k must be at most {len(points)}.")
    labels, centroids = kmeans(sorted_points, k, seed)
    cluster_ids = np.empty(len(points), dtype=np.int64)
    cluster_ids[order] = labels
    stability = bootstrap_stability(document_embeddings, noise_std, k, seed) if 1 < k < len(points) else float("nan")
    return ClusteringResult(cluster_ids, centroids, p_value, silhouettes, stability, estimated_k)


def permutation_test(document_embeddings: Sequence[np.ndarray], points: np.ndarray, noise_std: np.ndarray, seed: int) -> float:
    """Test whether the clients' means scatter more than under random reassignment of the documents.

    Args:
        document_embeddings: Embeddings of each client's documents, N arrays of shape [D, E].
        points: The clients' mean embeddings with noise, [N, E].
        noise_std: Standard deviation of the noise on each mean, [N].
        seed: Seed of the permutations.

    Returns:
        The p value: the share of reassignments with at least the observed scatter, where the observed one counts as one of them.
    """
    pooled, sizes = np.concatenate(document_embeddings), np.array([len(embeddings) for embeddings in document_embeddings])
    owner, has_documents = np.repeat(np.arange(len(sizes)), sizes), sizes > 0
    rng = numpy_stream(seed, "permutations of documents")
    one_hot = np.zeros((len(sizes), len(pooled)))
    one_hot[owner, np.arange(len(pooled))] = 1 / sizes[owner]

    def scatter(rows: np.ndarray) -> float:
        rows = rows[has_documents]
        return float(((rows - rows.mean(axis=0)) ** 2).sum())

    observed, num_at_least = scatter(points), 0
    for _ in range(NUM_PERMUTATIONS):
        permuted_means = one_hot[:, rng.permutation(len(pooled))] @ pooled
        if noise_std.any():
            permuted_means = permuted_means + noise_std[:, None] * rng.standard_normal(permuted_means.shape)
        num_at_least += scatter(permuted_means) >= observed * (1 - 1e-12)
    return (1 + num_at_least) / (1 + NUM_PERMUTATIONS)


def choose_k(points: np.ndarray, p_value: float, seed: int) -> tuple[int, dict[int, float]]:
    """Return the number of clusters and the silhouette of each candidate.

    Args:
        points: The clients' mean embeddings, [N, E].
        p_value: p value of the permutation test.
        seed: Seed of k-means.
    """
    if p_value > SIGNIFICANCE_LEVEL:
        return 1, {}
    return best_silhouette_k({k: kmeans(points, k, seed)[0] for k in candidate_ks(len(points))}, pairwise_distances(points))


def candidate_ks(num_clients: int) -> range:
    """Return the candidate numbers of clusters above one."""
    return range(2, min(MAX_CLUSTERS, num_clients - 1) + 1)


def best_silhouette_k(solutions: dict[int, np.ndarray], distance_matrix: np.ndarray) -> tuple[int, dict[int, float]]:
    """Return the number of clusters with the largest silhouette, or 1 if no silhouette exceeds the threshold.

    Args:
        solutions: Cluster of each client, [N], for each candidate k.
        distance_matrix: Pairwise distances of the clients, [N, N].

    Returns:
        The number of clusters, and the silhouette of each candidate whose clusters are large enough.
    """
    from sklearn.metrics import silhouette_score

    silhouettes = {}
    for k, labels in solutions.items():
        cluster_sizes = np.bincount(labels, minlength=k)
        if cluster_sizes.min() >= MIN_CLUSTER_SIZE:
            silhouettes[k] = float(silhouette_score(distance_matrix, labels, metric="precomputed"))
    best = max(silhouettes, key=lambda k: silhouettes[k], default=1)
    return (best if best > 1 and silhouettes[best] > MIN_SILHOUETTE else 1), silhouettes


def pairwise_distances(points: np.ndarray) -> np.ndarray:
    """Return the Euclidean distances of all pairs of points, [N, N]."""
    return np.asarray(np.linalg.norm(points[:, None] - points[None], axis=-1))


def kmeans(points: np.ndarray, k: int, seed: int, num_init: int = KMEANS_RESTARTS) -> tuple[np.ndarray, np.ndarray]:
    """Run Lloyd's k-means from several k-means++ initializations and return the best result.

    Args:
        points: The points, [N, E].
        k: Number of clusters.
        seed: Seed of the initializations.
        num_init: Number of initializations.

    Returns:
        Labels, [N], and centroids, [k, E]. Cluster 0 is the largest.
    """
    if k == 1:
        return np.zeros(len(points), dtype=np.int64), points.mean(axis=0, keepdims=True)
    from sklearn.cluster import KMeans

    model = KMeans(k, n_init=num_init, random_state=derive_seed(seed, "k-means", k) % 2**31).fit(points)
    by_size = np.argsort(-np.bincount(model.labels_, minlength=k), kind="stable")
    return np.argsort(by_size)[model.labels_].astype(np.int64), model.cluster_centers_[by_size]


def bootstrap_stability(
    document_embeddings: Sequence[np.ndarray], noise_std: np.ndarray, k: int, seed: int, num_bootstraps: int = NUM_BOOTSTRAPS
) -> float:
    """Return the mean pairwise adjusted Rand index of the clusterings of resampled documents.

    Args:
        document_embeddings: Embeddings of each client's documents, N arrays of shape [D, E].
        noise_std: Standard deviation of the noise on each mean, [N].
        k: Number of clusters.
        seed: Seed of the resampling.
        num_bootstraps: Number of resamples.
    """
    rng, labels = numpy_stream(seed, "bootstraps of documents"), []
    for _ in range(num_bootstraps):
        points = mean_embeddings(
            [
                embeddings[rng.integers(len(embeddings), size=len(embeddings))] if len(embeddings) else embeddings
                for embeddings in document_embeddings
            ]
        )
        points = points + noise_std[:, None] * rng.standard_normal(points.shape)
        labels.append(kmeans(points, k, seed, num_init=KMEANS_RESTARTS // 4)[0])
    return mean_adjusted_rand_index(np.stack(labels))


def mean_adjusted_rand_index(labels: np.ndarray) -> float:
    """Return the mean adjusted Rand index over all pairs of clusterings (Hubert & Arabie 1985), computed for all pairs at once.

    Args:
        labels: Cluster of each client in each clustering, [B, N].
    """
    rows, columns = np.triu_indices(labels.shape[1], 1)
    same = (labels[:, rows] == labels[:, columns]).astype(np.float64)  # [B, pairs of clients]
    joint, counts = same @ same.T, same.sum(axis=1)  # pairs that share a cluster: in two clusterings, in one
    expected = np.outer(counts, counts) / same.shape[1]
    maximum = (counts[:, None] + counts[None]) / 2
    index = np.where(maximum == expected, 1.0, (joint - expected) / np.where(maximum == expected, 1.0, maximum - expected))
    return float(index[np.triu_indices(len(labels), 1)].mean())
