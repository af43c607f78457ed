"""SCAFFOLD: each client subtracts its own mean gradient and adds everybody's.

Karimireddy, Kale, Mohri, Reddi, Stich & Suresh, "SCAFFOLD: Stochastic Controlled Averaging for
Federated Learning", ICML 2020, arXiv:1910.06378 (Algorithm 1, Option II).

Client k: y <- y - lr (g_k(y) - c_k + c); then c_k+ = c_k - c + (w - y) / (K lr).
Server: w <- w + eta_g mean_S (y_k - w);  c <- c + (1/N) sum_S (c_k+ - c_k).

Under plain SGD the local path is y = w - lr sum_j (g_k(y_j) - c_k + c), so c_k+ *is* the mean of the
raw gradients. We store that mean itself: the same number under SGD, and still a gradient under
momentum, clipping, schedules or Adam, where a displacement over K lr is not one (it diverges with
heavy ball and is biased with Adam). c and every c_k begin at zero, so c = mean_k c_k holds in
every round, whoever takes part.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..core.optimizers import Optimizer, is_adaptive, select_prefix, with_prefix
from ..core.tree import Tree
from ..core.types import CohortUpdate, LocalState, RoundResult, ServerState
from .base import RoundMetrics
from .fedavg import FedAvg, cluster_mean, cluster_sum


@dataclass(frozen=True)
class Scaffold(FedAvg):
    uploads: ClassVar[frozenset[str]] = frozenset({"client_state"})

    def init_broadcast(self, params: Tree) -> Tree:  # c
        return params.zeros_like()

    def init_client_state(self, params: Tree) -> Tree:  # c_k
        return params.zeros_like()

    def transform_grad(self, grad: Tree, local: LocalState) -> Tree:
        return grad - local.client_state + local.broadcast

    def update_client_state(self, local: LocalState) -> Tree:
        return local.mean_grad

    def server_update(self, server: ServerState, report: CohortUpdate) -> ServerState:
        shared = server.broadcast + cluster_sum(report.state_delta, report) / report.cluster_sizes.clamp_min(1)
        return replace(super().server_update(server, report), broadcast=shared)

    def state_to_average(self, client_state: Tree) -> Tree:
        return client_state

    def round_metrics(self, result: RoundResult) -> RoundMetrics:
        controls = result.before.client_states.gather(result.cohort)
        return super().round_metrics(result) | control_variate_metrics(result, controls, result.after.server.broadcast)

    def on_recluster(self, server: ServerState, client_state: Tree, cluster_ids: Tensor) -> ServerState:
        # c = mean_k c_k, over the new members
        return replace(server, broadcast=cluster_mean(client_state, cluster_ids, server.broadcast))

    def warnings(self, optimizer: Optimizer, weighting: str) -> list[str]:
        said = super().warnings(optimizer, weighting)
        if is_adaptive(optimizer):
            said.append(
                "SCAFFOLD under AdamW is 'SCAFFOLD-style': the correction is added to the gradient before "
                "Adam normalises it, so the fixed point is off by O(lr) and no theory covers it; use Sgd"
            )
        if weighting != "uniform":
            said.append(
                f"SCAFFOLD is derived for a uniform mean; client_weighting={weighting!r} keeps it only while all "
                "clients train equally many, and blew up in trials on skewed sizes; use client_weighting: uniform"
            )
        return said


def control_variate_metrics(result: RoundResult, client_controls: Tree, server_control: Tree) -> RoundMetrics:
    """How old the controls are. ``client_controls [C, ...]`` is the cohort's c_k as the round began,
    ``server_control [M, ...]`` is c.

    ``control.age [C]``: rounds since the client last took part; ``control.staleness [C]``: |c_k - g_k| / |g_k|, g_k its mean
    gradient of this round; both NaN for one that never had. ``control.imbalance``: |c - mean_k c_k| / |c| over the members of
    each model; above rounding it is a mistake, and no phenomenon. The mean is the round loop's running mean in float64
    (``FederatedState.client_means``); c itself is a sum of the news that the clients sent, so that the two are computed apart.
    """
    gradient = result.report.mean_grad.to(torch.device("cpu"))
    size = gradient.norm()
    last = result.before.last_round_seen[result.cohort] if len(result.before.last_round_seen) else torch.zeros(len(result.cohort))
    known = (last > 0) & ~result.report.failed & (size > 0)
    stale = (client_controls - gradient).norm() / size
    said: RoundMetrics = {
        "control.age": torch.where(known, (result.after.round - last).double(), torch.nan),
        "control.staleness": torch.where(known, stale, torch.nan),
    }
    averages = result.after.client_means
    if averages:  # a round that the round loop did not make has none
        off = (server_control - averages.map(lambda mean, c: mean.to(c), server_control)).norm().square().sum().sqrt()
        said["control.imbalance"] = off / server_control.norm().square().sum().sqrt().clamp_min(1e-12)
    return said


# SCAFFOLD for clients of unequal size: the corrected mean is right for the objective that counts tokens.
#
# Karimireddy et al., ICML 2020, arXiv:1910.06378 (Algorithm 1) is derived for the uniform mean. For
# sum_k q_k F_k the controls must carry the weights, as in the authors' code of FedDyn (Acar et al.,
# ICLR 2021): client k follows g_k - c_k + c / (N q_k), with c = sum_k q_k c_k.
#
# A client keeps u_k = n_k c_k, its control times its weight, the server u = mean_k u_k; then N q_k is n_k over the
# mean weight and the correction (u - u_k) / n_k, which needs nobody else's weight. u = mean_k u_k holds in
# every round, whoever takes part. A client that comes for the first time takes the mean weight for its own.


@dataclass(frozen=True)
class ScaffoldWeighted(Scaffold):
    def init_broadcast(self, params: Tree) -> Tree:  # means over the fleet: u, n, and the share of clients seen so far
        leaf = next(iter(params.values()))
        none = torch.zeros(len(leaf), 1, dtype=leaf.dtype, device=leaf.device)
        return Tree({**with_prefix("u", params.zeros_like()), "weight": none, "seen": none.clone()})

    def init_client_state(self, params: Tree) -> Tree:  # u_k, n_k, and 1 once it took part
        return self.init_broadcast(params)

    def transform_grad(self, grad: Tree, local: LocalState) -> Tree:
        mean = local.broadcast["weight"] / local.broadcast["seen"].clamp_min(1e-12)
        weight = local.client_state["weight"].where(local.client_state["seen"] > 0, mean)[:, 0]  # n_k
        known = (weight > 0).to(weight) / weight.clamp_min(1e-12)
        return grad + (select_prefix("u", local.broadcast) - select_prefix("u", local.client_state)) * known

    def update_client_state(self, local: LocalState) -> Tree:
        weight = local.weight.to(local.client_state["weight"]).unsqueeze(1)
        return Tree({**with_prefix("u", local.mean_grad * weight[:, 0]), "weight": weight, "seen": torch.ones_like(weight)})

    def server_update(self, server: ServerState, report: CohortUpdate) -> ServerState:
        after = super(Scaffold, self).server_update(server, report)
        shared = server.broadcast + cluster_sum(report.state_delta, report) / report.cluster_sizes.clamp_min(1)
        return replace(after, broadcast=shared)

    def state_to_average(self, client_state: Tree) -> Tree:
        return select_prefix("u", client_state)

    def round_metrics(self, result: RoundResult) -> RoundMetrics:
        kept = result.before.client_states.gather(result.cohort)
        controls = select_prefix("u", kept) / kept["weight"][:, 0].clamp_min(1e-12)  # c_k = u_k / n_k
        return super(Scaffold, self).round_metrics(result) | control_variate_metrics(
            result, controls, select_prefix("u", result.after.server.broadcast)
        )

    def warnings(self, optimizer: Optimizer, weighting: str) -> list[str]:
        return super().warnings(optimizer, "uniform")
