"""Token-distribution skew: clients prefer different words, of whatever topic. No document is changed.

A random direction z in word space scores documents, phi_d = mean over the words of d of z; clients take
alternate sides of it with probability ~ exp(lambda phi_d). Over single words that is q(v) ~ p(v) exp(+-lambda
z_v).
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Annotated

import numpy as np
from annotated_types import Ge
from scipy.special import ndtri

from ..corpus.corpus import Corpus
from .function_words import FUNCTION_WORDS
from .margins import deal, fit
from .partition import Clients, Partition, Severity, weights
from .topic_mix import holders
from .words import Words, count_words

SHARPNESS = 2.0  # lambda at severity 0.5, in standard deviations of phi


@dataclass(frozen=True)
class TokenTilt:
    """Severity 0: chance alone. Severity 1: each client holds one end of a direction. Budgets are equal.

    Client k takes side k mod P of P = 2 x ``directions`` (one direction: even clients against odd ones). z_v
    is N(0, 1) for content words that the corpus has at least five times, and 0 for all others; it hangs on
    the word alone, so that train and test documents are tilted alike. lambda = 2 s / (1 - s) in standard
    deviations of phi. A document keeps its random numbers at every severity (the soft choice is an argmax
    over Gumbel noise).

    Whole documents can be tilted only so far: 10 clients of AG News with 5 directions reach 0.10 bits of
    token divergence above chance at severity 1, with one direction 0.025. Read the measured severity, not the
    dial.
    """

    clients: Clients = 10
    severity: Severity = 1.0
    directions: Annotated[int, Ge(1)] = 1

    def __call__(self, corpus: Corpus, rng: np.random.Generator) -> Partition:
        size = weights(corpus, self.clients)
        key = rng.bytes(16)
        noise = rng.gumbel(size=(len(corpus), 2 * self.directions))
        score = (1 - self.severity) * noise
        if self.severity > 0:
            tilt = tilts(count_words(corpus.text), self.directions, key)
            score += self.severity * SHARPNESS * np.stack([tilt, -tilt], axis=2).reshape(noise.shape)
        own = holders(self.clients, min(self.clients, 2 * self.directions))
        rows = np.full(self.clients, size.sum() / self.clients)
        side = choose(score[:, : own.shape[1]], size, own.sum(axis=0) * rows[0])
        columns = np.bincount(side, weights=size, minlength=own.shape[1])
        table = fit(own * (columns / own.sum(axis=0)), rows, columns)
        return deal(table, side, size, rng)

    def missing(self, corpus: Corpus) -> str:
        """Why no direction tells these documents apart; "" where one does."""
        flat = np.ptp(tilts(count_words(corpus.text), 1, bytes(16))) < 1e-3  # in standard deviations, or nothing but rounding
        return "no content word that it has 5 times tells its documents apart" if flat else ""


def tilts(words: Words, directions: int, key: bytes) -> np.ndarray:
    """phi in units of its standard deviation, [D, directions]."""
    content = np.flatnonzero([word not in FUNCTION_WORDS for word in words.vocabulary] & (words.total >= 5))
    z = np.zeros((len(words.vocabulary), directions))
    z[content] = np.array([normal(words.vocabulary[v], directions, key) for v in content]).reshape(
        -1, directions
    )
    lengths = np.maximum(words.counts.sum(axis=1), 1.0)
    phi = (words.counts @ z) / lengths[:, None]
    return (phi - phi.mean(axis=0)) / np.maximum(phi.std(axis=0), 1e-12)


def normal(word: str, directions: int, key: bytes) -> np.ndarray:
    """One N(0, 1) number a direction that only the word and the key decide, [directions]."""
    drawn = [
        blake2b(word.encode(), digest_size=8, key=key, salt=d.to_bytes(16)).digest()
        for d in range(directions)
    ]
    return ndtri((np.frombuffer(b"".join(drawn), dtype=">u8").astype(np.float64) + 0.5) / 2.0**64)


def choose(score: np.ndarray, size: np.ndarray, capacity: np.ndarray, sweeps: int = 20) -> np.ndarray:
    """The side that each document likes best at prices that fill every side to its capacity of tokens, [D].

    ``score`` [D, P], ``size`` [D], ``capacity`` [P]. The prices maximise the dual of the assignment one at a
    time: the price of a side is where the documents that prefer it to all others run out of room.
    """
    price = np.zeros(len(capacity))
    if len(price) == 1:
        return np.zeros(len(size), dtype=np.int64)
    for _ in range(1 if len(price) == 2 else sweeps):
        for p in range(1, len(price)):
            net = score - price
            net[:, p] = -np.inf
            eager = score[:, p] - net.max(axis=1)
            order = np.argsort(-eager, kind="stable")
            middle = np.cumsum(size[order]) - size[order] / 2
            last = np.searchsorted(middle, capacity[p])
            edges = eager[order[max(last - 1, 0)]], eager[order[min(last, len(order) - 1)]]
            price[p] = (edges[0] + edges[1]) / 2
    return (score - price).argmax(axis=1)
