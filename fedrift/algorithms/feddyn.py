"""FedDyn: dynamic regularization of the local objectives."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from annotated_types import Gt

from ..core.optimizers import Optimizer, Sgd, is_adaptive
from ..core.tree import Tree
from ..core.types import CohortUpdate, LocalState, RoundResult, ServerState
from .aggregators.mean import cluster_mean, cluster_sum, has_update
from .base import RoundMetrics
from .fedavg import FedAvg, mean_over_clients

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class FedDyn(FedAvg):
    """FedDyn: a linear term in each local objective makes the optima of the clients agree with the optimum of the server.

    Acar, Zhao, Matas Navarro, Mattina, Whatmough & Saligrama, "Federated Learning Based on Dynamic Regularization", ICLR 2021,
    arXiv:2111.04263 (Algorithm 1).

    Client k minimizes F_k(y) - <g_k, y> + alpha/2 ||y - w||^2, and then computes g_k <- g_k - alpha (y - w). The server computes
    h <- h - (alpha/N) sum_S (y_k - w) and w <- mean_S y_k - h / alpha, where S is the cohort. g_k and h are initially zero, so
    h = mean_k g_k holds in every round, for any cohort. The paper solves the local problem exactly. The fixed point w = y_k,
    g_k = grad F_k(w), h = 0 is also exact with a few local steps.

    Args:
        alpha: Weight of the regularization.

    Example:
        >>> fedrift.load_config(config, ["algorithm={type: FedDyn, alpha: 0.5}"]).algorithm.alpha
        0.5
    """

    rescales_updates: ClassVar[bool] = True
    uploads: ClassVar[frozenset[str]] = frozenset({"client_state"})
    alpha: Annotated[float, Gt(0)] = 0.1

    def init_server(self, params: Tree) -> ServerState:
        return replace(super().init_server(params), opt_state=params.zeros_like())  # h

    def init_client_state(self, params: Tree) -> Tree:
        """Return the initial g_k, which is zero."""
        return params.zeros_like()

    def transform_grad(self, grad: Tree, local: LocalState) -> Tree:
        return grad - local.client_state + self.alpha * (local.params - local.global_params)

    def update_client_state(self, local: LocalState) -> Tree:
        return local.client_state - self.alpha * (local.params - local.global_params)

    def server_update(self, server: ServerState, update: CohortUpdate) -> ServerState:
        h = server.opt_state + cluster_sum(update.state_delta, update) / update.cluster_sizes.clamp_min(1)
        uniform = replace(update, weight=(update.weight > 0).to(update.weight))  # the mean over S is unweighted
        after = FedAvg(Sgd(1.0), self.aggregator).server_update(replace(server, opt_state=Tree()), uniform)
        corrected = after.params - h / self.alpha
        return replace(after, params=corrected.where(has_update(update), server.params), opt_state=h)

    def round_metrics(self, result: RoundResult) -> RoundMetrics:
        """Compute ``server.correction`` = |h| / alpha, the distance from the mean of the local models to the new server model."""
        return {"server.correction": mean_over_clients(result.after.server.opt_state.norm() / self.alpha, result)}

    def on_recluster(self, server: ServerState, client_state: Tree, cluster_ids: Tensor) -> ServerState:
        # h = mean_k g_k over the clients that are now in the cluster
        return replace(server, opt_state=cluster_mean(client_state, cluster_ids, server.opt_state))

    def warnings(self, optimizer: Optimizer, weighting: str) -> list[str]:
        messages = super().warnings(optimizer, "uniform")
        if weighting != "uniform":
            messages.append(f"FedDyn uses the uniform mean over the cohort; client_weighting={weighting!r} is not used")
        return messages

    def incompatibilities(self, optimizer: Optimizer, weighting: str, param_names: Collection[str]) -> list[str]:
        reasons = super().incompatibilities(optimizer, weighting, param_names)
        if is_adaptive(optimizer):
            reasons.append(
                "the client state of FedDyn approaches the gradient only if the client optimizer does not rescale gradients; under an "
                "adaptive optimizer the correction does not converge; use client_optimizer: Sgd, or use Scaffold, which stores gradients"
            )
        if self.server_optimizer != Sgd(1.0):
            reasons.append(
                f"FedDyn defines its own server step, so server_optimizer={self.server_optimizer} would not be used; remove that key"
            )
        return reasons
