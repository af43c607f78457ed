"""The base class of all algorithms. It defines the hooks with which an algorithm differs from FedAvg.

Axis letters: N clients in total, C clients of the cohort, A clients with a step in the current batch, M models of the server,
B sequences per batch, H hidden dimensions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..core.optimizers import Optimizer
from ..core.tree import Tree
from ..core.types import CohortUpdate, LocalRegularizer, LocalState, RoundResult, ServerState, single_cluster

if TYPE_CHECKING:
    from torch import Tensor

RoundMetrics = dict[str | tuple[str, str], "Tensor | float"]  # metric, or (metric, domain) -> value, as probes return it


@dataclass(frozen=True)
class Algorithm(ABC):
    """Base class of federated algorithms.

    An algorithm is a frozen dataclass. Its fields are its hyperparameters and its keys in YAML. The class attributes declare
    properties that fedrift checks for compatibility. A new algorithm usually derives from ``FedAvg``, which implements the two
    abstract hooks ``init_server`` and ``server_update``, and overrides only the hooks in which it differs.

    Round 0 is the evaluation before training, in which no client trains. In each later round, the clients of the cohort start at
    ``init_local``. Every local step calls, in this order, ``transform_grad``, the client optimizer, ``after_step``, which may change the
    local models, and ``on_step_end``, which may change what else the clients hold during the round, such as their persistent states.
    After the last step, ``client_update`` and ``update_client_state`` determine what the clients send and what they keep. Finally,
    ``server_update`` computes the next state of the server.

    Example:
        >>> from dataclasses import dataclass
        >>> import fedrift
        >>> @fedrift.register("algorithm")
        ... @dataclass(frozen=True)
        ... class ShortenedUpdates(fedrift.FedAvg):
        ...     fraction: float = 0.5  # of the update that clients send
        ...
        ...     def client_update(self, local):
        ...         return local.global_params + self.fraction * (local.params - local.global_params)
        >>> fedrift.load_config({"dataset": "bbc", "algorithm": {"type": "ShortenedUpdates", "fraction": 0.25}})  # doctest: +SKIP
    """

    rescales_updates: ClassVar[bool] = False  # whether the server rescales the updates or moves beyond their mean
    reweights_clients: ClassVar[bool] = False  # whether the weight of a client depends on the reports of other clients
    uploads: ClassVar[frozenset[str]] = frozenset()  # what the server uses besides the updates: "client_state", "mean_grad"
    is_personalized: ClassVar[bool] = False  # whether every client has a personalized model
    one_client_per_model: ClassVar[bool] = False  # whether every model of the server has only one client

    def is_personal(self, name: str) -> bool:
        """Return whether a parameter stays on its client and is never sent."""
        return False

    # Hooks before the first round.

    def configure_clients(self, client_rows: list[np.ndarray], cohort_size: int, local_steps: int) -> tuple[list[np.ndarray], int, int]:
        """Change the clients, the cohort size or the number of local steps.

        Baselines use this hook. Centralized training, for example, has one client with all documents.

        Args:
            client_rows: The document indices of each client, N arrays.
            cohort_size: Number of clients per round.
            local_steps: Local steps of each client per round.

        Returns:
            The document indices of each client, the cohort size and the number of local steps that are used.
        """
        return client_rows, cohort_size, local_steps

    def initial_clusters(self, num_clients: int) -> Tensor:
        """Return the index of the model that each client trains, ``[N]``."""
        return single_cluster(num_clients)

    @abstractmethod
    def init_server(self, params: Tree) -> ServerState:
        """Create the initial state of the server.

        Args:
            params: The initial parameters of the models, ``[M, ...]``.
        """

    def init_broadcast(self, params: Tree) -> Tree:
        """Create the initial values that the server sends with the params, such as c of SCAFFOLD.

        Args:
            params: The initial parameters of the models, ``[M, ...]``.

        Returns:
            A tree ``[M, ...]`` with any leaf names; empty if the server sends only the params.
        """
        return Tree()

    def init_client_state(self, params: Tree) -> Tree:
        """Create the initial persistent state of a client, such as c_k of SCAFFOLD.

        Args:
            params: The initial parameters, ``[1, ...]`` if all clients start with the same state, else one row per client.

        Returns:
            A tree with the same first axis as ``params`` and any leaf names; empty if clients keep nothing between rounds.
        """
        return Tree()

    def warnings(self, optimizer: Optimizer, weighting: str) -> list[str]:
        """Return warnings about a combination of settings. They are shown before the run and stored with it.

        Args:
            optimizer: The client optimizer.
            weighting: ``training.client_weighting``: ``tokens``, ``examples`` or ``uniform``.

        Returns:
            One sentence per warning.
        """
        return []

    def incompatibilities(self, optimizer: Optimizer, weighting: str, param_names: Collection[str]) -> list[str]:
        """Return the reasons why a combination of settings is wrong. If there is any, the run does not start.

        Args:
            optimizer: The client optimizer.
            weighting: ``training.client_weighting``: ``tokens``, ``examples`` or ``uniform``.
            param_names: The names of the trained parameters.

        Returns:
            One sentence per reason, with a way to fix it.
        """
        return []

    # Hooks on the clients.

    def frozen_params(self, param_names: Collection[str], round: int) -> frozenset[str]:
        """Return the names of the parameters that no client trains in a round.

        Args:
            param_names: The names of the trained parameters.
            round: Number of completed rounds; 0 in the first round.
        """
        return frozenset()

    def init_local(self, params: Tree, client_state: Tree) -> Tree:
        """Return the parameters at which the local steps start.

        Args:
            params: The received models, ``[C, ...]``.
            client_state: The persistent states of the clients, ``[C, ...]``.

        Returns:
            The initial local models y, ``[C, ...]``.
        """
        return params

    def local_regularizer(self) -> LocalRegularizer | None:
        """Return a term that clients minimize in addition to the loss; None if there is none.

        A term with a gradient in closed form belongs into ``transform_grad``, which needs no backward pass.

        Returns:
            A function ``(local, represent) -> [A]`` that is differentiated with respect to ``local.params``. ``represent`` computes
            the representations of the batch under any params.
        """
        return None

    def transform_grad(self, grad: Tree, local: LocalState) -> Tree:
        """Return the gradient that the client optimizer uses in a local step. It is clipped afterwards.

        Args:
            grad: The gradient of the loss, ``[C, ...]``.
            local: The state of the cohort. ``local.params`` are the models before the step; ``local.steps`` and
                ``local.mean_grad`` include the step already.

        Returns:
            The gradient to follow, ``[C, ...]``.
        """
        return grad

    def after_step(self, params: Tree, local: LocalState) -> Tree:
        """Return the local models at the end of a local step: change here where the optimizer step led.

        The proximal step of FedProx is an example. ``on_step_end`` changes everything else that a client holds.

        Args:
            params: The local models after the step of the client optimizer, ``[C, ...]``.
            local: The state of the cohort, with the models before the step in ``local.params``.

        Returns:
            The local models at the end of the step, ``[C, ...]``.
        """
        return params

    def on_step_end(self, grad: Tree, local: LocalState, active: Tensor) -> LocalState:
        """Return the state of the cohort at the end of a local step: change here what the clients hold besides their models.

        It is called after ``after_step``, so ``local.params`` are already the models at the end of the step. pFedMe, for example,
        moves its shared model y here, which is part of ``local.client_state``.

        Args:
            grad: The raw gradient of the step, ``[C, ...]``.
            local: The state of the cohort after the step.
            active: Which clients took the step, ``[C]`` bool.
        """
        return local

    def client_update(self, local: LocalState) -> Tree:
        """Return the local models after the last step, ``[C, ...]``; their difference to the received models is sent.

        Args:
            local: The state of the cohort after the last local step.
        """
        return local.params

    def personal_algorithm(self) -> Algorithm | None:
        """Return the algorithm of a second local training on the same batches; None if there is no second training.

        The persistent states that the second training computes replace ``local.client_state``.
        """
        return None

    def update_client_state(self, local: LocalState) -> Tree:
        """Return the persistent states of the clients after their last local step, ``[C, ...]``.

        Args:
            local: The state of the cohort after the last local step.
        """
        return local.client_state

    def personalized_params(self, params: Tree, client_state: Tree) -> Tree:
        """Return the personalized models of clients, on which they are evaluated.

        Args:
            params: The models of the server that the clients train, ``[C, ...]``.
            client_state: The persistent states of the clients, ``[C, ...]``.

        Returns:
            The personalized models, ``[C, ...]``.
        """
        return params

    # Hooks on the server.

    @abstractmethod
    def server_update(self, server: ServerState, update: CohortUpdate) -> ServerState:
        """Compute the next state of the server. The round loop calls it once per round.

        Args:
            server: The state of the server before the round.
            update: The updates of the cohort.
        """

    def state_to_average(self, client_state: Tree) -> Tree:
        """Select the part of the persistent states whose mean over the clients of each model ``round_metrics`` needs.

        The round loop maintains this mean in ``FederatedState.client_means`` from the changes of the cohort, so that no round reads
        the states of all N clients.

        Args:
            client_state: Persistent states of any clients, ``[C, ...]``.

        Returns:
            The selected leaves, ``[C, ...]``; empty if no mean is needed.
        """
        return Tree()

    def round_metrics(self, result: RoundResult) -> RoundMetrics:
        """Compute metrics of the algorithm for a round, such as the norm of the server momentum.

        Returns:
            One number per metric, or one number per client of the cohort, ``[C]``.
        """
        return {}

    def on_recluster(self, server: ServerState, client_state: Tree, cluster_ids: Tensor) -> ServerState:
        """Recompute the values of the server that depend on which clients train which model.

        The clustering calls this hook after it has assigned clients to other models.

        Args:
            server: The state of the server.
            client_state: The persistent states of all clients, ``[N, ...]``.
            cluster_ids: The new index of the model that each client trains, ``[N]``.
        """
        return server


LOCAL_HOOKS = (
    "init_local",
    "local_regularizer",
    "transform_grad",
    "after_step",
    "on_step_end",
    "client_update",
    "personal_algorithm",
    "update_client_state",
)
"""The hooks that change the local steps of a client."""
