"""Style skew with the content held fixed: clients hold like documents and write them in different manners."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from annotated_types import MinLen

from ..corpus.corpus import Corpus
from .partition import Clients, Partition, Severity
from .rewriting import deal_rewriting
from .styles import Restyle


@dataclass(frozen=True)
class Style:
    """Severity 0: everybody writes as found. Severity 1: client k writes all in style k mod S of ``styles``.

    In between each site (a word, a sentence boundary) is rewritten with probability s. ``plain`` rewrites
    nothing. The operators are rules for English; other text passes through them nearly unchanged.
    """

    clients: Clients = 10
    severity: Severity = 1.0
    styles: Annotated[tuple[Literal["plain", "formal", "slang", "short"], ...], MinLen(1)] = ("formal", "slang", "short")
    everybody: bool = False
    refill: bool = True

    def __call__(self, corpus: Corpus, rng: np.random.Generator) -> Partition:
        key = rng.bytes(16)
        variants: list[Restyle | None] = [None] * self.clients
        if self.severity > 0:
            for client in range(self.clients):
                style = self.styles[client % len(self.styles)]
                variants[client] = None if style == "plain" else Restyle(style, self.severity, key)
        return deal_rewriting(corpus, variants, rng, refill=self.refill, everybody=self.everybody, key=key)
