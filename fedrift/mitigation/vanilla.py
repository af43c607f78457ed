"""No mitigation: everybody shares one model. The frame of every other: its fields are the settings, its methods the hooks.

A mitigation decides which clients share a model. What happens inside such a group is the algorithm's, whichever it is: all
groups begin from the same weights, and together as many clients train in a round as without mitigation.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..algorithms import FedAvg
from ..tree import Tree
from ..values import Round, State
from .decision import Decision, Ground


@dataclass(frozen=True)
class Vanilla:
    everybody: ClassVar[bool] = False  # whether some rounds call the whole fleet
    reads: ClassVar[bool] = False  # whether it looks at the clients' documents, or at their losses on them

    def begin(self, ground: Ground) -> Decision | None:
        """Before the first round: who shares which model. None: the mitigation has nothing to say."""
        return None

    def first(self, params: Tree, ground: Ground) -> Tree:
        """The models ``[M, ...]`` before the first round; all the same unless a mitigation must tell them apart."""
        return params

    def settle(self, state: State, ground: Ground) -> Decision | None:
        """Once the first models are there: a second thought."""
        return None

    def calls(self, round: int) -> bool:
        """Whether the round after ``round`` rounds calls the whole fleet."""
        return False

    def regroup(self, done: Round, ground: Ground) -> Decision | None:
        """After a round: who shares which model from now on. None: nothing changes."""
        return None

    def caveats(self) -> list[str]:
        """What a reader of the results must know."""
        return []

    def refusals(self, algorithm: FedAvg, leaves: Collection[str]) -> list[str]:
        """Why this makes no sense with the algorithm or these trained leaves."""
        return []


def together(size: int) -> np.ndarray:
    """Everybody in group 0, ``[N]``."""
    return np.zeros(size, dtype=np.int64)


__all__ = ["Vanilla", "together"]
