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

from ..core.optimizers import Optimizer, Sgd, is_adaptive
from ..core.tree import Tree
from ..core.types import CohortUpdate, LocalState, RoundResult, ServerState
from .base import RoundMetrics
from .fedavg import FedAvg, cluster_mean, cluster_sum, has_update, mean_over_clients


@dataclass(frozen=True)
class FedDyn(FedAvg):
    rescales_updates: ClassVar[bool] = True
    uploads: ClassVar[frozenset[str]] = frozenset({"client_state"})
    alpha: Annotated[float, Gt(0)] = 0.1

    def init_server(self, params: Tree) -> ServerState:
        return replace(super().init_server(params), opt_state=params.zeros_like())  # h

    def init_client_state(self, params: Tree) -> Tree:  # g_k
        return params.zeros_like()

    def transform_grad(self, grad: Tree, local: LocalState) -> Tree:
        return grad - local.client_state + self.alpha * (local.params - local.global_params)

    def update_client_state(self, local: LocalState) -> Tree:
        return local.client_state - self.alpha * (local.params - local.global_params)

    def server_update(self, server: ServerState, report: CohortUpdate) -> ServerState:
        h = server.opt_state + cluster_sum(report.state_delta, report) / report.cluster_sizes.clamp_min(1)
        even = replace(report, weight=(report.weight > 0).to(report.weight))  # the mean over S is uniform
        after = FedAvg(Sgd(1.0), self.aggregator).server_update(replace(server, opt_state=Tree()), even)
        beyond = after.params - h / self.alpha
        return replace(after, params=beyond.where(has_update(report), server.params), opt_state=h)

    def round_metrics(self, result: RoundResult) -> RoundMetrics:
        """``server.correction``: |h| / alpha, how far the server goes beyond the mean of its clients."""
        return {"server.correction": mean_over_clients(result.after.server.opt_state.norm() / self.alpha, result)}

    def on_recluster(self, server: ServerState, client_state: Tree, cluster_ids: Tensor) -> ServerState:
        # h = mean_k g_k, over the new members
        return replace(server, opt_state=cluster_mean(client_state, cluster_ids, server.opt_state))

    def warnings(self, optimizer: Optimizer, weighting: str) -> list[str]:
        said = super().warnings(optimizer, "uniform")
        if weighting != "uniform":
            said.append(f"FedDyn takes a uniform mean over the cohort; client_weighting={weighting!r} is not used")
        return said

    def incompatibilities(self, optimizer: Optimizer, weighting: str, param_names: Collection[str]) -> list[str]:
        said = super().incompatibilities(optimizer, weighting, param_names)
        if is_adaptive(optimizer):
            said.append(
                "FedDyn's memory is the gradient only if the clients follow it unscaled; under an adaptive "
                "optimiser the tilt never settles: use Sgd, or Scaffold, which stays a gradient"
            )
        if self.server_optimizer != Sgd(1.0):
            said.append(f"FedDyn's server step is its own; server_optimizer={self.server_optimizer} would not be used: leave it out")
        return said
