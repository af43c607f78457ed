"""Three ways to say the same: operators that change the manner of an English text and keep its content words.

A style is one pattern whose matches in the original text do not overlap, and a rule for each match. Each
match is a site of its own, rewritten or not by its own number, so that severities nest exactly.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, MinLen

from ..data.corpus import Corpus
from .base import NumClients, Partition, Severity
from .rewriting import partition_with_rewrites, stable_uniform

Rule = Callable[[str, float], str]  # (what was matched, a number in [0, 1) to choose by) -> what stands there instead

CONTRACTIONS = {
    "do not": "don't", "does not": "doesn't", "did not": "didn't", "is not": "isn't", "are not": "aren't",
    "was not": "wasn't", "were not": "weren't", "has not": "hasn't", "have not": "haven't",
    "had not": "hadn't", "can not": "can't", "cannot": "can't", "could not": "couldn't",
    "will not": "won't", "would not": "wouldn't", "should not": "shouldn't", "i am": "i'm",
    "you are": "you're", "we are": "we're", "they are": "they're", "it is": "it's", "he is": "he's",
    "she is": "she's", "that is": "that's", "there is": "there's", "i have": "i've", "you have": "you've",
    "we have": "we've", "they have": "they've", "i will": "i'll", "you will": "you'll",
    "he will": "he'll", "she will": "she'll", "we will": "we'll", "they will": "they'll",
}  # fmt: skip
SLANG = {
    "going to": "gonna", "want to": "wanna", "wants to": "wanna", "got to": "gotta", "have to": "hafta",
    "has to": "hasta", "kind of": "kinda", "sort of": "sorta", "out of": "outta", "because": "cuz",
    "you": "u", "your": "ur", "are": "r", "and": "n", "with": "w/", "without": "w/o", "before": "b4",
    "though": "tho", "although": "tho", "through": "thru", "about": "bout", "them": "em", "very": "hella",
    "yes": "yeah", "so": "sooo", "no": "nooo", "too": "tooo", "for": "4", "to": "2", "please": "pls",
    "thanks": "thx", "tonight": "2nite", "really": "rly", "what": "wut", "the": "da", "that": "dat",
    "this": "dis",
}  # fmt: skip
FORMAL = {
    "but": "nevertheless", "also": "additionally", "because": "owing to the fact that", "so": "therefore",
    "very": "exceedingly", "before": "prior to", "after": "subsequent to", "if": "in the event that",
    "about": "concerning", "while": "whilst", "now": "at present", "like": "such as",
    "too": "excessively", "until": "until such time as", "though": "notwithstanding that",
    "although": "notwithstanding that", "yeah": "yes", "nah": "no", "pls": "please", "thx": "thanks",
    "u": "you", "ur": "your", "cuz": "because", "gonna": "going to", "wanna": "want to",
    "gotta": "have to", "kinda": "kind of", "sorta": "sort of", "dunno": "do not know", "tho": "though",
    "thru": "through", "lol": "", "lmao": "", "omg": "", "won't": "will not", "can't": "cannot",
    "shan't": "shall not", "let's": "let us",
} | {short: long for long, short in CONTRACTIONS.items() if long != "can not"}  # fmt: skip
CASUAL = CONTRACTIONS | SLANG
FILLERS = ("lol ", "like, ", "ok so ", "ngl ", "yo ", "tbh ")
CONNECTIVES = ("furthermore", "moreover", "in addition", "accordingly", "in this regard")
OPENERS = "The|It|He|She|They|We|This|That|These|Those|In|On|At|A|An|His|Her|Its|Their|There|But|And"


def phrase_pattern(replacements: Mapping[str, str]) -> str:
    """A pattern for any of the phrases, the longest first; either apostrophe."""
    found = "|".join(re.escape(w).replace("'", "['’]") for w in sorted(replacements, key=lambda w: (-len(w), w)))
    return rf"\b(?i:{found})\b(?!['’])"


def normalize_phrase(matched: str) -> str:
    return re.sub(r"\s+", " ", matched.lower().replace("’", "'"))


def match_capital(matched: str, word: str) -> str:
    return word[:1].upper() + word[1:] if matched[:1].isupper() else word


def choose_by_uniform(options: tuple[str, ...], uniform: float) -> str:
    return options[int(uniform * len(options))]


def to_slang(matched: str, uniform: float) -> str:
    return CASUAL[normalize_phrase(matched)]


def to_formal(matched: str, uniform: float) -> str:
    return match_capital(matched, FORMAL[normalize_phrase(matched)])


def join_sentences(matched: str, uniform: float) -> str:
    """``. The`` -> ``; moreover, the``"""
    return f"; {choose_by_uniform(CONNECTIVES, uniform)}, {matched.split()[-1].lower()}"


SENTENCE_START = r"(?:\A|(?<=[.!?] ))"
STYLES: dict[str, dict[str, tuple[str, Rule]]] = {
    "slang": {
        "filler": (rf"{SENTENCE_START}(?=\w)", lambda said, number: choose_by_uniform(FILLERS, number)),
        "stop": (r"[.;:](?=\s|\Z)", lambda said, number: ""),
        "lexicon": (phrase_pattern(CASUAL), to_slang),
        "ing": (r"\b[^\W\d_]{2,}ing\b", lambda said, number: said.lower()[:-1] + "'"),
        "small": (r"\b[A-Z][^\W_]*", lambda said, number: said.lower()),
    },
    "formal": {
        "join": (rf"[.!]\s+(?:{OPENERS})\b", join_sentences),
        "lexicon": (phrase_pattern(FORMAL), to_formal),
        "calm": (r"!+\??|\?!+|\.{2,}", lambda said, number: "?" if "?" in said else "."),
        "capital": (rf"{SENTENCE_START}[a-z]", lambda said, number: said.upper()),
        "stop": (r"(?<=\w)\Z", lambda said, number: "."),
    },
    "short": {
        "drop": (r"\b(?i:a|an|the|is|are|was|were|am|be|been|being)\b\s*", lambda said, number: ""),
        "cut": (r",?\s+(?:and|but|which|who|because|while)\s+|[,;:]\s+", lambda said, number: ". "),
        "tag": (r"(?<=[a-z,] )[A-Z][a-z]{2,}\b", lambda said, number: "#" + said),
    },
}
PATTERNS = {
    style: re.compile("|".join(f"(?P<{name}>{pattern})" for name, (pattern, _) in rules.items())) for style, rules in STYLES.items()
}


@dataclass(frozen=True)
class StyleRewrite:
    """The rewrite into a style, at the sites whose number is below ``rate``."""

    style: Literal["formal", "slang", "short"]
    rate: float
    key: bytes

    def __call__(self, text: str, document: str) -> str:
        rules = STYLES[self.style]

        def say(match: re.Match[str]) -> str:
            name = match.lastgroup or ""
            place = f"{name}{match.start()}"
            if stable_uniform(self.key, document, place) >= self.rate:
                return match[0]
            return rules[name][1](match[0], stable_uniform(self.key, document, place + "?"))

        return PATTERNS[self.style].sub(say, text).strip() or text


# Style skew with the content held fixed: clients hold like documents and write them in different manners.


@dataclass(frozen=True)
class Style:
    """Severity 0: everybody writes as found. Severity 1: client k writes all in style k mod S of ``styles``.

    In between each site (a word, a sentence boundary) is rewritten with probability s. ``plain`` rewrites
    nothing. The operators are rules for English; other text passes through them nearly unchanged.
    """

    num_clients: NumClients = 10
    severity: Severity = 1.0
    styles: Annotated[tuple[Literal["plain", "formal", "slang", "short"], ...], MinLen(1)] = ("formal", "slang", "short")
    homogeneous: bool = False
    equalize_words: bool = True

    def __call__(self, corpus: Corpus, rng: np.random.Generator) -> Partition:
        key = rng.bytes(16)
        variants: list[StyleRewrite | None] = [None] * self.num_clients
        if self.severity > 0:
            for client in range(self.num_clients):
                style = self.styles[client % len(self.styles)]
                variants[client] = None if style == "plain" else StyleRewrite(style, self.severity, key)
        return partition_with_rewrites(corpus, variants, rng, equalize_words=self.equalize_words, homogeneous=self.homogeneous, key=key)


# Length skew by cutting: some clients see only the beginnings of documents.

NON_SPACE = re.compile(r"\S+")


@dataclass(frozen=True)
class Truncate:
    """Severity 0: nobody cuts. Severity 1: odd clients keep the first ``min_words`` words of a document.

    In between they keep L(s) = L_max^(1 - s) L_min^s words, where L_max is the longest document of the
    corpus.
    """

    num_clients: NumClients = 10
    severity: Severity = 1.0
    min_words: Annotated[int, Ge(1)] = 8
    homogeneous: bool = False
    equalize_words: bool = True

    def __call__(self, corpus: Corpus, rng: np.random.Generator) -> Partition:
        key = rng.bytes(16)
        longest = max((len(text.split()) for text in corpus.text), default=1)
        length = round(max(longest, self.min_words) ** (1 - self.severity) * self.min_words**self.severity)
        cut = TruncateRewrite(length) if self.severity > 0 else None
        variants = [cut if client % 2 else None for client in range(self.num_clients)]
        return partition_with_rewrites(corpus, variants, rng, equalize_words=self.equalize_words, homogeneous=self.homogeneous, key=key)


@dataclass(frozen=True)
class TruncateRewrite:
    """The rewrite: the first ``num_words`` words, white space as it stands."""

    num_words: int

    def __call__(self, text: str, document: str) -> str:
        last = next(islice(NON_SPACE.finditer(text), self.num_words - 1, None), None)
        return text if last is None else text[: last.end()]
