"""`Sandbox`: the dials of the made-up language."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Interval, MinLen

from ...seeds import Seed

Manner = Literal["plain", "formal", "slang", "short"]


@dataclass(frozen=True)
class Sandbox:
    """A made-up language with ``domains`` domains, as many documents of each; in an experiment
    ``corpus: {name: sandbox, sandbox: {overlap: 0.2}}``.

    - ``overlap``: the share of open-class words (nouns, verbs) that come from the common lexicon. At 1 all
      domains have one lexicon, at 0 no noun or verb of one occurs in another: marginal shift.
    - ``concept``: the share of sentences in which a common noun takes a verb that only the domain decides.
      Nouns and verbs in them are as frequent in every domain, their pairs are not: concept shift alone.
    - ``styles``: domain k writes in style k mod S. Styles differ in a few closed-class words.
    - ``words``: words in a lexicon of each class, with frequencies ~ 1 / rank^``zipf`` (0: all alike).
    - ``embedding``: the share of nouns that carry a phrase or a relative clause, and so recursion.
    - ``sentences``: of a document, on average (geometric).
    """

    domains: Annotated[int, Interval(ge=1, le=32)] = 4
    documents: Annotated[int, Ge(1)] = 2000
    overlap: Annotated[float, Interval(ge=0, le=1)] = 0.5
    concept: Annotated[float, Interval(ge=0, le=1)] = 0.0
    styles: Annotated[tuple[Manner, ...], MinLen(1)] = ("plain",)
    words: Annotated[int, Interval(ge=1, le=300)] = 60
    zipf: Annotated[float, Interval(ge=0, le=3)] = 1.0
    embedding: Annotated[float, Interval(ge=0, le=0.5)] = 0.2
    sentences: Annotated[float, Interval(ge=1, le=1000)] = 6.0
    seed: Seed = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The domains' names, in their order as labels too."""
        return tuple(f"domain{k:0{len(str(self.domains - 1))}d}" for k in range(self.domains))
