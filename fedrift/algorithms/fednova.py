"""FedNova: changes are compared per step, so that who takes more steps does not pull the optimum.

Wang, Liu, Liang, Joshi & Poor, "Tackling the Objective Inconsistency Problem in Heterogeneous
Federated Optimization", NeurIPS 2020, arXiv:2007.07481 (equation 10 and section 4).

d_k = (w - y_k) / a_k; w <- w - tau_eff sum_k p_k d_k with tau_eff = sum_k p_k a_k. a_k = ||a||_1 is how far a
constant unit gradient would carry client k, in learning rates: K_k for plain SGD, and
[K - rho (1 - rho^K) / (1 - rho)] / (1 - rho) for heavy ball rho. With equal steps it is FedAvg.
It removes the inconsistency of unequal steps to O(lr K L) only; the drift of FedAvg stays.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from ..optimizers import Decay, Optimizer, is_adaptive
from ..tree import Tree
from ..values import Report, Server
from .fedavg import FedAvg, average


@dataclass(frozen=True)
class FedNova(FedAvg):
    rescales: ClassVar[bool] = True
    weighs: ClassVar[bool] = True  # by the steps of everybody
    momentum: Decay = 0.0  # of the clients' optimiser

    def absorb(self, server: Server, report: Report) -> Server:
        a = reach(report.steps.to(report.weight), self.momentum)
        tau = average(Tree(_=a), report)["_"]  # [M] tau_eff
        scaled = report.delta * (tau[report.group] / a.clamp_min(1e-12))
        return super().absorb(server, replace(report, delta=scaled))

    def refusals(self, optimizer: Optimizer, weighting: str, leaves: Collection[str]) -> list[str]:
        said = super().refusals(optimizer, weighting, leaves)
        if is_adaptive(optimizer):
            return [*said, "FedNova divides by the length of the local path in learning rates, which an adaptive "
                           "client optimiser does not have; use Sgd, with momentum if you like"]
        momentum = getattr(optimizer, "momentum", 0.0)
        if momentum != self.momentum:
            said.append(f"FedNova must know the clients' momentum: they have {momentum}, it was told {self.momentum}; "
                        f"say FedNova(momentum={momentum})")
        return said


def reach(steps: Tensor, momentum: float) -> Tensor:
    """||a||_1 after ``steps [C]``: the sum over steps j of (1 - rho^(K - j)) / (1 - rho)."""
    if momentum == 0:
        return steps
    return (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)
