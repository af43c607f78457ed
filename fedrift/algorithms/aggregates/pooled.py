"""Sums and means over the clients of each model, and who they are."""

from __future__ import annotations

import torch
from torch import Tensor

from ...tree import Tree, wide
from ...values import Report


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


__all__ = ["average", "by_model", "heard", "members", "pool"]
