"""FedAvg with local fine-tuning: the shared model, trained once more on the client's own data, is the client's.

The cheap personalisation that others must beat (Wang et al., "Federated Evaluation of On-device
Personalization", 2019, arXiv:1910.10252; Cheng, Chadha & Duchi, "Fine-tuning in Federated Learning", 2021,
arXiv:2108.07313).

``FedAvgFineTuning`` costs nothing: a client wears what its local steps made of the model it last received. For
fine-tuning after the last round, with a budget of its own, ``split_per_client`` gives every client its copy of the
shared model, and the round loop goes on from there with the whole fleet.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, MinLen
from torch import Tensor

from ..core.optimizers import Optimizer, is_adaptive, select_prefix, with_prefix
from ..core.tree import Tree
from ..core.types import ClientStateStore, CohortUpdate, FederatedState, LocalState, ServerState
from .base import RepresentFn
from .fedavg import FedAvg


@dataclass(frozen=True)
class FedAvgFineTuning(FedAvg):
    is_personalized: ClassVar[bool] = True

    def init_client_state(self, params: Tree) -> Tree:
        return params

    def update_client_state(self, local: LocalState) -> Tree:
        return local.params

    def personalized_params(self, params: Tree, client_state: Tree) -> Tree:
        return client_state


def split_per_client(state: FederatedState, algorithm: FedAvg) -> FederatedState:
    """Every client its own copy of the model it shares, ``[M, ...] -> [N, ...]``; nobody shares from now on."""
    size = len(state.cluster_ids)
    copies = algorithm.init_server(state.server.params.take(state.cluster_ids))
    memory = ClientStateStore.from_rows(algorithm.init_client_state(copies.params.to(torch.device("cpu"))), size)
    base = state.server.merged_base.take(state.cluster_ids)
    return replace(
        state,
        server=ServerState(copies.params, copies.broadcast, copies.opt_state, base),
        client_states=memory,
        cluster_ids=torch.arange(size),
        client_means=Tree(),
    )


# FedPer: some leaves are shared, the others stay with the client for good.
#
# Arivazhagan, Aggarwal, Singh & Choudhary, "Federated Learning with Personalization Layers", 2019,
# arXiv:1912.00818 (Algorithms 1 and 2): base layers are averaged, personalisation layers are not.
#
# ``personal_params`` names the leaves that stay, by patterns. The default keeps B and shares A of every adapter, as in Guo
# et al., "Selective Aggregation for Low-Rank Adaptation in Federated Learning" (FedSA-LoRA), ICLR 2025, arXiv:2410.01463.


@dataclass(frozen=True)
class FedPer(FedAvg):
    is_personalized: ClassVar[bool] = True
    personal_params: Annotated[tuple[Annotated[str, MinLen(1)], ...], MinLen(1)] = ("*.B",)

    def is_personal(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.personal_params)

    def init_client_state(self, params: Tree) -> Tree:
        return Tree({name: leaf for name, leaf in params.items() if self.is_personal(name)})

    def init_local(self, params: Tree, client_state: Tree) -> Tree:
        return Tree({**params, **client_state})

    def client_update(self, local: LocalState) -> Tree:
        return Tree({name: local.global_params[name] if self.is_personal(name) else leaf for name, leaf in local.params.items()})

    def update_client_state(self, local: LocalState) -> Tree:
        return self.init_client_state(local.params)

    def personalized_params(self, params: Tree, client_state: Tree) -> Tree:
        return self.init_local(params, client_state)

    def server_update(self, server: ServerState, report: CohortUpdate) -> ServerState:
        after = super().server_update(server, report)  # its noise or its decay would move what nobody shares
        return replace(after, params=Tree({**after.params, **self.init_client_state(server.params)}))

    def incompatibilities(self, optimizer: Optimizer, weighting: str, param_names: Collection[str]) -> list[str]:
        said = super().incompatibilities(optimizer, weighting, param_names)
        trained = set(param_names) - (self.frozen_params(param_names, 0) & self.frozen_params(param_names, 1))
        if len({self.is_personal(name) for name in trained}) < 2:
            said.append(
                f"FedPer must share some trained leaves and keep others; personal_params={self.personal_params} splits none "
                f"of these: {', '.join(sorted(trained)[:4])}, ...; name the leaves to keep, or use LocalOnly or FedAvg"
            )
        return said


# Ditto: everybody trains the shared model as ever, and beside it one of their own that is held near it.
#
# Li, Hu, Beirami & Smith, "Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021,
# arXiv:2012.04221 (Algorithm 1). v_k <- v_k - lr (g_k(v_k) + lam (v_k - w)), beside FedAvg on w, on the same batches.
#
# lam = 0 is local training, lam -> infinity the shared model. The shared model is FedAvg's bit for bit.


@dataclass(frozen=True)
class Ditto(FedAvg):
    is_personalized: ClassVar[bool] = True
    lambda_: Annotated[float, Ge(0)] = 0.1

    def init_client_state(self, params: Tree) -> Tree:  # v_k
        return params

    def personal_algorithm(self) -> FedAvg:
        return DittoPersonalTraining(aggregator=self.aggregator, lambda_=self.lambda_)

    def personalized_params(self, params: Tree, client_state: Tree) -> Tree:
        return client_state

    def warnings(self, optimizer: Optimizer, weighting: str) -> list[str]:
        said = super().warnings(optimizer, weighting)
        if self.lambda_ and is_adaptive(optimizer):
            said.append(
                "Ditto under AdamW: the pull lambda (v - w) is normalised with the rest of the gradient, so lambda_ "
                "is not comparable with the SGD literature"
            )
        return said


@dataclass(frozen=True)
class DittoPersonalTraining(FedAvg):
    """The training of v_k, from the memory and back into it."""

    lambda_: float = 0.1

    def init_local(self, params: Tree, client_state: Tree) -> Tree:
        return client_state

    def transform_grad(self, grad: Tree, local: LocalState) -> Tree:
        return grad + self.lambda_ * (local.params - local.global_params) if self.lambda_ else grad

    def update_client_state(self, local: LocalState) -> Tree:
        return local.params


# pFedMe: each client solves for a model of its own near y, and moves y towards it; y is what is shared.
#
# T. Dinh, Tran & Nguyen, "Personalized Federated Learning with Moreau Envelopes", NeurIPS 2020,
# arXiv:2006.08848 (Algorithm 1). theta ~ argmin F_k(theta) + lam/2 ||theta - y||^2 by ``inner_steps`` steps of the
# clients' optimiser; then y <- y - eta lam (y - theta), and so on until the round's steps are used up.
# The server's w <- (1 - beta) w + beta mean_k y_k is ``server_optimizer=Sgd(beta)``.
#
# Every inner step takes a new batch (the paper repeats one), so that a step costs what a step of FedAvg costs.
# theta goes on from where it was; the client wears the last one.


@dataclass(frozen=True)
class PFedMe(FedAvg):
    is_personalized: ClassVar[bool] = True
    lambda_: Annotated[float, Gt(0)] = 1.0
    personal_lr: Annotated[float, Gt(0)] = 0.1
    inner_steps: Annotated[int, Ge(1)] = 5

    def init_client_state(self, params: Tree) -> Tree:  # theta_k
        return params

    def transform_grad(self, grad: Tree, local: LocalState) -> Tree:
        return grad + self.lambda_ * (local.params - outer_params(local))

    def on_step_end(self, grad: Tree, local: LocalState, active: Tensor) -> LocalState:
        y = outer_params(local)
        solved = (active & (local.steps % self.inner_steps == 0)).to(next(iter(y.values())).device)
        if solved.any():
            y = self.outer_step(local, y).where(solved, y)
        return replace(local, client_state=Tree({**local.client_state, **with_prefix("y", y)}))

    def client_update(self, local: LocalState) -> Tree:
        y = outer_params(local)
        unused = (local.steps % self.inner_steps != 0).to(next(iter(y.values())).device)  # the last solve was cut short
        return self.outer_step(local, y).where(unused, y)

    def outer_step(self, local: LocalState, y: Tree) -> Tree:
        return y - self.personal_lr * self.lambda_ * (y - local.params)

    def update_client_state(self, local: LocalState) -> Tree:
        return local.params

    def personalized_params(self, params: Tree, client_state: Tree) -> Tree:
        return client_state

    def warnings(self, optimizer: Optimizer, weighting: str) -> list[str]:
        said = super().warnings(optimizer, weighting)
        if is_adaptive(optimizer):
            said.append(
                "pFedMe under AdamW: the pull lambda (theta - y) is normalised with the rest of the gradient, so theta "
                "solves another problem than the paper's; use Sgd"
            )
        return said

    def incompatibilities(self, optimizer: Optimizer, weighting: str, param_names: Collection[str]) -> list[str]:
        said = super().incompatibilities(optimizer, weighting, param_names)
        if self.personal_lr * self.lambda_ >= 2:
            said.append(
                f"pFedMe moves y by personal_lr lambda_ = {self.personal_lr * self.lambda_:g} of its way to theta, past it and "
                "farther away than it was; keep personal_lr lambda_ below 2"
            )
        return said


def outer_params(local: LocalState) -> Tree:
    """y, which begins at the received model."""
    return select_prefix("y", local.client_state) or local.global_params


# MOON: each client's representations are drawn to the received model's and away from its own last model's.
#
# Li, He & Song, "Model-Contrastive Federated Learning", CVPR 2021, arXiv:2103.16049 (Algorithm 1, equations 3 and 4).
# Local objective: F_k(y) + mu * -log(e^(sim(z, z_glob)/T) / (e^(sim(z, z_glob)/T) + e^(sim(z, z_prev)/T))), with sim the
# cosine, z, z_glob and z_prev what y, the received w and the client's last y make of an input. Server: FedAvg's mean.
#
# The paper classifies images and adds a projection head; here z is what the simulator's ``represent_fn`` says, of language
# models the mean of the last hidden states (no head, so nothing more to train), one contrast a sequence. A client that
# never took part has the first model as its last: while that is what it receives, the contrast has no gradient.
# Beside the loss, a step passes the batch through three models more, two of them without a gradient.


@dataclass(frozen=True)
class MOON(FedAvg):
    mu: Annotated[float, Ge(0)] = 1.0
    temperature: Annotated[float, Gt(0)] = 0.5

    def init_client_state(self, params: Tree) -> Tree:  # the client's last y
        return params

    def local_regularizer(self) -> Callable[[LocalState, RepresentFn], Tensor] | None:
        return self.contrastive_loss if self.mu else None  # mu = 0 is FedAvg bit for bit

    def contrastive_loss(self, local: LocalState, represent: RepresentFn) -> Tensor:
        """mu times the mean contrast of each client's sequences, ``[A]``."""
        z, counts = represent(local.params)
        with torch.no_grad():
            received, last = represent(local.global_params)[0], represent(local.client_state)[0]
        near, far = F.cosine_similarity(z, received, dim=-1), F.cosine_similarity(z, last, dim=-1)  # [A, B]
        each = F.softplus((far - near) / self.temperature)  # the equation's -log, without overflow
        return self.mu * (each * counts).sum(1) / counts.sum(1).clamp_min(1)

    def update_client_state(self, local: LocalState) -> Tree:
        return local.params

    def incompatibilities(self, optimizer: Optimizer, weighting: str, param_names: Collection[str]) -> list[str]:
        said = super().incompatibilities(optimizer, weighting, param_names)
        if self.aggregator.modifies_base:
            said.append(
                f"{type(self.aggregator).__name__} moves the weights under the adapters, and MOON's clients keep "
                "their last model as adapters only: over other weights it is another model; use Mean or FFALoRA"
            )
        return said


__all__ = ["MOON", "Ditto", "FedAvgFineTuning", "PFedMe", "split_per_client"]
