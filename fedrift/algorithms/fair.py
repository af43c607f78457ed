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

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from ..core.optimizers import Optimizer, is_adaptive
from ..core.tree import Tree
from ..core.types import CohortUpdate, LocalState, ServerState
from .aggregators.mean import rows_by_model
from .fedavg import FedAvg, cluster_sum


@dataclass(frozen=True)
class QFedAvg(FedAvg):
    rescales_updates: ClassVar[bool] = True
    reweights_clients: ClassVar[bool] = True
    q: Annotated[float, Ge(0)] = 1.0

    def server_update(self, server: ServerState, report: CohortUpdate) -> ServerState:
        counts = report.weight > 0
        loss = report.loss[:, 0].to(report.weight).where(counts, 1.0).clamp_min(1e-10)  # F_k
        steep = 1 / report.lr.to(report.weight)  # L
        most = loss.new_zeros(server.num_models).scatter_reduce(0, report.cluster_ids, loss, "amax")[report.cluster_ids]
        pull = report.weight * (loss / most) ** self.q  # p_k F_k^q, but for a factor that D and h share
        length = (report.delta.norm().to(report.weight) * steep) ** 2  # ||dw_k||^2
        h = pull * (self.q * length / loss + steep)
        sums = cluster_sum(Tree(pull=pull * steep, h=h), report)
        step = sums["pull"] / sums["h"].clamp_min(1e-12)  # [M]: sum D / sum h = mean of the changes by pull, times this
        return super().server_update(server, replace(report, weight=pull, delta=report.delta * step[report.cluster_ids]))

    def incompatibilities(self, optimizer: Optimizer, weighting: str, param_names: Collection[str]) -> list[str]:
        said = super().incompatibilities(optimizer, weighting, param_names)
        if is_adaptive(optimizer):
            said.append("q-FedAvg takes (w - y) / lr for a gradient, to bound its step; under an adaptive optimiser it is none: use Sgd")
        return said


# AFL: the weights of the clients climb with their losses, towards the worst mixture of them.
#
# Mohri, Sivek & Suresh, "Agnostic Federated Learning", ICML 2019, arXiv:1902.00146 (section 5, Stochastic-AFL):
# min_w max_lambda sum_k lambda_k F_k(w) by w <- w - lr grad_w, lambda <- Proj_simplex(lambda + lambda_lr F(w)).
#
# Here lambda counts 1 for an average client (the paper's is lambda/N, its rate is ``lambda_lr``/N), and with several
# local steps w moves by FedAvg weighted with lambda, as of the beginning of the round. The projection onto the
# simplex is max(mu_k - theta, 0) with one theta for all; a client keeps mu_k, the server finds theta. F_k is the
# training loss of the first step. All clients must take part: theta is found over the cohort.


@dataclass(frozen=True)
class AFL(FedAvg):
    reweights_clients: ClassVar[bool] = True
    uploads: ClassVar[frozenset[str]] = frozenset({"client_state"})
    lambda_lr: Annotated[float, Gt(0)] = 0.1

    def init_broadcast(self, params: Tree) -> Tree:
        return Tree(theta=_ones_column(params) * 0)

    def init_client_state(self, params: Tree) -> Tree:
        return Tree(mu=_ones_column(params))

    def update_client_state(self, local: LocalState) -> Tree:
        share = mixture_weight(local.client_state, local.broadcast)
        return Tree(mu=share + self.lambda_lr * local.loss.to(share).unsqueeze(1))

    def server_update(self, server: ServerState, report: CohortUpdate) -> ServerState:
        share = mixture_weight(
            report.client_state.to(report.weight.device) - report.state_delta, server.broadcast.take(report.cluster_ids)
        )[:, 0]
        after = super().server_update(server, replace(report, weight=share * (report.weight > 0)))
        theta = server.broadcast["theta"].clone()
        mu = report.client_state["mu"][:, 0].to(theta)
        for model, mine in rows_by_model(report):
            theta[model] = simplex_threshold(mu[mine])
        return replace(after, broadcast=Tree(theta=theta))

    def on_recluster(self, server: ServerState, client_state: Tree, cluster_ids: Tensor) -> ServerState:
        theta, mu = server.broadcast["theta"].clone(), client_state["mu"][:, 0].to(server.broadcast["theta"])
        for model in cluster_ids.unique().tolist():
            theta[model] = simplex_threshold(mu[(cluster_ids == model).to(mu.device)])
        return replace(server, broadcast=Tree(theta=theta))

    def warnings(self, optimizer: Optimizer, weighting: str) -> list[str]:
        return [
            *super().warnings(optimizer, "uniform"),
            "AFL weighs clients by their losses, not by their sizes, and needs all of them in every round",
        ]


def mixture_weight(client_state: Tree, broadcast: Tree) -> Tensor:
    """lambda_k, ``[C, 1]``; 1 on average."""
    return (client_state["mu"] - broadcast["theta"]).clamp_min(0)


def simplex_threshold(mu: Tensor) -> Tensor:
    """The theta with sum_k max(mu_k - theta, 0) = n, for ``mu [n]`` (Duchi et al., ICML 2008, Figure 1)."""
    down = mu.sort(descending=True).values
    rank = torch.arange(1, len(mu) + 1, device=mu.device)
    theta = (down.cumsum(0) - len(mu)) / rank
    return theta[(down > theta).nonzero().max()]


def _ones_column(params: Tree) -> Tensor:
    leaf = next(iter(params.values()))
    return torch.ones(len(leaf), 1, dtype=leaf.dtype, device=leaf.device)
