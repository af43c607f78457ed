"""Token-distribution skew: clients prefer different words, of whatever topic. No document is changed.

A random direction z in word space scores documents, phi_d = mean over the words of d of z; clients take
alternate sides of it with probability ~ exp(lambda phi_d). Over single words that is q(v) ~ p(v) exp(+-lambda
z_v).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Annotated

import numpy as np
from annotated_types import Ge
from scipy.special import ndtri

from ..data.corpus import Corpus
from .base import NumClients, Partition, Severity, document_sizes
from .margins import assign_documents, fit_margins
from .rewriting import partition_with_rewrites, stable_uniform
from .topic_skew import topic_ownership
from .words import FUNCTION_WORDS, WORD, WordCounts, count_words

TILT_SHARPNESS = 2.0  # lambda at severity 0.5, in standard deviations of phi


@dataclass(frozen=True)
class TokenTilt:
    """Severity 0: chance alone. Severity 1: each client holds one end of a direction. Budgets are equal.

    Client k takes side k mod P of P = 2 x ``num_directions`` (one direction: even clients against odd ones). z_v
    is N(0, 1) for content words that the corpus has at least five times, and 0 for all others; it hangs on
    the word alone, so that train and test documents are tilted alike. lambda = 2 s / (1 - s) in standard
    deviations of phi. A document keeps its random numbers at every severity (the soft choice is an argmax
    over Gumbel noise).

    Whole documents can be tilted only so far: 10 clients of AG News with 5 directions reach 0.10 bits of
    token divergence above chance at severity 1, with one direction 0.025. Read the measured severity, not the
    dial.
    """

    num_clients: NumClients = 10
    severity: Severity = 1.0
    num_directions: Annotated[int, Ge(1)] = 1

    def __call__(self, corpus: Corpus, rng: np.random.Generator) -> Partition:
        size = document_sizes(corpus, self.num_clients)
        key = rng.bytes(16)
        noise = rng.gumbel(size=(len(corpus), 2 * self.num_directions))
        score = (1 - self.severity) * noise
        if self.severity > 0:
            tilt = document_tilts(count_words(corpus.text), self.num_directions, key)
            score += self.severity * TILT_SHARPNESS * np.stack([tilt, -tilt], axis=2).reshape(noise.shape)
        own = topic_ownership(self.num_clients, min(self.num_clients, 2 * self.num_directions))
        rows = np.full(self.num_clients, size.sum() / self.num_clients)
        side = assign_sides(score[:, : own.shape[1]], size, own.sum(axis=0) * rows[0])
        columns = np.bincount(side, weights=size, minlength=own.shape[1])
        table = fit_margins(own * (columns / own.sum(axis=0)), rows, columns)
        return assign_documents(table, side, size, rng)

    def iid_reason(self, corpus: Corpus) -> str:
        """Why no direction tells these documents apart; "" where one does."""
        flat = np.ptp(document_tilts(count_words(corpus.text), 1, bytes(16))) < 1e-3  # in standard deviations, or nothing but rounding
        return "no content word that it has 5 times tells its documents apart" if flat else ""


def document_tilts(words: WordCounts, num_directions: int, key: bytes) -> np.ndarray:
    """phi in units of its standard deviation, [D, directions]."""
    content = np.flatnonzero([word not in FUNCTION_WORDS for word in words.vocabulary] & (words.totals >= 5))
    z = np.zeros((len(words.vocabulary), num_directions))
    z[content] = np.array([word_normals(words.vocabulary[v], num_directions, key) for v in content]).reshape(-1, num_directions)
    lengths = np.maximum(words.counts.sum(axis=1), 1.0)
    phi = (words.counts @ z) / lengths[:, None]
    return (phi - phi.mean(axis=0)) / np.maximum(phi.std(axis=0), 1e-12)


def word_normals(word: str, num_directions: int, key: bytes) -> np.ndarray:
    """One N(0, 1) number a direction that only the word and the key decide, [directions]."""
    drawn = [blake2b(word.encode(), digest_size=8, key=key, salt=d.to_bytes(16)).digest() for d in range(num_directions)]
    return ndtri((np.frombuffer(b"".join(drawn), dtype=">u8").astype(np.float64) + 0.5) / 2.0**64)


def assign_sides(score: np.ndarray, size: np.ndarray, capacity: np.ndarray, max_iterations: int = 20) -> np.ndarray:
    """The side that each document likes best at prices that fill every side to its capacity of tokens, [D].

    ``score`` [D, P], ``size`` [D], ``capacity`` [P]. The prices maximise the dual of the assignment one at a
    time: the price of a side is where the documents that prefer it to all others run out of room.
    """
    price = np.zeros(len(capacity))
    if len(price) == 1:
        return np.zeros(len(size), dtype=np.int64)
    for _ in range(1 if len(price) == 2 else max_iterations):
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


# Token-distribution skew by deletion: some clients write without function words.

WORD_WITH_SPACE = re.compile(rf"({WORD.pattern})[ \t]*")


@dataclass(frozen=True)
class StopwordDrop:
    """Severity 0: nobody drops. Severity 1: odd clients drop every function word, even clients none.

    In between each one is dropped with probability s. A text of function words alone keeps its first word.
    """

    num_clients: NumClients = 10
    severity: Severity = 1.0
    homogeneous: bool = False
    equalize_words: bool = True

    def __call__(self, corpus: Corpus, rng: np.random.Generator) -> Partition:
        key = rng.bytes(16)
        drop = DropRewrite(self.severity, key) if self.severity > 0 else None
        variants = [drop if client % 2 else None for client in range(self.num_clients)]
        return partition_with_rewrites(corpus, variants, rng, equalize_words=self.equalize_words, homogeneous=self.homogeneous, key=key)


@dataclass(frozen=True)
class DropRewrite:
    """The rewrite: function words go, at the sites whose number is below ``rate``."""

    rate: float
    key: bytes

    def __call__(self, text: str, document: str) -> str:
        def keep(match: re.Match[str]) -> str:
            word = match[1].lower()
            goes = word in FUNCTION_WORDS and stable_uniform(self.key, document, match.start()) < self.rate
            return "" if goes else match[0]

        return WORD_WITH_SPACE.sub(keep, text).strip() or "".join(text.split(maxsplit=1)[:1])


# Concept shift in the small: some clients swap content words in pairs of like frequency.
#
# The swap is an involution, so that applying it to a model's input maps a swapping client's text back: what is
# lost then was lost in learning, and not by the surface.

MAX_RUN_WORDS = 10  # words are paired within so many of like ending and next in frequency ...
MAX_FREQUENCY_RATIO = 1.5  # ... of which the most frequent is at most so many times as frequent as the least
ENDINGS = ("ing", "ed", "ly", "er", "est", "s")


@dataclass(frozen=True)
class Substitute:
    """Severity 0: nobody swaps. Severity 1: client k swaps every word that has a partner in dialect k mod G.

    Dialect 0 swaps nothing; each of the others has a pairing of its own, drawn once. In between each site is
    swapped with probability s. Content words that the corpus has at least five times are paired with one of
    like ending (a stand-in for the part of speech) and like frequency.
    """

    num_clients: NumClients = 10
    severity: Severity = 1.0
    num_dialects: Annotated[int, Ge(2)] = 2
    homogeneous: bool = False
    equalize_words: bool = True

    def __call__(self, corpus: Corpus, rng: np.random.Generator) -> Partition:
        key = rng.bytes(16)
        spoken: list[SwapRewrite | None] = [None] * self.num_dialects
        if self.severity > 0:
            words = count_words(corpus.text)
            spoken[1:] = [SwapRewrite(self.severity, key, pair_words(words, rng)) for _ in spoken[1:]]
        variants = [spoken[client % self.num_dialects] for client in range(self.num_clients)]
        return partition_with_rewrites(corpus, variants, rng, equalize_words=self.equalize_words, homogeneous=self.homogeneous, key=key)


@dataclass(frozen=True)
class SwapRewrite:
    """The rewrite: words change places with their partners, at the sites whose number is below ``rate``."""

    rate: float
    key: bytes
    partners: Mapping[str, str] = field(hash=False)

    def __call__(self, text: str, document: str) -> str:
        def swap(match: re.Match[str]) -> str:
            other = self.partners.get(match[0].lower())
            if other is None or stable_uniform(self.key, document, match.start()) >= self.rate:
                return match[0]
            return match_case(match[0], other)

        return WORD.sub(swap, text)


def match_case(pattern: str, word: str) -> str:
    """The word with the capitals of the pattern: small, Capitalised or ALL CAPITALS."""
    if pattern.isupper() and len(pattern) > 1:
        return word.upper()
    return word.capitalize() if pattern[:1].isupper() else word


def pair_words(words: WordCounts, rng: np.random.Generator) -> dict[str, str]:
    """A random involution on content words: each has a partner of like ending and frequency, or none."""
    total = words.totals
    count = dict(zip(words.vocabulary, total, strict=True))
    alike: defaultdict[str, list[str]] = defaultdict(list)
    often = np.flatnonzero(total >= 5)
    for v in often[np.lexsort((np.array([words.vocabulary[v] for v in often], dtype=str), -total[often]))]:
        word = words.vocabulary[v]
        if len(word) > 1 and word not in FUNCTION_WORDS:
            alike[word_ending(word)].append(word)
    partner: dict[str, str] = {}
    for _, found in sorted(alike.items()):
        for near in frequency_runs(found, [count[word] for word in found]):
            mixed = [near[i] for i in rng.permutation(len(near))]
            for one, two in zip(mixed[::2], mixed[1::2], strict=False):
                partner[one], partner[two] = two, one
    return partner


def frequency_runs(words: list[str], counts: list[float]) -> Iterator[list[str]]:
    """Cut a list in order of frequency into runs of at most ``MAX_RUN_WORDS`` words within ``MAX_FREQUENCY_RATIO``."""
    start = 0
    for end in range(1, len(words) + 1):
        if end == len(words) or end - start == MAX_RUN_WORDS or counts[start] > MAX_FREQUENCY_RATIO * counts[end]:
            yield words[start:end]
            start = end


def word_ending(word: str) -> str:
    """A coarse class: a number, one of a few endings, or neither."""
    if word.isdigit():
        return "0"
    return next((end for end in ENDINGS if len(word) > len(end) + 2 and word.endswith(end)), "")
