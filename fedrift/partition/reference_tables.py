"""The tables of the books, made again: what a dial should measure, beside what it does.

``reproduce_tables()`` deals synthetic pools with the real partitioners, so that it needs no data and no download.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

import numpy as np

from ..core.random import numpy_stream
from ..data.corpus import Corpus
from .divergence import generalized_jsd, normalized_jsd
from .topic_skew import TopicMix, sample_dirichlet

EXPECTED_MIX = {0.25: 0.0599, 0.5: 0.2256, 0.75: 0.5033, 0.9: 0.7484, 1.0: 1.0}
EXPECTED_DIRICHLET = {  # alpha: mean total variation to uniform, normalised divergence, mean largest share
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
    """One entry of a table: what it is of, what is expected, what was found, and the error to allow for."""

    table: str
    setting: str
    quantity: str
    expected: float
    measured: float
    tolerance: float  # three standard errors of the difference of two such simulations, and half a printed digit

    @property
    def is_within_tolerance(self) -> bool:
        return abs(self.measured - self.expected) <= self.tolerance


def reproduce_tables(seed: int = 0, draws: int = 2000) -> list[ReferenceRow]:
    """All tables: the mix dial, Dirichlet draws before fitting, and the unigram tilt."""
    return [*reproduce_mix(seed), *reproduce_dirichlet(seed, draws), *reproduce_tilt(seed)]


def reproduce_mix(seed: int) -> list[ReferenceRow]:
    """8 clients, 4 topics of one size, dealt for real: normalised divergence of topics at each severity."""
    corpus = make_uniform_corpus(num_documents=8000, num_topics=4)
    rows = []
    for severity, expected in EXPECTED_MIX.items():
        partition = TopicMix(8, severity)(corpus, numpy_stream(seed, "partition"))
        table = np.array([np.bincount(corpus.label[held], minlength=4) for held in partition.rows])
        rows.append(ReferenceRow("mix", f"s={severity}", "divergence", expected, float(normalized_jsd(table)), 0.001))
    return rows


def reproduce_dirichlet(seed: int, draws: int) -> list[ReferenceRow]:
    """10 clients, 4 topics: q_k ~ Dir(alpha) as drawn, before the margins are fitted."""
    rows = []
    for alpha, expected in EXPECTED_DIRICHLET.items():
        uniform = numpy_stream(seed, "dirichlet table", str(alpha)).random((draws, 10, 4))
        share = sample_dirichlet(np.full(4, alpha), uniform)
        measured = (
            np.abs(share - 0.25).sum(axis=2).mean(axis=1) / 2,
            (entropy_bits(share.mean(axis=1)) - entropy_bits(share).mean(axis=1)) / 2,  # over log2 4
            share.max(axis=2).mean(axis=1),
        )
        found = np.stack(measured, axis=1)
        error = 3 * found.std(axis=0, ddof=1) * np.sqrt(2 / draws) + 0.0005  # the book drew too
        for j, name in enumerate(("total variation", "divergence", "largest share")):
            mean = float(found[:, j].mean())
            rows.append(ReferenceRow("dirichlet", f"alpha={alpha}", name, expected[j], mean, float(error[j])))
    return rows


def reproduce_tilt(seed: int, pools: int = 40, words: int = 2000) -> list[ReferenceRow]:
    """Two clients with q(v) ~ p(v) exp(+-lambda z_v), p Zipf over 2,000 words: their divergence in bits."""
    zipf = 1 / np.arange(1, words + 1)
    z = numpy_stream(seed, "tilt table").normal(size=(pools, words))
    rows = []
    for sharpness, expected in EXPECTED_TILT.items():
        found = []
        for direction in z:
            sides = np.stack([zipf * np.exp(sign * sharpness * direction) for sign in (1, -1)])
            found.append(generalized_jsd(sides / sides.sum(axis=1, keepdims=True)))
        error = float(3 * np.std(found, ddof=1)) + 0.0005  # the book's number is one pool
        rows.append(ReferenceRow("tilt", f"lambda={sharpness}", "divergence", expected, float(np.mean(found)), error))
    return rows


def entropy_bits(shares: np.ndarray) -> np.ndarray:
    """Entropy over the last axis."""
    return -(shares * np.log2(np.maximum(shares, 1e-300))).sum(axis=-1)


def make_uniform_corpus(num_documents: int, num_topics: int) -> Corpus:
    """Documents of one size in topics of one size."""
    text = sorted((str(i) for i in range(num_documents)), key=lambda said: sha256(said.encode()).hexdigest())
    return Corpus(
        name="even topics",
        text=np.array(text, dtype=object),
        label=np.array([int(said) % num_topics for said in text], dtype=np.int64),
        domains=tuple(f"topic{i}" for i in range(num_topics)),
        source=np.full(num_documents, "", dtype=object),
        split=np.zeros(num_documents, dtype=np.int8),
        size=np.ones(num_documents, dtype=np.int64),
    )
