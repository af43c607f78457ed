"""FedAvg, and the algorithms that differ from it in one step: FedAvgM, FedAdam, FedYogi, FedAdagrad, FedProx, FedNova and FedSGD.

Notation: w is the model of the server, y_k the local model of client k, g_k its gradient, K_k its number of local steps, n_k its
number of examples or tokens, and p_k = n_k / sum n its weight in the cohort.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Ge

from ..core.optimizers import Adagrad, Adam, Decay, Optimizer, Sgd, Yogi, is_adaptive, select_prefix
from ..core.tree import Tree
from ..core.types import CohortUpdate, LocalState, RoundResult, ServerState
from .aggregators.base import Aggregator
from .aggregators.mean import Mean, has_update, weighted_mean
from .base import Algorithm, RoundMetrics

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class FedAvg(Algorithm):
    """Federated averaging: the clients train the same model locally, and the server applies the mean of their updates.

    McMahan, Moore, Ramage, Hampson & Agüera y Arcas, "Communication-Efficient Learning of Deep Networks from Decentralized
    Data", AISTATS 2017, arXiv:1602.05629 (Algorithm 1).

    Client k computes y <- y - lr g_k(y), K_k times from y = w. The server computes w <- w + eta_g sum_k p_k (y_k - w). It is
    implemented as a step of a server optimizer on the pseudo-gradient, the negative mean update (Reddi et al., ICLR 2021, arXiv:2003.00295,
    Algorithm 2). The optimizer ``Sgd(1.0)``, that is eta_g = 1, gives the FedAvg of McMahan et al.

    Args:
        server_optimizer: Optimizer of the server step.
        aggregator: Rule that combines the updates of the cohort.

    Example:
        >>> from fedrift.algorithms.aggregators import Median
        >>> from fedrift.core.optimizers import Adam
        >>> fed_avg_m = FedAvg(server_optimizer=Sgd(1.0, momentum=0.9))
        >>> fed_adam = FedAvg(server_optimizer=Adam(0.01))
        >>> coordinate_wise_median = FedAvg(aggregator=Median())
    """

    server_optimizer: Optimizer = Sgd(1.0)
    aggregator: Aggregator = Mean()

    def init_server(self, params: Tree) -> ServerState:
        return ServerState(
            params, self.init_broadcast(params), self.server_optimizer.init(params), self.aggregator.init_merged_base(params)
        )

    def frozen_params(self, param_names: Collection[str], round: int) -> frozenset[str]:
        return self.aggregator.frozen_params(param_names, round)

    def server_update(self, server: ServerState, update: CohortUpdate) -> ServerState:
        pseudo_gradient = -self.aggregator.aggregate(server, update)
        params, moments = self.server_optimizer.step(server.params, pseudo_gradient, server.opt_state)
        trained = has_update(update)  # a model without an update in this round keeps its params and moments
        after = replace(server, params=params.where(trained, server.params), opt_state=moments.where(trained, server.opt_state))
        return self.aggregator.after_server_step(server, after, update)

    def round_metrics(self, result: RoundResult) -> RoundMetrics:
        """Compute ``server.momentum``, the norm of the first moment of the server optimizer, if the optimizer has one.

        If there are several models, the value is the mean over all clients of the norm for the model of the client.
        """
        moments = result.after.server.opt_state
        velocity = moments if moments.keys() == result.after.server.params.keys() else select_prefix("m", moments)
        return {"server.momentum": mean_over_clients(velocity.norm(), result)} if velocity else {}

    def warnings(self, optimizer: Optimizer, weighting: str) -> list[str]:
        return self.aggregator.warnings(self, weighting)

    def incompatibilities(self, optimizer: Optimizer, weighting: str, param_names: Collection[str]) -> list[str]:
        return self.aggregator.incompatibilities(self, param_names)


def mean_over_clients(model_values: Tensor, result: RoundResult) -> Tensor:
    """Average a value per model ``[M]`` over all clients, each with the value of the model that it trains."""
    return model_values.cpu()[result.after.cluster_ids.cpu()].mean()


@dataclass(frozen=True)
class FedAvgM(FedAvg):
    """FedAvg with momentum on the server: v <- momentum v + mean update, w <- w + lr v.

    Hsu, Qi & Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification", 2019,
    arXiv:1909.06335 (section 4.3).

    Example:
        >>> FedAvgM().server_optimizer.momentum
        0.9
    """

    server_optimizer: Sgd = Sgd(1.0, momentum=0.9)


@dataclass(frozen=True)
class FedAdam(FedAvg):
    """FedAvg with Adam on the server, without bias correction and with v_-1 = tau^2.

    Reddi, Charles, Zaheer, Garrett, Rush, Konecny, Kumar & McMahan, "Adaptive Federated Optimization", ICLR 2021,
    arXiv:2003.00295 (Algorithm 2). The paper tunes lr and tau per task.

    Example:
        >>> FedAdam(server_optimizer=Adam(lr=0.1, tau=1e-4)).server_optimizer.betas
        (0.9, 0.99)
    """

    server_optimizer: Adam = Adam(0.01)


@dataclass(frozen=True)
class FedYogi(FedAvg):
    """FedAvg with Yogi on the server: v <- v - (1 - b2) g^2 sign(v - g^2). The paper is that of ``FedAdam``.

    Example:
        >>> FedYogi().server_optimizer.tau
        0.001
    """

    server_optimizer: Yogi = Yogi(0.01)


@dataclass(frozen=True)
class FedAdagrad(FedAvg):
    """FedAvg with Adagrad on the server: v <- v + g^2. The paper is that of ``FedAdam``.

    Example:
        >>> FedAdagrad().server_optimizer.lr
        0.01
    """

    server_optimizer: Adagrad = Adagrad(0.01)


@dataclass(frozen=True)
class FedProx(FedAvg):
    """FedAvg with a proximal term that keeps each local model near the received model.

    Li, Sahu, Zaheer, Sanjabi, Talwalkar & Smith, "Federated Optimization in Heterogeneous Networks", MLSys 2020,
    arXiv:1812.06127 (Algorithm 2). The local objective is F_k(y) + mu/2 ||y - w||^2.

    Args:
        mu: Weight of the proximal term.
        proximal: ``gradient`` adds the gradient of the term, mu (y - w), before clipping, as in the literature. Under Adam this
            gradient is divided by sqrt(v) with the rest, so the effective weight is not mu. ``prox_step`` instead computes the
            exact proximal step after the optimizer step, y <- (y + lr mu w) / (1 + lr mu), which is stable for any mu.

    Example:
        >>> fedrift.load_config(config, ["algorithm={type: FedProx, mu: 0.1}"]).algorithm.mu
        0.1
    """

    mu: Annotated[float, Ge(0)] = 0.01
    proximal: Literal["gradient", "prox_step"] = "gradient"

    def transform_grad(self, grad: Tree, local: LocalState) -> Tree:
        if self.proximal != "gradient" or self.mu == 0:  # mu = 0 must equal FedAvg bit for bit
            return grad
        return grad + self.mu * (local.params - local.global_params)

    def after_step(self, params: Tree, local: LocalState) -> Tree:
        if self.proximal != "prox_step" or self.mu == 0:
            return params
        strength = local.lr * self.mu
        return (params + strength * local.global_params) / (1 + strength)

    def warnings(self, optimizer: Optimizer, weighting: str) -> list[str]:
        messages = super().warnings(optimizer, weighting)
        if self.proximal == "gradient" and is_adaptive(optimizer):
            messages.append(
                f"FedProx(proximal='gradient') under {type(optimizer).__name__}: the proximal gradient is normalized with the rest of "
                "the gradient, so mu is not comparable with the SGD literature; proximal='prox_step' computes the exact proximal step"
            )
        elif self.proximal == "gradient" and optimizer.lr * self.mu >= 2:
            messages.append(
                f"FedProx(proximal='gradient'): with lr * mu = {optimizer.lr * self.mu:g} every step increases the distance to the "
                "received model, and the local models diverge; keep lr * mu below 2, or use proximal='prox_step'"
            )
        return messages


@dataclass(frozen=True)
class FedNova(FedAvg):
    """FedAvg with updates normalized by the number of local steps, for clients with unequal numbers of steps.

    Wang, Liu, Liang, Joshi & Poor, "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization",
    NeurIPS 2020, arXiv:2007.07481 (equation 10 and section 4).

    d_k = (w - y_k) / a_k and w <- w - tau_eff sum_k p_k d_k with tau_eff = sum_k p_k a_k. The path length a_k = ||a||_1 is the
    distance that client k would move under a constant unit gradient, in units of the learning rate. It is K_k for plain SGD and
    [K - rho (1 - rho^K) / (1 - rho)] / (1 - rho) for heavy-ball momentum rho. If all clients take equally many steps, FedNova
    equals FedAvg. It removes the inconsistency of unequal steps only up to O(lr K L); the client drift of FedAvg remains.

    Args:
        momentum: Momentum of the client optimizer, which the path length depends on.

    Example:
        >>> fedrift.load_config(config, ["algorithm={type: FedNova, momentum: 0.9}"]).algorithm.momentum
        0.9
    """

    rescales_updates: ClassVar[bool] = True
    reweights_clients: ClassVar[bool] = True  # tau_eff depends on the steps of all clients
    momentum: Decay = 0.0

    def server_update(self, server: ServerState, update: CohortUpdate) -> ServerState:
        a = path_length(update.steps.to(update.weight), self.momentum)
        tau = weighted_mean(Tree(_=a), update)["_"]  # [M] tau_eff
        scaled = update.delta * (tau[update.cluster_ids] / a.clamp_min(1e-12))
        return super().server_update(server, replace(update, delta=scaled))

    def incompatibilities(self, optimizer: Optimizer, weighting: str, param_names: Collection[str]) -> list[str]:
        reasons = super().incompatibilities(optimizer, weighting, param_names)
        if is_adaptive(optimizer):
            return [
                *reasons,
                "FedNova divides by the length of the local path in units of the learning rate, which is not defined for an adaptive "
                "client optimizer; use Sgd, with or without momentum",
            ]
        momentum = getattr(optimizer, "momentum", 0.0)
        if momentum != self.momentum:
            reasons.append(
                f"the client optimizer has momentum {momentum}, but FedNova is configured for momentum {self.momentum}; "
                f"use FedNova(momentum={momentum})"
            )
        return reasons


def path_length(steps: Tensor, momentum: float) -> Tensor:
    """Compute the path length ||a||_1 of FedNova, the sum over steps j of (1 - rho^(K - j)) / (1 - rho).

    Args:
        steps: Number of local steps K of each client, ``[C]``.
        momentum: Heavy-ball momentum rho of the client optimizer.

    Returns:
        The path lengths in units of the learning rate, ``[C]``.
    """
    if momentum == 0:
        return steps
    return (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)


@dataclass(frozen=True)
class FedSGD(FedAvg):
    """Federated SGD: the clients send the mean gradient of their batches at w, and the server takes one step.

    McMahan et al., AISTATS 2017, arXiv:1602.05629 (section 2: the case E = 1, B = inf). w <- w - lr sum_k p_k g_k(w).

    FedSGD processes as many tokens per round as FedAvg with the same training configuration, but takes one step. The difference
    between the two shows the net effect of local steps and client drift. The learning rate is that of ``server_optimizer``.
    The client optimizer and gradient clipping are not used.

    Example:
        >>> fedrift.load_config(config, ["algorithm={type: FedSGD, server_optimizer: {type: Sgd, lr: 0.5}}"]).algorithm.server_optimizer.lr
        0.5
    """

    rescales_updates: ClassVar[bool] = True
    uploads: ClassVar[frozenset[str]] = frozenset({"mean_grad"})
    server_optimizer: Optimizer = Sgd(0.1)

    def after_step(self, params: Tree, local: LocalState) -> Tree:
        return local.global_params  # the model does not move, so that all gradients of the round are taken at the received model

    def server_update(self, server: ServerState, update: CohortUpdate) -> ServerState:
        return super().server_update(server, replace(update, delta=-update.mean_grad))

    def warnings(self, optimizer: Optimizer, weighting: str) -> list[str]:
        return [
            *super().warnings(optimizer, weighting),
            f"FedSGD takes one step per round with the learning rate of the server ({self.server_optimizer.lr:g}); the client "
            "optimizer, its learning rate and gradient clipping are not used",
        ]
