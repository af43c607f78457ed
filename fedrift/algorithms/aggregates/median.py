"""Coordinate-wise median: half of the clients may lie and the change stays within the honest ones.

Yin, Chen, Ramchandran & Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical
Rates", ICML 2018, arXiv:1803.01498 (Algorithm 1, Option I). Clients count alike, whatever their weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ...tree import Tree
from ...values import Report, Server
from .alike import Robust
from .pooled import by_model


@dataclass(frozen=True)
class Median(Robust):

    def combine(self, server: Server, report: Report) -> Tree:
        return sorted_middle(report, lambda count: (count - 1) // 2)

    def thin(self, cohort: int) -> list[str]:
        return ["Median: of fewer than 3 clients a round it is their mean"] if cohort < 3 else []


def sorted_middle(report: Report, drop: Callable[[int], int]) -> Tree:
    """By coordinate, the mean of the clients in the middle, ``drop(n)`` of n left out at each end, ``[M, ...]``."""
    rows = by_model(report)

    def middle(leaf: Tensor) -> Tensor:
        found = leaf.new_zeros(len(report.population), *leaf.shape[1:])
        for model, mine in rows:
            cut = drop(len(mine))
            found[model] = leaf[mine].sort(0).values[cut:len(mine) - cut].mean(0)
        return found

    return report.delta.map(middle)


__all__ = ["Median", "sorted_middle"]
