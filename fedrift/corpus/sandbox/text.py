"""Sentences as text and back, and the documents of a sandbox."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ...seeds import numpy_stream
from ..corpus import TRAIN
from ..rows import Rows
from .language import START, language
from .settings import Sandbox

PIECE = re.compile(r"[a-z]+|[.?]|\S")
END = (".", "?")


def spelled(words: Sequence[str]) -> str:
    """Words as text: ``the balora talen.``"""
    return " ".join(words).replace(" .", ".").replace(" ?", "?")


def parsed(text: str) -> list[list[str]]:
    """The sentences of a text, each a list of words with its full stop; what follows the last stop is one too."""
    sentences: list[list[str]] = [[]]
    for piece in PIECE.findall(text):
        sentences[-1].append(piece)
        if piece in END:
            sentences.append([])
    return sentences if sentences[-1] else sentences[:-1]


def document(sandbox: Sandbox, domain: int, number: int) -> str:
    """One document; only the dials, the seed, its domain and its number decide it."""
    rng = numpy_stream(sandbox.seed, "sandbox", "document", domain, number)
    grammar = language(sandbox).grammars[domain]
    return " ".join(spelled(grammar.draw(START, rng)) for _ in range(int(rng.geometric(1 / sandbox.sentences))))


def sandbox_rows(sandbox: Sandbox) -> Rows:
    """All documents, the domains in turn, as the rows of any other corpus."""
    made = [(number % sandbox.domains, number // sandbox.domains) for number in range(sandbox.documents)]
    names = sandbox.names
    return Rows(
        [document(sandbox, domain, number) for domain, number in made],
        [names[domain] for domain, _ in made],
        [f"{names[domain]}/{number}" for domain, number in made],
        [TRAIN] * len(made),
    )
