"""Baselines with which federated algorithms are compared: local training, centralized training, and the pretrained model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..core.lazy_imports import torch
from ..core.types import CohortUpdate, ServerState
from .fedavg import FedAvg

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LocalOnly(FedAvg):
    """Local training: every client trains its own model, without any exchange between clients.

    Example:
        >>> LocalOnly().initial_clusters(num_clients=3).tolist()
        [0, 1, 2]
    """

    one_client_per_model: ClassVar[bool] = True

    def initial_clusters(self, num_clients: int) -> Tensor:
        return torch.arange(num_clients)


@dataclass(frozen=True)
class Centralized(FedAvg):
    """Centralized training on the documents of all clients.

    One client has all documents and takes the local steps of the whole cohort, C times as many. The number of trained tokens per
    round therefore matches federated training.

    Example:
        >>> client_rows, cohort_size, local_steps = Centralized().configure_clients([np.array([0, 3]), np.array([1])], 2, local_steps=5)
        >>> client_rows[0].tolist(), cohort_size, local_steps
        ([0, 1, 3], 1, 10)
    """

    one_client_per_model: ClassVar[bool] = True

    def configure_clients(self, client_rows: list[np.ndarray], cohort_size: int, local_steps: int) -> tuple[list[np.ndarray], int, int]:
        return [np.sort(np.concatenate(client_rows))], 1, cohort_size * local_steps


@dataclass(frozen=True)
class Pretrained(FedAvg):
    """The pretrained model without any training (zero-shot).

    Example:
        >>> fedrift.load_config(config, ["algorithm=Pretrained"]).name
        'Pretrained bbc TopicMix 1 seed 0'
    """

    def configure_clients(self, client_rows: list[np.ndarray], cohort_size: int, local_steps: int) -> tuple[list[np.ndarray], int, int]:
        return client_rows, cohort_size, 0

    def server_update(self, server: ServerState, update: CohortUpdate) -> ServerState:
        return server
