"""Style skew: rule-based rewrites that change the style of English text and leave its content words in place.

A style is a set of rules. Each rule has a pattern and a replacement, and the matches in the original text do not overlap. Each
match is a separate site with its own random number, so the sites rewritten at a low severity are a subset of those at a
higher severity.
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

Rule = Callable[[str, float], str]  # (matched text, uniform number in [0, 1) for random choices) -> replacement

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
    """Return a pattern that matches any of the phrases, the longest first, with a straight or a curly apostrophe.

    Args:
        replacements: Map whose keys are the phrases.
    """
    alternatives = "|".join(
        re.escape(phrase).replace("'", "['’]") for phrase in sorted(replacements, key=lambda phrase: (-len(phrase), phrase))
    )
    return rf"\b(?i:{alternatives})\b(?!['’])"


def normalize_phrase(matched: str) -> str:
    """Return the matched phrase in lowercase with single spaces and straight apostrophes, as in the dictionaries."""
    return re.sub(r"\s+", " ", matched.lower().replace("’", "'"))


def match_capital(matched: str, word: str) -> str:
    """Return ``word`` with a capital first letter if ``matched`` has one."""
    return word[:1].upper() + word[1:] if matched[:1].isupper() else word


def choose_by_uniform(options: tuple[str, ...], uniform: float) -> str:
    """Return the option that a uniform number in [0, 1) selects."""
    return options[int(uniform * len(options))]


def to_slang(matched: str, uniform: float) -> str:
    """Return the slang form of a matched phrase."""
    return CASUAL[normalize_phrase(matched)]


def to_formal(matched: str, uniform: float) -> str:
    """Return the formal form of a matched phrase, with the capitalization of the original."""
    return match_capital(matched, FORMAL[normalize_phrase(matched)])


def join_sentences(matched: str, uniform: float) -> str:
    """Replace a sentence boundary by a connective: ``. The`` becomes ``; moreover, the``."""
    return f"; {choose_by_uniform(CONNECTIVES, uniform)}, {matched.split()[-1].lower()}"


SENTENCE_START = r"(?:\A|(?<=[.!?] ))"
STYLES: dict[str, dict[str, tuple[str, Rule]]] = {
    "slang": {
        "filler": (rf"{SENTENCE_START}(?=\w)", lambda matched, uniform: choose_by_uniform(FILLERS, uniform)),
        "stop": (r"[.;:](?=\s|\Z)", lambda matched, uniform: ""),
        "lexicon": (phrase_pattern(CASUAL), to_slang),
        "ing": (r"\b[^\W\d_]{2,}ing\b", lambda matched, uniform: matched.lower()[:-1] + "'"),
        "small": (r"\b[A-Z][^\W_]*", lambda matched, uniform: matched.lower()),
    },
    "formal": {
        "join": (rf"[.!]\s+(?:{OPENERS})\b", join_sentences),
        "lexicon": (phrase_pattern(FORMAL), to_formal),
        "calm": (r"!+\??|\?!+|\.{2,}", lambda matched, uniform: "?" if "?" in matched else "."),
        "capital": (rf"{SENTENCE_START}[a-z]", lambda matched, uniform: matched.upper()),
        "stop": (r"(?<=\w)\Z", lambda matched, uniform: "."),
    },
    "short": {
        "drop": (r"\b(?i:a|an|the|is|are|was|were|am|be|been|being)\b\s*", lambda matched, uniform: ""),
        "cut": (r",?\s+(?:and|but|which|who|because|while)\s+|[,;:]\s+", lambda matched, uniform: ". "),
        "tag": (r"(?<=[a-z,] )[A-Z][a-z]{2,}\b", lambda matched, uniform: "#" + matched),
    },
}
PATTERNS = {
    style: re.compile("|".join(f"(?P<{name}>{pattern})" for name, (pattern, _) in rules.items())) for style, rules in STYLES.items()
}


@dataclass(frozen=True)
class StyleRewrite:
    """The rewrite of a text into a style.

    A site is rewritten if its random number is below ``rate``.
    """

    style: Literal["formal", "slang", "short"]  # name of the style
    rate: float  # share of the sites to rewrite, in [0, 1]
    key: bytes  # secret of the hash that gives each site its number

    def __call__(self, text: str, document: str) -> str:
        rules = STYLES[self.style]

        def replace_match(match: re.Match[str]) -> str:
            name = match.lastgroup or ""
            site = f"{name}{match.start()}"
            if self.rate < 1 and stable_uniform(self.key, document, site) >= self.rate:  # the number is below 1, so rate 1 needs none
                return match[0]
            return rules[name][1](match[0], stable_uniform(self.key, document, site + "?"))

        return PATTERNS[self.style].sub(replace_match, text).strip() or text


# The partitioner of style skew.


@dataclass(frozen=True)
class Style:
    """Style skew: clients hold IID documents and rewrite them in different styles.

    At severity 0 no client rewrites. At severity 1 client k rewrites its texts fully into style k mod S of ``styles``. In between
    each site (a word or a sentence boundary) is rewritten with probability s. The rules are for English; they leave other
    languages nearly unchanged.

    Attributes:
        num_clients: N, the number of clients.
        severity: Probability that a site is rewritten, in [0, 1].
        styles: Names of the S styles. The style ``plain`` rewrites nothing.
        homogeneous: Whether every client rewrites by the same blend of all styles (the control).
        equalize_words: Whether clients whose texts shrink receive more documents.

    Example:
        >>> partition = Style(num_clients=2, styles=("plain", "slang"))(corpus, rng)
        >>> partition.rewrites[1]("I am going to watch the match because it is great.", "document 1")
        "ok so i'm gonna watch da match cuz it's great"
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


# Length skew by truncation.

NON_SPACE = re.compile(r"\S+")


@dataclass(frozen=True)
class Truncate:
    """Length skew by truncation: some clients hold only the beginnings of documents.

    At severity 0 no client truncates. At severity 1 clients with odd indices keep the first ``min_words`` words of a document. In
    between they keep L(s) = L_max^(1 - s) L_min^s words, where L_max is the length of the corpus's longest document.

    Attributes:
        num_clients: N, the number of clients.
        severity: Degree of the truncation, in [0, 1].
        min_words: L_min, the number of words that remain at severity 1.
        homogeneous: Whether every client truncates about the same share of its documents (the control).
        equalize_words: Whether clients whose texts shrink receive more documents.

    Example:
        >>> partition = Truncate(num_clients=2, min_words=3)(corpus, rng)
        >>> partition.rewrites[1]("the coach praised every player", "document 1")
        'the coach praised'
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
        truncation = TruncateRewrite(length) if self.severity > 0 else None
        variants = [truncation if client % 2 else None for client in range(self.num_clients)]
        return partition_with_rewrites(corpus, variants, rng, equalize_words=self.equalize_words, homogeneous=self.homogeneous, key=key)


@dataclass(frozen=True)
class TruncateRewrite:
    """The rewrite that keeps the first ``num_words`` words with their original white space."""

    num_words: int

    def __call__(self, text: str, document: str) -> str:
        last = next(islice(NON_SPACE.finditer(text), self.num_words - 1, None), None)
        return text if last is None else text[: last.end()]
