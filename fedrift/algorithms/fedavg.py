"""FedAvg: every client trains the same model for a while, the server takes the mean of the changes.

McMahan, Moore, Ramage, Hampson & Agüera y Arcas, "Communication-Efficient Learning of Deep
Networks from Decentralized Data", AISTATS 2017, arXiv:1602.05629 (Algorithm 1).

Client k: y <- y - lr g_k(y), K_k times from y = w. Server: w <- w + eta_g sum_k p_k (y_k - w), with
p_k = n_k / sum n over the cohort. Written as a step of a server optimiser on the negative mean
change (Reddi et al., ICLR 2021, arXiv:2003.00295, Algorithm 2); ``Sgd(1.0)`` is the paper's eta_g = 1.

The server's rule and its aggregator are fields of every algorithm: ``FedAvg(aggregator=Median())`` takes the
coordinate-wise median. ``FedAvgM``, ``FedAdam``, ``FedYogi`` and ``FedAdagrad`` are FedAvg under the server rules of their papers.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge
from torch import Tensor

from ..core.optimizers import Adagrad, Adam, Decay, Optimizer, Sgd, Yogi, is_adaptive, select_prefix
from ..core.tree import Tree
from ..core.types import CohortUpdate, LocalState, RoundResult, ServerState
from .aggregators.mean import Mean, cluster_mean, cluster_sum, has_update, weighted_mean
from .base import Algorithm, RoundMetrics


@dataclass(frozen=True)
class FedAvg(Algorithm):
    server_optimizer: Optimizer = Sgd(1.0)
    aggregator: Mean = Mean()

    def init_server(self, params: Tree) -> ServerState:
        return ServerState(
            params, self.init_broadcast(params), self.server_optimizer.init(params), self.aggregator.init_merged_base(params)
        )

    def frozen_params(self, param_names: Collection[str], round: int) -> frozenset[str]:
        return self.aggregator.frozen_params(param_names, round)

    def server_update(self, server: ServerState, report: CohortUpdate) -> ServerState:
        descent = -self.aggregator.aggregate(server, report)
        params, moments = self.server_optimizer.step(server.params, descent, server.opt_state)
        trained = has_update(report)  # a model nobody trained stays, moments and all
        after = replace(server, params=params.where(trained, server.params), opt_state=moments.where(trained, server.opt_state))
        return self.aggregator.after_server_step(server, after, report)

    def round_metrics(self, result: RoundResult) -> RoundMetrics:
        """``server.momentum``: its length; of several models, the clients' mean over the one that each shares."""
        moments = result.after.server.opt_state
        velocity = moments if moments.keys() == result.after.server.params.keys() else select_prefix("m", moments)
        return {"server.momentum": mean_over_clients(velocity.norm(), result)} if velocity else {}

    def warnings(self, optimizer: Optimizer, weighting: str) -> list[str]:
        return self.aggregator.warnings(self, weighting)

    def incompatibilities(self, optimizer: Optimizer, weighting: str, param_names: Collection[str]) -> list[str]:
        return self.aggregator.incompatibilities(self, param_names)


def mean_over_clients(model_values: Tensor, result: RoundResult) -> Tensor:
    """Of a number of each model ``[M]``: the mean over the clients of the model that each shares."""
    return model_values.cpu()[result.after.cluster_ids.cpu()].mean()


# FedAvgM and FedOpt: FedAvg with another server rule. What a client does is FedAvg's.
#
# Hsu, Qi & Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification",
# 2019, arXiv:1909.06335 (section 4.3). Reddi, Charles, Zaheer, Garrett, Rush, Konecny, Kumar & McMahan, "Adaptive
# Federated Optimization", ICLR 2021, arXiv:2003.00295 (Algorithm 2; its best rates and tau differ by task: tune them).


@dataclass(frozen=True)
class FedAvgM(FedAvg):
    """FedAvg with heavy-ball momentum on the server: v <- momentum v + mean change, w <- w + lr v."""

    server_optimizer: Sgd = Sgd(1.0, momentum=0.9)


@dataclass(frozen=True)
class FedAdam(FedAvg):
    """FedAvg with Adam on the server, without bias correction and with v_-1 = tau^2, as the paper has it."""

    server_optimizer: Adam = Adam(0.01)


@dataclass(frozen=True)
class FedYogi(FedAvg):
    """FedAvg with Yogi on the server: v <- v - (1 - b2) g^2 sign(v - g^2)."""

    server_optimizer: Yogi = Yogi(0.01)


@dataclass(frozen=True)
class FedAdagrad(FedAvg):
    """FedAvg with Adagrad on the server: v <- v + g^2."""

    server_optimizer: Adagrad = Adagrad(0.01)


# FedProx: each client is held near the model it received.
#
# Li, Sahu, Zaheer, Sanjabi, Talwalkar & Smith, "Federated Optimization in Heterogeneous Networks",
# MLSys 2020, arXiv:1812.06127 (Algorithm 2). Local objective: F_k(y) + mu/2 ||y - w||^2.
#
# ``proximal="gradient"`` adds its gradient, mu (y - w), as the literature does; it is clipped with the rest.
# Under Adam that pull is divided by sqrt(v) like everything else, so mu means less than it says;
# ``proximal="prox_step"`` takes the exact proximal step after the optimiser's instead:
# y <- (y + lr mu w) / (1 + lr mu), which is also stable for any mu.


@dataclass(frozen=True)
class FedProx(FedAvg):
    mu: Annotated[float, Ge(0)] = 0.01
    proximal: Literal["gradient", "prox_step"] = "gradient"

    def transform_grad(self, grad: Tree, local: LocalState) -> Tree:
        if self.proximal != "gradient" or self.mu == 0:  # mu = 0 is FedAvg bit for bit
            return grad
        return grad + self.mu * (local.params - local.global_params)

    def after_step(self, params: Tree, local: LocalState) -> Tree:
        if self.proximal != "prox_step" or self.mu == 0:
            return params
        pull = local.lr * self.mu
        return (params + pull * local.global_params) / (1 + pull)

    def warnings(self, optimizer: Optimizer, weighting: str) -> list[str]:
        said = super().warnings(optimizer, weighting)
        if self.proximal == "gradient" and is_adaptive(optimizer):
            said.append(
                "FedProx(proximal='gradient') under AdamW: the proximal gradient is normalised with the rest, so mu is "
                "not comparable with the SGD literature; proximal='prox_step' takes the exact proximal step"
            )
        elif self.proximal == "gradient" and optimizer.lr * self.mu >= 2:
            said.append(
                f"FedProx(proximal='gradient'): with lr mu = {optimizer.lr * self.mu:g} every step ends farther beyond "
                "the received model than it began, and runs away; keep lr mu below 2, or take proximal='prox_step'"
            )
        return said


# FedNova: changes are compared per step, so that who takes more steps does not pull the optimum.
#
# Wang, Liu, Liang, Joshi & Poor, "Tackling the Objective Inconsistency Problem in Heterogeneous
# Federated Optimization", NeurIPS 2020, arXiv:2007.07481 (equation 10 and section 4).
#
# d_k = (w - y_k) / a_k; w <- w - tau_eff sum_k p_k d_k with tau_eff = sum_k p_k a_k. a_k = ||a||_1 is how far a
# constant unit gradient would carry client k, in learning rates: K_k for plain SGD, and
# [K - rho (1 - rho^K) / (1 - rho)] / (1 - rho) for heavy ball rho. With equal steps it is FedAvg.
# It removes the inconsistency of unequal steps to O(lr K L) only; the drift of FedAvg stays.


@dataclass(frozen=True)
class FedNova(FedAvg):
    rescales_updates: ClassVar[bool] = True
    reweights_clients: ClassVar[bool] = True  # by the steps of everybody
    momentum: Decay = 0.0  # of the clients' optimiser

    def server_update(self, server: ServerState, report: CohortUpdate) -> ServerState:
        a = path_length(report.steps.to(report.weight), self.momentum)
        tau = weighted_mean(Tree(_=a), report)["_"]  # [M] tau_eff
        scaled = report.delta * (tau[report.cluster_ids] / a.clamp_min(1e-12))
        return super().server_update(server, replace(report, delta=scaled))

    def incompatibilities(self, optimizer: Optimizer, weighting: str, param_names: Collection[str]) -> list[str]:
        said = super().incompatibilities(optimizer, weighting, param_names)
        if is_adaptive(optimizer):
            return [
                *said,
                "FedNova divides by the length of the local path in learning rates, which an adaptive "
                "client optimiser does not have; use Sgd, with momentum if you like",
            ]
        momentum = getattr(optimizer, "momentum", 0.0)
        if momentum != self.momentum:
            said.append(
                f"FedNova must know the clients' momentum: they have {momentum}, it was told {self.momentum}; "
                f"say FedNova(momentum={momentum})"
            )
        return said


def path_length(steps: Tensor, momentum: float) -> Tensor:
    """||a||_1 after ``steps [C]``: the sum over steps j of (1 - rho^(K - j)) / (1 - rho)."""
    if momentum == 0:
        return steps
    return (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)


# FedSGD: nobody moves; every client sends the mean gradient of all its batches, the server takes one step.
#
# McMahan et al., AISTATS 2017, arXiv:1602.05629 (section 2: the case E = 1, B = inf). w <- w - lr sum_k p_k g_k(w).
#
# It reads as many tokens as FedAvg with the same plan and takes one step for them: what local steps
# buy, and what drift costs, is the difference of the two. The learning rate is the server's; the
# clients' optimiser is not used, so neither is its clipping.


@dataclass(frozen=True)
class FedSGD(FedAvg):
    rescales_updates: ClassVar[bool] = True
    uploads: ClassVar[frozenset[str]] = frozenset({"mean_grad"})
    server_optimizer: Optimizer = Sgd(0.1)

    def after_step(self, params: Tree, local: LocalState) -> Tree:
        return local.global_params

    def server_update(self, server: ServerState, report: CohortUpdate) -> ServerState:
        return super().server_update(server, replace(report, delta=-report.mean_grad))

    def warnings(self, optimizer: Optimizer, weighting: str) -> list[str]:
        return [
            *super().warnings(optimizer, weighting),
            f"FedSGD takes one step of the server's rate ({self.server_optimizer.lr:g}) a "
            "round; the clients' optimiser, its rate and its clipping are not used",
        ]


__all__ = ["FedAvg", "cluster_mean", "cluster_sum", "has_update", "mean_over_clients", "weighted_mean"]
