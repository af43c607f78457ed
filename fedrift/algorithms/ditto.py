"""Ditto: everybody trains the shared model as ever, and beside it one of their own that is held near it.

Li, Hu, Beirami & Smith, "Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021,
arXiv:2012.04221 (Algorithm 1). v_k <- v_k - lr (g_k(v_k) + lam (v_k - w)), beside FedAvg on w, on the same batches.

lam = 0 is local training, lam -> infinity the shared model. The shared model is FedAvg's bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge

from ..optimizers import Optimizer, is_adaptive
from ..tree import Tree
from ..values import Local
from .fedavg import FedAvg


@dataclass(frozen=True)
class Ditto(FedAvg):
    personal: ClassVar[bool] = True
    lam: Annotated[float, Ge(0)] = 0.1

    def memory(self, params: Tree) -> Tree:  # v_k
        return params

    def aside(self) -> FedAvg:
        return Own(aggregate=self.aggregate, lam=self.lam)

    def wear(self, params: Tree, memory: Tree) -> Tree:
        return memory

    def caveats(self, optimizer: Optimizer, weighting: str) -> list[str]:
        said = super().caveats(optimizer, weighting)
        if self.lam and is_adaptive(optimizer):
            said.append("Ditto under AdamW: the pull lam (v - w) is normalised with the rest of the gradient, so lam is not "
                        "comparable with the SGD literature")
        return said


@dataclass(frozen=True)
class Own(FedAvg):
    """The training of v_k, from the memory and back into it."""

    lam: float = 0.1

    def start(self, params: Tree, memory: Tree) -> Tree:
        return memory

    def correct(self, grad: Tree, at: Local) -> Tree:
        return grad + self.lam * (at.params - at.start) if self.lam else grad

    def remember(self, at: Local) -> Tree:
        return at.params


__all__ = ["Ditto"]
