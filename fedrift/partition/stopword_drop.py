"""Token-distribution skew by deletion: some clients write without function words."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from ..corpus.corpus import Corpus
from .function_words import FUNCTION_WORDS
from .partition import Clients, Partition, Severity
from .rewriting import deal_rewriting
from .sites import site
from .words import WORD

SPACED = re.compile(rf"({WORD.pattern})[ \t]*")


@dataclass(frozen=True)
class StopwordDrop:
    """Severity 0: nobody drops. Severity 1: odd clients drop every function word, even clients none.

    In between each one is dropped with probability s. A text of function words alone keeps its first word.
    """

    clients: Clients = 10
    severity: Severity = 1.0
    everybody: bool = False
    refill: bool = True

    def __call__(self, corpus: Corpus, rng: np.random.Generator) -> Partition:
        key = rng.bytes(16)
        drop = Drop(self.severity, key) if self.severity > 0 else None
        variants = [drop if client % 2 else None for client in range(self.clients)]
        return deal_rewriting(corpus, variants, rng, refill=self.refill, everybody=self.everybody, key=key)


@dataclass(frozen=True)
class Drop:
    """The rewrite: function words go, at the sites whose number is below ``rate``."""

    rate: float
    key: bytes

    def __call__(self, text: str, document: str) -> str:
        def keep(match: re.Match[str]) -> str:
            word = match[1].lower()
            goes = word in FUNCTION_WORDS and site(self.key, document, match.start()) < self.rate
            return "" if goes else match[0]

        return SPACED.sub(keep, text).strip() or "".join(text.split(maxsplit=1)[:1])
