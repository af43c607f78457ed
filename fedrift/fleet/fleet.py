"""What the round loop needs of those who train: simulated here, real machines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import ClassVar, Protocol

from torch import Tensor

from ..tree import Tree
from ..values import Local, Report, State

See = Callable[[Tree], tuple[Tensor, Tensor]]
"""``params [A, ...] -> (z [A, B, H], counts [A, B])``: how a model represents the batch at hand, and which of it is there."""

Penalty = Callable[[Local, See], Tensor]
"""``(at [A], see) -> [A]``: what clients minimise beside their loss. ``at`` holds the clients at work, A of C."""


class Rule(Protocol):
    """The client half of an algorithm (``algorithms/algorithm.py`` says what each hook is)."""

    tells: ClassVar[frozenset[str]]

    def frozen(self, leaves: Collection[str], round: int) -> frozenset[str]: ...
    def start(self, params: Tree, memory: Tree) -> Tree: ...
    def penalty(self) -> Penalty | None: ...
    def correct(self, grad: Tree, at: Local) -> Tree: ...
    def settle(self, params: Tree, at: Local) -> Tree: ...
    def note(self, grad: Tree, at: Local, ours: Tensor) -> Local: ...
    def finish(self, at: Local) -> Tree: ...
    def aside(self) -> Rule | None: ...
    def remember(self, at: Local) -> Tree: ...


class Fleet(Protocol):
    """N clients that can be asked to train."""

    @property
    def size(self) -> int: ...

    def train(self, state: State, algorithm: Rule, cohort: Tensor) -> Report:
        """One round of local training by the clients ``cohort [C]``."""
        ...
