"""q-FedAvg: clients with a high loss pull harder, so that losses become more equal.

Li, Sanjabi, Beirami & Smith, "Fair Resource Allocation in Federated Learning", ICLR 2020,
arXiv:1905.10497 (Algorithm 2). It minimises f_q(w) = sum_k p_k F_k(w)^(q+1) / (q+1).

dw_k = L (w - y_k) with L = 1/lr; D_k = F_k^q dw_k; h_k = q F_k^(q-1) ||dw_k||^2 + L F_k^q;
w <- w - sum_k p_k D_k / sum_k p_k h_k. q = 0 is FedAvg; q -> infinity the minimax of AFL.
F_k is the training loss of the first step, at the received model: the paper evaluates all of the
client's data there, which a first batch estimates without an extra pass.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from annotated_types import Ge

from ..optimizers import Optimizer, is_adaptive
from ..tree import Tree
from ..values import Report, Server
from .fedavg import FedAvg, pool


@dataclass(frozen=True)
class QFedAvg(FedAvg):
    rescales: ClassVar[bool] = True
    weighs: ClassVar[bool] = True
    q: Annotated[float, Ge(0)] = 1.0

    def absorb(self, server: Server, report: Report) -> Server:
        counts = report.weight > 0
        loss = report.loss[:, 0].to(report.weight).where(counts, 1.0).clamp_min(1e-10)  # F_k
        steep = 1 / report.lr.to(report.weight)  # L
        most = loss.new_zeros(server.models).scatter_reduce(0, report.group, loss, "amax")[report.group]
        pull = report.weight * (loss / most) ** self.q  # p_k F_k^q, but for a factor that D and h share
        length = (report.delta.norm().to(report.weight) * steep) ** 2  # ||dw_k||^2
        h = pull * (self.q * length / loss + steep)
        sums = pool(Tree(pull=pull * steep, h=h), report)
        step = sums["pull"] / sums["h"].clamp_min(1e-12)  # [M]: sum D / sum h = mean of the changes by pull, times this
        return super().absorb(server, replace(report, weight=pull, delta=report.delta * step[report.group]))

    def refusals(self, optimizer: Optimizer, weighting: str, leaves: Collection[str]) -> list[str]:
        said = super().refusals(optimizer, weighting, leaves)
        if is_adaptive(optimizer):
            said.append("q-FedAvg takes (w - y) / lr for a gradient, to bound its step; under an adaptive optimiser "
                        "it is none: use Sgd")
        return said
