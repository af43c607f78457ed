"""Algorithms with personalized models, and MOON, whose clients store their last local model."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, ClassVar

from annotated_types import Ge, Gt, MinLen

from ..core.lazy_imports import torch
from ..core.optimizers import Optimizer, is_adaptive, select_prefix, with_prefix
from ..core.tree import Tree
from ..core.types import ClientStateStore, CohortUpdate, FederatedState, LocalState, RepresentFn, ServerState
from .fedavg import FedAvg

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class FedAvgFineTuning(FedAvg):
    """FedAvg with local fine-tuning: the personalized model of a client is its last local model.

    This is the simple baseline for personalization (Wang et al., "Federated Evaluation of On-device Personalization", 2019,
    arXiv:1910.10252; Cheng, Chadha & Duchi, "Fine-tuning in Federated Learning", 2021, arXiv:2108.07313). It needs no
    additional computation, because it uses the local steps that follow the last received model. ``split_per_client`` is an
    alternative with additional steps after the last round.

    Example:
        >>> fedrift.load_config(config, ["algorithm=FedAvgFineTuning"]).algorithm.is_personalized
        True
    """

    is_personalized: ClassVar[bool] = True

    def init_client_state(self, params: Tree) -> Tree:
        return params

    def update_client_state(self, local: LocalState) -> Tree:
        return local.params

    def personalized_params(self, params: Tree, client_state: Tree) -> Tree:
        return client_state


def split_per_client(state: FederatedState, algorithm: FedAvg) -> FederatedState:
    """Give every client its own copy of the model that it trains, so that clients no longer share models.

    The round loop can continue from the returned state to fine-tune the models of all clients with a separate number of steps.

    Args:
        state: The federated state with M models.
        algorithm: The algorithm that continues; it initializes the states of the server and of the clients.

    Returns:
        The federated state with N models, one per client.
    """
    num_clients = len(state.cluster_ids)
    server = algorithm.init_server(state.server.params.take(state.cluster_ids))
    client_states = ClientStateStore.from_rows(algorithm.init_client_state(server.params.to(torch.device("cpu"))), num_clients)
    base = state.server.merged_base.take(state.cluster_ids)
    return replace(
        state,
        server=ServerState(server.params, server.broadcast, server.opt_state, base),
        client_states=client_states,
        cluster_ids=torch.arange(num_clients),
        client_means=Tree(),
    )


@dataclass(frozen=True)
class FedPer(FedAvg):
    """FedPer: some parameters are shared, and the others are personal and remain on the client.

    Arivazhagan, Aggarwal, Singh & Choudhary, "Federated Learning with Personalization Layers", 2019, arXiv:1912.00818
    (Algorithms 1 and 2): base layers are averaged, personalization layers are not.

    Args:
        personal_params: Patterns for the names of the personal parameters, with the wildcard ``*``. By default B of every
            adapter is personal and A is shared, as in Guo et al., "Selective Aggregation for Low-Rank Adaptation in Federated
            Learning" (FedSA-LoRA), ICLR 2025, arXiv:2410.01463.

    Example:
        >>> FedPer().is_personal("layers.0.q_proj.B"), FedPer().is_personal("layers.0.q_proj.A")
        (True, False)
    """

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

    def server_update(self, server: ServerState, update: CohortUpdate) -> ServerState:
        after = super().server_update(server, update)  # noise or weight decay on the server may change personal parameters
        return replace(after, params=Tree({**after.params, **self.init_client_state(server.params)}))

    def incompatibilities(self, optimizer: Optimizer, weighting: str, param_names: Collection[str]) -> list[str]:
        reasons = super().incompatibilities(optimizer, weighting, param_names)
        trained = set(param_names) - (self.frozen_params(param_names, 0) & self.frozen_params(param_names, 1))
        if len({self.is_personal(name) for name in trained}) < 2:
            reasons.append(
                f"FedPer must share some trained parameters and keep others personal, but personal_params={self.personal_params} does "
                f"not split the trained parameters {', '.join(sorted(trained)[:4])}, ...; change it, or use LocalOnly or FedAvg"
            )
        return reasons


@dataclass(frozen=True)
class Ditto(FedAvg):
    """Ditto: every client trains a personalized model near the shared model, in addition to FedAvg.

    Li, Hu, Beirami & Smith, "Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021, arXiv:2012.04221
    (Algorithm 1). v_k <- v_k - lr (g_k(v_k) + lambda (v_k - w)), in addition to FedAvg on w, on the same batches.

    lambda = 0 is local training, and lambda -> infinity gives the shared model. The shared model equals that of FedAvg bit for
    bit.

    Args:
        lambda_: Weight of the proximal term lambda/2 ||v_k - w||^2.

    Example:
        >>> fedrift.load_config(config, ["algorithm={type: Ditto, lambda_: 0.5}"]).algorithm.lambda_
        0.5
    """

    is_personalized: ClassVar[bool] = True
    lambda_: Annotated[float, Ge(0)] = 0.1

    def init_client_state(self, params: Tree) -> Tree:
        """Return the initial personalized model v_k, which is w."""
        return params

    def personal_algorithm(self) -> FedAvg:
        return DittoPersonalTraining(aggregator=self.aggregator, lambda_=self.lambda_)

    def personalized_params(self, params: Tree, client_state: Tree) -> Tree:
        return client_state

    def warnings(self, optimizer: Optimizer, weighting: str) -> list[str]:
        messages = super().warnings(optimizer, weighting)
        if self.lambda_ and is_adaptive(optimizer):
            messages.append(
                f"Ditto under {type(optimizer).__name__}: the proximal gradient lambda (v - w) is normalized with the rest of the "
                "gradient, so lambda_ is not comparable with the SGD literature"
            )
        return messages


@dataclass(frozen=True)
class DittoPersonalTraining(FedAvg):
    """The local training of the personalized models v_k of Ditto, which are stored in the client states."""

    lambda_: float = 0.1

    def init_local(self, params: Tree, client_state: Tree) -> Tree:
        return client_state

    def transform_grad(self, grad: Tree, local: LocalState) -> Tree:
        return grad + self.lambda_ * (local.params - local.global_params) if self.lambda_ else grad

    def update_client_state(self, local: LocalState) -> Tree:
        return local.params


@dataclass(frozen=True)
class PFedMe(FedAvg):
    """pFedMe: each client trains a personalized model theta near its local model y, and moves y towards theta; y is shared.

    T. Dinh, Tran & Nguyen, "Personalized Federated Learning with Moreau Envelopes", NeurIPS 2020, arXiv:2006.08848
    (Algorithm 1). theta ~ argmin F_k(theta) + lambda/2 ||theta - y||^2 by ``inner_steps`` steps of the client optimizer; then
    y <- y - eta lambda (y - theta), repeated until the local steps of the round are used. The server step
    w <- (1 - beta) w + beta mean_k y_k is ``server_optimizer=Sgd(beta)``.

    Every inner step uses a new batch (the paper repeats one batch), so a local step costs as much as a step of FedAvg. theta is
    not reset when y changes. The last theta is the personalized model.

    Args:
        lambda_: Weight lambda of the proximal term.
        personal_lr: Learning rate eta of y.
        inner_steps: Steps of the client optimizer on theta for each step of y.

    Example:
        >>> fedrift.load_config(config, ["algorithm={type: PFedMe, inner_steps: 3}"]).algorithm.inner_steps
        3
    """

    is_personalized: ClassVar[bool] = True
    lambda_: Annotated[float, Gt(0)] = 1.0
    personal_lr: Annotated[float, Gt(0)] = 0.1
    inner_steps: Annotated[int, Ge(1)] = 5

    def init_client_state(self, params: Tree) -> Tree:
        """Return the initial personalized model theta_k, which is w."""
        return params

    def transform_grad(self, grad: Tree, local: LocalState) -> Tree:
        return grad + self.lambda_ * (local.params - outer_params(local))

    def on_step_end(self, grad: Tree, local: LocalState, active: Tensor) -> LocalState:
        y = outer_params(local)
        inner_done = (active & (local.steps % self.inner_steps == 0)).to(y.device)
        if inner_done.any():
            y = self.outer_step(local, y).where(inner_done, y)
        return replace(local, client_state=Tree({**local.client_state, **with_prefix("y", y)}))

    def client_update(self, local: LocalState) -> Tree:
        y = outer_params(local)
        # The round may end within a series of inner steps, which y has not used yet.
        pending = (local.steps % self.inner_steps != 0).to(y.device)
        return self.outer_step(local, y).where(pending, y)

    def outer_step(self, local: LocalState, y: Tree) -> Tree:
        """Return y - eta lambda (y - theta)."""
        return y - self.personal_lr * self.lambda_ * (y - local.params)

    def update_client_state(self, local: LocalState) -> Tree:
        return local.params

    def personalized_params(self, params: Tree, client_state: Tree) -> Tree:
        return client_state

    def warnings(self, optimizer: Optimizer, weighting: str) -> list[str]:
        messages = super().warnings(optimizer, weighting)
        if is_adaptive(optimizer):
            messages.append(
                f"pFedMe under {type(optimizer).__name__}: the proximal gradient lambda (theta - y) is normalized with the rest of the "
                "gradient, so theta solves a different problem than in the paper; use Sgd"
            )
        return messages

    def incompatibilities(self, optimizer: Optimizer, weighting: str, param_names: Collection[str]) -> list[str]:
        reasons = super().incompatibilities(optimizer, weighting, param_names)
        if self.personal_lr * self.lambda_ >= 2:
            reasons.append(
                f"pFedMe moves y by personal_lr * lambda_ = {self.personal_lr * self.lambda_:g} times the distance to theta and beyond it, "
                "so that the distance does not decrease; keep personal_lr * lambda_ below 2"
            )
        return reasons


def outer_params(local: LocalState) -> Tree:
    """Return the local models y of pFedMe; before the first step they are the received models."""
    return select_prefix("y", local.client_state) or local.global_params


@dataclass(frozen=True)
class MOON(FedAvg):
    """MOON: a contrastive term keeps the representations of the local model close to those of the received model.

    Li, He & Song, "Model-Contrastive Federated Learning", CVPR 2021, arXiv:2103.16049 (Algorithm 1, equations 3 and 4).

    The local objective is F_k(y) + mu * -log(e^(sim(z, z_glob)/T) / (e^(sim(z, z_glob)/T) + e^(sim(z, z_prev)/T))), where sim is
    the cosine similarity, and z, z_glob and z_prev are the representations of an input by y, by the received w and by the last
    local model of the client. The server computes the mean, as in FedAvg.

    The paper classifies images and adds a projection head. Here the ``represent_fn`` of the simulator computes z. For language
    models, z is the mean of the last hidden states of a sequence, without a projection head. A client that has not participated
    before uses the initial model as its last local model; as long as it also receives that model, the contrastive term has no
    gradient. In addition to the loss, each step evaluates three models on the batch, two of them without a gradient.

    Args:
        mu: Weight of the contrastive term.
        temperature: Temperature T.

    Example:
        >>> fedrift.load_config(config, ["algorithm={type: MOON, mu: 0.5}"]).algorithm.mu
        0.5
    """

    mu: Annotated[float, Ge(0)] = 1.0
    temperature: Annotated[float, Gt(0)] = 0.5

    def init_client_state(self, params: Tree) -> Tree:
        """Return the initial value of the last local model of a client."""
        return params

    def local_regularizer(self) -> Callable[[LocalState, RepresentFn], Tensor] | None:
        return self.contrastive_loss if self.mu else None  # mu = 0 must equal FedAvg bit for bit

    def contrastive_loss(self, local: LocalState, represent: RepresentFn) -> Tensor:
        """Compute mu times the mean contrastive term over the sequences of each client, ``[A]``."""
        z, counts = represent(local.params)
        with torch.no_grad():
            z_global, z_previous = represent(local.global_params)[0], represent(local.client_state)[0]
        sim_global, sim_previous = (torch.cosine_similarity(z, other, dim=-1) for other in (z_global, z_previous))  # [A, B]
        # The softplus equals the -log of the objective and cannot overflow.
        contrast = torch.nn.functional.softplus((sim_previous - sim_global) / self.temperature)
        return self.mu * (contrast * counts).sum(1) / counts.sum(1).clamp_min(1)

    def update_client_state(self, local: LocalState) -> Tree:
        return local.params

    def incompatibilities(self, optimizer: Optimizer, weighting: str, param_names: Collection[str]) -> list[str]:
        reasons = super().incompatibilities(optimizer, weighting, param_names)
        if self.aggregator.modifies_base:
            reasons.append(
                f"MOON stores the last local model of a client as adapters only, but with {type(self.aggregator).__name__} the base "
                "weights under it change, so the stored model would be a different one; use Mean or FFALoRA"
            )
        return reasons
