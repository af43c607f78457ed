"""Aggregators that tolerate Byzantine clients: coordinate-wise median, trimmed mean, and Krum.

All of them ignore the weights of clients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Lt

from ...core.lazy_imports import torch
from ...core.tree import Tree, to_float64
from ...core.types import CohortUpdate, ServerState
from .base import Robust
from .mean import rows_by_model

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Median(Robust):
    """The coordinate-wise median of the updates.

    As long as fewer than half of the clients are Byzantine, every coordinate stays within the range of the honest updates.
    Yin, Chen, Ramchandran & Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018,
    arXiv:1803.01498 (Algorithm 1, Option I).
    """

    def aggregate(self, server: ServerState, update: CohortUpdate) -> Tree:
        return coordinate_trimmed_mean(update, lambda count: (count - 1) // 2)

    def cohort_warnings(self, cohort_size: int) -> list[str]:
        return ["Median equals the mean for fewer than 3 clients per round; increase the participation rate"] if cohort_size < 3 else []


def coordinate_trimmed_mean(update: CohortUpdate, count_dropped: Callable[[int], int]) -> Tree:
    """Compute the mean of each coordinate without its smallest and largest values.

    Args:
        update: The updates of the cohort.
        count_dropped: The number of values to drop at each end, as a function of the number of clients.

    Returns:
        The update of each model, ``[M, ...]``.
    """
    client_rows = rows_by_model(update)

    def trimmed_mean(leaf: Tensor) -> Tensor:
        mean = leaf.new_zeros(len(update.cluster_sizes), *leaf.shape[1:])
        for model, rows in client_rows:
            dropped = count_dropped(len(rows))
            mean[model] = leaf[rows].sort(0).values[dropped : len(rows) - dropped].mean(0)
        return mean

    return update.delta.map(trimmed_mean)


@dataclass(frozen=True)
class TrimmedMean(Robust):
    """The coordinate-wise trimmed mean, which drops the smallest and largest values of every coordinate.

    Yin, Chen, Ramchandran & Bartlett, ICML 2018, arXiv:1803.01498 (Algorithm 1, Option II).

    Args:
        trim_fraction: floor(trim_fraction * n) of n values are dropped at each end.
    """

    trim_fraction: Annotated[float, Ge(0), Lt(0.5)] = 0.2

    def aggregate(self, server: ServerState, update: CohortUpdate) -> Tree:
        return coordinate_trimmed_mean(update, self.num_trimmed)

    def num_trimmed(self, count: int) -> int:
        """Return how many of ``count`` values are dropped at each end."""
        return int(self.trim_fraction * count + 1e-9)

    def cohort_warnings(self, cohort_size: int) -> list[str]:
        return (
            []
            if self.num_trimmed(cohort_size)
            else [
                f"TrimmedMean(trim_fraction={self.trim_fraction:g}) drops no value of {cohort_size} clients per round and equals the mean; "
                "increase trim_fraction or the participation rate"
            ]
        )


@dataclass(frozen=True)
class Krum(Robust):
    """Krum, which selects the update closest to its neighbors, and multi-Krum, which averages several such updates.

    Blanchard, El Mhamdi, Guerraoui & Stainer, "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent",
    NeurIPS 2017, arXiv:1703.02757 (section 4). The score of client i among n clients is the sum of the squared distances to its
    n - num_byzantine - 2 nearest clients, and the updates with the lowest scores are selected. The guarantee of the paper
    requires n >= 2 num_byzantine + 3.

    Args:
        num_byzantine: Number of Byzantine clients per cohort to tolerate.
        num_selected: Number of updates to average; more than 1 is multi-Krum.
    """

    num_byzantine: Annotated[int, Ge(0)] = 1
    num_selected: Annotated[int, Ge(1)] = 1

    def aggregate(self, server: ServerState, update: CohortUpdate) -> Tree:
        selected = [
            (model, rows[select_lowest_scores(pairwise_squared_distances(update.delta.take(rows)), self.num_byzantine, self.num_selected)])
            for model, rows in rows_by_model(update)
        ]

        def mean_of_selected(leaf: Tensor) -> Tensor:
            mean = leaf.new_zeros(len(update.cluster_sizes), *leaf.shape[1:])
            for model, rows in selected:
                mean[model] = leaf[rows].mean(0)
            return mean

        return update.delta.map(mean_of_selected)

    def cohort_warnings(self, cohort_size: int) -> list[str]:
        required = 2 * self.num_byzantine + 3
        return (
            []
            if cohort_size >= required
            else [f"Krum(num_byzantine={self.num_byzantine}) has no guarantee for {cohort_size} clients per round; it needs {required}"]
        )


def pairwise_squared_distances(tree: Tree) -> Tensor:
    """Compute the squared Euclidean distances between rows over all leaves, ``[C, ...] -> [C, C]``."""
    flat = [to_float64(leaf).flatten(1) for leaf in tree.values()]
    exact = "donot_use_mm_for_euclid_dist"  # the default of torch.cdist loses digits for close rows
    return torch.stack([torch.cdist(leaf, leaf, compute_mode=exact) ** 2 for leaf in flat]).sum(0)


def select_lowest_scores(squared_distances: Tensor, num_byzantine: int, num_selected: int) -> Tensor:
    """Select the rows with the lowest Krum scores.

    Args:
        squared_distances: Squared distances between the updates, ``[n, n]``.
        num_byzantine: Number of Byzantine clients to tolerate.
        num_selected: Number of rows to select.

    Returns:
        The indices of the selected rows, ``[min(num_selected, n)]``, in ascending order of their scores.
    """
    size = len(squared_distances)
    num_neighbors = min(max(size - num_byzantine - 2, 1), size - 1)
    score = squared_distances.sort(1).values[:, 1 : 1 + num_neighbors].sum(1)  # the first is the distance of a row to itself
    return score.argsort(stable=True)[: min(num_selected, size)]
