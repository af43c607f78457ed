"""The weighted mean of what the clients send, and the frame of every other way to make one change of many.

An aggregate turns the changes of a cohort, ``[C, ...]``, into the change of each model, ``[M, ...]``. It
is a value of an algorithm, ``FedProx(mu=0.1, aggregate=Median())``, so that each rule is written once.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar, Protocol

from ...optimizers import Optimizer
from ...tree import Tree
from ...values import Report, Server
from .pooled import average


class Frame(Protocol):
    """What an aggregate may ask of the algorithm it serves."""

    @property
    def server(self) -> Optimizer: ...
    @property
    def rescales(self) -> bool: ...
    @property
    def weighs(self) -> bool: ...
    @property
    def tells(self) -> frozenset[str]: ...
    @property
    def personal(self) -> bool: ...
    @property
    def alone(self) -> bool: ...
    def memory(self, params: Tree) -> Tree: ...


@dataclass(frozen=True)
class Mean:
    """sum_k p_k delta_k with p_k = weight_k / sum of the weights (McMahan et al. 2017, arXiv:1602.05629)."""

    lifts: ClassVar[bool] = False  # whether it moves what lies under the adapters
    pairs: ClassVar[bool] = False  # whether it treats B and A of an adapter differently

    def frozen(self, leaves: Collection[str], round: int) -> frozenset[str]:
        """The leaves that nobody trains in this round."""
        return frozenset()

    def begin(self, params: Tree) -> Tree:
        """What lies under the adapters at first, ``[M, ...]``."""
        return Tree()

    def combine(self, server: Server, report: Report) -> Tree:
        """The change of each model, ``[M, ...]``; zeros where none took part."""
        return average(report.delta, report)

    def rebase(self, before: Server, after: Server, report: Report) -> Server:
        """Once the params have moved: what else the server changes."""
        return after

    def refusals(self, algorithm: Frame, leaves: Collection[str]) -> list[str]:
        """Why this makes no sense with what the algorithm does or these trained leaves."""
        return []

    def caveats(self, algorithm: Frame, weighting: str) -> list[str]:
        """What a reader of the results must know about this combination."""
        return []

    def thin(self, cohort: int) -> list[str]:
        """What a reader must know because so few clients take part in a round."""
        return []


__all__ = ["Frame", "Mean"]
