"""AFL: the weights of the clients climb with their losses, towards the worst mixture of them.

Mohri, Sivek & Suresh, "Agnostic Federated Learning", ICML 2019, arXiv:1902.00146 (section 5, Stochastic-AFL):
min_w max_lambda sum_k lambda_k F_k(w) by w <- w - lr grad_w, lambda <- Proj_simplex(lambda + rate F(w)).

Here lambda counts 1 for an average client (the paper's is lambda/N, its rate is ``rate``/N), and with several
local steps w moves by FedAvg weighted with lambda, as of the beginning of the round. The projection onto the
simplex is max(mu_k - theta, 0) with one theta for all; a client keeps mu_k, the server finds theta. F_k is the
training loss of the first step. All clients must take part: theta is found over the cohort.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from annotated_types import Gt
from torch import Tensor

from ..optimizers import Optimizer
from ..tree import Tree
from ..values import Local, Report, Server
from .aggregates.pooled import by_model
from .fedavg import FedAvg


@dataclass(frozen=True)
class AFL(FedAvg):
    weighs: ClassVar[bool] = True
    tells: ClassVar[frozenset[str]] = frozenset({"memory"})
    rate: Annotated[float, Gt(0)] = 0.1

    def shared(self, params: Tree) -> Tree:
        return Tree(theta=_one(params) * 0)

    def memory(self, params: Tree) -> Tree:
        return Tree(mu=_one(params))

    def remember(self, at: Local) -> Tree:
        share = weight(at.memory, at.shared)
        return Tree(mu=share + self.rate * at.loss.to(share).unsqueeze(1))

    def absorb(self, server: Server, report: Report) -> Server:
        share = weight(report.memory.to(report.weight.device) - report.news, server.shared.rows(report.group))[:, 0]
        after = super().absorb(server, replace(report, weight=share * (report.weight > 0)))
        theta = server.shared["theta"].clone()
        mu = report.memory["mu"][:, 0].to(theta)
        for model, mine in by_model(report):
            theta[model] = threshold(mu[mine])
        return replace(after, shared=Tree(theta=theta))

    def regroup(self, server: Server, memory: Tree, group: Tensor) -> Server:
        theta, mu = server.shared["theta"].clone(), memory["mu"][:, 0].to(server.shared["theta"])
        for model in group.unique().tolist():
            theta[model] = threshold(mu[(group == model).to(mu.device)])
        return replace(server, shared=Tree(theta=theta))

    def caveats(self, optimizer: Optimizer, weighting: str) -> list[str]:
        return [*super().caveats(optimizer, "uniform"),
                "AFL weighs clients by their losses, not by their sizes, and needs all of them in every round"]


def weight(memory: Tree, shared: Tree) -> Tensor:
    """lambda_k, ``[C, 1]``; 1 on average."""
    return (memory["mu"] - shared["theta"]).clamp_min(0)


def threshold(mu: Tensor) -> Tensor:
    """The theta with sum_k max(mu_k - theta, 0) = n, for ``mu [n]`` (Duchi et al., ICML 2008, Figure 1)."""
    down = mu.sort(descending=True).values
    rank = torch.arange(1, len(mu) + 1, device=mu.device)
    theta = (down.cumsum(0) - len(mu)) / rank
    return theta[(down > theta).nonzero().max()]


def _one(params: Tree) -> Tensor:
    leaf = next(iter(params.values()))
    return torch.ones(len(leaf), 1, dtype=leaf.dtype, device=leaf.device)
