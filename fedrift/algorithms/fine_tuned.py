"""FedAvg with local fine-tuning: the shared model, trained once more on the client's own data, is the client's.

The cheap personalisation that others must beat (Wang et al., "Federated Evaluation of On-device
Personalization", 2019, arXiv:1910.10252; Cheng, Chadha & Duchi, "Fine-tuning in Federated Learning", 2021,
arXiv:2108.07313).

``FineTuned`` costs nothing: a client wears what its local steps made of the model it last received. For
fine-tuning after the last round, with a budget of its own, ``apart`` gives every client its copy of the
shared model, and the round loop goes on from there with the whole fleet.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from ..memory import Memory
from ..tree import Tree
from ..values import Local, Server, State
from .fedavg import FedAvg


@dataclass(frozen=True)
class FineTuned(FedAvg):
    personal: ClassVar[bool] = True

    def memory(self, params: Tree) -> Tree:
        return params

    def remember(self, at: Local) -> Tree:
        return at.params

    def wear(self, params: Tree, memory: Tree) -> Tree:
        return memory


def apart(state: State, algorithm: FedAvg) -> State:
    """Every client its own copy of the model it shares, ``[M, ...] -> [N, ...]``; nobody shares from now on."""
    size = len(state.group)
    copies = algorithm.begin(state.server.params.rows(state.group))
    memory = Memory.of(algorithm.memory(copies.params.to(torch.device("cpu"))), size)
    base = state.server.base.rows(state.group)
    return replace(state, server=Server(copies.params, copies.shared, copies.moments, base),
                   memory=memory, group=torch.arange(size), averages=Tree())


__all__ = ["FineTuned", "apart"]
