"""Concept shift in the small: some clients swap content words in pairs of like frequency.

The swap is an involution, so that applying it to a model's input maps a swapping client's text back: what is
lost then was lost in learning, and not by the surface.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from annotated_types import Ge

from ..corpus.corpus import Corpus
from .function_words import FUNCTION_WORDS
from .partition import Clients, Partition, Severity
from .rewriting import deal_rewriting
from .sites import site
from .words import WORD, Words, count_words

NEIGHBOURS = 10  # words are paired within so many of like ending and next in frequency ...
RATIO = 1.5  # ... of which the most frequent is at most so many times as frequent as the least
ENDINGS = ("ing", "ed", "ly", "er", "est", "s")


@dataclass(frozen=True)
class Substitute:
    """Severity 0: nobody swaps. Severity 1: client k swaps every word that has a partner in dialect k mod G.

    Dialect 0 swaps nothing; each of the others has a pairing of its own, drawn once. In between each site is
    swapped with probability s. Content words that the corpus has at least five times are paired with one of
    like ending (a stand-in for the part of speech) and like frequency.
    """

    clients: Clients = 10
    severity: Severity = 1.0
    dialects: Annotated[int, Ge(2)] = 2
    everybody: bool = False
    refill: bool = True

    def __call__(self, corpus: Corpus, rng: np.random.Generator) -> Partition:
        key = rng.bytes(16)
        spoken: list[Swap | None] = [None] * self.dialects
        if self.severity > 0:
            words = count_words(corpus.text)
            spoken[1:] = [Swap(self.severity, key, pairs(words, rng)) for _ in spoken[1:]]
        variants = [spoken[client % self.dialects] for client in range(self.clients)]
        return deal_rewriting(corpus, variants, rng, refill=self.refill, everybody=self.everybody, key=key)


@dataclass(frozen=True)
class Swap:
    """The rewrite: words change places with their partners, at the sites whose number is below ``rate``."""

    rate: float
    key: bytes
    partner: Mapping[str, str] = field(hash=False)

    def __call__(self, text: str, document: str) -> str:
        def swap(match: re.Match[str]) -> str:
            other = self.partner.get(match[0].lower())
            if other is None or site(self.key, document, match.start()) >= self.rate:
                return match[0]
            return like(match[0], other)

        return WORD.sub(swap, text)


def like(pattern: str, word: str) -> str:
    """The word with the capitals of the pattern: small, Capitalised or ALL CAPITALS."""
    if pattern.isupper() and len(pattern) > 1:
        return word.upper()
    return word.capitalize() if pattern[:1].isupper() else word


def pairs(words: Words, rng: np.random.Generator) -> dict[str, str]:
    """A random involution on content words: each has a partner of like ending and frequency, or none."""
    total = words.total
    count = dict(zip(words.vocabulary, total, strict=True))
    alike: defaultdict[str, list[str]] = defaultdict(list)
    often = np.flatnonzero(total >= 5)
    for v in often[np.lexsort((np.array([words.vocabulary[v] for v in often], dtype=str), -total[often]))]:
        word = words.vocabulary[v]
        if len(word) > 1 and word not in FUNCTION_WORDS:
            alike[ending(word)].append(word)
    partner: dict[str, str] = {}
    for _, found in sorted(alike.items()):
        for near in neighbourhoods(found, [count[word] for word in found]):
            mixed = [near[i] for i in rng.permutation(len(near))]
            for one, two in zip(mixed[::2], mixed[1::2], strict=False):
                partner[one], partner[two] = two, one
    return partner


def neighbourhoods(words: list[str], counts: list[float]) -> Iterator[list[str]]:
    """Cut a list in order of frequency into runs of at most ``NEIGHBOURS`` words within ``RATIO``."""
    start = 0
    for end in range(1, len(words) + 1):
        if end == len(words) or end - start == NEIGHBOURS or counts[start] > RATIO * counts[end]:
            yield words[start:end]
            start = end


def ending(word: str) -> str:
    """A coarse class: a number, one of a few endings, or neither."""
    if word.isdigit():
        return "0"
    return next((end for end in ENDINGS if len(word) > len(end) + 2 and word.endswith(end)), "")
