"""The sandbox's grammar: one syntax for all domains, with their own words, habits and styles.

``NP.sg``, ``VT.pl`` ... : number is part of a symbol, so that agreement holds at any distance. The next word
always tells which choice was made, so that every sentence has one derivation and the grammar's entropy is the
language's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from .grammar import Choice, Grammar
from .lexicon import Forms, Vocabulary, vocabulary
from .settings import Sandbox

START = "S"
NUMBERS = ("sg", "pl")
# Where styles differ: each form of a word is one style's alone, and "short" leaves the article out.
SITES: dict[str, dict[str, tuple[str, ...]]] = {
    "THE": {"plain": ("the",), "formal": ("the", "said"), "slang": ("da",), "short": ()},
    "NOT": {"plain": ("not",), "formal": ("in", "no", "way"), "slang": ("nah",), "short": ("nt",)},
    "WILL": {"plain": ("will",), "formal": ("shall",), "slang": ("gonna",), "short": ("ll",)},
}
DETERMINERS = {"sg": ("a", "this", "every"), "pl": ("some", "these", "many")}
AUXILIARY = {"sg": "does", "pl": "do"}
ANAPHOR = {"sg": "itself", "pl": "themselves"}
PREPOSITIONS = ("near", "behind", "beside")
KNOWERS = ("we", "you", "they")
OWN = ("N.sg.own", "N.pl.own", "VT.sg.own", "VT.pl.own", "VI.sg.own", "VI.pl.own")
HABIT = "HABIT"


class Language:
    """The grammars of a sandbox's domains, [D], and their words."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.vocabulary: Vocabulary = vocabulary(sandbox)
        self.grammars = tuple(Grammar(rules(sandbox, self.vocabulary, d)) for d in range(sandbox.domains))

    def style(self, domain: int) -> str:
        """The style of a domain."""
        return self.sandbox.styles[domain % len(self.sandbox.styles)]


@lru_cache(maxsize=16)
def language(sandbox: Sandbox) -> Language:
    """The language of a sandbox; made once."""
    return Language(sandbox)


def rules(sandbox: Sandbox, words: Vocabulary, domain: int) -> dict[str, list[Choice]]:
    """The rules of one domain."""
    style = sandbox.styles[domain % len(sandbox.styles)]
    said: dict[str, list[Choice]] = {site: [(1.0, forms[style])] for site, forms in SITES.items()}
    said |= {"P": even(PREPOSITIONS), "WHO": even(KNOWERS)}
    plain: list[Choice] = []
    for n in NUMBERS:
        aux = AUXILIARY[n]
        plain += [
            (0.25, (f"NP.{n}", f"VP.{n}", ".")),
            (0.06, (f"NP.{n}", aux, "NOT", f"BARE.{n}", ".")),
            (0.05, (f"NP.{n}", "WILL", f"BARE.{n}", ".")),
            (0.04, ("no", f"N.{n}", "ever", f"VP.{n}", ".")),
            (0.03, ("WHO", "know", "that", f"NP.{n}", f"VP.{n}", ".")),
            (0.03, ("WHO", "know", "what", f"NP.{n}", f"VT.{n}", ".")),
            (0.04, ("what", aux, f"NP.{n}", "VT.pl", "?")),
        ]
        said[f"DET.{n}"] = [(0.4, ("THE",)), *((0.2, (word,)) for word in DETERMINERS[n])]
        said[f"NP.{n}"] = [
            (1 - sandbox.embedding, (f"DET.{n}", f"N.{n}")),
            (sandbox.embedding, (f"DET.{n}", f"N.{n}", f"MOD.{n}")),
        ]
        said[f"MOD.{n}"] = [
            *((0.25, ("P", f"NP.{m}")) for m in NUMBERS),
            *((0.15, ("that", f"VT.{n}", f"NP.{m}")) for m in NUMBERS),
            *((0.10, ("that", f"NP.{m}", f"VT.{m}")) for m in NUMBERS),
        ]
        for phrase, form in (("VP", n), ("BARE", "pl")):
            said[f"{phrase}.{n}"] = [
                (0.40, (f"VI.{form}",)),
                *((0.25, (f"VT.{form}", f"NP.{m}")) for m in NUMBERS),
                (0.10, (f"VT.{form}", ANAPHOR[n])),
            ]
        own, common = words.own[domain], words.common
        for symbol, one, other in (("N", common.nouns, own.nouns), ("VT", common.transitive, own.transitive),
                                   ("VI", common.intransitive, own.intransitive)):
            name = f"{symbol}.{n}"
            said[name] = [(sandbox.overlap, (f"{name}.common",)), (1 - sandbox.overlap, (f"{name}.own",))]
            said[f"{name}.common"] = zipf(one, n, sandbox.zipf)
            said[f"{name}.own"] = zipf(other, n, sandbox.zipf)
    groups = range(sandbox.domains)
    for n in NUMBERS:
        for group in groups:
            said[f"CREATURE{group}.{n}"] = zipf(words.creatures[group], n, 0.0)
            said[f"HABIT{group}.{n}"] = zipf(words.habits[group], n, 0.0)
    said[HABIT] = [
        (0.5 / len(groups), (f"DET.{n}", f"CREATURE{group}.{n}", f"HABIT{(group + domain) % len(groups)}.{n}", "."))
        for n in NUMBERS for group in groups
    ]
    said["PLAIN"] = plain
    said[START] = [(1 - sandbox.concept, ("PLAIN",)), (sandbox.concept, (HABIT,))]
    return said


def even(words: Sequence[str]) -> list[Choice]:
    """Each word as likely."""
    return [(1 / len(words), (word,)) for word in words]


def zipf(words: Sequence[Forms], number: str, exponent: float) -> list[Choice]:
    """Word of rank r with probability ~ 1 / r^exponent, in this number."""
    weight = [1 / rank**exponent for rank in range(1, len(words) + 1)]
    total = sum(weight)
    return [(w / total, (getattr(word, number),)) for w, word in zip(weight, words, strict=True)]
