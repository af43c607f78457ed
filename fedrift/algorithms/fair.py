"""Algorithms for fairness between clients: q-FedAvg and AFL."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from annotated_types import Ge, Gt

from ..core.lazy_imports import torch
from ..core.optimizers import Optimizer, is_adaptive
from ..core.tree import Tree
from ..core.types import CohortUpdate, LocalState, ServerState
from .aggregators.mean import cluster_sum, rows_by_model
from .fedavg import FedAvg

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class QFedAvg(FedAvg):
    """q-FedAvg: clients with a higher loss have a larger weight, so that the losses of clients become more equal.

    Li, Sanjabi, Beirami & Smith, "Fair Resource Allocation in Federated Learning", ICLR 2020, arXiv:1905.10497 (Algorithm 2).
    The objective is f_q(w) = sum_k p_k F_k(w)^(q+1) / (q+1).

    dw_k = L (w - y_k) with L = 1/lr; D_k = F_k^q dw_k; h_k = q F_k^(q-1) ||dw_k||^2 + L F_k^q;
    w <- w - sum_k p_k D_k / sum_k p_k h_k. q = 0 is FedAvg; q -> infinity is the minimax objective of AFL. F_k is the training
    loss of the first local step, at the received model. The paper evaluates F_k on all data of the client, which the loss of
    the first batch estimates without additional computation.

    Args:
        q: Exponent of the losses; larger values give more equal losses.

    Example:
        >>> fedrift.load_config(config, ["algorithm={type: QFedAvg, q: 2.0}"]).algorithm.q
        2.0
    """

    rescales_updates: ClassVar[bool] = True
    reweights_clients: ClassVar[bool] = True
    q: Annotated[float, Ge(0)] = 1.0

    def server_update(self, server: ServerState, update: CohortUpdate) -> ServerState:
        counts = update.weight > 0
        loss = update.loss[:, 0].to(update.weight).where(counts, 1.0).clamp_min(1e-10)  # F_k
        inverse_lr = 1 / update.lr.to(update.weight)  # L
        largest = loss.new_zeros(server.num_models).scatter_reduce(0, update.cluster_ids, loss, "amax")[update.cluster_ids]
        weight = update.weight * (loss / largest) ** self.q  # p_k F_k^q up to a factor that cancels in sum D / sum h
        squared_norm = (update.delta.norm().to(update.weight) * inverse_lr) ** 2  # ||dw_k||^2
        h = weight * (self.q * squared_norm / loss + inverse_lr)
        sums = cluster_sum(Tree(numerator=weight * inverse_lr, h=h), update)
        scale = sums["numerator"] / sums["h"].clamp_min(1e-12)  # [M]: sum D / sum h is the weighted mean of the updates times this
        return super().server_update(server, replace(update, weight=weight, delta=update.delta * scale[update.cluster_ids]))

    def incompatibilities(self, optimizer: Optimizer, weighting: str, param_names: Collection[str]) -> list[str]:
        reasons = super().incompatibilities(optimizer, weighting, param_names)
        if is_adaptive(optimizer):
            reasons.append("q-FedAvg uses (w - y) / lr as a gradient to bound its step, which is wrong for an adaptive optimizer; use Sgd")
        return reasons


@dataclass(frozen=True)
class AFL(FedAvg):
    """AFL: the weights of clients increase with their losses, so that the worst mixture of the clients is optimized.

    Mohri, Sivek & Suresh, "Agnostic Federated Learning", ICML 2019, arXiv:1902.00146 (section 5, Stochastic-AFL):
    min_w max_lambda sum_k lambda_k F_k(w) by w <- w - lr grad_w, lambda <- Proj_simplex(lambda + lambda_lr F(w)).

    The mean of lambda over the clients is 1 here; lambda of the paper is this value divided by N, and its learning rate is
    ``lambda_lr``/N. With several local steps, w is updated by FedAvg, weighted with lambda at the start of the round. The
    projection onto the simplex is max(mu_k - theta, 0) with the same theta for all clients. The client stores mu_k, and the
    server computes theta. F_k is the training loss of the first local step. All clients must participate in every round,
    because theta is computed from the cohort.

    Args:
        lambda_lr: Learning rate of lambda.

    Example:
        >>> fedrift.load_config(config, ["algorithm={type: AFL, lambda_lr: 0.5}"]).algorithm.lambda_lr
        0.5
    """

    reweights_clients: ClassVar[bool] = True
    uploads: ClassVar[frozenset[str]] = frozenset({"client_state"})
    lambda_lr: Annotated[float, Gt(0)] = 0.1

    def init_broadcast(self, params: Tree) -> Tree:
        """Return the initial theta, which is zero."""
        return Tree(theta=_ones_column(params) * 0)

    def init_client_state(self, params: Tree) -> Tree:
        """Return the initial mu_k, which is one."""
        return Tree(mu=_ones_column(params))

    def update_client_state(self, local: LocalState) -> Tree:
        lambda_k = mixture_weight(local.client_state, local.broadcast)
        return Tree(mu=lambda_k + self.lambda_lr * local.loss.to(lambda_k).unsqueeze(1))

    def server_update(self, server: ServerState, update: CohortUpdate) -> ServerState:
        lambda_k = mixture_weight(
            update.client_state.to(update.weight.device) - update.state_delta, server.broadcast.take(update.cluster_ids)
        )[:, 0]
        after = super().server_update(server, replace(update, weight=lambda_k * (update.weight > 0)))
        theta = server.broadcast["theta"].clone()
        mu = update.client_state["mu"][:, 0].to(theta)
        for model, rows in rows_by_model(update):
            theta[model] = simplex_threshold(mu[rows])
        return replace(after, broadcast=Tree(theta=theta))

    def on_recluster(self, server: ServerState, client_state: Tree, cluster_ids: Tensor) -> ServerState:
        theta, mu = server.broadcast["theta"].clone(), client_state["mu"][:, 0].to(server.broadcast["theta"])
        for model in cluster_ids.unique().tolist():
            theta[model] = simplex_threshold(mu[(cluster_ids == model).to(mu.device)])
        return replace(server, broadcast=Tree(theta=theta))

    def warnings(self, optimizer: Optimizer, weighting: str) -> list[str]:
        return [
            *super().warnings(optimizer, "uniform"),
            "AFL weights clients by their losses, not by their sizes, and needs all clients in every round",
        ]


def mixture_weight(client_state: Tree, broadcast: Tree) -> Tensor:
    """Compute the weights lambda_k of AFL, whose mean is 1, ``[C, 1]``."""
    return (client_state["mu"] - broadcast["theta"]).clamp_min(0)


def simplex_threshold(mu: Tensor) -> Tensor:
    """Compute theta with sum_k max(mu_k - theta, 0) = n for ``mu [n]`` (Duchi et al., ICML 2008, Figure 1)."""
    descending = mu.sort(descending=True).values
    rank = torch.arange(1, len(mu) + 1, device=mu.device)
    theta = (descending.cumsum(0) - len(mu)) / rank
    return theta[(descending > theta).nonzero().max()]


def _ones_column(params: Tree) -> Tensor:
    """Return ones ``[A, 1]`` with the data type and device of ``params [A, ...]``."""
    leaf = next(iter(params.values()))
    return torch.ones(len(leaf), 1, dtype=leaf.dtype, device=leaf.device)
