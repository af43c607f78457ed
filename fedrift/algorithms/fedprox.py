"""FedProx: each client is held near the model it received.

Li, Sahu, Zaheer, Sanjabi, Talwalkar & Smith, "Federated Optimization in Heterogeneous Networks",
MLSys 2020, arXiv:1812.06127 (Algorithm 2). Local objective: F_k(y) + mu/2 ||y - w||^2.

``form="loss"`` adds its gradient, mu (y - w), as the literature does; it is clipped with the rest.
Under Adam that pull is divided by sqrt(v) like everything else, so mu means less than it says;
``form="decoupled"`` takes the exact proximal step after the optimiser's instead:
y <- (y + lr mu w) / (1 + lr mu), which is also stable for any mu.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge

from ..optimizers import Optimizer, is_adaptive
from ..tree import Tree
from ..values import Local
from .fedavg import FedAvg


@dataclass(frozen=True)
class FedProx(FedAvg):
    mu: Annotated[float, Ge(0)] = 0.01
    form: Literal["loss", "decoupled"] = "loss"

    def correct(self, grad: Tree, at: Local) -> Tree:
        if self.form != "loss" or self.mu == 0:  # mu = 0 is FedAvg bit for bit
            return grad
        return grad + self.mu * (at.params - at.start)

    def settle(self, params: Tree, at: Local) -> Tree:
        if self.form != "decoupled" or self.mu == 0:
            return params
        pull = at.lr * self.mu
        return (params + pull * at.start) / (1 + pull)

    def caveats(self, optimizer: Optimizer, weighting: str) -> list[str]:
        said = super().caveats(optimizer, weighting)
        if self.form == "loss" and is_adaptive(optimizer):
            said.append("FedProx(form='loss') under AdamW: the proximal gradient is normalised with the rest, so mu is not "
                        "comparable with the SGD literature; form='decoupled' takes the exact proximal step")
        elif self.form == "loss" and optimizer.lr * self.mu >= 2:
            said.append(f"FedProx(form='loss'): with lr mu = {optimizer.lr * self.mu:g} every step ends farther beyond the "
                        "received model than it began, and runs away; keep lr mu below 2, or take form='decoupled'")
        return said
