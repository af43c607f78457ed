"""What every algorithm can say: the hooks, of which it writes those that make it differ.

An algorithm is a frozen dataclass; its fields are its hyperparameters and its YAML. Each hook does nothing until it is
written, but for ``init_server`` and ``server_update``, the server's: ``FedAvg`` has them, and the others derive from it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from ..core.optimizers import Optimizer
from ..core.tree import Tree
from ..core.types import CohortUpdate, LocalState, RoundResult, ServerState, single_cluster

RoundMetrics = dict[str | tuple[str, str], Tensor | float]  # as a probe's reading
RepresentFn = Callable[[Tree], tuple[Tensor, Tensor]]  # how a model sees the batch: params [A, ...] -> z [A, B, H], counts [A, B]


@dataclass(frozen=True)
class Algorithm(ABC):
    """The frame of every algorithm."""

    rescales_updates: ClassVar[bool] = False  # whether the server rescales the clients' changes or steps beyond them
    reweights_clients: ClassVar[bool] = False  # whether what the server counts a client for depends on what the others report
    uploads: ClassVar[frozenset[str]] = frozenset()  # what the server reads beside the changes: "client_state", "mean_grad"
    is_personalized: ClassVar[bool] = False  # whether clients wear models of their own
    one_client_per_model: ClassVar[bool] = False  # whether every model has one client only

    # Before the first round.

    def configure_clients(self, client_rows: list[np.ndarray], cohort_size: int, local_steps: int) -> tuple[list[np.ndarray], int, int]:
        """Who takes part with which rows, how many in a round, for how many local steps."""
        return client_rows, cohort_size, local_steps

    def initial_clusters(self, num_clients: int) -> Tensor:
        """Which model each client shares, ``[N]``."""
        return single_cluster(num_clients)

    @abstractmethod
    def init_server(self, params: Tree) -> ServerState:
        """The server's first state, from params ``[M, ...]``."""

    def init_broadcast(self, params: Tree) -> Tree:
        """What the server sends beside the params, in its first state."""
        return Tree()

    def init_client_state(self, params: Tree) -> Tree:
        """What a client keeps between rounds, in its first state."""
        return Tree()

    def warnings(self, optimizer: Optimizer, weighting: str) -> list[str]:
        """What a reader of the results must know about this combination; said before the run and stored with it."""
        return []

    def incompatibilities(self, optimizer: Optimizer, weighting: str, param_names: Collection[str]) -> list[str]:
        """Why this combination makes no sense; a run with any reason is not begun."""
        return []

    # On the clients.

    def frozen_params(self, param_names: Collection[str], round: int) -> frozenset[str]:
        """The leaves that nobody trains in this round."""
        return frozenset()

    def init_local(self, params: Tree, client_state: Tree) -> Tree:
        """Where a client begins, from the model it received."""
        return params

    def local_regularizer(self) -> Callable[[LocalState, RepresentFn], Tensor] | None:
        """What to minimise by ``local.params`` beside the loss, ``(local, represent) -> [A]``; a gradient in
        closed form is ``transform_grad``'s."""
        return None

    def transform_grad(self, grad: Tree, local: LocalState) -> Tree:
        """At every local step: the gradient to follow (it is clipped after this)."""
        return grad

    def after_step(self, params: Tree, local: LocalState) -> Tree:
        """At every local step, after the optimiser's: where to end up. ``local`` is from before the step."""
        return params

    def on_step_end(self, grad: Tree, local: LocalState, active: Tensor) -> LocalState:
        """At every local step, at its end: what to write down. ``active [C]``: who took this step."""
        return local

    def client_update(self, local: LocalState) -> Tree:
        """After the last local step: the model to send, as its change."""
        return local.params

    def personal_algorithm(self) -> Algorithm | None:
        """A second training on the same batches, for what stays with the client; its state becomes ``local.client_state``."""
        return None

    def update_client_state(self, local: LocalState) -> Tree:
        """After the last local step: the new memory."""
        return local.client_state

    def personalized_params(self, params: Tree, client_state: Tree) -> Tree:
        """The model a client uses and is judged by, from the one it shares and its memory, all ``[C, ...]``."""
        return params

    # On the server.

    @abstractmethod
    def server_update(self, server: ServerState, report: CohortUpdate) -> ServerState:
        """Once a round: the next server."""

    def state_to_average(self, client_state: Tree) -> Tree:
        """The part of the clients' memory ``[C, ...]`` whose mean over the clients of each model ``round_metrics`` needs.

        The round loop updates that mean (``FederatedState.client_means``) from the changes of the cohort, so that no round
        reads the memory of all N clients.
        """
        return Tree()

    def round_metrics(self, result: RoundResult) -> RoundMetrics:
        """What only the algorithm knows of a round, for the record."""
        return {}

    def on_recluster(self, server: ServerState, client_state: Tree, cluster_ids: Tensor) -> ServerState:
        """When clients ``[N]`` change the models that they share: what must be told from ``client_state [N, ...]`` anew."""
        return server


__all__ = ["Algorithm", "RepresentFn", "RoundMetrics"]
