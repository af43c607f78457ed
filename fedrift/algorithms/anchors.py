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

from ..values import Report, Server
from .fedavg import FedAvg


@dataclass(frozen=True)
class LocalOnly(FedAvg):
    """Every client keeps a model of its own: N groups of one."""

    alone: ClassVar[bool] = True

    def groups(self, size: int) -> Tensor:
        return torch.arange(size)


@dataclass(frozen=True)
class Centralised(FedAvg):
    """One client holds all rows and takes the steps of the whole cohort: tokens matched, C times the steps."""

    alone: ClassVar[bool] = True

    def enroll(self, parts: list[np.ndarray], cohort: int, steps: int) -> tuple[list[np.ndarray], int, int]:
        return [np.sort(np.concatenate(parts))], 1, cohort * steps


@dataclass(frozen=True)
class ZeroShot(FedAvg):
    """Nobody trains: the pretrained model stays as it is."""

    def enroll(self, parts: list[np.ndarray], cohort: int, steps: int) -> tuple[list[np.ndarray], int, int]:
        return parts, cohort, 0

    def absorb(self, server: Server, report: Report) -> Server:
        return server
