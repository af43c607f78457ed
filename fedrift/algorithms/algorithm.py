"""What every algorithm can say: the hooks, of which it writes those that make it differ.

An algorithm is a frozen dataclass; its fields are its hyperparameters and its YAML. Each hook does nothing until it is
written, but for ``begin`` and ``absorb``, the server's: ``FedAvg`` has them, and the others derive from it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from ..optimizers import Optimizer
from ..tree import Tree
from ..values import Local, Report, Round, Server, same_group

Evidence = dict[str | tuple[str, str], Tensor | float]  # as a probe's reading
See = Callable[[Tree], tuple[Tensor, Tensor]]  # how a model represents the batch: params [A, ...] -> (z [A, B, H], counts [A, B])


@dataclass(frozen=True)
class Algorithm(ABC):
    """The frame of every algorithm."""

    rescales: ClassVar[bool] = False  # whether the server rescales the clients' changes or steps beyond them
    weighs: ClassVar[bool] = False  # whether what the server counts a client for depends on what the others report
    tells: ClassVar[frozenset[str]] = frozenset()  # what the server reads beside the changes: "memory", "gradient"
    personal: ClassVar[bool] = False  # whether clients wear models of their own
    alone: ClassVar[bool] = False  # whether every model has one client only

    # Before the first round.

    def enroll(self, parts: list[np.ndarray], cohort: int, steps: int) -> tuple[list[np.ndarray], int, int]:
        """Who takes part with which rows, how many in a round, for how many local steps."""
        return parts, cohort, steps

    def groups(self, size: int) -> Tensor:
        """Which model each client shares, ``[N]``."""
        return same_group(size)

    @abstractmethod
    def begin(self, params: Tree) -> Server:
        """The server's first state, from params ``[M, ...]``."""

    def shared(self, params: Tree) -> Tree:
        """What the server sends beside the params, in its first state."""
        return Tree()

    def memory(self, params: Tree) -> Tree:
        """What a client keeps between rounds, in its first state."""
        return Tree()

    def caveats(self, optimizer: Optimizer, weighting: str) -> list[str]:
        """What a reader of the results must know about this combination; said before the run and stored with it."""
        return []

    def refusals(self, optimizer: Optimizer, weighting: str, leaves: Collection[str]) -> list[str]:
        """Why this combination makes no sense; a run with any reason is not begun."""
        return []

    # On the clients.

    def frozen(self, leaves: Collection[str], round: int) -> frozenset[str]:
        """The leaves that nobody trains in this round."""
        return frozenset()

    def start(self, params: Tree, memory: Tree) -> Tree:
        """Where a client begins, from the model it received."""
        return params

    def penalty(self) -> Callable[[Local, See], Tensor] | None:
        """What to minimise by ``at.params`` beside the loss, ``(at, see) -> [A]``; a gradient in closed form is ``correct``'s."""
        return None

    def correct(self, grad: Tree, at: Local) -> Tree:
        """At every local step: the gradient to follow (it is clipped after this)."""
        return grad

    def settle(self, params: Tree, at: Local) -> Tree:
        """At every local step, after the optimiser's: where to end up. ``at`` is from before the step."""
        return params

    def note(self, grad: Tree, at: Local, ours: Tensor) -> Local:
        """At every local step, at its end: what to write down. ``ours [C]``: who took this step."""
        return at

    def finish(self, at: Local) -> Tree:
        """After the last local step: the model to send, as its change."""
        return at.params

    def aside(self) -> Algorithm | None:
        """A second training on the same batches, for what stays with the client; its memory becomes ``at.memory``."""
        return None

    def remember(self, at: Local) -> Tree:
        """After the last local step: the new memory."""
        return at.memory

    def wear(self, params: Tree, memory: Tree) -> Tree:
        """The model a client uses and is judged by, from the one it shares and its memory, all ``[C, ...]``."""
        return params

    # On the server.

    @abstractmethod
    def absorb(self, server: Server, report: Report) -> Server:
        """Once a round: the next server."""

    def averaged(self, memory: Tree) -> Tree:
        """The part of the clients' memory ``[C, ...]`` whose mean over the clients of each model ``evidence`` needs.

        The round loop updates that mean (``State.averages``) from the changes of the cohort, so that no round reads the
        memory of all N clients.
        """
        return Tree()

    def evidence(self, done: Round) -> Evidence:
        """What only the algorithm knows of a round, for the record."""
        return {}

    def regroup(self, server: Server, memory: Tree, group: Tensor) -> Server:
        """When clients ``[N]`` change the models that they share: what must be told from ``memory [N, ...]`` anew."""
        return server


__all__ = ["Algorithm", "Evidence", "See"]
