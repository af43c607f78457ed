"""MOON: each client's representations are drawn to the received model's and away from its own last model's.

Li, He & Song, "Model-Contrastive Federated Learning", CVPR 2021, arXiv:2103.16049 (Algorithm 1, equations 3 and 4).
Local objective: F_k(y) + mu * -log(e^(sim(z, z_glob)/T) / (e^(sim(z, z_glob)/T) + e^(sim(z, z_prev)/T))), with sim the
cosine, z, z_glob and z_prev what y, the received w and the client's last y make of an input. Server: FedAvg's mean.

The paper classifies images and adds a projection head; here z is what the fleet's ``represent`` says, of language
models the mean of the last hidden states (no head, so nothing more to train), one contrast a sequence. A client that
never took part has the first model as its last: while that is what it receives, the contrast has no gradient.
Beside the loss, a step passes the batch through three models more, two of them without a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor

from ..optimizers import Optimizer
from ..tree import Tree
from ..values import Local
from .algorithm import See
from .fedavg import FedAvg


@dataclass(frozen=True)
class MOON(FedAvg):
    mu: Annotated[float, Ge(0)] = 1.0
    temperature: Annotated[float, Gt(0)] = 0.5

    def memory(self, params: Tree) -> Tree:  # the client's last y
        return params

    def penalty(self) -> Callable[[Local, See], Tensor] | None:
        return self.contrast if self.mu else None  # mu = 0 is FedAvg bit for bit

    def contrast(self, at: Local, see: See) -> Tensor:
        """mu times the mean contrast of each client's sequences, ``[A]``."""
        z, counts = see(at.params)
        with torch.no_grad():
            received, last = see(at.start)[0], see(at.memory)[0]
        near, far = F.cosine_similarity(z, received, dim=-1), F.cosine_similarity(z, last, dim=-1)  # [A, B]
        each = F.softplus((far - near) / self.temperature)  # the equation's -log, without overflow
        return self.mu * (each * counts).sum(1) / counts.sum(1).clamp_min(1)

    def remember(self, at: Local) -> Tree:
        return at.params

    def refusals(self, optimizer: Optimizer, weighting: str, leaves: Collection[str]) -> list[str]:
        said = super().refusals(optimizer, weighting, leaves)
        if self.aggregate.lifts:
            said.append(f"{type(self.aggregate).__name__} moves the weights under the adapters, and MOON's clients keep "
                        "their last model as adapters only: over other weights it is another model; use Mean or FFA")
        return said


__all__ = ["MOON"]
