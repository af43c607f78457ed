"""Minimal pairs: a sentence of the language beside one that is not, and that differs in one place only.

The phenomena are those of BLiMP (Warstadt et al., TACL 2020, arXiv:1912.00582) that the grammar has. Which of
a pair is right is not a judgement here: P(good) > 0 and P(bad) = 0 in every domain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from ...errors import UserError, unknown
from ...seeds import numpy_stream
from .language import ANAPHOR, AUXILIARY, DETERMINERS, KNOWERS, NUMBERS, PREPOSITIONS, Language
from .lexicon import Lexicon
from .text import spelled

TRIES = 200  # drawings for one pair whose two sentences have equally many tokens
Words = tuple[str, ...]


class Pair(NamedTuple):
    """Two sentences. ``template`` names the sentence pattern, to cluster by when resampling items."""

    phenomenon: str
    template: str
    good: str
    bad: str


class Draw:
    """Words for a pattern: one speaker's lexicon, and a stream to draw from."""

    def __init__(self, lexicon: Lexicon, rng: np.random.Generator) -> None:
        self.lexicon, self.rng = lexicon, rng

    def one(self, of: Sequence[str]) -> str:
        return of[int(self.rng.integers(len(of)))]

    def form(self, kind: Literal["nouns", "transitive", "intransitive"], number: str) -> str:
        words = getattr(self.lexicon, kind)
        return str(getattr(words[int(self.rng.integers(len(words)))], number))

    def both(self, kind: Literal["nouns", "transitive", "intransitive"], number: str) -> tuple[str, str]:
        """A word in this number, and the same word in the other."""
        words = getattr(self.lexicon, kind)
        word = words[int(self.rng.integers(len(words)))]
        return getattr(word, number), getattr(word, other(number))

    def phrase(self, number: str) -> Words:
        """A noun with a determiner that no style changes."""
        return self.one(DETERMINERS[number]), self.form("nouns", number)


def other(number: str) -> str:
    return "pl" if number == "sg" else "sg"


def agreement(draw: Draw, n: str, m: str) -> tuple[Words, Words]:
    right, wrong = draw.both("intransitive", n)
    subject = draw.phrase(n)
    return (*subject, right, "."), (*subject, wrong, ".")


def agreement_phrase(draw: Draw, n: str, m: str) -> tuple[Words, Words]:
    right, wrong = draw.both("intransitive", n)
    subject = (*draw.phrase(n), draw.one(PREPOSITIONS), *draw.phrase(m))
    return (*subject, right, "."), (*subject, wrong, ".")


def agreement_relative(draw: Draw, n: str, m: str) -> tuple[Words, Words]:
    right, wrong = draw.both("intransitive", n)
    subject = (*draw.phrase(n), "that", draw.form("transitive", n), *draw.phrase(m))
    return (*subject, right, "."), (*subject, wrong, ".")


def agreement_in_relative(draw: Draw, n: str, m: str) -> tuple[Words, Words]:
    right, wrong = draw.both("transitive", m)
    subject, end = (*draw.phrase(n), "that", *draw.phrase(m)), (draw.form("intransitive", n), ".")
    return (*subject, right, *end), (*subject, wrong, *end)


def determiner(draw: Draw, n: str, m: str) -> tuple[Words, Words]:
    noun, end = draw.form("nouns", n), (draw.form("intransitive", n), ".")
    return (draw.one(DETERMINERS[n]), noun, *end), (draw.one(DETERMINERS[other(n)]), noun, *end)


def anaphor(draw: Draw, n: str, m: str) -> tuple[Words, Words]:
    clause = (*draw.phrase(n), draw.form("transitive", n))
    return (*clause, ANAPHOR[n], "."), (*clause, ANAPHOR[other(n)], ".")


def polarity(draw: Draw, n: str, m: str) -> tuple[Words, Words]:
    rest = (draw.form("nouns", n), "ever", draw.form("intransitive", n), ".")
    return ("no", *rest), (draw.one(DETERMINERS[n]), *rest)


def filler_gap(draw: Draw, n: str, m: str) -> tuple[Words, Words]:
    who, clause = draw.one(KNOWERS), (*draw.phrase(n), draw.form("transitive", n), ".")
    return (who, "know", "what", *clause), (who, "know", "that", *clause)


def verb_form(draw: Draw, n: str, m: str) -> tuple[Words, Words]:
    bare, finite = draw.both("transitive", "pl")
    question = ("what", AUXILIARY[n], *draw.phrase(n))
    return (*question, bare, "?"), (*question, finite, "?")


def word_order(draw: Draw, n: str, m: str) -> tuple[Words, Words]:
    (article, noun), end = draw.phrase(n), (draw.form("intransitive", n), ".")
    return (article, noun, *end), (noun, article, *end)


def argument(draw: Draw, n: str, m: str) -> tuple[Words, Words]:
    subject, target = draw.phrase(n), draw.phrase(m)
    return ((*subject, draw.form("transitive", n), *target, "."),
            (*subject, draw.form("intransitive", n), *target, "."))


PHENOMENA: dict[str, Callable[[Draw, str, str], tuple[Words, Words]]] = {
    "agreement": agreement,
    "agreement across a phrase": agreement_phrase,
    "agreement across a relative clause": agreement_relative,
    "agreement in a relative clause": agreement_in_relative,
    "determiner and noun": determiner,
    "anaphor": anaphor,
    "negative polarity": polarity,
    "filler and gap": filler_gap,
    "verb form": verb_form,
    "word order": word_order,
    "argument structure": argument,
}
# The second number is of the noun in between, or of the object; patterns without one ignore it.
WITH_SECOND = {"agreement across a phrase", "agreement across a relative clause", "agreement in a relative clause",
               "argument structure"}


def minimal_pairs(language: Language, phenomenon: str, count: int, *, domain: int | None = None,
                  tokens: Callable[[str], int] | None = None, seed: int = 0) -> list[Pair]:
    """``count`` pairs, no two alike, their templates in turn; words of the common lexicon, or of one domain's own.

    Both sentences have equally many words. With ``tokens`` (how many tokens a text has) they have equally many
    tokens too; UserError where the tokenizer has no such pairs. An attractor (the noun between subject and verb)
    is in the other number in half of the templates.
    """
    if phenomenon not in PHENOMENA:
        raise unknown("phenomenon", phenomenon, PHENOMENA)
    overlap = language.sandbox.overlap
    if (domain is None and overlap == 0) or (domain is not None and overlap == 1):
        raise UserError(f"at corpus.sandbox.overlap {overlap:g} the language has no words "
                        f"{'in common' if domain is None else 'of one domain alone'} to make pairs of")
    lexicon = language.vocabulary.common if domain is None else language.vocabulary.own[domain]
    draw = Draw(lexicon, numpy_stream(seed, "sandbox", "pairs", phenomenon, -1 if domain is None else domain))
    templates = [(n, m) for n in NUMBERS for m in (NUMBERS if phenomenon in WITH_SECOND else NUMBERS[:1])]
    found: dict[tuple[str, str], Pair] = {}
    for _ in range(TRIES * count):
        if len(found) == count:
            break
        n, m = templates[len(found) % len(templates)]
        good, bad = (spelled(words) for words in PHENOMENA[phenomenon](draw, n, m))
        if tokens is None or tokens(good) == tokens(bad):
            name = f"{phenomenon}, {n} {m}" if phenomenon in WITH_SECOND else f"{phenomenon}, {n}"
            found.setdefault((good, bad), Pair(phenomenon, name, good, bad))
    if len(found) < count:
        matched = " with equally many tokens" if tokens else ""
        raise UserError(f"only {len(found)} of {count} pairs of {phenomenon!r} could be made{matched}: ask for fewer, "
                        "or raise corpus.sandbox.words")
    return list(found.values())
