"""Patterns of English sentences beside ones that break a single rule of grammar.

The phenomena are BLiMP's (Warstadt et al., TACL 2020, arXiv:1912.00582), filled with common words. A pattern is told a
number, "sg" or "pl", and returns the two sentences. Pattern and number together are a template, which items are clustered
by when they are resampled. In patterns named "attractor" the noun before the verb is in the other number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .syntax_words import Lexicon, Noun, Verb

Two = tuple[str, str]
OTHER = {"sg": "pl", "pl": "sg"}
BE, WAS, HAVE = {"sg": "is", "pl": "are"}, {"sg": "was", "pl": "were"}, {"sg": "has", "pl": "have"}
CASES = (("him", "he"), ("her", "she"), ("them", "they"), ("us", "we"), ("me", "I"))


class Draw:
    """Words for a pattern, from one lexicon and one stream."""

    def __init__(self, lexicon: Lexicon, rng: np.random.Generator) -> None:
        self.lexicon, self.rng = lexicon, rng

    def one(self, of: Sequence[Any]) -> Any:
        return of[int(self.rng.integers(len(of)))]

    def person(self, number: str) -> str:
        return str(getattr(self.one(self.lexicon.people), number))

    def thing(self, number: str = "") -> str:
        return str(getattr(self.one(self.lexicon.things), number or self.one(("sg", "pl"))))

    def does(self) -> Verb:
        verb: Verb = self.one(self.lexicon.transitive)
        return verb

    def goes(self) -> Verb:
        verb: Verb = self.one(self.lexicon.intransitive)
        return verb

    def predicate(self, number: str) -> tuple[str, str, str]:
        """A verb that agrees, the same that does not, and what follows."""
        verb, quality = self.goes(), self.one(self.lexicon.adjectives)
        return self.one(((BE[number], BE[OTHER[number]], f" very {quality}."),
                         (WAS[number], WAS[OTHER[number]], f" {quality}."),
                         (HAVE[number], HAVE[OTHER[number]], f" a {self.thing('sg')}."),
                         (getattr(verb, number), getattr(verb, OTHER[number]), " here.")))  # type: ignore[no-any-return]


def pair(begin: str, good: str, bad: str, end: str) -> Two:
    """The two sentences that differ between ``begin`` and ``end``."""
    return f"{begin}{good}{end}", f"{begin}{bad}{end}"


def agreement(draw: Draw, n: str) -> Two:
    right, wrong, end = draw.predicate(n)
    return pair(f"The {draw.person(n)} ", right, wrong, end)


def agreement_adjective(draw: Draw, n: str) -> Two:
    right, wrong, end = draw.predicate(n)
    return pair(f"The {draw.one(draw.lexicon.adjectives)} {draw.thing(n)} ", right, wrong, end)


def agreement_phrase(draw: Draw, n: str, between: str = "") -> Two:
    right, wrong, end = draw.predicate(n)
    subject = f"The {draw.person(n)} {draw.one(('near', 'behind', 'with'))} the {draw.thing(between or n)}"
    return pair(draw.one((subject, f"The {draw.thing(n)} of the {draw.person(between or n)}")) + " ", right, wrong, end)


def agreement_phrase_attractor(draw: Draw, n: str) -> Two:
    return agreement_phrase(draw, n, OTHER[n])


def agreement_relative(draw: Draw, n: str, between: str = "") -> Two:
    right, wrong, end = draw.predicate(n)
    return pair(f"The {draw.thing(n)} that the {draw.person(between or n)} {draw.does().past} ", right, wrong, end)


def agreement_relative_attractor(draw: Draw, n: str) -> Two:
    return agreement_relative(draw, n, OTHER[n])


def agreement_relative_subject(draw: Draw, n: str, between: str = "") -> Two:
    right, wrong, end = draw.predicate(n)
    return pair(f"The {draw.person(n)} who {draw.does().past} the {draw.thing(between or n)} ", right, wrong, end)


def agreement_relative_subject_attractor(draw: Draw, n: str) -> Two:
    return agreement_relative_subject(draw, n, OTHER[n])


def determiner_object(draw: Draw, n: str) -> Two:
    said = {"sg": "this", "pl": "these"}
    return pair(f"The {draw.person(draw.one(('sg', 'pl')))} {draw.does().past} ", said[n], said[OTHER[n]], f" {draw.thing(n)}.")


def determiner_subject(draw: Draw, n: str) -> Two:
    said = {"sg": "This", "pl": "These"}
    return pair("", said[n], said[OTHER[n]], f" {draw.person(n)} {draw.goes().past}.")


def determiner_count(draw: Draw, n: str) -> Two:
    said = {"sg": "one", "pl": "two"}
    return pair(f"We {draw.does().past} ", said[n], said[OTHER[n]], f" {draw.thing(n)}.")


def anaphor_noun(draw: Draw, n: str) -> Two:
    men: Noun = draw.one(draw.lexicon.men)
    said = {"sg": "himself", "pl": "themselves"}
    return pair(f"The {getattr(men, n)} {draw.does().past} ", said[n], said[OTHER[n]], ".")


def anaphor_gender(draw: Draw, n: str) -> Two:
    subject, right = (draw.one(draw.lexicon.women).sg, "herself") if n == "sg" else (draw.person("pl"), "themselves")
    return pair(f"The {subject} {draw.does().past} ", right, "itself" if n == "pl" else "himself", ".")


def anaphor_pronoun(draw: Draw, n: str) -> Two:
    subject, right, wrong = {"sg": ("He", "himself", "yourself"), "pl": ("They", "themselves", "myself")}[n]
    return pair(f"{subject} {draw.does().past} ", right, wrong, ".")


def polarity_ever(draw: Draw, n: str) -> Two:
    return pair("", "No", draw.one(("The", "This" if n == "sg" else "These")),
                f" {draw.person(n)} {HAVE[n]} ever {draw.goes().participle}.")


def polarity_any(draw: Draw, n: str) -> Two:
    return pair(f"The {draw.person(n)} ", "never", draw.one(("often", "always")), f" {draw.does().past} any {draw.thing('pl')}.")


def gap_what(draw: Draw, n: str) -> Two:
    return pair(f"{draw.one(('I', 'We', 'They', 'You'))} know ", "what", "that", f" the {draw.person(n)} {draw.does().past}.")


def gap_who(draw: Draw, n: str) -> Two:
    return pair(f"The {draw.person(n)} saw ", "who", "that", f" the {draw.person(OTHER[n])} {draw.does().past}.")


def gap_past(draw: Draw, n: str) -> Two:
    return pair(f"The {draw.person(OTHER[n])} knew ", "what", "that", f" the {draw.person(n)} {draw.does().past}.")


def form_perfect(draw: Draw, n: str) -> Two:
    verb = draw.does()
    return pair(f"The {draw.person(n)} {HAVE[n]} ", verb.participle, verb.pl, f" the {draw.thing()}.")


def form_future(draw: Draw, n: str) -> Two:
    verb = draw.does()
    return pair(f"The {draw.person(n)} will ", verb.pl, draw.one((verb.sg, verb.past)), f" the {draw.thing()}.")


def form_negated(draw: Draw, n: str) -> Two:
    verb = draw.does()
    return pair(f"The {draw.person(n)} did not ", verb.pl, draw.one((verb.sg, verb.past)), f" the {draw.thing()}.")


def order_object(draw: Draw, n: str) -> Two:
    thing = draw.thing(n)
    return pair(f"The {draw.person(OTHER[n])} {draw.does().past} ", f"the {thing}", f"{thing} the", ".")


def order_adjective(draw: Draw, n: str) -> Two:
    quality, thing = draw.one(draw.lexicon.adjectives), draw.thing(n)
    return pair("The ", f"{quality} {thing}", f"{thing} {quality}", f" {draw.goes().past}.")


def order_negation(draw: Draw, n: str) -> Two:
    return pair(f"The {draw.person(n)} ", "will not", "not will", f" {draw.goes().pl}.")


def order_degree(draw: Draw, n: str) -> Two:
    return pair(f"The {draw.thing(n)} ", f"{WAS[n]} very", f"very {WAS[n]}", f" {draw.one(draw.lexicon.adjectives)}.")


def argument_wanted(draw: Draw, n: str) -> Two:
    return pair(f"The {draw.person(n)} ", draw.does().past, draw.goes().past, f" the {draw.thing()}.")


def argument_missing(draw: Draw, n: str) -> Two:
    return pair(f"The {draw.person(n)} ", draw.goes().past, draw.does().past, ".")


def case_object(draw: Draw, n: str) -> Two:
    right, wrong = draw.one(CASES)
    return pair(f"The {draw.person(n)} {draw.does().past} ", right, wrong, ".")


def case_phrase(draw: Draw, n: str) -> Two:
    right, wrong = draw.one(CASES)
    return pair(f"The {draw.person(n)} {draw.one(('talked to', 'was with', 'lived near'))} ", right, wrong, ".")


def case_subject(draw: Draw, n: str) -> Two:
    wrong, right = draw.one(CASES)
    return pair("We know that ", right, wrong, f" {draw.does().past} the {draw.thing(n)}.")


PHENOMENA: dict[str, tuple[Callable[[Draw, str], Two], ...]] = {
    "agreement": (agreement, agreement_adjective),
    "agreement across a phrase": (agreement_phrase, agreement_phrase_attractor),
    "agreement across a relative clause": (agreement_relative, agreement_relative_attractor, agreement_relative_subject,
                                           agreement_relative_subject_attractor),
    "determiner and noun": (determiner_object, determiner_subject, determiner_count),
    "anaphor": (anaphor_noun, anaphor_gender, anaphor_pronoun),
    "negative polarity": (polarity_ever, polarity_any),
    "filler and gap": (gap_what, gap_who, gap_past),
    "verb form": (form_perfect, form_future, form_negated),
    "word order": (order_object, order_adjective, order_negation, order_degree),
    "argument structure": (argument_wanted, argument_missing),
    "pronoun case": (case_object, case_phrase, case_subject),
}
