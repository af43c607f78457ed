"""Reference tables: the measured divergence of partitioners on synthetic corpora, compared with expected values.

``reproduce_tables()`` generates its corpora and applies the partitioners themselves, so it needs no data and no download.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

import numpy as np

from ..core.random import numpy_stream
from ..data.corpus import Corpus
from .heterogeneity import generalized_jsd, normalized_jsd
from .topic_skew import TopicMix, sample_dirichlet

EXPECTED_MIX = {0.25: 0.0599, 0.5: 0.2256, 0.75: 0.5033, 0.9: 0.7484, 1.0: 1.0}
EXPECTED_DIRICHLET = {  # alpha: mean total variation distance to uniform, normalized divergence, mean largest share
    100.0: (0.034, 0.002, 0.276),
    10.0: (0.107, 0.024, 0.334),
    1.0: (0.318, 0.198, 0.521),
    0.5: (0.411, 0.323, 0.617),
    0.3: (0.486, 0.433, 0.693),
    0.1: (0.62, 0.65, 0.844),
    0.05: (0.677, 0.745, 0.911),
    0.01: (0.733, 0.855, 0.98),
}
EXPECTED_TILT = {0.25: 0.047, 0.5: 0.171, 1.0: 0.503, 2.0: 0.909, 4.0: 0.999}


@dataclass(frozen=True)
class ReferenceRow:
    """One entry of a reference table.

    Attributes:
        table: Name of the table: ``mix``, ``dirichlet`` or ``tilt``.
        setting: Parameter value of the row, such as ``s=0.5``.
        quantity: Name of the measured quantity.
        expected: Reference value.
        measured: Value of this simulation.
        tolerance: Largest accepted absolute difference between the two.
    """

    table: str
    setting: str
    quantity: str
    expected: float
    measured: float
    tolerance: float  # for the random tables: three standard errors plus half of the last printed digit

    @property
    def is_within_tolerance(self) -> bool:
        """Return whether the measured value differs from the expected one by at most the tolerance."""
        return abs(self.measured - self.expected) <= self.tolerance


def reproduce_tables(seed: int = 0, draws: int = 2000) -> list[ReferenceRow]:
    """Compute all reference tables: the topic mixture, the Dirichlet draws before margins are fitted, and the unigram tilt.

    Args:
        seed: Seed of the random streams.
        draws: Number of draws from each Dirichlet distribution.
    """
    return [*reproduce_mix(seed), *reproduce_dirichlet(seed, draws), *reproduce_tilt(seed)]


def reproduce_mix(seed: int) -> list[ReferenceRow]:
    """Measure the normalized divergence of topics of ``TopicMix`` at each severity, for 8 clients and 4 topics of equal size."""
    corpus = make_uniform_corpus(num_documents=8000, num_topics=4)
    rows = []
    for severity, expected in EXPECTED_MIX.items():
        partition = TopicMix(8, severity)(corpus, numpy_stream(seed, "partition"))
        table = np.array([np.bincount(corpus.label[documents], minlength=4) for documents in partition.rows])
        rows.append(ReferenceRow("mix", f"s={severity}", "divergence", expected, float(normalized_jsd(table)), 0.001))
    return rows


def reproduce_dirichlet(seed: int, draws: int) -> list[ReferenceRow]:
    """Measure draws q_k ~ Dir(alpha) for 10 clients and 4 topics, before the margins are fitted."""
    rows = []
    for alpha, expected in EXPECTED_DIRICHLET.items():
        uniform = numpy_stream(seed, "dirichlet table", str(alpha)).random((draws, 10, 4))
        share = sample_dirichlet(np.full(4, alpha), uniform)
        statistics = (
            np.abs(share - 0.25).sum(axis=2).mean(axis=1) / 2,
            (entropy_bits(share.mean(axis=1)) - entropy_bits(share).mean(axis=1)) / 2,  # divided by log2 4
            share.max(axis=2).mean(axis=1),
        )
        per_draw = np.stack(statistics, axis=1)
        # The factor sqrt(2) is needed because the expected values are means of random draws, too.
        tolerance = 3 * per_draw.std(axis=0, ddof=1) * np.sqrt(2 / draws) + 0.0005
        for j, name in enumerate(("total variation", "divergence", "largest share")):
            mean = float(per_draw[:, j].mean())
            rows.append(ReferenceRow("dirichlet", f"alpha={alpha}", name, expected[j], mean, float(tolerance[j])))
    return rows


def reproduce_tilt(seed: int, pools: int = 40, words: int = 2000) -> list[ReferenceRow]:
    """Measure the divergence in bits of two clients with q(v) ~ p(v) exp(+-lambda z_v).

    Args:
        seed: Seed of the random stream of z.
        pools: Number of independent draws of z.
        words: V, the size of the vocabulary; p is a Zipf distribution over it.
    """
    zipf = 1 / np.arange(1, words + 1)
    z = numpy_stream(seed, "tilt table").normal(size=(pools, words))
    rows = []
    for sharpness, expected in EXPECTED_TILT.items():
        divergences = []
        for direction in z:
            sides = np.stack([zipf * np.exp(sign * sharpness * direction) for sign in (1, -1)])
            divergences.append(generalized_jsd(sides / sides.sum(axis=1, keepdims=True)))
        tolerance = float(3 * np.std(divergences, ddof=1)) + 0.0005  # the expected value is a single draw of z
        rows.append(ReferenceRow("tilt", f"lambda={sharpness}", "divergence", expected, float(np.mean(divergences)), tolerance))
    return rows


def entropy_bits(shares: np.ndarray) -> np.ndarray:
    """Return the Shannon entropy over the last axis, in bits."""
    return -(shares * np.log2(np.maximum(shares, 1e-300))).sum(axis=-1)


def make_uniform_corpus(num_documents: int, num_topics: int) -> Corpus:
    """Return a synthetic corpus whose documents have equal sizes and whose topics have equal numbers of documents."""
    text = sorted((str(i) for i in range(num_documents)), key=lambda number: sha256(number.encode()).hexdigest())
    return Corpus(
        name="even topics",
        text=np.array(text, dtype=object),
        label=np.array([int(number) % num_topics for number in text], dtype=np.int64),
        domains=tuple(f"topic{i}" for i in range(num_topics)),
        source=np.full(num_documents, "", dtype=object),
        split=np.zeros(num_documents, dtype=np.int8),
        size=np.ones(num_documents, dtype=np.int64),
    )
