"""The weighted mean of what the clients send, and the frame of every other way to make one change of many.

An aggregate turns the changes of a cohort, ``[C, ...]``, into the change of each model, ``[M, ...]``. It
is a value of an algorithm, ``FedProx(mu=0.1, aggregate=Median())``, so that each rule is written once.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from ...optimizers import Optimizer
from ...tree import Tree, wide
from ...values import Report, Server


class Frame(Protocol):
    """What an aggregate may ask of the algorithm it serves."""

    @property
    def server(self) -> Optimizer: ...
    @property
    def rescales(self) -> bool: ...
    @property
    def weighs(self) -> bool: ...
    @property
    def tells(self) -> frozenset[str]: ...
    @property
    def personal(self) -> bool: ...
    @property
    def alone(self) -> bool: ...
    def memory(self, params: Tree) -> Tree: ...


@dataclass(frozen=True)
class Mean:
    """sum_k p_k delta_k with p_k = weight_k / sum of the weights (McMahan et al. 2017, arXiv:1602.05629)."""

    lifts: ClassVar[bool] = False  # whether it moves what lies under the adapters
    pairs: ClassVar[bool] = False  # whether it treats B and A of an adapter differently

    def frozen(self, leaves: Collection[str], round: int) -> frozenset[str]:
        """The leaves that nobody trains in this round."""
        return frozenset()

    def begin(self, params: Tree) -> Tree:
        """What lies under the adapters at first, ``[M, ...]``."""
        return Tree()

    def combine(self, server: Server, report: Report) -> Tree:
        """The change of each model, ``[M, ...]``; zeros where none took part."""
        return average(report.delta, report)

    def rebase(self, before: Server, after: Server, report: Report) -> Server:
        """Once the params have moved: what else the server changes."""
        return after

    def refusals(self, algorithm: Frame, leaves: Collection[str]) -> list[str]:
        """Why this makes no sense with what the algorithm does or these trained leaves."""
        return []

    def caveats(self, algorithm: Frame, weighting: str) -> list[str]:
        """What a reader of the results must know about this combination."""
        return []

    def thin(self, cohort: int) -> list[str]:
        """What a reader must know because so few clients take part in a round."""
        return []


def average(tree: Tree, report: Report) -> Tree:
    """Mean over the clients of each model by weight, ``[C, ...] -> [M, ...]``; zeros where none took part."""
    mass = pool(Tree(_=report.weight), report)["_"]
    return pool(tree * report.weight, report) / mass.clamp_min(1e-12)


def pool(tree: Tree, report: Report) -> Tree:
    """Sum over the clients of each model, ``[C, ...] -> [M, ...]``, in client order and in float64.

    Where clients belong to several models in part, each counts with its share of every one.
    """
    models = len(report.population)
    if report.share is not None:
        share = report.share.to(report.weight)  # [C, M]
        return tree.map(lambda leaf: torch.einsum("cm,c...->m...", wide(share), wide(leaf)).to(leaf.dtype))

    def add(leaf: Tensor) -> Tensor:
        every = wide(leaf)
        return every.new_zeros(models, *leaf.shape[1:]).index_add_(0, report.group, every).to(leaf.dtype)

    return tree.map(add)


def members(memory: Tree, group: Tensor, like: Tree) -> Tree:
    """The mean memory of those who share each model, ``[N, ...] -> [M, ...]``; zeros where nobody does. ``like``: [M, ...]."""
    models = len(next(iter(like.values())))
    count = group.bincount(minlength=models).clamp_min(1)

    def mean(leaf: Tensor, there: Tensor) -> Tensor:
        every = wide(leaf)
        total = every.new_zeros(models, *leaf.shape[1:]).index_add_(0, group.to(leaf.device), every)
        return (total / count.to(leaf.device).view(-1, *[1] * (leaf.ndim - 1))).to(there)

    return memory.map(mean, like)


def heard(report: Report) -> Tensor:
    """Which models were trained by anybody, ``[M]`` bool."""
    if report.share is not None:
        return ((report.weight > 0).unsqueeze(1) & (report.share.to(report.weight) > 0)).any(0)
    return torch.zeros(len(report.population), device=report.group.device).index_add(
        0, report.group, (report.weight > 0).float()) > 0


def by_model(report: Report) -> list[tuple[int, Tensor]]:
    """Each model that was trained, with the rows ``[.]`` of the clients whose work counts."""
    rows = [(model, ((report.group == model) & (report.weight > 0)).nonzero().flatten())
            for model in range(len(report.population))]
    return [(model, mine) for model, mine in rows if len(mine)]


__all__ = ["Frame", "Mean", "average", "by_model", "heard", "members", "pool"]
