"""Anchors: the ends of the scale that a federated algorithm is read against.

Local-only is the floor of personal training, centralised the ceiling of pooled training with the
same number of tokens, zero-shot the pretrained model untouched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ..core.types import CohortUpdate, ServerState
from .fedavg import FedAvg


@dataclass(frozen=True)
class LocalOnly(FedAvg):
    """Every client keeps a model of its own: N groups of one."""

    one_client_per_model: ClassVar[bool] = True

    def initial_clusters(self, num_clients: int) -> Tensor:
        return torch.arange(num_clients)


@dataclass(frozen=True)
class Centralized(FedAvg):
    """One client holds all rows and takes the steps of the whole cohort: tokens matched, C times the steps."""

    one_client_per_model: ClassVar[bool] = True

    def configure_clients(self, client_rows: list[np.ndarray], cohort_size: int, local_steps: int) -> tuple[list[np.ndarray], int, int]:
        return [np.sort(np.concatenate(client_rows))], 1, cohort_size * local_steps


@dataclass(frozen=True)
class Pretrained(FedAvg):
    """Nobody trains: the pretrained model stays as it is."""

    def configure_clients(self, client_rows: list[np.ndarray], cohort_size: int, local_steps: int) -> tuple[list[np.ndarray], int, int]:
        return client_rows, cohort_size, 0

    def server_update(self, server: ServerState, report: CohortUpdate) -> ServerState:
        return server
