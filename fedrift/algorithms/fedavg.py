"""FedAvg: every client trains the same model for a while, the server takes the mean of the changes.

McMahan, Moore, Ramage, Hampson & Agüera y Arcas, "Communication-Efficient Learning of Deep
Networks from Decentralized Data", AISTATS 2017, arXiv:1602.05629 (Algorithm 1).

Client k: y <- y - lr g_k(y), K_k times from y = w. Server: w <- w + eta_g sum_k p_k (y_k - w), with
p_k = n_k / sum n over the cohort. Written as a step of a server optimiser on the negative mean
change (Reddi et al., ICLR 2021, arXiv:2003.00295, Algorithm 2); ``Sgd(1.0)`` is the paper's eta_g = 1.

``server`` and ``aggregate`` multiply instead of adding classes: ``FedAvg(server=Sgd(1.0, momentum=0.9))`` is
FedAvgM, ``FedAvg(server=Adam(0.01))`` FedAdam, ``FedAvg(aggregate=Median())`` the coordinate-wise median.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from ..optimizers import Optimizer, Sgd, part
from ..tree import Tree
from ..values import Local, Report, Round, Server, same_group
from .aggregates.mean import Mean, average, heard, members, pool

Evidence = dict[str | tuple[str, str], Tensor | float]  # as a probe's reading
See = Callable[[Tree], tuple[Tensor, Tensor]]  # params [A, ...] -> (z [A, B, H], counts [A, B])


@dataclass(frozen=True)
class FedAvg:
    """The frame of every algorithm: its fields are the hyperparameters, its methods the hooks."""

    rescales: ClassVar[bool] = False  # whether the server changes the clients' changes before it aggregates them
    tells: ClassVar[frozenset[str]] = frozenset()  # what the server reads beside the changes: "memory", "gradient"
    personal: ClassVar[bool] = False  # whether clients wear models of their own
    server: Optimizer = Sgd(1.0)
    aggregate: Mean = Mean()

    # Before the first round.

    def enroll(self, parts: list[np.ndarray], cohort: int, steps: int) -> tuple[list[np.ndarray], int, int]:
        """Who takes part with which rows, how many in a round, for how many local steps."""
        return parts, cohort, steps

    def groups(self, size: int) -> Tensor:
        """Which model each client shares, ``[N]``."""
        return same_group(size)

    def begin(self, params: Tree) -> Server:
        """The server's first state, from params ``[M, ...]``."""
        return Server(params, self.shared(params), self.server.init(params), self.aggregate.begin(params))

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
        return self.aggregate.refusals(self, leaves)

    # On the clients.

    def frozen(self, leaves: Collection[str], round: int) -> frozenset[str]:
        """The leaves that nobody trains in this round."""
        return self.aggregate.frozen(leaves, round)

    def start(self, params: Tree, memory: Tree) -> Tree:
        """Where a client begins, from the model it received."""
        return params

    def penalty(self) -> Callable[[Local, See], Tensor] | None:
        """What to minimise beside the loss, ``(at, see) -> [A]``; ``see`` is how a model represents the batch at hand.

        ``at.params`` are the leaves to differentiate. What can be said as a gradient belongs in ``correct``.
        """
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

    def aside(self) -> FedAvg | None:
        """A second training on the same batches, for what stays with the client; its memory becomes ``at.memory``."""
        return None

    def remember(self, at: Local) -> Tree:
        """After the last local step: the new memory."""
        return at.memory

    def wear(self, params: Tree, memory: Tree) -> Tree:
        """The model a client uses and is judged by, from the one it shares and its memory, all ``[C, ...]``."""
        return params

    # On the server.

    def absorb(self, server: Server, report: Report) -> Server:
        """Once a round: the next server."""
        descent = -self.aggregate.combine(server, report)
        params, moments = self.server.step(server.params, descent, server.moments)
        trained = heard(report)  # a model nobody trained stays, moments and all
        after = replace(server, params=params.where(trained, server.params),
                        moments=moments.where(trained, server.moments))
        return self.aggregate.rebase(server, after, report)

    def evidence(self, done: Round) -> Evidence:
        """What only the algorithm knows of a round, for the record: ``server.momentum``, the length of the server's momentum
        (of several models, the mean over the clients of the one that each shares)."""
        moments = done.after.server.moments
        velocity = moments if moments.keys() == done.after.server.params.keys() else part("m", moments)
        return {"server.momentum": shared_by(velocity.norm(), done)} if velocity else {}

    def regroup(self, server: Server, memory: Tree, group: Tensor) -> Server:
        """When clients ``[N]`` change the models that they share: what must be told from ``memory [N, ...]`` anew."""
        return server


def shared_by(values: Tensor, done: Round) -> Tensor:
    """Of a number of each model ``[M]``: the mean over the clients of the model that each shares."""
    return values.cpu()[done.after.group.cpu()].mean()


def is_adaptive(optimizer: Any) -> bool:
    """Whether a rule rescales the gradient coordinate by coordinate, so that adding to it means something else."""
    return bool(getattr(optimizer, "adaptive", False))


__all__ = ["Evidence", "FedAvg", "See", "average", "heard", "is_adaptive", "members", "pool", "shared_by"]
