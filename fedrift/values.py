"""The nouns of a federated run. All are frozen: a value can be saved, sent, compared and tested.

Axis letters: N clients of the fleet, C clients of the cohort, M models of the server.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .memory import Memory
from .tree import Tree


@dataclass(frozen=True, eq=False)
class Server:
    """What the server holds: M models, what it sends beside them, and its optimiser's moments."""

    params: Tree  # [M, ...]
    shared: Tree  # [M, ...] sent to the clients with the params (SCAFFOLD's c); empty for most
    moments: Tree  # [M, ...] of the server's optimiser; stays on the server
    base: Tree = field(default_factory=Tree)  # "<module>.base" [M, O, I], merged under the adapters, below their scale

    @property
    def models(self) -> int:
        return len(next(iter(self.params.values())))

    def under(self, group: Tensor) -> Tree:
        """What lies under the adapters of clients that share the models ``group [C]``.

        One model's base leads with 1, not C: it is the same for all and must not be copied for each.
        """
        return self.base.rows(group) if self.models > 1 else self.base


@dataclass(frozen=True, eq=False)
class Local:
    """A cohort in the middle of its local steps."""

    params: Tree  # [C, ...] y
    start: Tree  # [C, ...] the model that was received, w
    shared: Tree  # [C, ...]
    memory: Tree  # [C, ...] as it was when the round began, unless the algorithm's ``note`` has written in it
    gradient: Tree  # [C, ...] mean of the raw gradients of the steps taken so far
    steps: Tensor  # [C] steps taken so far
    loss: Tensor  # [C] training loss of the first step; NaN before it
    weight: Tensor  # [C] what the client counts, so far
    lr: float  # the learning rate of this round


@dataclass(frozen=True, eq=False)
class Report:
    """What a cohort sends back. A client that failed has weight 0, delta 0 and its old memory."""

    delta: Tree  # [C, ...] y - w
    memory: Tree  # [C, ...] the new memory
    news: Tree  # [C, ...] new memory - old memory
    gradient: Tree  # [C, ...] mean raw gradient of the local steps; 0 of a client that failed
    weight: Tensor  # [C] what a client counts in the mean: trained tokens, examples, or 1
    steps: Tensor  # [C] local steps taken
    loss: Tensor  # [C, 2] training loss of the first step, and the mean over the steps (nats per token)
    tokens: Tensor  # [C] tokens trained
    failed: Tensor  # [C] bool: non-finite numbers, nothing of it is used
    group: Tensor  # [C] which model each client shares
    population: Tensor  # [M] clients that share each model, sampled or not
    lr: Tensor  # [C] learning rate of the local steps
    draw: int = 0  # what the server's own draws of this round are made from; the round loop says it
    share: Tensor | None = None  # [C, M] how much of each client is each model's, where it is not all its group's
    why: tuple[str, ...] = ()  # [C] what is to be said of each client, above all why it failed; () if nothing of any
    wire: Tensor | None = None  # [C, 2] bytes that travelled to each client and back, where they did


def nobody() -> Tensor:
    """Of a fleet whose clients are not known yet, ``[0]``."""
    return torch.zeros(0, dtype=torch.long)


@dataclass(frozen=True, eq=False)
class State:
    """All that a run is between two rounds; saved, it resumes."""

    round: int
    server: Server
    memory: Memory  # [N, ...] what each client keeps; zeros for one that never took part
    group: Tensor  # [N] which model each client shares
    moved: Tree = field(default_factory=Tree)  # [M, ...] what the last round changed of the server's params; empty before round 1
    mitigation: Tree = field(default_factory=Tree)  # what the mitigation remembers; each leaf has axes of its own
    last: Tensor = field(default_factory=nobody)  # [N] the last round in which each client's report counted; 0: none yet
    averages: Tree = field(default_factory=Tree)  # [M, ...] float64, the mean of ``Algorithm.averaged`` over each model's clients


@dataclass(frozen=True, eq=False)
class Round:
    """The evidence of one round: the loop's only output."""

    before: State
    after: State
    cohort: Tensor  # [C] client numbers, ascending
    report: Report

    @property
    def local(self) -> Tree:
        """The clients' models before aggregation, ``[C, ...]``."""
        return self.before.server.params.rows(self.before.group[self.cohort]) + self.report.delta


Objective = Callable[[Tree, dict[str, Tensor]], Tensor]
"""``(params [C, ...], batch [C, ...]) -> loss [C]``: all that federated code knows of a language model."""

Regroup = Callable[[Round], State]
"""A mitigation between two rounds: who shares a model with whom from now on."""

Draw = Callable[[State, int, int], Tensor]
"""``(state, count, seed) -> [C]``: which clients take part in the coming round, ascending."""


def same_group(size: int) -> Tensor:
    """Everybody shares model 0, ``[N]``."""
    return torch.zeros(size, dtype=torch.long)
