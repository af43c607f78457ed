"""Coordinate-wise median: half of the clients may lie and the change stays within the honest ones.

Yin, Chen, Ramchandran & Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical
Rates", ICML 2018, arXiv:1803.01498 (Algorithm 1, Option I). Clients count alike, whatever their weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Lt
from torch import Tensor

from ...core.tree import Tree, to_float64
from ...core.types import CohortUpdate, ServerState
from .mean import Robust, rows_by_model


@dataclass(frozen=True)
class Median(Robust):
    def aggregate(self, server: ServerState, report: CohortUpdate) -> Tree:
        return coordinate_trimmed_mean(report, lambda count: (count - 1) // 2)

    def cohort_warnings(self, cohort_size: int) -> list[str]:
        return ["Median: of fewer than 3 clients a round it is their mean"] if cohort_size < 3 else []


def coordinate_trimmed_mean(report: CohortUpdate, count_dropped: Callable[[int], int]) -> Tree:
    """By coordinate, the mean of the clients in the middle, ``count_dropped(n)`` of n left out at each end, ``[M, ...]``."""
    rows = rows_by_model(report)

    def middle(leaf: Tensor) -> Tensor:
        found = leaf.new_zeros(len(report.cluster_sizes), *leaf.shape[1:])
        for model, mine in rows:
            cut = count_dropped(len(mine))
            found[model] = leaf[mine].sort(0).values[cut : len(mine) - cut].mean(0)
        return found

    return report.delta.map(middle)


# Coordinate-wise trimmed mean: the largest and smallest values of every coordinate are left out.
#
# Yin, Chen, Ramchandran & Bartlett, ICML 2018, arXiv:1803.01498 (Algorithm 1, Option II): the mean of
# what remains when floor(trim_fraction * n) clients are dropped at each end. Clients count alike.


@dataclass(frozen=True)
class TrimmedMean(Robust):
    trim_fraction: Annotated[float, Ge(0), Lt(0.5)] = 0.2

    def aggregate(self, server: ServerState, report: CohortUpdate) -> Tree:
        return coordinate_trimmed_mean(report, self.num_trimmed)

    def num_trimmed(self, count: int) -> int:
        """How many of so many are left out at each end."""
        return int(self.trim_fraction * count + 1e-9)

    def cohort_warnings(self, cohort_size: int) -> list[str]:
        return (
            []
            if self.num_trimmed(cohort_size)
            else [f"TrimmedMean(trim_fraction={self.trim_fraction:g}) leaves out nobody of {cohort_size} clients a round: it is their mean"]
        )


# Krum: the change that lies closest to its neighbours; multi-Krum: the mean of the best few.
#
# Blanchard, El Mhamdi, Guerraoui & Stainer, "Machine Learning with Adversaries: Byzantine Tolerant
# Gradient Descent", NeurIPS 2017, arXiv:1703.02757 (section 4). Of n clients of which ``num_byzantine`` may lie,
# client i scores the sum of its squared distances to its n - num_byzantine - 2 nearest; the lowest score wins.
# ``num_selected`` > 1 is multi-Krum. The guarantee needs n >= 2 num_byzantine + 3. Clients count alike.


@dataclass(frozen=True)
class Krum(Robust):
    num_byzantine: Annotated[int, Ge(0)] = 1
    num_selected: Annotated[int, Ge(1)] = 1

    def aggregate(self, server: ServerState, report: CohortUpdate) -> Tree:
        chosen = [
            (model, mine[select_lowest_scores(pairwise_squared_distances(report.delta.take(mine)), self.num_byzantine, self.num_selected)])
            for model, mine in rows_by_model(report)
        ]

        def pick(leaf: Tensor) -> Tensor:
            found = leaf.new_zeros(len(report.cluster_sizes), *leaf.shape[1:])
            for model, rows in chosen:
                found[model] = leaf[rows].mean(0)
            return found

        return report.delta.map(pick)

    def cohort_warnings(self, cohort_size: int) -> list[str]:
        least = 2 * self.num_byzantine + 3
        return (
            []
            if cohort_size >= least
            else [f"Krum(num_byzantine={self.num_byzantine}) promises nothing for {cohort_size} clients a round: it needs {least}"]
        )


def pairwise_squared_distances(tree: Tree) -> Tensor:
    """Squared distances between rows over all leaves, ``[C, ...] -> [C, C]``."""
    flat = [to_float64(leaf).flatten(1) for leaf in tree.values()]
    exact = "donot_use_mm_for_euclid_dist"
    return torch.stack([torch.cdist(leaf, leaf, compute_mode=exact) ** 2 for leaf in flat]).sum(0)


def select_lowest_scores(squared_distances: Tensor, num_byzantine: int, num_selected: int) -> Tensor:
    """The rows of the ``num_selected`` lowest scores, from squared distances ``[n, n]``."""
    size = len(squared_distances)
    near = min(max(size - num_byzantine - 2, 1), size - 1)
    score = squared_distances.sort(1).values[:, 1 : 1 + near].sum(1)  # the first is the distance to itself
    return score.argsort(stable=True)[: min(num_selected, size)]


__all__ = ["Median", "coordinate_trimmed_mean"]
