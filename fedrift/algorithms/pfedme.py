"""pFedMe: each client solves for a model of its own near y, and moves y towards it; y is what is shared.

T. Dinh, Tran & Nguyen, "Personalized Federated Learning with Moreau Envelopes", NeurIPS 2020,
arXiv:2006.08848 (Algorithm 1). theta ~ argmin F_k(theta) + lam/2 ||theta - y||^2 by ``inner`` steps of the
clients' optimiser; then y <- y - eta lam (y - theta), and so on until the round's steps are used up.
The server's w <- (1 - beta) w + beta mean_k y_k is ``server=Sgd(beta)``.

Every inner step takes a new batch (the paper repeats one), so that a step costs what a step of FedAvg costs.
theta goes on from where it was; the client wears the last one.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt
from torch import Tensor

from ..optimizers import Optimizer, is_adaptive, named, part
from ..tree import Tree
from ..values import Local
from .fedavg import FedAvg


@dataclass(frozen=True)
class PFedMe(FedAvg):
    personal: ClassVar[bool] = True
    lam: Annotated[float, Gt(0)] = 1.0
    eta: Annotated[float, Gt(0)] = 0.1
    inner: Annotated[int, Ge(1)] = 5

    def memory(self, params: Tree) -> Tree:  # theta_k
        return params

    def correct(self, grad: Tree, at: Local) -> Tree:
        return grad + self.lam * (at.params - outer(at))

    def note(self, grad: Tree, at: Local, ours: Tensor) -> Local:
        y = outer(at)
        solved = (ours & (at.steps % self.inner == 0)).to(next(iter(y.values())).device)
        if solved.any():
            y = self.towards(at, y).where(solved, y)
        return replace(at, memory=Tree({**at.memory, **named("y", y)}))

    def finish(self, at: Local) -> Tree:
        y = outer(at)
        unused = (at.steps % self.inner != 0).to(next(iter(y.values())).device)  # the last solve was cut short
        return self.towards(at, y).where(unused, y)

    def towards(self, at: Local, y: Tree) -> Tree:
        return y - self.eta * self.lam * (y - at.params)

    def remember(self, at: Local) -> Tree:
        return at.params

    def wear(self, params: Tree, memory: Tree) -> Tree:
        return memory

    def caveats(self, optimizer: Optimizer, weighting: str) -> list[str]:
        said = super().caveats(optimizer, weighting)
        if is_adaptive(optimizer):
            said.append("pFedMe under AdamW: the pull lam (theta - y) is normalised with the rest of the gradient, so theta "
                        "solves another problem than the paper's; use Sgd")
        return said

    def refusals(self, optimizer: Optimizer, weighting: str, leaves: Collection[str]) -> list[str]:
        said = super().refusals(optimizer, weighting, leaves)
        if self.eta * self.lam >= 2:
            said.append(f"pFedMe moves y by eta lam = {self.eta * self.lam:g} of its way to theta, past it and farther away "
                        "than it was; keep eta lam below 2")
        return said


def outer(at: Local) -> Tree:
    """y, which begins at the received model."""
    return part("y", at.memory) or at.start


__all__ = ["PFedMe"]
