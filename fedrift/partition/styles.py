"""Three ways to say the same: operators that change the manner of an English text and keep its content words.

A style is one pattern whose matches in the original text do not overlap, and a rule for each match. Each
match is a site of its own, rewritten or not by its own number, so that severities nest exactly.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from .sites import site

Rule = Callable[
    [str, float], str
]  # (what was matched, a number in [0, 1) to choose by) -> what stands there instead

CONTRACTED = {
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
} | {short: long for long, short in CONTRACTED.items() if long != "can not"}  # fmt: skip
CASUAL = CONTRACTED | SLANG
FILLERS = ("lol ", "like, ", "ok so ", "ngl ", "yo ", "tbh ")
CONNECTIVES = ("furthermore", "moreover", "in addition", "accordingly", "in this regard")
OPENERS = "The|It|He|She|They|We|This|That|These|Those|In|On|At|A|An|His|Her|Its|Their|There|But|And"


def phrases(words: Mapping[str, str]) -> str:
    """A pattern for any of the phrases, the longest first; either apostrophe."""
    found = "|".join(re.escape(w).replace("'", "['’]") for w in sorted(words, key=lambda w: (-len(w), w)))
    return rf"\b(?i:{found})\b(?!['’])"


def plain(said: str) -> str:
    return re.sub(r"\s+", " ", said.lower().replace("’", "'"))


def capital(said: str, word: str) -> str:
    return word[:1].upper() + word[1:] if said[:1].isupper() else word


def pick(of: tuple[str, ...], number: float) -> str:
    return of[int(number * len(of))]


def slang_word(said: str, number: float) -> str:
    return CASUAL[plain(said)]


def formal_word(said: str, number: float) -> str:
    return capital(said, FORMAL[plain(said)])


def join(said: str, number: float) -> str:
    """``. The`` -> ``; moreover, the``"""
    return f"; {pick(CONNECTIVES, number)}, {said.split()[-1].lower()}"


START = r"(?:\A|(?<=[.!?] ))"
STYLES: dict[str, dict[str, tuple[str, Rule]]] = {
    "slang": {
        "filler": (rf"{START}(?=\w)", lambda said, number: pick(FILLERS, number)),
        "stop": (r"[.;:](?=\s|\Z)", lambda said, number: ""),
        "lexicon": (phrases(CASUAL), slang_word),
        "ing": (r"\b[^\W\d_]{2,}ing\b", lambda said, number: said.lower()[:-1] + "'"),
        "small": (r"\b[A-Z][^\W_]*", lambda said, number: said.lower()),
    },
    "formal": {
        "join": (rf"[.!]\s+(?:{OPENERS})\b", join),
        "lexicon": (phrases(FORMAL), formal_word),
        "calm": (r"!+\??|\?!+|\.{2,}", lambda said, number: "?" if "?" in said else "."),
        "capital": (rf"{START}[a-z]", lambda said, number: said.upper()),
        "stop": (r"(?<=\w)\Z", lambda said, number: "."),
    },
    "short": {
        "drop": (r"\b(?i:a|an|the|is|are|was|were|am|be|been|being)\b\s*", lambda said, number: ""),
        "cut": (r",?\s+(?:and|but|which|who|because|while)\s+|[,;:]\s+", lambda said, number: ". "),
        "tag": (r"(?<=[a-z,] )[A-Z][a-z]{2,}\b", lambda said, number: "#" + said),
    },
}
PATTERNS = {
    style: re.compile("|".join(f"(?P<{name}>{pattern})" for name, (pattern, _) in rules.items()))
    for style, rules in STYLES.items()
}


@dataclass(frozen=True)
class Restyle:
    """The rewrite into a style, at the sites whose number is below ``rate``."""

    style: Literal["formal", "slang", "short"]
    rate: float
    key: bytes

    def __call__(self, text: str, document: str) -> str:
        rules = STYLES[self.style]

        def say(match: re.Match[str]) -> str:
            name = match.lastgroup or ""
            place = f"{name}{match.start()}"
            if site(self.key, document, place) >= self.rate:
                return match[0]
            return rules[name][1](match[0], site(self.key, document, place + "?"))

        return PATTERNS[self.style].sub(say, text).strip() or text
