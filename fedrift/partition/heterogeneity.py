"""The heterogeneity report: how non-IID a partition is, with the null distribution of each number under IID partitions.

The module also computes the tables behind the report's figures, and the divergences between the clients' distributions, all in bits. A
count table has one row of counts per client, [N, V], dense or sparse.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ..core.lazy_imports import sparse
from ..data.corpus import Corpus
from .base import Partition, counts_by_client, rewritten_texts, tokens_by_label
from .margins import split_by_budget
from .words import FUNCTION_WORDS, WordCounts, count_words, is_content_word

if TYPE_CHECKING:
    from scipy.sparse import csr_array

CountTable: TypeAlias = "np.ndarray | csr_array"


@dataclass(frozen=True)
class Measurement:
    """One measured number with the mean and the standard deviation of its IID re-splits.

    The mean and the standard deviation are NaN if the number has no null distribution.
    """

    name: str
    value: float
    null_mean: float = float("nan")
    null_std: float = float("nan")

    @property
    def z(self) -> float:
        """Return the difference from the mean of the null in standard deviations; NaN without a null."""
        return (self.value - self.null_mean) / self.null_std if self.null_std > 0 else float("nan")

    @property
    def is_beyond_chance(self) -> bool:
        """Return whether the number is more heterogeneous than chance by over three standard deviations; False without a null.

        Numbers of vocabulary overlap decrease as clients become more different. All other numbers increase.
        """
        sign = -1 if self.name.startswith("vocabulary.") else 1
        return sign * (self.value - self.null_mean) > 3 * self.null_std


@dataclass(frozen=True, eq=False)
class Heterogeneity:
    """The heterogeneity report of a partition, which needs no training.

    ``__getitem__`` returns the measurement with a given name.
    """

    measurements: tuple[Measurement, ...]
    num_clients: int
    domains: tuple[str, ...]
    tokens_by_domain: np.ndarray  # [N, T] tokens of each client and domain; like all counts here, after rewriting
    budgets: np.ndarray  # [N] tokens
    documents: np.ndarray  # [N] number of documents
    word_totals: np.ndarray  # [N] word occurrences
    word_jsd: np.ndarray  # [N, N] Jensen-Shannon divergence of the clients' word distributions in bits
    characteristic_words: tuple[tuple[str, ...], ...]  # ten words per client

    def __getitem__(self, name: str) -> Measurement:
        for measurement in self.measurements:
            if measurement.name == name:
                return measurement
        raise KeyError(f"This report has no number {name!r}. Its numbers are {[m.name for m in self.measurements]}.")

    def to_dict(self) -> dict[str, object]:
        """Return the report as numbers, lists and strings for JSON; missing numbers are None."""

        def number(value: float) -> float | None:
            return None if np.isnan(value) else float(value)

        return {
            "numbers": {
                m.name: {"value": number(m.value), "null_mean": number(m.null_mean), "null_std": number(m.null_std), "z": number(m.z)}
                for m in self.measurements
            },
            "clients": self.num_clients,
            "domains": list(self.domains),
            "tokens_by_domain": self.tokens_by_domain.tolist(),
            "budgets": self.budgets.tolist(),
            "documents": self.documents.tolist(),
            "word_totals": self.word_totals.tolist(),
            "word_jsd": self.word_jsd.tolist(),
            "characteristic_words": [list(words) for words in self.characteristic_words],
        }


# Distances between the clients' documents in the embedding space of a frozen encoder.

MAX_SAMPLE = 200  # largest number of documents per client that are compared, and as many of the other clients
MIN_SAMPLE = 10  # clients with fewer documents are not compared


def mmd2(one: np.ndarray, two: np.ndarray, bandwidth: float | None = None) -> float:
    """Return the unbiased squared maximum mean discrepancy of two samples under a Gaussian kernel.

    Gretton, Borgwardt, Rasch, Schölkopf & Smola, "A Kernel Two-Sample Test", JMLR 13, 2012, equation 3. The estimate is below 0 by chance
    if both distributions are equal.

    Args:
        one: First sample, [n, E].
        two: Second sample, [m, E].
        bandwidth: Width of the kernel; None uses the square root of the median squared distance within the pooled sample.

    Returns:
        The estimate, or NaN if a sample has fewer than two rows.
    """
    n, m = len(one), len(two)
    if min(n, m) < 2:
        return float("nan")
    distances = squared_distances(np.concatenate([one, two]))
    if bandwidth is None:
        bandwidth = float(np.sqrt(np.median(distances[np.tri(n + m, k=-1, dtype=bool)])))
    distances /= -2 * max(bandwidth, 1e-12) ** 2
    kernel = np.exp(distances, out=distances)
    within = (kernel[:n, :n].sum() - n) / (n * (n - 1)) + (kernel[n:, n:].sum() - m) / (m * (m - 1))
    return float(within - 2 * kernel[:n, n:].mean())


def squared_distances(rows: np.ndarray) -> np.ndarray:
    """Return the squared Euclidean distances between all rows [n, E], as [n, n] with zeros on the diagonal.

    They are computed from inner products, because one matrix product is several times faster than SciPy's loop over pairs. The rows are
    centered first, which keeps the rounding error small.
    """
    centered = rows.astype(np.float64) - rows.mean(axis=0)
    distances: np.ndarray = centered @ centered.T
    norms = np.diag(distances).copy()
    distances *= -2
    distances += norms
    distances += norms[:, None]
    np.maximum(distances, 0.0, out=distances)
    np.fill_diagonal(distances, 0.0)
    return distances


def frechet_distance(one: np.ndarray, two: np.ndarray) -> float:
    """Return the squared Wasserstein-2 distance of two fitted Gaussians, |m1 - m2|^2 + Tr(S1 + S2 - 2 (S1 S2)^(1/2)).

    Dowson & Landau, J. Multivariate Analysis 12, 1982; as a distance of embeddings Heusel et al., NeurIPS 2017, arXiv:1706.08500. It needs
    at least five documents per dimension, so reduce the dimension first (``project_principal``).

    Args:
        one: First sample, [n, E].
        two: Second sample, [m, E].

    Returns:
        The distance, or NaN if a sample has fewer than two rows.
    """
    if min(len(one), len(two)) < 2:
        return float("nan")
    covariances = [np.atleast_2d(np.cov(sample, rowvar=False)) for sample in (one, two)]
    # The root of S1 S2 has the same trace as the root of the symmetric S1^(1/2) S2 S1^(1/2), whose eigenvalues are real.
    variances, axes = np.linalg.eigh(covariances[0])
    root = axes * np.sqrt(np.maximum(variances, 0.0)) @ axes.T
    cross_trace = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ covariances[1] @ root), 0.0)).sum()
    mean_distance = ((one.mean(axis=0) - two.mean(axis=0)) ** 2).sum()
    return float(max(mean_distance + np.trace(covariances[0] + covariances[1]) - 2 * cross_trace, 0.0))


def project_principal(vectors: np.ndarray, dimensions: int) -> np.ndarray:
    """Return the vectors [D, E] projected on their first principal axes, [D, min(dimensions, E)]."""
    centered = vectors - vectors.mean(axis=0)
    _, axes = np.linalg.eigh(centered.T @ centered)
    return centered @ axes[:, ::-1][:, :dimensions]


def embedding_distances(vectors: np.ndarray, owner: np.ndarray, sample_sizes: np.ndarray, rng: np.random.Generator) -> dict[str, float]:
    """Return the mean over clients of the MMD^2 and the Fréchet distance between a client's documents and those of the other clients.

    Both distances depend on the sample sizes, so compare only numbers with the same ``sample_sizes``. Clients with fewer than ten documents
    are left out. The Fréchet distance uses at most as many axes as a fifth of the smallest remaining sample.

    Args:
        vectors: Document embeddings in principal axes, [D, E].
        owner: Client of each document, [D].
        sample_sizes: Number of documents of each client that are compared with equally many of the others, [N].
        rng: Random generator that draws the samples.

    Returns:
        The metrics ``embedding.mmd2`` and ``embedding.frechet``; NaN if no client could be compared.
    """
    compared_clients = np.flatnonzero(sample_sizes >= MIN_SAMPLE)
    distances = np.full((len(compared_clients), 2), np.nan)
    axes = min(32, int(sample_sizes[compared_clients].min(initial=5 * 32)) // 5)
    for row, client in enumerate(compared_clients):
        own_rows, other_rows = (np.flatnonzero((owner == client) == is_own) for is_own in (True, False))
        one, two = (vectors[rng.permutation(rows)[: sample_sizes[client]]] for rows in (own_rows, other_rows))
        distances[row] = mmd2(one, two), frechet_distance(one[:, :axes], two[:, :axes])
    is_known = np.isfinite(distances).all(axis=1)
    mean = distances[is_known].mean(axis=0) if is_known.any() else np.full(2, np.nan)
    return {"embedding.mmd2": float(mean[0]), "embedding.frechet": float(mean[1])}


# Identification of a document's client, which measures heterogeneity of any kind.


def identification_accuracy(counts: csr_array, owner: np.ndarray, num_clients: int, rng: np.random.Generator) -> float:
    """Return the balanced accuracy with which naive Bayes identifies the client of a document; chance level is 1/N.

    The classifier is trained on a random half of the documents and tested on the other half. It has a uniform prior, and each client's own
    accuracy has equal weight, so all clients count the same.

    Args:
        counts: Bags of words of the documents, [D, V].
        owner: Client of each document, [D].
        num_clients: N, the number of clients.
        rng: Random generator that splits the documents.

    Returns:
        The accuracy, or NaN if no client has documents in both halves.
    """
    is_train = rng.permutation(len(owner)) % 2 == 0
    is_correct = predict_clients(counts[is_train], owner[is_train], counts[~is_train], num_clients) == owner[~is_train]
    num_tested = np.bincount(owner[~is_train], minlength=num_clients)
    num_correct = np.bincount(owner[~is_train], weights=is_correct, minlength=num_clients)
    is_known = (num_tested > 0) & (np.bincount(owner[is_train], minlength=num_clients) > 0)
    return float((num_correct[is_known] / num_tested[is_known]).mean()) if is_known.any() else float("nan")


def predict_clients(train_counts: csr_array, train_owner: np.ndarray, test_counts: csr_array, num_clients: int) -> np.ndarray:
    """Return the client that multinomial naive Bayes assigns to each test document.

    The word probabilities have add-one smoothing, and all clients with training documents have the same prior probability. The result
    equals that of scikit-learn's ``MultinomialNB(fit_prior=False)``, whose import takes longer than a whole report.

    Args:
        train_counts: Bags of words of the training documents, [D, V].
        train_owner: Client of each training document, [D].
        test_counts: Bags of words of the test documents, [T, V].
        num_clients: N, the number of clients.

    Returns:
        Clients, [T]; the lowest number among equally probable clients.
    """
    known_clients = np.unique(train_owner)
    smoothed_counts = counts_by_client(train_counts, train_owner, num_clients)[known_clients].toarray() + 1.0
    log_probabilities = np.log(smoothed_counts) - np.log(smoothed_counts.sum(axis=1, keepdims=True))
    return known_clients[np.argmax(test_counts @ log_probabilities.T, axis=1)]


# Measurement of a partition and its null distribution.

NUM_RESPLITS = 20  # IID re-splits that estimate the null distribution of each number
MAX_FREQUENT_WORDS = 10_000  # pairwise divergence and identification use only this many most frequent words
MAX_IDENTIFICATION_DOCUMENTS = 20_000  # identification uses at most this many documents
NUM_CHARACTERISTIC_WORDS = 10  # per client
NUM_LENGTH_BINS = 10  # quantiles of document length


def measure_heterogeneity(
    corpus: Corpus,
    partition: Partition,
    rng: np.random.Generator,
    *,
    vectors: np.ndarray | None = None,
    resplits: int = NUM_RESPLITS,
    words: WordCounts | None = None,
) -> Heterogeneity:
    """Measure the heterogeneity of a partition and the null distribution of each number.

    The null distribution of a number consists of ``resplits`` random partitions of the same rewritten documents with the same budgets.
    Documents that the partition leaves out are ignored. Budgets are in the corpus's own unit, but in words after rewriting if
    clients rewrite their texts.

    Args:
        corpus: The corpus with D documents.
        partition: The partition of ``corpus``.
        rng: Random generator of the re-splits and samples.
        vectors: Document embeddings, [D, E], with NaN for documents without one; None leaves embedding distances out.
        resplits: Number of IID re-splits.
        words: Word counts of the assigned documents after rewriting, in the order of the corpus; None counts them.
    """
    num_clients = len(partition)
    rows = np.sort(np.concatenate(partition.rows))
    owner = partition.document_owners(len(corpus))[rows]
    assigned = corpus.take(rows)
    words = words or count_words(rewritten_texts(assigned, partition, owner))
    size = words.counts.sum(axis=1) if partition.rewrites else assigned.size.astype(np.float64)
    size = np.maximum(size, 1.0)
    has_vector = slice(None) if vectors is None else np.isfinite(vectors[rows, 0])
    sample_sizes = np.minimum(np.bincount(owner[has_vector], minlength=num_clients), MAX_SAMPLE)
    original_words = count_words(assigned.text) if partition.rewrites else words
    measure = _make_measure_fn(assigned, size, words, original_words, sample_sizes, None if vectors is None else vectors[rows])

    budgets = np.bincount(owner, weights=size, minlength=num_clients)
    values = measure(owner, rng)
    null_values = []
    for _ in range(resplits):
        order = rng.permutation(len(rows))
        chance_owner = np.empty_like(owner)
        chance_owner[order] = split_by_budget(size[order], budgets)
        null_values.append(measure(chance_owner, rng))
    measurements = [Measurement("budget.variation", float(budgets.std() / budgets.mean()))]
    for name, value in values.items():
        null_sample = np.array([null_value[name] for null_value in null_values])
        measurements.append(
            Measurement(name, value, float(null_sample.mean()), float(null_sample.std(ddof=1)))
            if len(null_sample) > 1
            else Measurement(name, value)
        )
    counts = counts_by_client(words.counts, owner, num_clients)
    return Heterogeneity(
        measurements=tuple(measurements),
        num_clients=num_clients,
        domains=corpus.domains,
        tokens_by_domain=tokens_by_label(assigned, size, owner, num_clients),
        budgets=budgets,
        documents=np.bincount(owner, minlength=num_clients),
        word_totals=counts.sum(axis=1).astype(np.int64),
        word_jsd=pairwise_jsd(counts[:, frequent_words(words)].toarray() + 1e-12),
        characteristic_words=find_characteristic_words(counts, words.vocabulary),
    )


MeasureFn = Callable[[np.ndarray, np.random.Generator], dict[str, float]]


def _make_measure_fn(
    corpus: Corpus, size: np.ndarray, words: WordCounts, original_words: WordCounts, sample_sizes: np.ndarray, vectors: np.ndarray | None
) -> MeasureFn:
    """Return a function that computes all numbers from the owner of each document, [D]."""
    num_clients = len(sample_sizes)
    sampled = np.arange(len(size))[:: max(1, -(-len(size) // MAX_IDENTIFICATION_DOCUMENTS))]
    word_counts = words.counts[sampled][:, frequent_words(words)]
    content_counts = original_words.counts[sampled][
        :, [v for v in frequent_words(original_words) if is_content_word(original_words.vocabulary[v])]
    ]
    function_word_counts = words.counts[sampled][:, [v for v in frequent_words(words) if words.vocabulary[v] in FUNCTION_WORDS]]
    # Equal lengths share a bin, so that the order of the rows, which may be that of the clients, has no effect.
    length_bin = (np.searchsorted(np.sort(size), size) * NUM_LENGTH_BINS) // len(size)
    embedded = np.flatnonzero(np.isfinite(vectors[:, 0])) if vectors is not None else np.empty(0, dtype=np.int64)
    axes = None if vectors is None or not len(embedded) else project_principal(vectors[embedded], vectors.shape[1])

    def measure(owner: np.ndarray, rng: np.random.Generator) -> dict[str, float]:
        counts = counts_by_client(words.counts, owner, num_clients)
        values = {"token.jsd": generalized_jsd(counts)}
        if (corpus.label >= 0).any():
            table = tokens_by_label(corpus, size, owner, num_clients)
            share = table.sum(axis=1) / table.sum()
            values["label.jsd"] = normalized_jsd(table)
            values["label.distance"] = float(np.nansum(share * total_variation(table)))
        lengths = np.zeros((num_clients, NUM_LENGTH_BINS))
        np.add.at(lengths, (owner, length_bin), size)
        values["length.jsd"] = normalized_jsd(lengths)
        if num_clients > 1:
            values["vocabulary.jaccard"] = float(off_diagonal(jaccard(counts)).mean())
            values["vocabulary.coverage"] = float(off_diagonal(coverage(counts)).mean())
            values["identification"] = identification_accuracy(word_counts, owner[sampled], num_clients, rng)
            for name, features in (("content", content_counts), ("function_words", function_word_counts)):
                if features.shape[1]:
                    values[f"identification.{name}"] = identification_accuracy(features, owner[sampled], num_clients, rng)
            if axes is not None:
                values |= embedding_distances(axes, owner[embedded], sample_sizes, rng)
        return values

    return measure


def frequent_words(words: WordCounts) -> np.ndarray:
    """Return the sorted indices of the most frequent words, at most ``MAX_FREQUENT_WORDS`` of them."""
    return np.sort(np.argsort(-words.totals, kind="stable")[:MAX_FREQUENT_WORDS])


def find_characteristic_words(counts: csr_array, vocabulary: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Return the words with the largest terms of each client's Kullback-Leibler divergence from the pooled distribution.

    The term of word v is q_k(v) log2(q_k(v) / p(v)).

    Args:
        counts: Word counts of the clients, [N, V].
        vocabulary: The V words.

    Returns:
        Up to ten words per client, in order of decreasing term.
    """
    pooled = np.asarray(counts.sum(axis=0)) / max(float(counts.sum()), 1.0)
    result = []
    for client in range(counts.shape[0]):
        start, end = counts.indptr[client : client + 2]
        word_ids, count = counts.indices[start:end], counts.data[start:end]
        shares = count / max(count.sum(), 1.0)
        best = np.argsort(-shares * np.log2(shares / pooled[word_ids]), kind="stable")[:NUM_CHARACTERISTIC_WORDS]
        result.append(tuple(vocabulary[v] for v in word_ids[best]))
    return tuple(result)


# Divergences between the distributions of the clients.


def entropy(table: CountTable) -> np.ndarray:
    """Return the Shannon entropy of each row's distribution in bits, [N]; NaN for an empty row."""
    matrix: csr_array = sparse.csr_array(table).astype(np.float64)
    mass = np.asarray(matrix.sum(axis=1)).ravel()
    terms = sparse.csr_array((_xlogx(matrix.data), matrix.indices, matrix.indptr), shape=matrix.shape)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.log2(mass) - np.asarray(terms.sum(axis=1)).ravel() / mass


def generalized_jsd(table: CountTable) -> float:
    """Return the generalized Jensen-Shannon divergence of the rows in bits.

    It is H(sum_k p_k P_k) - sum_k p_k H(P_k), where p_k is the share of row k in all counts. It equals the mutual information of
    client and word. Lin, "Divergence measures based on the Shannon entropy", IEEE Trans. Information Theory 37(1), 1991.

    The estimate from samples is biased upward by about (V - 1)(N - 1) / (2 n ln 2) bits for n counts, so compare it with its null
    distribution.

    Args:
        table: Counts, [N, V].
    """
    share = np.asarray(table.sum(axis=1)).ravel()
    nonempty = share > 0
    pooled_entropy = entropy(np.asarray(table.sum(axis=0)).reshape(1, -1))[0]
    return float(pooled_entropy - (share[nonempty] / share.sum()) @ entropy(table[nonempty]))


def normalized_jsd(table: CountTable) -> float:
    """Return ``generalized_jsd`` divided by its maximum, log2 min(N, V), where N and V count the nonempty rows and columns.

    The value lies in [0, 1]. It is 0 if only one row or one column is nonempty.
    """
    num_outcomes = min(int((np.asarray(table.sum(axis=axis)).ravel() > 0).sum()) for axis in (0, 1))
    return generalized_jsd(table) / np.log2(num_outcomes) if num_outcomes > 1 else 0.0


def pairwise_jsd(table: np.ndarray) -> np.ndarray:
    """Return the Jensen-Shannon divergence of each pair of rows with equal weights, [N, N] in bits."""
    distributions = table / table.sum(axis=1, keepdims=True)
    neg_entropy = _xlogx(distributions).sum(axis=1)
    divergence = np.zeros((len(distributions), len(distributions)))
    for row in range(len(distributions)):
        mixture_neg_entropy = _xlogx((distributions[row] + distributions[row + 1 :]) / 2).sum(axis=1)
        divergence[row, row + 1 :] = (neg_entropy[row] + neg_entropy[row + 1 :]) / 2 - mixture_neg_entropy
    return divergence + divergence.T


def total_variation(table: CountTable) -> np.ndarray:
    """Return the total variation distance of each row's distribution to the pooled one, [N]; NaN for an empty row."""
    dense = np.asarray(table, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        distributions = dense / dense.sum(axis=1, keepdims=True)
    return np.abs(distributions - dense.sum(axis=0) / dense.sum()).sum(axis=1) / 2


def jaccard(table: csr_array) -> np.ndarray:
    """Return the Jaccard index of each pair of clients' vocabularies, [N, N]: shared words divided by words of either client."""
    present = (table > 0).astype(np.float64)
    shared = (present @ present.T).toarray()
    size = np.diag(shared)
    return shared / np.maximum(size[:, None] + size[None, :] - shared, 1.0)


def coverage(table: csr_array) -> np.ndarray:
    """Return the share of client i's word occurrences whose word occurs at least twice at client j, [N, N]."""
    repeated = (table >= 2).astype(np.float64)
    return (table @ repeated.T).toarray() / np.maximum(np.asarray(table.sum(axis=1)).reshape(-1, 1), 1.0)


def off_diagonal(matrix: np.ndarray) -> np.ndarray:
    """Return the off-diagonal entries of a square matrix, [N (N - 1)]."""
    return matrix[~np.eye(len(matrix), dtype=bool)]


def _xlogx(values: np.ndarray) -> np.ndarray:
    return values * np.log2(np.where(values > 0, values, 1.0))
