"""Define the synthetic language: its settings, vocabulary, grammars and documents, and the lowest possible loss on them in nats.

``loss - floor`` is the part of the loss that a model could still learn to avoid. There are two floors:

- H(document | domain), for a model that knows the domain of each document;
- H(document) = H(document | domain) + I(document; domain), for one shared model that must infer the domain.

Their difference, I(document; domain), is the conflict between domains that no training removes. It is exact because all
evidence is conclusive. Domains assign the same probability to every common word in the same position, so that a document
without evidence is equally likely in all domains. One word or noun-verb pair that is specific to a domain excludes all other
domains. One word that differs between styles excludes all domains of other styles.

Both floors hold for whole documents, each read separately and including its end. If a block contains several documents of one
domain, the earlier ones reveal the domain. A shared model may then reach a loss below the second floor, but not below the first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal, NamedTuple

import numpy as np
from annotated_types import Ge, Interval, MinLen

from ...core.errors import UserError, unknown_name_error
from ...core.lazy_imports import special
from ...core.random import Seed, numpy_stream
from ..corpus import TRAIN, Corpus
from ..rows import Rows
from .grammar import Grammar, Production, sentence_probability

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


# The lowest possible loss.


class LossFloor(NamedTuple):
    """Expectations over documents: the lowest possible loss and the length."""

    nats: float  # nats per document, which is the entropy
    words: float  # words per document, including sentence ends


def domain_floor(language: SyntheticLanguage, domain: int) -> LossFloor:
    """Return the floor for a model that knows the domain: the entropy of the documents of the domain."""
    grammar, mean_sentences = language.grammars[domain], language.config.mean_sentences
    stop_prob = 1 / mean_sentences
    # Entropy of the geometric distribution of the number of sentences.
    length_nats = -(np.log(stop_prob) + (mean_sentences - 1) * np.log1p(-stop_prob)) if mean_sentences > 1 else 0.0
    return LossFloor(mean_sentences * grammar.entropy(START_SYMBOL) + float(length_nats), mean_sentences * grammar.mean_words(START_SYMBOL))


def mixture_floor(language: SyntheticLanguage, weights: Sequence[float] | None = None) -> LossFloor:
    """Return the floor for one shared model of all domains.

    Args:
        language: The language.
        weights: The relative frequency of each domain, [D]; equal by default.
    """
    share = normalize_weights(language, weights)
    floors = [domain_floor(language, d) for d in range(len(share))]
    nats = sum(p * (floor.nats + domain_surprisal(language, d, share)) for d, (p, floor) in enumerate(zip(share, floors)) if p)
    return LossFloor(float(nats), float(sum(p * floor.words for p, floor in zip(share, floors))))


def domain_information(language: SyntheticLanguage, weights: Sequence[float] | None = None) -> float:
    """Return I(document; domain) in nats per document, the cost to a shared model of not knowing the domain.

    Args:
        language: The language.
        weights: The relative frequency of each domain, [D]; equal by default.
    """
    share = normalize_weights(language, weights)
    return float(sum(p * domain_surprisal(language, d, share) for d, p in enumerate(share) if p))


def domain_surprisal(language: SyntheticLanguage, domain: int, share: np.ndarray) -> float:
    """Return E[-log P(remaining domains)] in nats for documents of one domain.

    The remaining domains are those that a document does not exclude.

    Args:
        language: The language.
        domain: The index of the domain.
        share: The frequency of each domain, [D], with sum 1.
    """
    grammar, same_style = (
        language.grammars[domain],
        [language.domain_style(d) == language.domain_style(domain) for d in range(len(share))],
    )
    domain_symbols = {*OWN_SYMBOLS, CONCEPT_SYMBOL}
    no_domain_evidence = prob_without_evidence(grammar.probability_without(START_SYMBOL, domain_symbols), language.config.mean_sentences)
    no_evidence = prob_without_evidence(
        grammar.probability_without(START_SYMBOL, {*domain_symbols, *STYLE_FORMS}), language.config.mean_sentences
    )
    return float(-np.log(share[domain]) * (1 - no_domain_evidence) - np.log(share[same_style].sum()) * (no_domain_evidence - no_evidence))


def prob_without_evidence(sentence_prob: float, mean_sentences: float) -> float:
    """Return the probability that no sentence of a document contains evidence.

    Args:
        sentence_prob: The probability that one sentence contains no evidence.
        mean_sentences: The mean of the geometric number of sentences.
    """
    return sentence_prob / (mean_sentences - (mean_sentences - 1) * sentence_prob)


def normalize_weights(language: SyntheticLanguage, weights: Sequence[float] | None) -> np.ndarray:
    """Normalize domain weights to sum 1; None means equal weights.

    Raises:
        ValueError: There is not one weight per domain, a weight is negative, or all are zero.
    """
    count = language.config.num_domains
    share = np.ones(count) if weights is None else np.asarray(weights, dtype=np.float64)
    if share.shape != (count,) or share.min() < 0 or not share.sum() > 0:
        raise ValueError(f"weights must be {count} nonnegative numbers that are not all zero, got {weights}")
    return share / share.sum()


def document_nats(language: SyntheticLanguage, text: str, domain: int | None = None, weights: Sequence[float] | None = None) -> float:
    """Return -log P(text) of a whole document, in nats.

    Args:
        language: The language.
        text: The document.
        domain: The domain whose probability is used. None means the mixture of all domains.
        weights: The relative frequency of each domain in the mixture, [D]; equal by default.

    Returns:
        The nats, or infinity if the text does not belong to the language.
    """
    sentences = split_sentences(text)
    stop_prob, count = 1 / language.config.mean_sentences, len(sentences)
    with np.errstate(divide="ignore"):
        prior = np.log(normalize_weights(language, weights))
        length_log_prob = np.log(stop_prob) + ((count - 1) * np.log1p(-stop_prob) if count > 1 else 0.0)

    def log_likelihood(d: int) -> float:
        probs = [sentence_probability(language.grammars[d], START_SYMBOL, words) for words in sentences]
        return float(length_log_prob + sum(map(np.log, probs))) if probs and min(probs) > 0 else -np.inf

    if domain is not None:
        return -log_likelihood(domain)
    return -float(special.logsumexp([p + log_likelihood(d) for d, p in enumerate(prior)]))


def corpus_nats(language: SyntheticLanguage, corpus: Corpus) -> np.ndarray:
    """Return -log P(text | domain) of every document, [D], in nats.

    ``corpus_nats(language, test).sum() / tokens.lengths.sum()`` is the lowest possible loss per token on these documents for a
    model that knows the domain. It holds for any tokenizer; the end-of-sequence tokens are counted.

    Raises:
        UserError: A document has no label, or its domain is not one of the language.
    """
    names = language.config.domain_names
    for name in corpus.domains:
        if name not in names:
            raise unknown_name_error("domain of the synthetic corpus", name, names)
    if (corpus.label < 0).any():
        raise UserError("the loss floor of a document depends on its domain, but some documents have no label")
    return np.array([document_nats(language, text, names.index(corpus.domains[label])) for text, label in zip(corpus.text, corpus.label)])
