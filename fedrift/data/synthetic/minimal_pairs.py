"""Generate minimal pairs: a grammatical and an ungrammatical sentence that differ in one place.

The phenomena are those of BLiMP (Warstadt et al., TACL 2020, arXiv:1912.00582) that occur in the grammar. Grammaticality does
not depend on human judgment: P(good) > 0 and P(bad) = 0 in every domain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from ...core.errors import UserError, unknown_name_error
from ...core.random import numpy_stream
from .language import ANAPHOR, AUXILIARY, DETERMINERS, NUMBERS, PREPOSITIONS, SUBJECT_PRONOUNS, Lexicon, SyntheticLanguage, join_words

MAX_TRIES = 200  # attempts per pair to find two sentences with equally many tokens
Words = tuple[str, ...]


class MinimalPair(NamedTuple):
    """Two sentences; ``template`` names their sentence pattern and serves as the cluster when items are resampled."""

    phenomenon: str
    template: str
    good: str
    bad: str


class WordSampler:
    """Sample words for sentence patterns from one lexicon."""

    def __init__(self, lexicon: Lexicon, rng: np.random.Generator) -> None:
        self.lexicon, self.rng = lexicon, rng

    def sample_one(self, options: Sequence[str]) -> str:
        """Sample one of the options."""
        return options[int(self.rng.integers(len(options)))]

    def sample_form(self, kind: Literal["nouns", "transitive", "intransitive"], number: str) -> str:
        """Sample a word of a class in one number."""
        words = getattr(self.lexicon, kind)
        return str(getattr(words[int(self.rng.integers(len(words)))], number))

    def sample_both_numbers(self, kind: Literal["nouns", "transitive", "intransitive"], number: str) -> tuple[str, str]:
        """Sample a word and return it in ``number`` and in the other number."""
        words = getattr(self.lexicon, kind)
        word = words[int(self.rng.integers(len(words)))]
        return getattr(word, number), getattr(word, other_number(number))

    def sample_noun_phrase(self, number: str) -> Words:
        """Sample a noun with a determiner that is the same in all styles."""
        return self.sample_one(DETERMINERS[number]), self.sample_form("nouns", number)


def other_number(number: str) -> str:
    """Return the other grammatical number."""
    return "pl" if number == "sg" else "sg"


def agreement(sampler: WordSampler, n: str, m: str) -> tuple[Words, Words]:
    """Contrast subject-verb agreement with its violation."""
    right, wrong = sampler.sample_both_numbers("intransitive", n)
    subject = sampler.sample_noun_phrase(n)
    return (*subject, right, "."), (*subject, wrong, ".")


def agreement_phrase(sampler: WordSampler, n: str, m: str) -> tuple[Words, Words]:
    """Contrast agreement across a prepositional phrase with its violation."""
    right, wrong = sampler.sample_both_numbers("intransitive", n)
    subject = (*sampler.sample_noun_phrase(n), sampler.sample_one(PREPOSITIONS), *sampler.sample_noun_phrase(m))
    return (*subject, right, "."), (*subject, wrong, ".")


def agreement_relative(sampler: WordSampler, n: str, m: str) -> tuple[Words, Words]:
    """Contrast agreement across a relative clause with its violation."""
    right, wrong = sampler.sample_both_numbers("intransitive", n)
    subject = (*sampler.sample_noun_phrase(n), "that", sampler.sample_form("transitive", n), *sampler.sample_noun_phrase(m))
    return (*subject, right, "."), (*subject, wrong, ".")


def agreement_in_relative(sampler: WordSampler, n: str, m: str) -> tuple[Words, Words]:
    """Contrast agreement inside a relative clause with its violation."""
    right, wrong = sampler.sample_both_numbers("transitive", m)
    subject, end = ((*sampler.sample_noun_phrase(n), "that", *sampler.sample_noun_phrase(m)), (sampler.sample_form("intransitive", n), "."))
    return (*subject, right, *end), (*subject, wrong, *end)


def determiner(sampler: WordSampler, n: str, m: str) -> tuple[Words, Words]:
    """Contrast a determiner of the right number with one of the wrong number."""
    noun, end = sampler.sample_form("nouns", n), (sampler.sample_form("intransitive", n), ".")
    return (sampler.sample_one(DETERMINERS[n]), noun, *end), (sampler.sample_one(DETERMINERS[other_number(n)]), noun, *end)


def anaphor(sampler: WordSampler, n: str, m: str) -> tuple[Words, Words]:
    """Contrast an anaphor of the right number with one of the wrong number."""
    clause = (*sampler.sample_noun_phrase(n), sampler.sample_form("transitive", n))
    return (*clause, ANAPHOR[n], "."), (*clause, ANAPHOR[other_number(n)], ".")


def polarity(sampler: WordSampler, n: str, m: str) -> tuple[Words, Words]:
    """Contrast "ever" that "no" licenses with "ever" that nothing licenses."""
    rest = (sampler.sample_form("nouns", n), "ever", sampler.sample_form("intransitive", n), ".")
    return ("no", *rest), (sampler.sample_one(DETERMINERS[n]), *rest)


def filler_gap(sampler: WordSampler, n: str, m: str) -> tuple[Words, Words]:
    """Contrast a clause with a gap after "what" with the same clause after "that"."""
    who, clause = (sampler.sample_one(SUBJECT_PRONOUNS), (*sampler.sample_noun_phrase(n), sampler.sample_form("transitive", n), "."))
    return (who, "know", "what", *clause), (who, "know", "that", *clause)


def verb_form(sampler: WordSampler, n: str, m: str) -> tuple[Words, Words]:
    """Contrast a bare verb after an auxiliary with a finite one."""
    bare, finite = sampler.sample_both_numbers("transitive", "pl")
    question = ("what", AUXILIARY[n], *sampler.sample_noun_phrase(n))
    return (*question, bare, "?"), (*question, finite, "?")


def word_order(sampler: WordSampler, n: str, m: str) -> tuple[Words, Words]:
    """Contrast the order of determiner and noun with the reverse order."""
    (article, noun), end = sampler.sample_noun_phrase(n), (sampler.sample_form("intransitive", n), ".")
    return (article, noun, *end), (noun, article, *end)


def argument(sampler: WordSampler, n: str, m: str) -> tuple[Words, Words]:
    """Contrast a transitive verb before an object with an intransitive one."""
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
# These patterns use the second number: that of the intervening noun or of the object.
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
    """Generate different pairs of one phenomenon, which cycle through its templates.

    Both sentences of a pair have equally many words. The attractor (the noun between subject and verb) has the opposite number in
    half of the templates.

    Args:
        language: The language.
        phenomenon: A key of `PHENOMENA`.
        count: The number of pairs.
        domain: The domain whose own words are used; None uses the common lexicon.
        count_tokens: Counts the tokens of a text. If given, both sentences of a pair have equally many tokens.
        seed: The seed of the pairs.

    Raises:
        UserError: The phenomenon is unknown, the language lacks the words, or too few pairs exist.
    """
    if phenomenon not in PHENOMENA:
        raise unknown_name_error("phenomenon", phenomenon, PHENOMENA)
    overlap = language.config.overlap
    if (domain is None and overlap == 0) or (domain is not None and overlap == 1):
        raise UserError(
            f"with dataset.synthetic.overlap {overlap:g}, the language has no words "
            f"{'that all domains share' if domain is None else 'that belong to one domain only'}, which these minimal pairs need"
        )
    lexicon = language.vocabulary.common if domain is None else language.vocabulary.own[domain]
    sampler = WordSampler(lexicon, numpy_stream(seed, "sandbox", "pairs", phenomenon, -1 if domain is None else domain))
    templates = [(n, m) for n in NUMBERS for m in (NUMBERS if phenomenon in TWO_NUMBER_PHENOMENA else NUMBERS[:1])]
    pairs: dict[tuple[str, str], MinimalPair] = {}
    for _ in range(MAX_TRIES * count):
        if len(pairs) == count:
            break
        n, m = templates[len(pairs) % len(templates)]
        good, bad = (join_words(words) for words in PHENOMENA[phenomenon](sampler, n, m))
        if count_tokens is None or count_tokens(good) == count_tokens(bad):
            name = f"{phenomenon}, {n} {m}" if phenomenon in TWO_NUMBER_PHENOMENA else f"{phenomenon}, {n}"
            pairs.setdefault((good, bad), MinimalPair(phenomenon, name, good, bad))
    if len(pairs) < count:
        condition = " with equally many tokens" if count_tokens else ""
        raise UserError(
            f"only {len(pairs)} of {count} pairs of {phenomenon!r} could be generated{condition}: request fewer pairs, "
            "or increase dataset.synthetic.words_per_class"
        )
    return list(pairs.values())
