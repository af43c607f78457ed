"""`Sandbox`: the dials of the made-up language."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal, NamedTuple

from annotated_types import Ge, Interval, MinLen

from ...core.random import Seed, numpy_stream
from ..corpus import TRAIN
from ..rows import Rows
from .grammar import Grammar, Production

StyleName = Literal["plain", "formal", "slang", "short"]


@dataclass(frozen=True)
class SyntheticConfig:
    """A made-up language with ``num_domains`` domains, as many documents of each; in an experiment
    ``dataset: {name: synthetic, synthetic: {overlap: 0.2}}``.

    - ``overlap``: the share of open-class words (nouns, verbs) that come from the common lexicon. At 1 all
      domains have one lexicon, at 0 no noun or verb of one occurs in another: marginal shift.
    - ``concept_shift``: the share of sentences in which a common noun takes a verb that only the domain decides.
      Nouns and verbs in them are as frequent in every domain, their pairs are not: concept shift alone.
    - ``styles``: domain k writes in style k mod S. Styles differ in a few closed-class words.
    - ``words_per_class``: words in a lexicon of each class, with frequencies ~ 1 / rank^``zipf_exponent`` (0: all alike).
    - ``modifier_rate``: the share of nouns that carry a phrase or a relative clause, and so recursion.
    - ``mean_sentences``: of a document, on average (geometric).
    """

    num_domains: Annotated[int, Interval(ge=1, le=32)] = 4
    num_documents: Annotated[int, Ge(1)] = 2000
    overlap: Annotated[float, Interval(ge=0, le=1)] = 0.5
    concept_shift: Annotated[float, Interval(ge=0, le=1)] = 0.0
    styles: Annotated[tuple[StyleName, ...], MinLen(1)] = ("plain",)
    words_per_class: Annotated[int, Interval(ge=1, le=300)] = 60
    zipf_exponent: Annotated[float, Interval(ge=0, le=3)] = 1.0
    modifier_rate: Annotated[float, Interval(ge=0, le=0.5)] = 0.2
    mean_sentences: Annotated[float, Interval(ge=1, le=1000)] = 6.0
    seed: Seed = 0

    @property
    def domain_names(self) -> tuple[str, ...]:
        """The domains' names, in their order as labels too."""
        return tuple(f"domain{k:0{len(str(self.num_domains - 1))}d}" for k in range(self.num_domains))


# Made-up words. Singular and plural have equally many letters, and no word is any English function word's.

ONSETS, VOWELS, CODAS = "bdfgklmnprstvz", "aeiou", "lmnrstk"
CONCEPT_WORDS = 8  # nouns, and verbs, of each group of the concept sentences


class WordForms(NamedTuple):
    """A word in its two numbers; a verb's plural is its bare form too (``does not talen``)."""

    sg: str
    pl: str


class Lexicon(NamedTuple):
    """The open classes of one speaker."""

    nouns: tuple[WordForms, ...]
    transitive: tuple[WordForms, ...]
    intransitive: tuple[WordForms, ...]


class Vocabulary(NamedTuple):
    """All made-up words of a sandbox: common ones, those of each domain, and the D groups of the habits."""

    common: Lexicon
    own: tuple[Lexicon, ...]  # [D]
    concept_nouns: tuple[tuple[WordForms, ...], ...]  # [D] groups of nouns
    concept_verbs: tuple[tuple[WordForms, ...], ...]  # [D] groups of intransitive verbs


def make_vocabulary(config: SyntheticConfig) -> Vocabulary:
    """The words that the seed decides. No stem is used twice."""
    syllable = [len(ONSETS), len(VOWELS), len(ONSETS), len(VOWELS), len(CODAS)]
    count = 1
    for letters in syllable:
        count *= letters
    order = iter(numpy_stream(config.seed, "sandbox", "lexicon").permutation(count).tolist())

    def stem() -> str:
        number, letters = next(order), ""
        for kinds in (ONSETS, VOWELS, ONSETS, VOWELS, CODAS):
            number, place = divmod(number, len(kinds))
            letters += kinds[place]
        return letters

    def nouns(many: int) -> tuple[WordForms, ...]:
        return tuple(WordForms(f"{root}a", f"{root}i") for root in (stem() for _ in range(many)))

    def verbs(many: int) -> tuple[WordForms, ...]:
        return tuple(WordForms(f"{root}es", f"{root}en") for root in (stem() for _ in range(many)))

    def lexicon() -> Lexicon:
        return Lexicon(nouns(config.words_per_class), verbs(config.words_per_class), verbs(config.words_per_class))

    common = lexicon()
    creatures = tuple(nouns(CONCEPT_WORDS) for _ in range(config.num_domains))
    habits = tuple(verbs(CONCEPT_WORDS) for _ in range(config.num_domains))
    return Vocabulary(common, tuple(lexicon() for _ in range(config.num_domains)), creatures, habits)


# The sandbox's grammar: one syntax for all domains, with their own words, habits and styles.
#
# ``NP.sg``, ``VT.pl`` ... : number is part of a symbol, so that agreement holds at any distance. The next word
# always tells which choice was made, so that every sentence has one derivation and the grammar's entropy is the
# language's.

START_SYMBOL = "S"
NUMBERS = ("sg", "pl")
# Where styles differ: each form of a word is one style's alone, and "short" leaves the article out.
STYLE_FORMS: dict[str, dict[str, tuple[str, ...]]] = {
    "THE": {"plain": ("the",), "formal": ("the", "said"), "slang": ("da",), "short": ()},
    "NOT": {"plain": ("not",), "formal": ("in", "no", "way"), "slang": ("nah",), "short": ("nt",)},
    "WILL": {"plain": ("will",), "formal": ("shall",), "slang": ("gonna",), "short": ("ll",)},
}
DETERMINERS = {"sg": ("a", "this", "every"), "pl": ("some", "these", "many")}
AUXILIARY = {"sg": "does", "pl": "do"}
ANAPHOR = {"sg": "itself", "pl": "themselves"}
PREPOSITIONS = ("near", "behind", "beside")
SUBJECT_PRONOUNS = ("we", "you", "they")
OWN_SYMBOLS = ("N.sg.own", "N.pl.own", "VT.sg.own", "VT.pl.own", "VI.sg.own", "VI.pl.own")
CONCEPT_SYMBOL = "HABIT"


class SyntheticLanguage:
    """The grammars of a sandbox's domains, [D], and their words."""

    def __init__(self, config: SyntheticConfig) -> None:
        self.config = config
        self.vocabulary: Vocabulary = make_vocabulary(config)
        self.grammars = tuple(Grammar(make_rules(config, self.vocabulary, d)) for d in range(config.num_domains))

    def domain_style(self, domain: int) -> str:
        """The style of a domain."""
        return self.config.styles[domain % len(self.config.styles)]


@lru_cache(maxsize=16)
def get_language(config: SyntheticConfig) -> SyntheticLanguage:
    """The language of a sandbox; made once."""
    return SyntheticLanguage(config)


def make_rules(config: SyntheticConfig, words: Vocabulary, domain: int) -> dict[str, list[Production]]:
    """The rules of one domain."""
    style = config.styles[domain % len(config.styles)]
    said: dict[str, list[Production]] = {site: [(1.0, forms[style])] for site, forms in STYLE_FORMS.items()}
    said |= {"P": uniform_choices(PREPOSITIONS), "WHO": uniform_choices(SUBJECT_PRONOUNS)}
    plain: list[Production] = []
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
        said[f"NP.{n}"] = [(1 - config.modifier_rate, (f"DET.{n}", f"N.{n}")), (config.modifier_rate, (f"DET.{n}", f"N.{n}", f"MOD.{n}"))]
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
        for symbol, one, other in (
            ("N", common.nouns, own.nouns),
            ("VT", common.transitive, own.transitive),
            ("VI", common.intransitive, own.intransitive),
        ):
            name = f"{symbol}.{n}"
            said[name] = [(config.overlap, (f"{name}.common",)), (1 - config.overlap, (f"{name}.own",))]
            said[f"{name}.common"] = zipf_choices(one, n, config.zipf_exponent)
            said[f"{name}.own"] = zipf_choices(other, n, config.zipf_exponent)
    groups = range(config.num_domains)
    for n in NUMBERS:
        for group in groups:
            said[f"CREATURE{group}.{n}"] = zipf_choices(words.concept_nouns[group], n, 0.0)
            said[f"HABIT{group}.{n}"] = zipf_choices(words.concept_verbs[group], n, 0.0)
    said[CONCEPT_SYMBOL] = [
        (0.5 / len(groups), (f"DET.{n}", f"CREATURE{group}.{n}", f"HABIT{(group + domain) % len(groups)}.{n}", "."))
        for n in NUMBERS
        for group in groups
    ]
    said["PLAIN"] = plain
    said[START_SYMBOL] = [(1 - config.concept_shift, ("PLAIN",)), (config.concept_shift, (CONCEPT_SYMBOL,))]
    return said


def uniform_choices(words: Sequence[str]) -> list[Production]:
    """Each word as likely."""
    return [(1 / len(words), (word,)) for word in words]


def zipf_choices(words: Sequence[WordForms], number: str, exponent: float) -> list[Production]:
    """Word of rank r with probability ~ 1 / r^exponent, in this number."""
    weight = [1 / rank**exponent for rank in range(1, len(words) + 1)]
    total = sum(weight)
    return [(w / total, (getattr(word, number),)) for w, word in zip(weight, words, strict=True)]


# Sentences as text and back, and the documents of a sandbox.

TOKEN_PATTERN = re.compile(r"[a-z]+|[.?]|\S")
SENTENCE_ENDS = (".", "?")


def join_words(words: Sequence[str]) -> str:
    """Words as text: ``the balora talen.``"""
    return " ".join(words).replace(" .", ".").replace(" ?", "?")


def split_sentences(text: str) -> list[list[str]]:
    """The sentences of a text, each a list of words with its full stop; what follows the last stop is one too."""
    sentences: list[list[str]] = [[]]
    for piece in TOKEN_PATTERN.findall(text):
        sentences[-1].append(piece)
        if piece in SENTENCE_ENDS:
            sentences.append([])
    return sentences if sentences[-1] else sentences[:-1]


def generate_document(config: SyntheticConfig, domain: int, number: int) -> str:
    """One document; only the dials, the seed, its domain and its number decide it."""
    rng = numpy_stream(config.seed, "sandbox", "document", domain, number)
    grammar = get_language(config).grammars[domain]
    return " ".join(join_words(grammar.sample(START_SYMBOL, rng)) for _ in range(int(rng.geometric(1 / config.mean_sentences))))


def generate_rows(config: SyntheticConfig) -> Rows:
    """All documents, the domains in turn, as the rows of any other corpus."""
    made = [(number % config.num_domains, number // config.num_domains) for number in range(config.num_documents)]
    names = config.domain_names
    return Rows(
        [generate_document(config, domain, number) for domain, number in made],
        [names[domain] for domain, _ in made],
        [f"{names[domain]}/{number}" for domain, number in made],
        [TRAIN] * len(made),
    )
