"""Weighted sums and means over the clients of each model, and the aggregators that compute a weighted mean.

Axis letters: N clients in total, C clients of the cohort, M models of the server.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Gt

from ...core.lazy_imports import torch
from ...core.tree import Tree, to_float64
from ...core.types import CohortUpdate, ServerState
from .base import Aggregator

if TYPE_CHECKING:
    from torch import Tensor


def weighted_mean(tree: Tree, update: CohortUpdate) -> Tree:
    """Compute the mean over the clients of each model, weighted by ``update.weight``.

    Args:
        tree: Values per client of the cohort, ``[C, ...]``.
        update: The updates of the cohort.

    Returns:
        The means, ``[M, ...]``; zero for models without a client in the cohort.
    """
    total_weight = cluster_sum(Tree(_=update.weight), update)["_"]
    return cluster_sum(tree * update.weight, update) / total_weight.clamp_min(1e-12)


def cluster_sum(tree: Tree, update: CohortUpdate) -> Tree:
    """Compute the sum over the clients of each model, in client order and in float64.

    Under soft clustering, each client contributes to every model with its membership weight.

    Args:
        tree: Values per client of the cohort, ``[C, ...]``.
        update: The updates of the cohort.

    Returns:
        The sums, ``[M, ...]``, in the data types of ``tree``.
    """
    num_models = len(update.cluster_sizes)
    if update.membership is not None:
        membership = update.membership.to(update.weight)  # [C, M]
        return tree.map(lambda leaf: torch.einsum("cm,c...->m...", to_float64(membership), to_float64(leaf)).to(leaf.dtype))

    def sum_rows(leaf: Tensor) -> Tensor:
        exact = to_float64(leaf)
        return exact.new_zeros(num_models, *leaf.shape[1:]).index_add_(0, update.cluster_ids, exact).to(leaf.dtype)

    return tree.map(sum_rows)


def cluster_mean(client_state: Tree, cluster_ids: Tensor, like: Tree) -> Tree:
    """Compute the unweighted mean of the persistent states over all clients of each model.

    Args:
        client_state: The states of all clients, ``[N, ...]``.
        cluster_ids: The index of the model that each client trains, ``[N]``.
        like: A tree ``[M, ...]`` with the same leaves, whose devices and data types the result has.

    Returns:
        The means, ``[M, ...]``; zero for models without clients.
    """
    num_models = len(next(iter(like.values())))
    count = cluster_ids.bincount(minlength=num_models).clamp_min(1)

    def mean(leaf: Tensor, template: Tensor) -> Tensor:
        exact = to_float64(leaf)
        total = exact.new_zeros(num_models, *leaf.shape[1:]).index_add_(0, cluster_ids.to(leaf.device), exact)
        return (total / count.to(leaf.device).view(-1, *[1] * (leaf.ndim - 1))).to(template)

    return client_state.map(mean, like)


def has_update(update: CohortUpdate) -> Tensor:
    """Return which models received an update in this round, ``[M]`` bool."""
    if update.membership is not None:
        return ((update.weight > 0).unsqueeze(1) & (update.membership.to(update.weight) > 0)).any(0)
    return (
        torch.zeros(len(update.cluster_sizes), device=update.cluster_ids.device).index_add(
            0, update.cluster_ids, (update.weight > 0).float()
        )
        > 0
    )


def rows_by_model(update: CohortUpdate) -> list[tuple[int, Tensor]]:
    """Return each model that received an update, with the rows of its clients in the cohort that have a positive weight."""
    rows_per_model = [
        (model, ((update.cluster_ids == model) & (update.weight > 0)).nonzero().flatten()) for model in range(len(update.cluster_sizes))
    ]
    return [(model, rows) for model, rows in rows_per_model if len(rows)]


@dataclass(frozen=True)
class Mean(Aggregator):
    """The weighted mean of the updates.

    The mean is sum_k p_k delta_k with p_k = weight_k / sum of the weights (McMahan et al. 2017, arXiv:1602.05629).
    """

    def aggregate(self, server: ServerState, update: CohortUpdate) -> Tree:
        return weighted_mean(update.delta, update)


@dataclass(frozen=True)
class NormClippedMean(Aggregator):
    """The weighted mean of updates whose norm is clipped, which limits the influence of each client.

    Sun, Kairouz, Suresh & McMahan, "Can You Really Backdoor Federated Learning?", 2019, arXiv:1911.07963 (norm thresholding):
    sum_k p_k delta_k / max(1, ||delta_k|| / max_norm).

    Args:
        max_norm: Largest norm of the update of a client over all trained parameters. Longer updates are scaled down to it.
    """

    max_norm: Annotated[float, Gt(0)] = 1.0

    def aggregate(self, server: ServerState, update: CohortUpdate) -> Tree:
        return weighted_mean(update.delta * (self.max_norm / update.delta.norm().clamp_min(self.max_norm)), update)
