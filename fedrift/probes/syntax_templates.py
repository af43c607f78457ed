"""Define common English words and sentence templates for minimal pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np

MIN_CLASS_WORDS = 8  # minimum number of words per class: fewer give too few distinct sentences


class Noun(NamedTuple):
    """The singular and plural form of a noun."""

    sg: str
    pl: str


class Verb(NamedTuple):
    """The forms of a verb: plural (they take), singular (it takes), past (it took) and participle (it has taken)."""

    pl: str
    sg: str
    past: str
    participle: str


@dataclass(frozen=True)
class Lexicon:
    """The open word classes of the templates.

    ``transitive`` verbs require an object, and ``intransitive`` verbs cannot have one. No form of a verb may be a form of another
    verb, because then both sentences of a pair could be grammatical.
    """

    people: tuple[Noun, ...]
    things: tuple[Noun, ...]
    transitive: tuple[Verb, ...]
    intransitive: tuple[Verb, ...]
    adjectives: tuple[str, ...]
    men: tuple[Noun, ...]
    women: tuple[Noun, ...]


def parse_nouns(text: str) -> tuple[Noun, ...]:
    """Parse nouns such as ``boy man/men``. A plural other than singular + s follows a slash."""
    pairs = [word.partition("/") for word in text.split()]
    return tuple(Noun(singular, plural or singular + "s") for singular, _, plural in pairs)


def parse_verbs(text: str) -> tuple[Verb, ...]:
    """Parse verbs such as ``use keep/kept take/took/taken``. An irregular past and participle follow slashes."""
    verbs = []
    for word in text.split():
        base, *irregular = word.split("/")
        past = irregular[0] if irregular else base + ("d" if base.endswith("e") else "ed")
        verbs.append(Verb(base, base + "s", past, irregular[1] if len(irregular) > 1 else past))
    return tuple(verbs)


ENGLISH_LEXICON = Lexicon(
    people=parse_nouns(
        "teacher doctor student friend parent player writer worker driver leader member user patient manager lawyer "
        "singer farmer officer artist actor author customer visitor engineer scientist minister soldier reporter "
        "director expert partner speaker owner person/people child/children guy judge fan"
    ),
    things=parse_nouns(
        "book house car door letter game song film picture phone computer street town school room table plan report "
        "story/stories question answer idea problem system team company/companies market product site record result "
        "change list offer name place word test group card line point project"
    ),
    transitive=parse_verbs(
        "make/made take/took/taken bring/brought buy/bought build/built use mention describe produce create "
        "receive reject raise keep/kept get/got own treat include need"
    ),
    intransitive=parse_verbs("arrive sleep/slept fall/fell/fallen appear laugh smile exist talk listen stay disappear wait come/came/come"),
    adjectives=tuple(
        "new old big small young good bad long short great large little real red strong special local common "
        "different happy nice important popular serious".split()
    ),
    men=parse_nouns("man/men boy father brother son king husband actor"),
    women=parse_nouns("woman/women girl mother sister daughter queen wife/wives actress/actresses"),
)


def select_shared_lexicon(lexicon: Lexicon, domain_counts: Mapping[str, int], num_domains: int) -> Lexicon:
    """Select the words that all domains use in all their relevant forms.

    A class with fewer than ``MIN_CLASS_WORDS`` such words is filled up with the words that most domains use.

    Args:
        lexicon: Candidate words.
        domain_counts: Number of domains that use each word form.
        num_domains: Number of all domains.
    """

    def num_users(word: str | Noun | Verb) -> int:
        return min(domain_counts.get(form, 0) for form in ((word,) if isinstance(word, str) else word[:3]))

    def select(words: tuple[Any, ...]) -> tuple[Any, ...]:
        ranked = sorted(words, key=lambda word: -num_users(word))
        return tuple(ranked[: max(MIN_CLASS_WORDS, sum(num_users(word) >= num_domains for word in words))])

    return replace(lexicon, **{f.name: select(getattr(lexicon, f.name)) for f in fields(lexicon)})


def word_forms(lexicon: Lexicon) -> frozenset[str]:
    """Return all forms of all words of a lexicon."""
    return frozenset(
        form for f in fields(lexicon) for word in getattr(lexicon, f.name) for form in ((word,) if isinstance(word, str) else word)
    )


# Sentence templates. Each returns a grammatical sentence and a copy that violates a single grammar rule.
#
# The phenomena follow BLiMP (Warstadt et al., TACL 2020, arXiv:1912.00582) and use common words. A template function takes a
# number, "sg" or "pl". Function and number together are a template, the unit by which pairs are clustered in resampling. In
# functions named "attractor", the noun before the verb has the other number than the subject.

SentencePair = tuple[str, str]
OTHER_NUMBER = {"sg": "pl", "pl": "sg"}
BE, WAS, HAVE = {"sg": "is", "pl": "are"}, {"sg": "was", "pl": "were"}, {"sg": "has", "pl": "have"}
PRONOUN_CASES = (("him", "he"), ("her", "she"), ("them", "they"), ("us", "we"), ("me", "I"))


class WordSampler:
    """Draw words for templates from a lexicon with a random generator."""

    def __init__(self, lexicon: Lexicon, rng: np.random.Generator) -> None:
        self.lexicon, self.rng = lexicon, rng

    def choose(self, options: Sequence[Any]) -> Any:
        """Draw one of several options uniformly."""
        return options[int(self.rng.integers(len(options)))]

    def person(self, number: str) -> str:
        """Draw a noun for a person, in singular or plural."""
        return str(getattr(self.choose(self.lexicon.people), number))

    def thing(self, number: str = "") -> str:
        """Draw a noun for a thing. Without a number, the number is drawn as well."""
        return str(getattr(self.choose(self.lexicon.things), number or self.choose(("sg", "pl"))))

    def transitive_verb(self) -> Verb:
        """Draw a transitive verb."""
        verb: Verb = self.choose(self.lexicon.transitive)
        return verb

    def intransitive_verb(self) -> Verb:
        """Draw an intransitive verb."""
        verb: Verb = self.choose(self.lexicon.intransitive)
        return verb

    def predicate(self, number: str) -> tuple[str, str, str]:
        """Draw a verb that agrees with the number, its form that does not agree, and the rest of the sentence."""
        verb, adjective = self.intransitive_verb(), self.choose(self.lexicon.adjectives)
        return self.choose(
            (
                (BE[number], BE[OTHER_NUMBER[number]], f" very {adjective}."),
                (WAS[number], WAS[OTHER_NUMBER[number]], f" {adjective}."),
                (HAVE[number], HAVE[OTHER_NUMBER[number]], f" a {self.thing('sg')}."),
                (getattr(verb, number), getattr(verb, OTHER_NUMBER[number]), " here."),
            )
        )  # type: ignore[no-any-return]


def make_pair(prefix: str, good: str, bad: str, suffix: str) -> SentencePair:
    """Build two sentences that differ only between ``prefix`` and ``suffix``."""
    return f"{prefix}{good}{suffix}", f"{prefix}{bad}{suffix}"


def agreement(sampler: WordSampler, number: str) -> SentencePair:
    """Violate agreement of a verb with its subject."""
    right, wrong, end = sampler.predicate(number)
    return make_pair(f"The {sampler.person(number)} ", right, wrong, end)


def agreement_adjective(sampler: WordSampler, number: str) -> SentencePair:
    """Violate agreement of a verb with a subject that has an adjective."""
    right, wrong, end = sampler.predicate(number)
    return make_pair(f"The {sampler.choose(sampler.lexicon.adjectives)} {sampler.thing(number)} ", right, wrong, end)


def agreement_phrase(sampler: WordSampler, number: str, attractor_number: str = "") -> SentencePair:
    """Violate agreement across a prepositional phrase."""
    right, wrong, end = sampler.predicate(number)
    subject = f"The {sampler.person(number)} {sampler.choose(('near', 'behind', 'with'))} the {sampler.thing(attractor_number or number)}"
    return make_pair(
        sampler.choose((subject, f"The {sampler.thing(number)} of the {sampler.person(attractor_number or number)}")) + " ",
        right,
        wrong,
        end,
    )


def agreement_phrase_attractor(sampler: WordSampler, number: str) -> SentencePair:
    """Violate agreement across a prepositional phrase whose noun has the other number."""
    return agreement_phrase(sampler, number, OTHER_NUMBER[number])


def agreement_relative(sampler: WordSampler, number: str, attractor_number: str = "") -> SentencePair:
    """Violate agreement across an object relative clause."""
    right, wrong, end = sampler.predicate(number)
    return make_pair(
        f"The {sampler.thing(number)} that the {sampler.person(attractor_number or number)} {sampler.transitive_verb().past} ",
        right,
        wrong,
        end,
    )


def agreement_relative_attractor(sampler: WordSampler, number: str) -> SentencePair:
    """Violate agreement across an object relative clause whose noun has the other number."""
    return agreement_relative(sampler, number, OTHER_NUMBER[number])


def agreement_relative_subject(sampler: WordSampler, number: str, attractor_number: str = "") -> SentencePair:
    """Violate agreement across a subject relative clause."""
    right, wrong, end = sampler.predicate(number)
    return make_pair(
        f"The {sampler.person(number)} who {sampler.transitive_verb().past} the {sampler.thing(attractor_number or number)} ",
        right,
        wrong,
        end,
    )


def agreement_relative_subject_attractor(sampler: WordSampler, number: str) -> SentencePair:
    """Violate agreement across a subject relative clause whose noun has the other number."""
    return agreement_relative_subject(sampler, number, OTHER_NUMBER[number])


def determiner_object(sampler: WordSampler, number: str) -> SentencePair:
    """Violate agreement of a demonstrative with an object."""
    determiners = {"sg": "this", "pl": "these"}
    return make_pair(
        f"The {sampler.person(sampler.choose(('sg', 'pl')))} {sampler.transitive_verb().past} ",
        determiners[number],
        determiners[OTHER_NUMBER[number]],
        f" {sampler.thing(number)}.",
    )


def determiner_subject(sampler: WordSampler, number: str) -> SentencePair:
    """Violate agreement of a demonstrative with a subject."""
    determiners = {"sg": "This", "pl": "These"}
    return make_pair(
        "", determiners[number], determiners[OTHER_NUMBER[number]], f" {sampler.person(number)} {sampler.intransitive_verb().past}."
    )


def determiner_count(sampler: WordSampler, number: str) -> SentencePair:
    """Violate agreement of a numeral with an object."""
    determiners = {"sg": "one", "pl": "two"}
    return make_pair(
        f"We {sampler.transitive_verb().past} ", determiners[number], determiners[OTHER_NUMBER[number]], f" {sampler.thing(number)}."
    )


def anaphor_noun(sampler: WordSampler, number: str) -> SentencePair:
    """Violate number agreement of a reflexive with a noun."""
    men: Noun = sampler.choose(sampler.lexicon.men)
    reflexives = {"sg": "himself", "pl": "themselves"}
    return make_pair(
        f"The {getattr(men, number)} {sampler.transitive_verb().past} ", reflexives[number], reflexives[OTHER_NUMBER[number]], "."
    )


def anaphor_gender(sampler: WordSampler, number: str) -> SentencePair:
    """Violate gender or animacy of a reflexive."""
    subject, right = (sampler.choose(sampler.lexicon.women).sg, "herself") if number == "sg" else (sampler.person("pl"), "themselves")
    return make_pair(f"The {subject} {sampler.transitive_verb().past} ", right, "itself" if number == "pl" else "himself", ".")


def anaphor_pronoun(sampler: WordSampler, number: str) -> SentencePair:
    """Violate person and number agreement of a reflexive with a pronoun."""
    subject, right, wrong = {"sg": ("He", "himself", "yourself"), "pl": ("They", "themselves", "myself")}[number]
    return make_pair(f"{subject} {sampler.transitive_verb().past} ", right, wrong, ".")


def polarity_ever(sampler: WordSampler, number: str) -> SentencePair:
    """Use "ever" without a negative subject."""
    return make_pair(
        "",
        "No",
        sampler.choose(("The", "This" if number == "sg" else "These")),
        f" {sampler.person(number)} {HAVE[number]} ever {sampler.intransitive_verb().participle}.",
    )


def polarity_any(sampler: WordSampler, number: str) -> SentencePair:
    """Use "any" without a negation."""
    return make_pair(
        f"The {sampler.person(number)} ",
        "never",
        sampler.choose(("often", "always")),
        f" {sampler.transitive_verb().past} any {sampler.thing('pl')}.",
    )


def gap_what(sampler: WordSampler, number: str) -> SentencePair:
    """Replace "what" by "that" before a clause without an object."""
    return make_pair(
        f"{sampler.choose(('I', 'We', 'They', 'You'))} know ",
        "what",
        "that",
        f" the {sampler.person(number)} {sampler.transitive_verb().past}.",
    )


def gap_who(sampler: WordSampler, number: str) -> SentencePair:
    """Replace "who" by "that" before a clause without an object."""
    return make_pair(
        f"The {sampler.person(number)} saw ",
        "who",
        "that",
        f" the {sampler.person(OTHER_NUMBER[number])} {sampler.transitive_verb().past}.",
    )


def gap_past(sampler: WordSampler, number: str) -> SentencePair:
    """Replace "what" by "that" before a clause without an object, after a verb in the past."""
    return make_pair(
        f"The {sampler.person(OTHER_NUMBER[number])} knew ",
        "what",
        "that",
        f" the {sampler.person(number)} {sampler.transitive_verb().past}.",
    )


def form_perfect(sampler: WordSampler, number: str) -> SentencePair:
    """Replace a participle by the base form after "have"."""
    verb = sampler.transitive_verb()
    return make_pair(f"The {sampler.person(number)} {HAVE[number]} ", verb.participle, verb.pl, f" the {sampler.thing()}.")


def form_future(sampler: WordSampler, number: str) -> SentencePair:
    """Replace a base form by another form after "will"."""
    verb = sampler.transitive_verb()
    return make_pair(f"The {sampler.person(number)} will ", verb.pl, sampler.choose((verb.sg, verb.past)), f" the {sampler.thing()}.")


def form_negated(sampler: WordSampler, number: str) -> SentencePair:
    """Replace a base form by another form after "did not"."""
    verb = sampler.transitive_verb()
    return make_pair(f"The {sampler.person(number)} did not ", verb.pl, sampler.choose((verb.sg, verb.past)), f" the {sampler.thing()}.")


def order_object(sampler: WordSampler, number: str) -> SentencePair:
    """Swap article and noun of an object."""
    thing = sampler.thing(number)
    return make_pair(f"The {sampler.person(OTHER_NUMBER[number])} {sampler.transitive_verb().past} ", f"the {thing}", f"{thing} the", ".")


def order_adjective(sampler: WordSampler, number: str) -> SentencePair:
    """Swap adjective and noun."""
    adjective, thing = sampler.choose(sampler.lexicon.adjectives), sampler.thing(number)
    return make_pair("The ", f"{adjective} {thing}", f"{thing} {adjective}", f" {sampler.intransitive_verb().past}.")


def order_negation(sampler: WordSampler, number: str) -> SentencePair:
    """Swap "will" and "not"."""
    return make_pair(f"The {sampler.person(number)} ", "will not", "not will", f" {sampler.intransitive_verb().pl}.")


def order_degree(sampler: WordSampler, number: str) -> SentencePair:
    """Swap verb and "very"."""
    return make_pair(
        f"The {sampler.thing(number)} ", f"{WAS[number]} very", f"very {WAS[number]}", f" {sampler.choose(sampler.lexicon.adjectives)}."
    )


def argument_wanted(sampler: WordSampler, number: str) -> SentencePair:
    """Give an intransitive verb an object."""
    return make_pair(
        f"The {sampler.person(number)} ", sampler.transitive_verb().past, sampler.intransitive_verb().past, f" the {sampler.thing()}."
    )


def argument_missing(sampler: WordSampler, number: str) -> SentencePair:
    """Use a transitive verb without an object."""
    return make_pair(f"The {sampler.person(number)} ", sampler.intransitive_verb().past, sampler.transitive_verb().past, ".")


def case_object(sampler: WordSampler, number: str) -> SentencePair:
    """Use a subject pronoun as an object."""
    right, wrong = sampler.choose(PRONOUN_CASES)
    return make_pair(f"The {sampler.person(number)} {sampler.transitive_verb().past} ", right, wrong, ".")


def case_phrase(sampler: WordSampler, number: str) -> SentencePair:
    """Use a subject pronoun after a preposition."""
    right, wrong = sampler.choose(PRONOUN_CASES)
    return make_pair(f"The {sampler.person(number)} {sampler.choose(('talked to', 'was with', 'lived near'))} ", right, wrong, ".")


def case_subject(sampler: WordSampler, number: str) -> SentencePair:
    """Use an object pronoun as a subject."""
    wrong, right = sampler.choose(PRONOUN_CASES)
    return make_pair("We know that ", right, wrong, f" {sampler.transitive_verb().past} the {sampler.thing(number)}.")


ENGLISH_PHENOMENA: dict[str, tuple[Callable[[WordSampler, str], SentencePair], ...]] = {
    "agreement": (agreement, agreement_adjective),
    "agreement across a phrase": (agreement_phrase, agreement_phrase_attractor),
    "agreement across a relative clause": (
        agreement_relative,
        agreement_relative_attractor,
        agreement_relative_subject,
        agreement_relative_subject_attractor,
    ),
    "determiner and noun": (determiner_object, determiner_subject, determiner_count),
    "anaphor": (anaphor_noun, anaphor_gender, anaphor_pronoun),
    "negative polarity": (polarity_ever, polarity_any),
    "filler and gap": (gap_what, gap_who, gap_past),
    "verb form": (form_perfect, form_future, form_negated),
    "word order": (order_object, order_adjective, order_negation, order_degree),
    "argument structure": (argument_wanted, argument_missing),
    "pronoun case": (case_object, case_phrase, case_subject),
}
