"""Token skew: clients have different word distributions.

``TokenTilt`` assigns unchanged documents by their words. A random direction z in word space scores each document,
phi_d = mean of z over the words of d, and clients take opposite sides with probability ~ exp(lambda phi_d). For single words
this means q(v) ~ p(v) exp(+-lambda z_v). ``StopwordDrop`` and ``Substitute`` rewrite the texts instead.
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

from ..core.lazy_imports import special
from ..data.corpus import Corpus
from .base import NumClients, Partition, Severity, document_sizes
from .margins import assign_documents, fit_margins
from .rewriting import partition_with_rewrites, stable_uniform
from .topic_skew import topic_ownership
from .words import FUNCTION_WORDS, WORD, WordCounts, count_words

TILT_SHARPNESS = 2.0  # lambda at severity 0.5, in standard deviations of phi


@dataclass(frozen=True)
class TokenTilt:
    """Token skew by selection: clients hold documents with different words, and no document is changed. Budgets are equal.

    At severity 0 the assignment is random. At severity 1 each client holds one end of a direction in word space.

    Client k takes side k mod P of P = 2 x ``num_directions`` sides; with one direction, clients with even indices are opposed to
    those with odd indices. z_v is N(0, 1) for content words that occur at least five times in the corpus and 0 for all others. It
    depends only on the word, so training and test documents are tilted in the same way. lambda = 2 s / (1 - s) in standard
    deviations of phi. The random numbers of a document are the same at every severity (the soft choice is an argmax over
    Gumbel noise).

    Whole documents can be tilted only to a limited degree: 10 clients of AG News reach 0.10 bits of token divergence above chance
    at severity 1 with 5 directions, and 0.025 bits with one direction. Report the measured divergence in addition to the severity.

    Attributes:
        num_clients: N, the number of clients.
        severity: Degree of the skew, in [0, 1].
        num_directions: Number of random directions in word space.

    Example:
        >>> partition = TokenTilt(num_clients=2)(corpus, rng)
        >>> [len(rows) for rows in partition.rows]
        [29, 31]
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
        owned_sides = topic_ownership(self.num_clients, min(self.num_clients, 2 * self.num_directions))
        rows = np.full(self.num_clients, size.sum() / self.num_clients)
        side = assign_sides(score[:, : owned_sides.shape[1]], size, owned_sides.sum(axis=0) * rows[0])
        columns = np.bincount(side, weights=size, minlength=owned_sides.shape[1])
        table = fit_margins(owned_sides * (columns / owned_sides.sum(axis=0)), rows, columns)
        return assign_documents(table, side, size, rng)

    def iid_reason(self, corpus: Corpus) -> str:
        """Return why no direction separates these documents; "" if one does."""
        # The unit is standard deviations, so smaller ranges are rounding errors.
        is_flat = np.ptp(document_tilts(count_words(corpus.text), 1, bytes(16))) < 1e-3
        return "no content word that occurs at least 5 times distinguishes its documents" if is_flat else ""


def document_tilts(words: WordCounts, num_directions: int, key: bytes) -> np.ndarray:
    """Return phi of each document in units of its standard deviation over documents, [D, directions].

    Args:
        words: Word counts of the documents.
        num_directions: Number of random directions.
        key: Secret of the hash that draws the directions.
    """
    content = np.flatnonzero([word not in FUNCTION_WORDS for word in words.vocabulary] & (words.totals >= 5))
    z = np.zeros((len(words.vocabulary), num_directions))
    z[content] = np.array([word_normals(words.vocabulary[v], num_directions, key) for v in content]).reshape(-1, num_directions)
    lengths = np.maximum(words.counts.sum(axis=1), 1.0)
    phi = (words.counts @ z) / lengths[:, None]
    return (phi - phi.mean(axis=0)) / np.maximum(phi.std(axis=0), 1e-12)


def word_normals(word: str, num_directions: int, key: bytes) -> np.ndarray:
    """Return one N(0, 1) number per direction that depends only on the word and the key, [directions]."""
    digests = [blake2b(word.encode(), digest_size=8, key=key, salt=d.to_bytes(16)).digest() for d in range(num_directions)]
    return special.ndtri((np.frombuffer(b"".join(digests), dtype=">u8").astype(np.float64) + 0.5) / 2.0**64)


def assign_sides(score: np.ndarray, size: np.ndarray, capacity: np.ndarray, max_iterations: int = 20) -> np.ndarray:
    """Assign each document to its preferred side, at prices that fill every side to its capacity.

    The prices maximize the dual of the assignment problem, one coordinate at a time. The price of a side is the margin of preference
    at which the documents that prefer this side exhaust its capacity.

    Args:
        score: Preference of each document for each side, [D, P].
        size: Tokens of each document, [D].
        capacity: Tokens that each side can hold, [P].
        max_iterations: Number of passes over the sides; two sides need one pass.

    Returns:
        Side of each document, [D].
    """
    price = np.zeros(len(capacity))
    if len(price) == 1:
        return np.zeros(len(size), dtype=np.int64)
    for _ in range(1 if len(price) == 2 else max_iterations):
        for p in range(1, len(price)):
            net_score = score - price
            net_score[:, p] = -np.inf
            margin = score[:, p] - net_score.max(axis=1)
            order = np.argsort(-margin, kind="stable")
            middle = np.cumsum(size[order]) - size[order] / 2
            last = np.searchsorted(middle, capacity[p])
            edges = margin[order[max(last - 1, 0)]], margin[order[min(last, len(order) - 1)]]
            price[p] = (edges[0] + edges[1]) / 2
    return (score - price).argmax(axis=1)


# Token skew by deletion of function words.

WORD_WITH_SPACE = re.compile(rf"({WORD.pattern})[ \t]*")


@dataclass(frozen=True)
class StopwordDrop:
    """Token skew by deletion: some clients write without function words.

    At severity 0 no client drops words. At severity 1 clients with odd indices drop every function word, and clients with even indices
    drop none. In between each function word is dropped with probability s. A text that consists only of function words keeps its
    first word.

    Attributes:
        num_clients: N, the number of clients.
        severity: Probability that a function word is dropped, in [0, 1].
        homogeneous: Whether every client rewrites about the same share of its documents (the control).
        equalize_words: Whether clients whose texts shrink receive more documents.

    Example:
        >>> partition = StopwordDrop(num_clients=2)(corpus, rng)
        >>> partition.rewrites[1]("the coach and the player", "document 1")
        'coach player'
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
    """The rewrite that drops function words at the sites whose random number is below ``rate``."""

    rate: float
    key: bytes

    def __call__(self, text: str, document: str) -> str:
        def replace_match(match: re.Match[str]) -> str:
            word = match[1].lower()
            is_dropped = word in FUNCTION_WORDS and stable_uniform(self.key, document, match.start()) < self.rate
            return "" if is_dropped else match[0]

        return WORD_WITH_SPACE.sub(replace_match, text).strip() or "".join(text.split(maxsplit=1)[:1])


# Swapping words is an involution: applying it to a model's input maps a swapping client's text back to the original. A loss that
# remains after this mapping comes from learning and not from the changed surface form.

MAX_RUN_WORDS = 10  # words are paired within groups of at most this many words with equal ending and similar frequency
MAX_FREQUENCY_RATIO = 1.5  # largest ratio of frequencies within such a group
ENDINGS = ("ing", "ed", "ly", "er", "est", "s")


@dataclass(frozen=True)
class Substitute:
    """Small concept shift: some clients swap content words in pairs of similar frequency.

    At severity 0 no client swaps words. At severity 1 client k swaps every word that has a partner in dialect k mod G. In between
    each site is swapped with probability s. Dialect 0 swaps nothing, and each other dialect has its own random pairing. Content words
    that occur at least five times in the corpus are paired with a word of equal ending (a proxy for the part of speech) and
    similar frequency.

    Attributes:
        num_clients: N, the number of clients.
        severity: Probability that a site is swapped, in [0, 1].
        num_dialects: G, the number of dialects, including dialect 0.
        homogeneous: Whether every client rewrites by the same blend of the dialects (the control).
        equalize_words: Whether clients whose texts shrink receive more documents.

    Example:
        >>> partition = Substitute(num_clients=2)(corpus, rng)
        >>> partition.rewrites[1]("the coach and the player", "document 1")
        'the cook and the player'
    """

    num_clients: NumClients = 10
    severity: Severity = 1.0
    num_dialects: Annotated[int, Ge(2)] = 2
    homogeneous: bool = False
    equalize_words: bool = True

    def __call__(self, corpus: Corpus, rng: np.random.Generator) -> Partition:
        key = rng.bytes(16)
        dialects: list[SwapRewrite | None] = [None] * self.num_dialects
        if self.severity > 0:
            words = count_words(corpus.text)
            dialects[1:] = [SwapRewrite(self.severity, key, pair_words(words, rng)) for _ in dialects[1:]]
        variants = [dialects[client % self.num_dialects] for client in range(self.num_clients)]
        return partition_with_rewrites(corpus, variants, rng, equalize_words=self.equalize_words, homogeneous=self.homogeneous, key=key)


@dataclass(frozen=True)
class SwapRewrite:
    """The rewrite that replaces words by their partners at the sites whose random number is below ``rate``."""

    rate: float
    key: bytes
    partners: Mapping[str, str] = field(hash=False)

    def __call__(self, text: str, document: str) -> str:
        def swap(match: re.Match[str]) -> str:
            partner = self.partners.get(match[0].lower())
            if partner is None or stable_uniform(self.key, document, match.start()) >= self.rate:
                return match[0]
            return match_case(match[0], partner)

        return WORD.sub(swap, text)


def match_case(pattern: str, word: str) -> str:
    """Return the word with the capitalization of the pattern: lowercase, Capitalized or ALL CAPITALS."""
    if pattern.isupper() and len(pattern) > 1:
        return word.upper()
    return word.capitalize() if pattern[:1].isupper() else word


def pair_words(words: WordCounts, rng: np.random.Generator) -> dict[str, str]:
    """Return a random involution on content words as a map from each paired word to its partner.

    Partners have equal endings and similar frequencies; some words have no partner.

    Args:
        words: Word counts of the corpus.
        rng: Random generator that shuffles the words of each group.
    """
    total = words.totals
    count = dict(zip(words.vocabulary, total, strict=True))
    by_ending: defaultdict[str, list[str]] = defaultdict(list)
    frequent = np.flatnonzero(total >= 5)
    for v in frequent[np.lexsort((np.array([words.vocabulary[v] for v in frequent], dtype=str), -total[frequent]))]:
        word = words.vocabulary[v]
        if len(word) > 1 and word not in FUNCTION_WORDS:
            by_ending[word_ending(word)].append(word)
    partner: dict[str, str] = {}
    for _, candidates in sorted(by_ending.items()):
        for run in frequency_runs(candidates, [count[word] for word in candidates]):
            shuffled = [run[i] for i in rng.permutation(len(run))]
            for left, right in zip(shuffled[::2], shuffled[1::2], strict=False):
                partner[left], partner[right] = right, left
    return partner


def frequency_runs(words: list[str], counts: list[float]) -> Iterator[list[str]]:
    """Cut a list of words into runs of at most ``MAX_RUN_WORDS`` words and a frequency ratio of at most ``MAX_FREQUENCY_RATIO``.

    Args:
        words: Words in order of decreasing frequency.
        counts: Number of occurrences of each word.
    """
    start = 0
    for end in range(1, len(words) + 1):
        if end == len(words) or end - start == MAX_RUN_WORDS or counts[start] > MAX_FREQUENCY_RATIO * counts[end]:
            yield words[start:end]
            start = end


def word_ending(word: str) -> str:
    """Return a coarse class of the word: "0" for a number, one of ``ENDINGS``, or "" for all others."""
    if word.isdigit():
        return "0"
    return next((end for end in ENDINGS if len(word) > len(end) + 2 and word.endswith(end)), "")
