"""Length skew by cutting: some clients see only the beginnings of documents."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import islice
from typing import Annotated

import numpy as np
from annotated_types import Ge

from ..corpus.corpus import Corpus
from .partition import Clients, Partition, Severity
from .rewriting import deal_rewriting

PIECE = re.compile(r"\S+")


@dataclass(frozen=True)
class Truncate:
    """Severity 0: nobody cuts. Severity 1: odd clients keep the first ``shortest`` words of a document.

    In between they keep L(s) = L_max^(1 - s) L_min^s words, where L_max is the longest document of the
    corpus.
    """

    clients: Clients = 10
    severity: Severity = 1.0
    shortest: Annotated[int, Ge(1)] = 8
    everybody: bool = False
    refill: bool = True

    def __call__(self, corpus: Corpus, rng: np.random.Generator) -> Partition:
        key = rng.bytes(16)
        longest = max((len(text.split()) for text in corpus.text), default=1)
        length = round(max(longest, self.shortest) ** (1 - self.severity) * self.shortest**self.severity)
        cut = Begin(length) if self.severity > 0 else None
        variants = [cut if client % 2 else None for client in range(self.clients)]
        return deal_rewriting(corpus, variants, rng, refill=self.refill, everybody=self.everybody, key=key)


@dataclass(frozen=True)
class Begin:
    """The rewrite: the first ``length`` words, white space as it stands."""

    length: int

    def __call__(self, text: str, document: str) -> str:
        last = next(islice(PIECE.finditer(text), self.length - 1, None), None)
        return text if last is None else text[: last.end()]
