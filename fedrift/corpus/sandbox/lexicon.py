"""Made-up words. Singular and plural have equally many letters, and no word is any English function word's."""

from __future__ import annotations

from typing import NamedTuple

from ...seeds import numpy_stream
from .settings import Sandbox

ONSETS, VOWELS, CODAS = "bdfgklmnprstvz", "aeiou", "lmnrstk"
HABITS = 8  # nouns, and verbs, of each group of the concept sentences


class Forms(NamedTuple):
    """A word in its two numbers; a verb's plural is its bare form too (``does not talen``)."""

    sg: str
    pl: str


class Lexicon(NamedTuple):
    """The open classes of one speaker."""

    nouns: tuple[Forms, ...]
    transitive: tuple[Forms, ...]
    intransitive: tuple[Forms, ...]


class Vocabulary(NamedTuple):
    """All made-up words of a sandbox: common ones, those of each domain, and the D groups of the habits."""

    common: Lexicon
    own: tuple[Lexicon, ...]  # [D]
    creatures: tuple[tuple[Forms, ...], ...]  # [D] groups of nouns
    habits: tuple[tuple[Forms, ...], ...]  # [D] groups of intransitive verbs


def vocabulary(sandbox: Sandbox) -> Vocabulary:
    """The words that the seed decides. No stem is used twice."""
    syllable = [len(ONSETS), len(VOWELS), len(ONSETS), len(VOWELS), len(CODAS)]
    count = 1
    for letters in syllable:
        count *= letters
    order = iter(numpy_stream(sandbox.seed, "sandbox", "lexicon").permutation(count).tolist())

    def stem() -> str:
        number, letters = next(order), ""
        for kinds in (ONSETS, VOWELS, ONSETS, VOWELS, CODAS):
            number, place = divmod(number, len(kinds))
            letters += kinds[place]
        return letters

    def nouns(many: int) -> tuple[Forms, ...]:
        return tuple(Forms(f"{root}a", f"{root}i") for root in (stem() for _ in range(many)))

    def verbs(many: int) -> tuple[Forms, ...]:
        return tuple(Forms(f"{root}es", f"{root}en") for root in (stem() for _ in range(many)))

    def lexicon() -> Lexicon:
        return Lexicon(nouns(sandbox.words), verbs(sandbox.words), verbs(sandbox.words))

    common = lexicon()
    creatures = tuple(nouns(HABITS) for _ in range(sandbox.domains))
    habits = tuple(verbs(HABITS) for _ in range(sandbox.domains))
    return Vocabulary(common, tuple(lexicon() for _ in range(sandbox.domains)), creatures, habits)
