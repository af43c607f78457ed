"""Minimal pairs: a sentence of the language beside one that is not, and that differs in one place only.

The phenomena are those of BLiMP (Warstadt et al., TACL 2020, arXiv:1912.00582) that the grammar has. Which of
a pair is right is not a judgement here: P(good) > 0 and P(bad) = 0 in every domain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from ...core.errors import UserError, unknown_name_error
from ...core.random import numpy_stream
from .language import ANAPHOR, AUXILIARY, DETERMINERS, NUMBERS, PREPOSITIONS, SUBJECT_PRONOUNS, Lexicon, SyntheticLanguage, join_words

MAX_TRIES = 200  # drawings for one pair whose two sentences have equally many tokens
Words = tuple[str, ...]


class MinimalPair(NamedTuple):
    """Two sentences. ``template`` names the sentence pattern, to cluster by when resampling items."""

    phenomenon: str
    template: str
    good: str
    bad: str


class WordSampler:
    """Words for a pattern: one speaker's lexicon, and a stream to draw from."""

    def __init__(self, lexicon: Lexicon, rng: np.random.Generator) -> None:
        self.lexicon, self.rng = lexicon, rng

    def sample_one(self, options: Sequence[str]) -> str:
        return options[int(self.rng.integers(len(options)))]

    def sample_form(self, kind: Literal["nouns", "transitive", "intransitive"], number: str) -> str:
        words = getattr(self.lexicon, kind)
        return str(getattr(words[int(self.rng.integers(len(words)))], number))

    def sample_both_numbers(self, kind: Literal["nouns", "transitive", "intransitive"], number: str) -> tuple[str, str]:
        """A word in this number, and the same word in the other."""
        words = getattr(self.lexicon, kind)
        word = words[int(self.rng.integers(len(words)))]
        return getattr(word, number), getattr(word, other_number(number))

    def sample_noun_phrase(self, number: str) -> Words:
        """A noun with a determiner that no style changes."""
        return self.sample_one(DETERMINERS[number]), self.sample_form("nouns", number)


def other_number(number: str) -> str:
    return "pl" if number == "sg" else "sg"


def agreement(sampler: WordSampler, n: str, m: str) -> tuple[Words, Words]:
    right, wrong = sampler.sample_both_numbers("intransitive", n)
    subject = sampler.sample_noun_phrase(n)
    return (*subject, right, "."), (*subject, wrong, ".")


def agreement_phrase(sampler: WordSampler, n: str, m: str) -> tuple[Words, Words]:
    right, wrong = sampler.sample_both_numbers("intransitive", n)
    subject = (*sampler.sample_noun_phrase(n), sampler.sample_one(PREPOSITIONS), *sampler.sample_noun_phrase(m))
    return (*subject, right, "."), (*subject, wrong, ".")


def agreement_relative(sampler: WordSampler, n: str, m: str) -> tuple[Words, Words]:
    right, wrong = sampler.sample_both_numbers("intransitive", n)
    subject = (*sampler.sample_noun_phrase(n), "that", sampler.sample_form("transitive", n), *sampler.sample_noun_phrase(m))
    return (*subject, right, "."), (*subject, wrong, ".")


def agreement_in_relative(sampler: WordSampler, n: str, m: str) -> tuple[Words, Words]:
    right, wrong = sampler.sample_both_numbers("transitive", m)
    subject, end = ((*sampler.sample_noun_phrase(n), "that", *sampler.sample_noun_phrase(m)), (sampler.sample_form("intransitive", n), "."))
    return (*subject, right, *end), (*subject, wrong, *end)


def determiner(sampler: WordSampler, n: str, m: str) -> tuple[Words, Words]:
    noun, end = sampler.sample_form("nouns", n), (sampler.sample_form("intransitive", n), ".")
    return (sampler.sample_one(DETERMINERS[n]), noun, *end), (sampler.sample_one(DETERMINERS[other_number(n)]), noun, *end)


def anaphor(sampler: WordSampler, n: str, m: str) -> tuple[Words, Words]:
    clause = (*sampler.sample_noun_phrase(n), sampler.sample_form("transitive", n))
    return (*clause, ANAPHOR[n], "."), (*clause, ANAPHOR[other_number(n)], ".")


def polarity(sampler: WordSampler, n: str, m: str) -> tuple[Words, Words]:
    rest = (sampler.sample_form("nouns", n), "ever", sampler.sample_form("intransitive", n), ".")
    return ("no", *rest), (sampler.sample_one(DETERMINERS[n]), *rest)


def filler_gap(sampler: WordSampler, n: str, m: str) -> tuple[Words, Words]:
    who, clause = (sampler.sample_one(SUBJECT_PRONOUNS), (*sampler.sample_noun_phrase(n), sampler.sample_form("transitive", n), "."))
    return (who, "know", "what", *clause), (who, "know", "that", *clause)


def verb_form(sampler: WordSampler, n: str, m: str) -> tuple[Words, Words]:
    bare, finite = sampler.sample_both_numbers("transitive", "pl")
    question = ("what", AUXILIARY[n], *sampler.sample_noun_phrase(n))
    return (*question, bare, "?"), (*question, finite, "?")


def word_order(sampler: WordSampler, n: str, m: str) -> tuple[Words, Words]:
    (article, noun), end = sampler.sample_noun_phrase(n), (sampler.sample_form("intransitive", n), ".")
    return (article, noun, *end), (noun, article, *end)


def argument(sampler: WordSampler, n: str, m: str) -> tuple[Words, Words]:
    subject, target = sampler.sample_noun_phrase(n), sampler.sample_noun_phrase(m)
    return (
        (*subject, sampler.sample_form("transitive", n), *target, "."),
        (*subject, sampler.sample_form("intransitive", n), *target, "."),
    )


PHENOMENA: dict[str, Callable[[WordSampler, str, str], tuple[Words, Words]]] = {
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
TWO_NUMBER_PHENOMENA = {
    "agreement across a phrase",
    "agreement across a relative clause",
    "agreement in a relative clause",
    "argument structure",
}


def make_minimal_pairs(
    language: SyntheticLanguage,
    phenomenon: str,
    count: int,
    *,
    domain: int | None = None,
    count_tokens: Callable[[str], int] | None = None,
    seed: int = 0,
) -> list[MinimalPair]:
    """``count`` pairs, no two alike, their templates in turn; words of the common lexicon, or of one domain's own.

    Both sentences have equally many words. With ``tokens`` (how many tokens a text has) they have equally many
    tokens too; UserError where the tokenizer has no such pairs. An attractor (the noun between subject and verb)
    is in the other number in half of the templates.
    """
    if phenomenon not in PHENOMENA:
        raise unknown_name_error("phenomenon", phenomenon, PHENOMENA)
    overlap = language.config.overlap
    if (domain is None and overlap == 0) or (domain is not None and overlap == 1):
        raise UserError(
            f"at dataset.synthetic.overlap {overlap:g} the language has no words "
            f"{'in common' if domain is None else 'of one domain alone'} to make pairs of"
        )
    lexicon = language.vocabulary.common if domain is None else language.vocabulary.own[domain]
    draw = WordSampler(lexicon, numpy_stream(seed, "sandbox", "pairs", phenomenon, -1 if domain is None else domain))
    templates = [(n, m) for n in NUMBERS for m in (NUMBERS if phenomenon in TWO_NUMBER_PHENOMENA else NUMBERS[:1])]
    found: dict[tuple[str, str], MinimalPair] = {}
    for _ in range(MAX_TRIES * count):
        if len(found) == count:
            break
        n, m = templates[len(found) % len(templates)]
        good, bad = (join_words(words) for words in PHENOMENA[phenomenon](draw, n, m))
        if count_tokens is None or count_tokens(good) == count_tokens(bad):
            name = f"{phenomenon}, {n} {m}" if phenomenon in TWO_NUMBER_PHENOMENA else f"{phenomenon}, {n}"
            found.setdefault((good, bad), MinimalPair(phenomenon, name, good, bad))
    if len(found) < count:
        matched = " with equally many tokens" if count_tokens else ""
        raise UserError(
            f"only {len(found)} of {count} pairs of {phenomenon!r} could be made{matched}: ask for fewer, "
            "or raise dataset.synthetic.words_per_class"
        )
    return list(found.values())
