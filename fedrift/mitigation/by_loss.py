"""Every client takes the one of J models that fits its training text best, every round.

IFCA: Ghosh, Chung, Yin & Ramchandran, "An Efficient Framework for Clustered Federated Learning", NeurIPS 2020, arXiv:2006.04088
(Algorithm 1, model averaging). argmin_j F_k(w_j), on the first ``batches`` batches that the client is about to train on. A
model that nobody takes stays as it is. All clients choose, not the next cohort alone, so that each is judged by a model that
it chose.

J models that are alike never part. ``breaking`` makes them differ: ``warm-up`` lets J random groups train apart for one round,
``noise`` adds Gaussian noise of ``scale`` to every model at first. Either can end in a bad place: how often it does is part
of the method, so runs are begun anew with other ``restart`` numbers (``restarts``), the one of the least training loss is
kept, and all are paid for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt

from ..seeds import numpy_stream
from ..streams import torch_stream
from ..tree import Tree
from ..values import Round, State
from .decision import Decision, Ground
from .vanilla import Vanilla, together

ROUNDING = 1e-9  # losses that differ by less are the same number, summed in another order


@dataclass(frozen=True)
class ByLoss(Vanilla):
    reads: ClassVar[bool] = True
    clusters: Annotated[int, Ge(1)] = 4  # J
    batches: Annotated[int, Ge(1)] = 4
    breaking: Literal["warm-up", "noise"] = "warm-up"
    scale: Annotated[float, Gt(0)] = 0.01
    restart: Annotated[int, Ge(0)] = 0

    def restarts(self, count: int) -> tuple[ByLoss, ...]:
        """The same, begun ``count`` times."""
        return tuple(replace(self, restart=self.restart + number) for number in range(count))

    def begin(self, ground: Ground) -> Decision:
        """For the warm-up random groups of about equal size; else everybody in the first, until the models are there."""
        group = numpy_stream(ground.seed, "first groups", self.restart).permutation(np.arange(ground.size) % self.clusters)
        group = group if self.breaking == "warm-up" else together(ground.size)
        return Decision(group, self.clusters, {**self.why(), "switched": 0}, np.arange(self.clusters))

    def first(self, params: Tree, ground: Ground) -> Tree:
        if self.breaking == "warm-up":
            return params
        draw = torch_stream(ground.seed, "unlike models", self.restart)
        return params.map(lambda leaf: leaf + self.scale * torch.randn(leaf.shape, generator=draw, dtype=leaf.dtype).to(leaf))

    def settle(self, state: State, ground: Ground) -> Decision | None:
        return self.chosen(state, ground) if self.breaking == "noise" else None

    def regroup(self, done: Round, ground: Ground) -> Decision | None:
        return self.chosen(done.after, ground)

    def chosen(self, state: State, ground: Ground) -> Decision | None:
        """The models that clients take now; None if nobody changes."""
        losses, now = ground.losses(state, self.batches).numpy(), state.group.numpy()
        rows = np.arange(len(now))
        best = np.where(np.isnan(losses), np.inf, losses).argmin(axis=1)
        better = losses[rows, best] < losses[rows, now] * (1 - ROUNDING)  # equal losses change nothing, nor do missing ones
        group = np.where(better, best, now)
        if (group == now).all():
            return None
        why = {**self.why(), "switched": int((group != now).sum())}
        return Decision(group, self.clusters, why, np.arange(self.clusters), keep=state.mitigation)

    def why(self) -> dict[str, object]:
        return {"signal": "ByLoss", "k": self.clusters, "restart": self.restart, "downloads": self.clusters, "bytes": 0}

    def caveats(self) -> list[str]:
        return [f"ByLoss sends {self.clusters} models to a client instead of one, and each reads {self.batches} batches with all "
                "of them before it trains: neither is in the count of trained tokens"]


__all__ = ["ByLoss"]
