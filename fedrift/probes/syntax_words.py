"""Common English words for minimal pairs, by class and with the forms that the sentences need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

LEAST = 8  # words of a class, or as many as it has: fewer make too few sentences


class Noun(NamedTuple):
    """A noun in its two numbers."""

    sg: str
    pl: str


class Verb(NamedTuple):
    """A verb's forms: they take, it takes, it took, it has taken."""

    pl: str
    sg: str
    past: str
    participle: str


@dataclass(frozen=True)
class Lexicon:
    """The open classes. ``transitive`` verbs need an object, ``intransitive`` ones can have none; no form of one verb is
    another verb's (``found``), for then both sentences of a pair may be right."""

    people: tuple[Noun, ...]
    things: tuple[Noun, ...]
    transitive: tuple[Verb, ...]
    intransitive: tuple[Verb, ...]
    adjectives: tuple[str, ...]
    men: tuple[Noun, ...]
    women: tuple[Noun, ...]


def nouns(said: str) -> tuple[Noun, ...]:
    """``boy man/men``: a plural that is not sg + s is given behind a stroke."""
    pairs = [word.partition("/") for word in said.split()]
    return tuple(Noun(one, many or one + "s") for one, _, many in pairs)


def verbs(said: str) -> tuple[Verb, ...]:
    """``keep/kept``, ``take/took/taken``: past and participle; regular ones are given as they are."""
    found = []
    for word in said.split():
        base, *rest = word.split("/")
        past = rest[0] if rest else base + ("d" if base.endswith("e") else "ed")
        found.append(Verb(base, base + "s", past, rest[1] if len(rest) > 1 else past))
    return tuple(found)


ENGLISH = Lexicon(
    people=nouns("teacher doctor student friend parent player writer worker driver leader member user patient manager lawyer "
                 "singer farmer officer artist actor author customer visitor engineer scientist minister soldier reporter "
                 "director expert partner speaker owner person/people child/children guy judge fan"),
    things=nouns("book house car door letter game song film picture phone computer street town school room table plan report "
                 "story/stories question answer idea problem system team company/companies market product site record result "
                 "change list offer name place word test group card line point project"),
    transitive=verbs("make/made take/took/taken bring/brought buy/bought build/built use mention describe produce create "
                     "receive reject raise keep/kept get/got own treat include need"),
    intransitive=verbs("arrive sleep/slept fall/fell/fallen appear laugh smile exist talk listen stay disappear wait "
                       "come/came/come"),
    adjectives=tuple("new old big small young good bad long short great large little real red strong special local common "
                     "different happy nice important popular serious".split()),
    men=nouns("man/men boy father brother son king husband actor"),
    women=nouns("woman/women girl mother sister daughter queen wife/wives actress/actresses"),
)


def shared_lexicon(lexicon: Lexicon, holders: Mapping[str, int], everybody: int) -> Lexicon:
    """The words that all of ``everybody`` (domains, or clients) hold, in all their forms that are sentences' points.

    ``holders`` says how many hold a word. A class with fewer than ``LEAST`` such words is filled up with those that most hold.
    """
    def held(word: str | Noun | Verb) -> int:
        return min(holders.get(form, 0) for form in ((word,) if isinstance(word, str) else word[:3]))

    def kept(words: tuple[Any, ...]) -> tuple[Any, ...]:
        best = sorted(words, key=lambda word: -held(word))
        return tuple(best[:max(LEAST, sum(held(word) >= everybody for word in words))])

    return replace(lexicon, **{f.name: kept(getattr(lexicon, f.name)) for f in fields(lexicon)})


def forms(lexicon: Lexicon) -> frozenset[str]:
    """Every word of a lexicon, in every form."""
    return frozenset(form for f in fields(lexicon) for word in getattr(lexicon, f.name)
                     for form in ((word,) if isinstance(word, str) else word))
