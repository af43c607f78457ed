"""FedDyn: each client's loss is tilted until the clients' optima agree with the server's.

Acar, Zhao, Matas Navarro, Mattina, Whatmough & Saligrama, "Federated Learning Based on Dynamic
Regularization", ICLR 2021, arXiv:2111.04263 (Algorithm 1).

Client k minimises F_k(y) - <g_k, y> + alpha/2 ||y - w||^2, then g_k <- g_k - alpha (y - w).
Server: h <- h - (alpha/N) sum_S (y_k - w); w <- mean_S y_k - h / alpha.
g_k and h begin at zero, so h = mean_k g_k in every round, whoever takes part. The paper solves the
local problem; the fixed point w = y_k, g_k = grad F_k(w), h = 0 is exact with a few steps too.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from annotated_types import Gt
from torch import Tensor

from ..optimizers import Optimizer, Sgd, is_adaptive
from ..tree import Tree
from ..values import Local, Report, Round, Server
from .algorithm import Evidence
from .fedavg import FedAvg, heard, members, pool, shared_by


@dataclass(frozen=True)
class FedDyn(FedAvg):
    rescales: ClassVar[bool] = True
    tells: ClassVar[frozenset[str]] = frozenset({"memory"})
    alpha: Annotated[float, Gt(0)] = 0.1

    def begin(self, params: Tree) -> Server:
        return replace(super().begin(params), moments=params.zeros())  # h

    def memory(self, params: Tree) -> Tree:  # g_k
        return params.zeros()

    def correct(self, grad: Tree, at: Local) -> Tree:
        return grad - at.memory + self.alpha * (at.params - at.start)

    def remember(self, at: Local) -> Tree:
        return at.memory - self.alpha * (at.params - at.start)

    def absorb(self, server: Server, report: Report) -> Server:
        h = server.moments + pool(report.news, report) / report.population.clamp_min(1)
        even = replace(report, weight=(report.weight > 0).to(report.weight))  # the mean over S is uniform
        after = FedAvg(Sgd(1.0), self.aggregate).absorb(replace(server, moments=Tree()), even)
        beyond = after.params - h / self.alpha
        return replace(after, params=beyond.where(heard(report), server.params), moments=h)

    def evidence(self, done: Round) -> Evidence:
        """``server.correction``: |h| / alpha, how far the server goes beyond the mean of its clients."""
        return {"server.correction": shared_by(done.after.server.moments.norm() / self.alpha, done)}

    def regroup(self, server: Server, memory: Tree, group: Tensor) -> Server:  # h = mean_k g_k, over the new members
        return replace(server, moments=members(memory, group, server.moments))

    def caveats(self, optimizer: Optimizer, weighting: str) -> list[str]:
        said = super().caveats(optimizer, "uniform")
        if weighting != "uniform":
            said.append(f"FedDyn takes a uniform mean over the cohort; weighting={weighting!r} is not used")
        return said

    def refusals(self, optimizer: Optimizer, weighting: str, leaves: Collection[str]) -> list[str]:
        said = super().refusals(optimizer, weighting, leaves)
        if is_adaptive(optimizer):
            said.append("FedDyn's memory is the gradient only if the clients follow it unscaled; under an adaptive "
                        "optimiser the tilt never settles: use Sgd, or Scaffold, which stays a gradient")
        if self.server != Sgd(1.0):
            said.append(f"FedDyn's server step is its own; server={self.server} would not be used: leave it out")
        return said
