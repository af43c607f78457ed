"""What the heterogeneity report holds: numbers beside their null, and the tables behind its figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import sqrtm
from scipy.sparse import csr_array
from scipy.spatial.distance import cdist, pdist
from sklearn.naive_bayes import MultinomialNB

from ..data.corpus import Corpus
from . import divergence as apart
from .base import Partition, counts_by_client, rewritten_texts, tokens_by_label
from .margins import split_by_budget
from .words import FUNCTION_WORDS, WordCounts, count_words, is_content_word


@dataclass(frozen=True)
class Measurement:
    """One number with the mean and standard deviation of its IID re-splits; NaN where there is no null."""

    name: str
    value: float
    null_mean: float = float("nan")
    null_std: float = float("nan")

    @property
    def z(self) -> float:
        """Standard deviations above chance."""
        return (self.value - self.null_mean) / self.null_std if self.null_std > 0 else float("nan")

    @property
    def is_beyond_chance(self) -> bool:
        """More than three standard deviations beyond chance, to the heterogeneous side; False without a null.

        Vocabularies are the less shared the more clients differ; all other numbers grow.
        """
        side = -1 if self.name.startswith("vocabulary.") else 1
        return side * (self.value - self.null_mean) > 3 * self.null_std


@dataclass(frozen=True, eq=False)
class Heterogeneity:
    """What a partition looks like before any training."""

    measurements: tuple[Measurement, ...]
    num_clients: int
    domains: tuple[str, ...]
    tokens_by_domain: np.ndarray  # [N, T] tokens of each client and domain, as written
    budgets: np.ndarray  # [N] tokens, as written
    documents: np.ndarray  # [N]
    word_totals: np.ndarray  # [N] word occurrences, as written
    word_jsd: np.ndarray  # [N, N] divergence of the clients' words in bits
    characteristic_words: tuple[tuple[str, ...], ...]  # N times ten words

    def __getitem__(self, name: str) -> Measurement:
        for measured in self.measurements:
            if measured.name == name:
                return measured
        raise KeyError(f"no number {name!r} in this report; it has {[m.name for m in self.measurements]}")

    def to_dict(self) -> dict[str, object]:
        """Numbers, lists and strings only, for JSON; missing is None."""

        def number(value: float) -> float | None:
            return None if np.isnan(value) else float(value)

        return {
            "numbers": {
                m.name: {"value": number(m.value), "null": number(m.null_mean), "deviation": number(m.null_std), "z": number(m.z)}
                for m in self.measurements
            },
            "clients": self.num_clients,
            "domains": list(self.domains),
            "table": self.tokens_by_domain.tolist(),
            "budgets": self.budgets.tolist(),
            "documents": self.documents.tolist(),
            "words": self.word_totals.tolist(),
            "pairwise": self.word_jsd.tolist(),
            "characteristic": [list(words) for words in self.characteristic_words],
        }


# How far the clients' documents lie apart in the space of a frozen encoder.

MAX_SAMPLE = 200  # documents of a client, and of the others, that are compared
MIN_SAMPLE = 10  # a client of fewer is not compared


def mmd2(one: np.ndarray, two: np.ndarray, bandwidth: float | None = None) -> float:
    """Unbiased squared maximum mean discrepancy of two samples [n, E], [m, E] under a Gaussian kernel.

    Gretton, Borgwardt, Rasch, Schölkopf & Smola, "A Kernel Two-Sample Test", JMLR 13, 2012, equation 3.
    ``bandwidth`` is the median distance within the pooled sample unless given. Below zero by chance where both
    are alike.
    """
    n, m = len(one), len(two)
    if min(n, m) < 2:
        return float("nan")
    bandwidth = float(np.median(pdist(np.concatenate([one, two])))) if bandwidth is None else bandwidth
    near = [np.exp(-cdist(a, b, "sqeuclidean") / (2 * max(bandwidth, 1e-12) ** 2)) for a, b in ((one, one), (two, two), (one, two))]
    within = (near[0].sum() - n) / (n * (n - 1)) + (near[1].sum() - m) / (m * (m - 1))
    return float(within - 2 * near[2].mean())


def mmd_p_value(one: np.ndarray, two: np.ndarray, rng: np.random.Generator, permutations: int = 500) -> float:
    """Share of random re-splits of the pooled sample whose MMD is at least that of the two samples."""
    pooled = np.concatenate([one, two])
    width = float(np.median(pdist(pooled)))
    found = mmd2(one, two, width)
    above = 0
    for _ in range(permutations):
        mixed = pooled[rng.permutation(len(pooled))]
        above += mmd2(mixed[: len(one)], mixed[len(one) :], width) >= found
    return (above + 1) / (permutations + 1)


def frechet_distance(one: np.ndarray, two: np.ndarray) -> float:
    """|m1 - m2|^2 + Tr(S1 + S2 - 2 (S1 S2)^(1/2)): squared Wasserstein-2 of two fitted Gaussians.

    Dowson & Landau, J. Multivariate Analysis 12, 1982; as a distance of embeddings Heusel et al., NeurIPS
    2017, arXiv:1706.08500. Needs at least five documents a dimension: reduce first (``project_principal``).
    """
    if min(len(one), len(two)) < 2:
        return float("nan")
    spread = [np.atleast_2d(np.cov(sample, rowvar=False)) for sample in (one, two)]
    cross = np.real(sqrtm(spread[0] @ spread[1]))
    apart = ((one.mean(axis=0) - two.mean(axis=0)) ** 2).sum()
    return float(max(apart + np.trace(spread[0] + spread[1] - 2 * cross), 0.0))


def project_principal(vectors: np.ndarray, dimensions: int) -> np.ndarray:
    """The vectors [D, E] in their first principal axes, [D, min(dimensions, E)]."""
    centred = vectors - vectors.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    return centred @ axes[:, ::-1][:, :dimensions]


def embedding_distances(vectors: np.ndarray, owner: np.ndarray, sample_sizes: np.ndarray, rng: np.random.Generator) -> dict[str, float]:
    """Mean over the clients of MMD^2 and Frechet distance between a client's documents and the others'.

    ``vectors`` [D, E] in principal axes, ``owner`` [D], ``sample_sizes`` [N] how many documents of each client to
    compare with as many others. Both distances depend on sample sizes, so compare only numbers of one
    ``sample_sizes``. Frechet looks at no more axes than a fifth of the smallest sample of ten documents or more;
    smaller clients are left out.
    """
    asked = np.flatnonzero(sample_sizes >= MIN_SAMPLE)
    found = np.full((len(asked), 2), np.nan)
    axes = min(32, int(sample_sizes[asked].min(initial=5 * 32)) // 5)
    for row, client in enumerate(asked):
        own, others = (np.flatnonzero((owner == client) == side) for side in (True, False))
        one, two = (vectors[rng.permutation(rows)[: sample_sizes[client]]] for rows in (own, others))
        found[row] = mmd2(one, two), frechet_distance(one[:, :axes], two[:, :axes])
    known = np.isfinite(found).all(axis=1)
    mean = found[known].mean(axis=0) if known.any() else np.full(2, np.nan)
    return {"embedding.mmd2": float(mean[0]), "embedding.frechet": float(mean[1])}


# Can one tell from a document whose it is? The plainest measure of heterogeneity, whatever its kind.


def identification_accuracy(counts: csr_array, owner: np.ndarray, num_clients: int, rng: np.random.Generator) -> float:
    """Balanced accuracy of naive Bayes on bags of words [D, V], trained on half of them; 1/N is chance.

    Clients are weighed alike, by training with an even prior and averaging each client's own accuracy. NaN
    where no client has documents in both halves.
    """
    half = rng.permutation(len(owner)) % 2 == 0
    model = MultinomialNB(fit_prior=False).fit(counts[half], owner[half])
    right = model.predict(counts[~half]) == owner[~half]
    asked = np.bincount(owner[~half], minlength=num_clients)
    correct = np.bincount(owner[~half], weights=right, minlength=num_clients)
    known = (asked > 0) & (np.bincount(owner[half], minlength=num_clients) > 0)
    return float((correct[known] / asked[known]).mean()) if known.any() else float("nan")


# The heterogeneity report: how non-IID a partition is, each number beside what chance alone would give.

NUM_RESPLITS = 20  # IID re-splits behind a null band
MAX_FREQUENT_WORDS = 10_000  # most frequent words: all that pairwise divergence and identification look at
MAX_IDENTIFICATION_DOCUMENTS = 20_000  # documents that identification looks at
NUM_CHARACTERISTIC_WORDS = 10  # words to show of each client
NUM_LENGTH_BINS = 10  # quantiles of document length


def measure_heterogeneity(
    corpus: Corpus, partition: Partition, rng: np.random.Generator, *, vectors: np.ndarray | None = None, resplits: int = NUM_RESPLITS
) -> Heterogeneity:
    """Measure a partition of ``corpus``, with ``vectors`` [D, E] if its documents have embeddings; NaN: it has none.

    The null of a number are ``resplits`` random deals of the same documents, as their owners write them, in
    the same budgets. Documents that the partition leaves out count for nothing. Budgets are in the corpus's
    own unit, but in words as written where clients rewrite.
    """
    clients = len(partition)
    rows = np.sort(np.concatenate(partition.rows))
    owner = partition.document_owners(len(corpus))[rows]
    dealt = corpus.take(rows)
    words = count_words(rewritten_texts(dealt, partition, owner))
    size = words.counts.sum(axis=1) if partition.rewrites else dealt.size.astype(np.float64)
    size = np.maximum(size, 1.0)
    known = slice(None) if vectors is None else np.isfinite(vectors[rows, 0])
    ask = np.minimum(np.bincount(owner[known], minlength=clients), MAX_SAMPLE)
    found_words = count_words(dealt.text) if partition.rewrites else words
    look = _make_measure_fn(dealt, size, words, found_words, ask, None if vectors is None else vectors[rows])

    budgets = np.bincount(owner, weights=size, minlength=clients)
    found = look(owner, rng)
    nulls = []
    for _ in range(resplits):
        mixed = rng.permutation(len(rows))
        chance = np.empty_like(owner)
        chance[mixed] = split_by_budget(size[mixed], budgets)
        nulls.append(look(chance, rng))
    numbers = [Measurement("budget.variation", float(budgets.std() / budgets.mean()))]
    for name, value in found.items():
        null = np.array([each[name] for each in nulls])
        numbers.append(Measurement(name, value, float(null.mean()), float(null.std(ddof=1))) if len(null) > 1 else Measurement(name, value))
    counts = counts_by_client(words.counts, owner, clients)
    return Heterogeneity(
        measurements=tuple(numbers),
        num_clients=clients,
        domains=corpus.domains,
        tokens_by_domain=tokens_by_label(dealt, size, owner, clients),
        budgets=budgets,
        documents=np.bincount(owner, minlength=clients),
        word_totals=counts.sum(axis=1).astype(np.int64),
        word_jsd=apart.pairwise_jsd(counts[:, frequent_words(words)].toarray() + 1e-12),
        characteristic_words=find_characteristic_words(counts, words.vocabulary),
    )


MeasureFn = Callable[[np.ndarray, np.random.Generator], dict[str, float]]


def _make_measure_fn(
    corpus: Corpus, size: np.ndarray, words: WordCounts, original_words: WordCounts, sample_sizes: np.ndarray, vectors: np.ndarray | None
) -> MeasureFn:
    """The numbers of a deal, as a function of who owns which document, [D]."""
    clients = len(sample_sizes)
    asked = np.arange(len(size))[:: max(1, -(-len(size) // MAX_IDENTIFICATION_DOCUMENTS))]
    few = words.counts[asked][:, frequent_words(words)]
    content = original_words.counts[asked][:, [v for v in frequent_words(original_words) if is_content_word(original_words.vocabulary[v])]]
    manner = words.counts[asked][:, [v for v in frequent_words(words) if words.vocabulary[v] in FUNCTION_WORDS]]
    longer = np.minimum((np.argsort(np.argsort(size, kind="stable")) * NUM_LENGTH_BINS) // len(size), NUM_LENGTH_BINS - 1)
    there = np.flatnonzero(np.isfinite(vectors[:, 0])) if vectors is not None else np.empty(0, dtype=np.int64)
    axes = None if vectors is None or not len(there) else project_principal(vectors[there], vectors.shape[1])

    def look(owner: np.ndarray, rng: np.random.Generator) -> dict[str, float]:
        counts = counts_by_client(words.counts, owner, clients)
        found = {"token.jsd": apart.generalized_jsd(counts)}
        if (corpus.label >= 0).any():
            table = tokens_by_label(corpus, size, owner, clients)
            share = table.sum(axis=1) / table.sum()
            found["label.jsd"] = apart.normalized_jsd(table)
            found["label.distance"] = float(np.nansum(share * apart.total_variation(table)))
        lengths = np.zeros((clients, NUM_LENGTH_BINS))
        np.add.at(lengths, (owner, longer), size)
        found["length.jsd"] = apart.normalized_jsd(lengths)
        if clients > 1:
            found["vocabulary.jaccard"] = float(apart.off_diagonal(apart.jaccard(counts)).mean())
            found["vocabulary.coverage"] = float(apart.off_diagonal(apart.coverage(counts)).mean())
            found["identification"] = identification_accuracy(few, owner[asked], clients, rng)
            for name, some in (("content", content), ("manner", manner)):
                if some.shape[1]:
                    found[f"identification.{name}"] = identification_accuracy(some, owner[asked], clients, rng)
            if axes is not None:
                found |= embedding_distances(axes, owner[there], sample_sizes, rng)
        return found

    return look


def frequent_words(words: WordCounts) -> np.ndarray:
    """The most frequent words, at most ``MAX_FREQUENT_WORDS`` of them."""
    return np.sort(np.argsort(-words.totals, kind="stable")[:MAX_FREQUENT_WORDS])


def find_characteristic_words(counts: csr_array, vocabulary: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """The words that tell most of each client: the largest terms of its divergence from the pool.

    The term of word v is q_k(v) log2(q_k(v) / p(v)).
    """
    pool = np.asarray(counts.sum(axis=0)) / max(float(counts.sum()), 1.0)
    found = []
    for client in range(counts.shape[0]):
        start, end = counts.indptr[client : client + 2]
        number, count = counts.indices[start:end], counts.data[start:end]
        own = count / max(count.sum(), 1.0)
        best = np.argsort(-own * np.log2(own / pool[number]), kind="stable")[:NUM_CHARACTERISTIC_WORDS]
        found.append(tuple(vocabulary[v] for v in number[best]))
    return tuple(found)
