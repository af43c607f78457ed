"""Define the synthetic language: its settings, vocabulary, grammars and documents."""

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
    """Configure the synthetic dataset; all domains have equally many documents.

    Example in the YAML of an experiment: ``dataset: {name: synthetic, synthetic: {overlap: 0.2}}``.

    Attributes:
        num_domains: The number of domains.
        num_documents: The number of documents.
        overlap: The share of open-class words (nouns, verbs) that come from the common lexicon. At 1, all domains share one
            lexicon. At 0, no noun or verb of a domain occurs in another one. This is marginal shift.
        concept_shift: The share of sentences in which the domain decides which verbs a common noun takes. The nouns and verbs
            in these sentences are equally frequent in every domain, but their pairs are not. This is pure concept shift.
        styles: Domain k is written in style k mod S. Styles differ in a few closed-class words.
        words_per_class: The number of words of each class in a lexicon.
        zipf_exponent: Word frequencies are proportional to 1 / rank^zipf_exponent; 0 makes them equal.
        modifier_rate: The share of nouns that are modified by a phrase or a relative clause, which makes the grammar recursive.
        mean_sentences: The mean number of sentences per document (geometric distribution).
        seed: The seed of the vocabulary and the documents.
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
        """Return the names of the domains in the order of their label numbers."""
        return tuple(f"domain{k:0{len(str(self.num_domains - 1))}d}" for k in range(self.num_domains))


# Singular and plural of a generated word are equally long, and no generated word equals an English function word.

ONSETS, VOWELS, CODAS = "bdfgklmnprstvz", "aeiou", "lmnrstk"
CONCEPT_WORDS = 8  # number of nouns, and of verbs, in each group of the concept-shift sentences


class WordForms(NamedTuple):
    """A word in singular and plural; the plural of a verb is also its bare form (``does not talen``)."""

    sg: str
    pl: str


class Lexicon(NamedTuple):
    """The open-class words that are common to all domains, or those of one domain."""

    nouns: tuple[WordForms, ...]
    transitive: tuple[WordForms, ...]
    intransitive: tuple[WordForms, ...]


class Vocabulary(NamedTuple):
    """All generated words: common ones, those of each domain, and D groups of words for concept-shift sentences."""

    common: Lexicon
    own: tuple[Lexicon, ...]  # [D]
    concept_nouns: tuple[tuple[WordForms, ...], ...]  # [D] groups of nouns
    concept_verbs: tuple[tuple[WordForms, ...], ...]  # [D] groups of intransitive verbs


def make_vocabulary(config: SyntheticConfig) -> Vocabulary:
    """Generate the vocabulary from the seed; no stem occurs twice."""
    num_options = [len(ONSETS), len(VOWELS), len(ONSETS), len(VOWELS), len(CODAS)]
    num_stems = 1
    for num_letters in num_options:
        num_stems *= num_letters
    order = iter(numpy_stream(config.seed, "sandbox", "lexicon").permutation(num_stems).tolist())

    def stem() -> str:
        number, letters = next(order), ""
        for options in (ONSETS, VOWELS, ONSETS, VOWELS, CODAS):
            number, index = divmod(number, len(options))
            letters += options[index]
        return letters

    def nouns(count: int) -> tuple[WordForms, ...]:
        return tuple(WordForms(f"{root}a", f"{root}i") for root in (stem() for _ in range(count)))

    def verbs(count: int) -> tuple[WordForms, ...]:
        return tuple(WordForms(f"{root}es", f"{root}en") for root in (stem() for _ in range(count)))

    def lexicon() -> Lexicon:
        return Lexicon(nouns(config.words_per_class), verbs(config.words_per_class), verbs(config.words_per_class))

    common = lexicon()
    concept_nouns = tuple(nouns(CONCEPT_WORDS) for _ in range(config.num_domains))
    concept_verbs = tuple(verbs(CONCEPT_WORDS) for _ in range(config.num_domains))
    return Vocabulary(common, tuple(lexicon() for _ in range(config.num_domains)), concept_nouns, concept_verbs)


# All domains share one syntax and differ in words, noun-verb pairs and style. Number is part of a symbol (``NP.sg``, ``VT.pl``),
# so that agreement holds at any distance. The next word always reveals which production was chosen. Every sentence therefore has
# one derivation, and the entropy of the grammar is that of the language.

START_SYMBOL = "S"
NUMBERS = ("sg", "pl")
# The forms of each word that styles write differently. No two styles share a form, and "short" omits the article.
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
    """The vocabulary of a configuration and the grammar of each domain, [D]."""

    def __init__(self, config: SyntheticConfig) -> None:
        self.config = config
        self.vocabulary: Vocabulary = make_vocabulary(config)
        self.grammars = tuple(Grammar(make_rules(config, self.vocabulary, d)) for d in range(config.num_domains))

    def domain_style(self, domain: int) -> str:
        """Return the style of a domain."""
        return self.config.styles[domain % len(self.config.styles)]


@lru_cache(maxsize=16)
def get_language(config: SyntheticConfig) -> SyntheticLanguage:
    """Return the language of a configuration; it is built once and cached."""
    return SyntheticLanguage(config)


def make_rules(config: SyntheticConfig, words: Vocabulary, domain: int) -> dict[str, list[Production]]:
    """Build the grammar rules of one domain.

    Args:
        config: The settings of the language.
        words: Its vocabulary.
        domain: The index of the domain.
    """
    style = config.styles[domain % len(config.styles)]
    rules: dict[str, list[Production]] = {site: [(1.0, forms[style])] for site, forms in STYLE_FORMS.items()}
    rules |= {"P": uniform_choices(PREPOSITIONS), "WHO": uniform_choices(SUBJECT_PRONOUNS)}
    plain_sentences: list[Production] = []
    for n in NUMBERS:
        aux = AUXILIARY[n]
        plain_sentences += [
            (0.25, (f"NP.{n}", f"VP.{n}", ".")),
            (0.06, (f"NP.{n}", aux, "NOT", f"BARE.{n}", ".")),
            (0.05, (f"NP.{n}", "WILL", f"BARE.{n}", ".")),
            (0.04, ("no", f"N.{n}", "ever", f"VP.{n}", ".")),
            (0.03, ("WHO", "know", "that", f"NP.{n}", f"VP.{n}", ".")),
            (0.03, ("WHO", "know", "what", f"NP.{n}", f"VT.{n}", ".")),
            (0.04, ("what", aux, f"NP.{n}", "VT.pl", "?")),
        ]
        rules[f"DET.{n}"] = [(0.4, ("THE",)), *((0.2, (word,)) for word in DETERMINERS[n])]
        rules[f"NP.{n}"] = [(1 - config.modifier_rate, (f"DET.{n}", f"N.{n}")), (config.modifier_rate, (f"DET.{n}", f"N.{n}", f"MOD.{n}"))]
        rules[f"MOD.{n}"] = [
            *((0.25, ("P", f"NP.{m}")) for m in NUMBERS),
            *((0.15, ("that", f"VT.{n}", f"NP.{m}")) for m in NUMBERS),
            *((0.10, ("that", f"NP.{m}", f"VT.{m}")) for m in NUMBERS),
        ]
        for phrase, form in (("VP", n), ("BARE", "pl")):
            rules[f"{phrase}.{n}"] = [
                (0.40, (f"VI.{form}",)),
                *((0.25, (f"VT.{form}", f"NP.{m}")) for m in NUMBERS),
                (0.10, (f"VT.{form}", ANAPHOR[n])),
            ]
        own, common = words.own[domain], words.common
        for symbol, common_words, own_words in (
            ("N", common.nouns, own.nouns),
            ("VT", common.transitive, own.transitive),
            ("VI", common.intransitive, own.intransitive),
        ):
            name = f"{symbol}.{n}"
            rules[name] = [(config.overlap, (f"{name}.common",)), (1 - config.overlap, (f"{name}.own",))]
            rules[f"{name}.common"] = zipf_choices(common_words, n, config.zipf_exponent)
            rules[f"{name}.own"] = zipf_choices(own_words, n, config.zipf_exponent)
    groups = range(config.num_domains)
    for n in NUMBERS:
        for group in groups:
            rules[f"CREATURE{group}.{n}"] = zipf_choices(words.concept_nouns[group], n, 0.0)
            rules[f"HABIT{group}.{n}"] = zipf_choices(words.concept_verbs[group], n, 0.0)
    rules[CONCEPT_SYMBOL] = [
        (0.5 / len(groups), (f"DET.{n}", f"CREATURE{group}.{n}", f"HABIT{(group + domain) % len(groups)}.{n}", "."))
        for n in NUMBERS
        for group in groups
    ]
    rules["PLAIN"] = plain_sentences
    rules[START_SYMBOL] = [(1 - config.concept_shift, ("PLAIN",)), (config.concept_shift, (CONCEPT_SYMBOL,))]
    return rules


def uniform_choices(words: Sequence[str]) -> list[Production]:
    """Return productions with equal probabilities, one for each word."""
    return [(1 / len(words), (word,)) for word in words]


def zipf_choices(words: Sequence[WordForms], number: str, exponent: float) -> list[Production]:
    """Return productions for words in one number; the word of rank r has a probability proportional to 1 / r^exponent."""
    weight = [1 / rank**exponent for rank in range(1, len(words) + 1)]
    total = sum(weight)
    return [(w / total, (getattr(word, number),)) for w, word in zip(weight, words, strict=True)]


TOKEN_PATTERN = re.compile(r"[a-z]+|[.?]|\S")
SENTENCE_ENDS = (".", "?")


def join_words(words: Sequence[str]) -> str:
    """Join words to text, such as ``the balora talen.``"""
    return " ".join(words).replace(" .", ".").replace(" ?", "?")


def split_sentences(text: str) -> list[list[str]]:
    """Split a text into sentences, each a list of words with its end mark; an unfinished last sentence also counts."""
    sentences: list[list[str]] = [[]]
    for piece in TOKEN_PATTERN.findall(text):
        sentences[-1].append(piece)
        if piece in SENTENCE_ENDS:
            sentences.append([])
    return sentences if sentences[-1] else sentences[:-1]


def generate_document(config: SyntheticConfig, domain: int, number: int) -> str:
    """Generate one document, which depends only on the configuration, the domain and the number of the document."""
    rng = numpy_stream(config.seed, "sandbox", "document", domain, number)
    grammar = get_language(config).grammars[domain]
    return " ".join(join_words(grammar.sample(START_SYMBOL, rng)) for _ in range(int(rng.geometric(1 / config.mean_sentences))))


def generate_rows(config: SyntheticConfig) -> Rows:
    """Generate all documents as rows; the domains alternate."""
    documents = [(number % config.num_domains, number // config.num_domains) for number in range(config.num_documents)]
    names = config.domain_names
    return Rows(
        [generate_document(config, domain, number) for domain, number in documents],
        [names[domain] for domain, _ in documents],
        [f"{names[domain]}/{number}" for domain, number in documents],
        [TRAIN] * len(documents),
    )
