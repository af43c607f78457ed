"""Minimal pairs in plain English: a sentence beside one that breaks a single rule of grammar."""

from __future__ import annotations

from collections.abc import Callable

from ..corpus.sandbox.pairs import Pair
from ..errors import unknown
from ..seeds import numpy_stream
from .syntax_patterns import PHENOMENA, Draw, Two
from .syntax_words import ENGLISH, Lexicon

TRIES = 60  # drawings for one pair whose two sentences have equally many tokens


def english_pairs(phenomenon: str, count: int, *, lexicon: Lexicon = ENGLISH, tokens: Callable[[str], int] | None = None,
                  seed: int = 0) -> list[Pair]:
    """Up to ``count`` pairs, no two alike, their templates in turn. With ``tokens`` (how many tokens a text has) both
    sentences of a pair have equally many; a template that has no such pairs is left out, and fewer may be had."""
    if phenomenon not in PHENOMENA:
        raise unknown("phenomenon", phenomenon, PHENOMENA)
    draw = Draw(lexicon, numpy_stream(seed, "syntax", "english", phenomenon))
    templates = [(pattern, n) for pattern in PHENOMENA[phenomenon] for n in ("sg", "pl")]
    found: dict[Two, Pair] = {}
    while len(found) < count and templates:
        for template in list(templates):
            pattern, n = template
            for _ in range(TRIES):
                good, bad = pattern(draw, n)
                if good != bad and (good, bad) not in found and (tokens is None or tokens(good) == tokens(bad)):
                    found[good, bad] = Pair(phenomenon, f"{pattern.__name__}, {n}", good, bad)
                    break
            else:
                templates.remove(template)
            if len(found) == count:
                break
    return list(found.values())
