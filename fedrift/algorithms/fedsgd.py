"""FedSGD: nobody moves; every client sends the mean gradient of all its batches, the server takes one step.

McMahan et al., AISTATS 2017, arXiv:1602.05629 (section 2: the case E = 1, B = inf). w <- w - lr sum_k p_k g_k(w).

It reads as many tokens as FedAvg with the same plan and takes one step for them: what local steps
buy, and what drift costs, is the difference of the two. The learning rate is the server's; the
clients' optimiser is not used, so neither is its clipping.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ..optimizers import Optimizer, Sgd
from ..tree import Tree
from ..values import Local, Report, Server
from .fedavg import FedAvg


@dataclass(frozen=True)
class FedSGD(FedAvg):
    rescales: ClassVar[bool] = True
    tells: ClassVar[frozenset[str]] = frozenset({"gradient"})
    server: Optimizer = Sgd(0.1)

    def settle(self, params: Tree, at: Local) -> Tree:
        return at.start

    def absorb(self, server: Server, report: Report) -> Server:
        return super().absorb(server, replace(report, delta=-report.gradient))

    def caveats(self, optimizer: Optimizer, weighting: str) -> list[str]:
        return [*super().caveats(optimizer, weighting), f"FedSGD takes one step of the server's rate ({self.server.lr:g}) a "
                "round; the clients' optimiser, its rate and its clipping are not used"]
