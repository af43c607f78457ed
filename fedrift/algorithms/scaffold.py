"""SCAFFOLD, and its variant for clients of unequal size.

Notation: w is the model of the server, y_k the local model of client k, g_k its gradient on a batch and F_k its loss; c_k is the control
variate of client k and c that of the server, both estimates of gradients. N is the number of clients, S the cohort, K the number of
local steps, lr the learning rate of the clients and eta_g that of the server.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from ..core.lazy_imports import torch
from ..core.optimizers import Optimizer, is_adaptive, select_prefix, with_prefix
from ..core.tree import Tree
from ..core.types import CohortUpdate, LocalState, RoundResult, ServerState
from .aggregators.mean import cluster_mean, cluster_sum
from .base import RoundMetrics
from .fedavg import FedAvg

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Scaffold(FedAvg):
    """SCAFFOLD: control variates correct the client drift of FedAvg.

    Karimireddy, Kale, Mohri, Reddi, Stich & Suresh, "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning",
    ICML 2020, arXiv:1910.06378 (Algorithm 1, Option II).

    Client k computes y <- y - lr (g_k(y) - c_k + c), and afterwards c_k+ = c_k - c + (w - y) / (K lr).
    The server computes w <- w + eta_g mean_S (y_k - w) and c <- c + (1/N) sum_S (c_k+ - c_k).

    Under plain SGD the local path is y = w - lr sum_j (g_k(y_j) - c_k + c), so c_k+ equals the mean of the raw gradients.
    fedrift stores this mean of the raw gradients, which are not yet clipped or corrected. It is the same number under SGD. Under momentum,
    clipping, learning rate schedules or Adam it is still a gradient, whereas (w - y) / (K lr) is not: that form diverges with
    heavy-ball momentum and is biased with Adam.
    c and all c_k are initially zero, so c = mean_k c_k holds in every round, for any cohort.

    Example:
        >>> fedrift.load_config(config, ["algorithm=Scaffold", "training.client_optimizer={type: Sgd, lr: 0.1}"]).name
        'Scaffold bbc TopicMix 1 seed 0'
    """

    uploads: ClassVar[frozenset[str]] = frozenset({"client_state"})
    is_weighted: ClassVar[bool] = False  # whether the control variates include the clients' weights

    def init_broadcast(self, params: Tree) -> Tree:
        """Return the initial c, which is zero."""
        return params.zeros_like()

    def init_client_state(self, params: Tree) -> Tree:
        """Return the initial c_k, which is zero."""
        return params.zeros_like()

    def transform_grad(self, grad: Tree, local: LocalState) -> Tree:
        return grad - local.client_state + local.broadcast

    def update_client_state(self, local: LocalState) -> Tree:
        return local.mean_grad

    def server_update(self, server: ServerState, update: CohortUpdate) -> ServerState:
        # c + (1/N) sum_S (c_k+ - c_k), where N is the number of clients of each model, in the cohort or not
        server_control = server.broadcast + cluster_sum(update.state_delta, update) / update.cluster_sizes.clamp_min(1)
        return replace(super().server_update(server, update), broadcast=server_control)

    def state_to_average(self, client_state: Tree) -> Tree:
        return client_state

    def round_metrics(self, result: RoundResult) -> RoundMetrics:
        controls = result.before.client_states.gather(result.cohort)
        return super().round_metrics(result) | control_variate_metrics(result, controls, result.after.server.broadcast)

    def on_recluster(self, server: ServerState, client_state: Tree, cluster_ids: Tensor) -> ServerState:
        # c = mean_k c_k over the clients that are now in the cluster
        return replace(server, broadcast=cluster_mean(client_state, cluster_ids, server.broadcast))

    def warnings(self, optimizer: Optimizer, weighting: str) -> list[str]:
        messages = super().warnings(optimizer, weighting)
        if is_adaptive(optimizer):
            messages.append(
                f"SCAFFOLD under {type(optimizer).__name__}: the correction is added to the gradient before the optimizer normalizes it, "
                "so the fixed point differs from the optimum by O(lr) and no convergence theory applies; use Sgd"
            )
        if weighting != "uniform" and not self.is_weighted:
            messages.append(
                f"SCAFFOLD is derived for a uniform mean; client_weighting={weighting!r} is equivalent only if all clients have the "
                "same weight, and training diverged in experiments with skewed client sizes; use client_weighting: uniform"
            )
        return messages


def control_variate_metrics(result: RoundResult, client_controls: Tree, server_control: Tree) -> RoundMetrics:
    """Compute metrics of the control variates.

    ``control.age [C]`` is the number of rounds since the client last participated. ``control.staleness [C]`` is
    |c_k - g_k| / |g_k|, where g_k is the mean gradient of the client in this round. Both are NaN for a client that has not
    participated before. ``control.imbalance`` is |c - mean_k c_k| / |c| over the clients of each model. A value above rounding
    error indicates a bug. The round loop maintains the mean in float64 (``FederatedState.client_means``), independently of c,
    which is the sum of the changes that the clients sent.

    Args:
        result: The result of the round.
        client_controls: The c_k of the cohort at the start of the round, ``[C, ...]``.
        server_control: The c after the round, ``[M, ...]``.
    """
    gradient = result.update.mean_grad.to(torch.device("cpu"))
    norm = gradient.norm()
    last_round = (
        result.before.last_participation[result.cohort] if len(result.before.last_participation) else torch.zeros(len(result.cohort))
    )
    defined = (last_round > 0) & ~result.update.failed & (norm > 0)
    staleness = (client_controls - gradient).norm() / norm
    metrics: RoundMetrics = {
        "control.age": torch.where(defined, (result.after.round - last_round).double(), torch.nan),
        "control.staleness": torch.where(defined, staleness, torch.nan),
    }
    averages = result.after.client_means
    if averages:  # only the round loop computes client_means
        distance = (server_control - averages.map(lambda mean, c: mean.to(c), server_control)).norm().square().sum().sqrt()
        metrics["control.imbalance"] = distance / server_control.norm().square().sum().sqrt().clamp_min(1e-12)
    return metrics


@dataclass(frozen=True)
class ScaffoldWeighted(Scaffold):
    """SCAFFOLD for clients of unequal size, which minimizes the weighted objective sum_k q_k F_k.

    Karimireddy et al., ICML 2020, arXiv:1910.06378 (Algorithm 1) is derived for the uniform mean. Here n_k is the weight of client k, such
    as its tokens, and q_k = n_k / sum n its share of the objective. For sum_k q_k F_k the control variates must include the weights, as
    in the authors' code of FedDyn (Acar et al., ICLR 2021): client k follows g_k - c_k + c / (N q_k), with c = sum_k q_k c_k.

    Client k stores u_k = n_k c_k, its control variate times its weight, and the server stores u = mean_k u_k. N q_k equals n_k
    divided by the mean weight, so the correction is (u - u_k) / n_k, which does not depend on the weights of other clients.
    u = mean_k u_k holds in every round, for any cohort. A client that participates for the first time uses the mean weight.

    Example:
        >>> fedrift.load_config(config, ["algorithm=ScaffoldWeighted", "training.client_weighting=examples"]).name
        'ScaffoldWeighted bbc TopicMix 1 seed 0'
    """

    is_weighted: ClassVar[bool] = True

    def init_broadcast(self, params: Tree) -> Tree:
        """Return zeros for the means over all clients: u, the weight n, and ``has_participated``, here the share of clients that have."""
        leaf = next(iter(params.values()))
        zero = torch.zeros(len(leaf), 1, dtype=leaf.dtype, device=leaf.device)
        return Tree({**with_prefix("u", params.zeros_like()), "weight": zero, "has_participated": zero.clone()})

    def init_client_state(self, params: Tree) -> Tree:
        """Return zeros for u_k, n_k, and ``has_participated``, here a flag that is 1 once the client has."""
        return self.init_broadcast(params)

    def transform_grad(self, grad: Tree, local: LocalState) -> Tree:
        mean_weight = local.broadcast["weight"] / local.broadcast["has_participated"].clamp_min(1e-12)
        weight = local.client_state["weight"].where(local.client_state["has_participated"] > 0, mean_weight)[:, 0]  # n_k
        inverse_weight = (weight > 0).to(weight) / weight.clamp_min(1e-12)
        return grad + (select_prefix("u", local.broadcast) - select_prefix("u", local.client_state)) * inverse_weight

    def update_client_state(self, local: LocalState) -> Tree:
        weight = local.weight.to(local.client_state["weight"]).unsqueeze(1)
        return Tree({**with_prefix("u", local.mean_grad * weight[:, 0]), "weight": weight, "has_participated": torch.ones_like(weight)})

    def server_update(self, server: ServerState, update: CohortUpdate) -> ServerState:
        after = super(Scaffold, self).server_update(server, update)
        means = server.broadcast + cluster_sum(update.state_delta, update) / update.cluster_sizes.clamp_min(1)
        return replace(after, broadcast=means)

    def state_to_average(self, client_state: Tree) -> Tree:
        return select_prefix("u", client_state)

    def round_metrics(self, result: RoundResult) -> RoundMetrics:
        states = result.before.client_states.gather(result.cohort)
        controls = select_prefix("u", states) / states["weight"][:, 0].clamp_min(1e-12)  # c_k = u_k / n_k
        return super(Scaffold, self).round_metrics(result) | control_variate_metrics(
            result, controls, select_prefix("u", result.after.server.broadcast)
        )
