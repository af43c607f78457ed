"""Weighted sums and means over the clients of each model, and the base class of aggregators.

Axis letters: N clients in total, C clients of the cohort, M models of the server.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Protocol

from annotated_types import Gt

from ...core.lazy_imports import torch
from ...core.optimizers import Optimizer
from ...core.tree import Tree, to_float64
from ...core.types import CohortUpdate, ServerState

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


class AlgorithmInfo(Protocol):
    """The properties of an algorithm that aggregators check for compatibility; ``Algorithm`` documents them."""

    @property
    def server_optimizer(self) -> Optimizer: ...
    @property
    def rescales_updates(self) -> bool: ...
    @property
    def reweights_clients(self) -> bool: ...
    @property
    def uploads(self) -> frozenset[str]: ...
    @property
    def is_personalized(self) -> bool: ...
    @property
    def one_client_per_model(self) -> bool: ...
    def init_client_state(self, params: Tree) -> Tree: ...


@dataclass(frozen=True)
class Mean:
    """The weighted mean of the updates, and the base class of all other aggregators.

    The mean is sum_k p_k delta_k with p_k = weight_k / sum of the weights (McMahan et al. 2017, arXiv:1602.05629).

    An aggregator combines the updates ``[C, ...]`` of a cohort into one update per model, ``[M, ...]``. It is a field of an
    algorithm, as in ``FedProx(mu=0.1, aggregator=Median())``, so it works with every algorithm. A new aggregator is a frozen
    dataclass that derives from ``Mean`` and overrides ``aggregate``.

    Example:
        >>> from dataclasses import dataclass, replace
        >>> import fedrift
        >>> @fedrift.register("aggregator")
        ... @dataclass(frozen=True)
        ... class UniformMean(Mean):
        ...     def aggregate(self, server, update):
        ...         uniform = (update.weight > 0).to(update.weight)
        ...         return super().aggregate(server, replace(update, weight=uniform))
    """

    modifies_base: ClassVar[bool] = False  # whether the aggregator changes the base weights under the adapters
    couples_lora_factors: ClassVar[bool] = False  # whether the aggregator treats the factors B and A of an adapter differently

    def frozen_params(self, param_names: Collection[str], round: int) -> frozenset[str]:
        """Return the names of the parameters that no client trains in a round.

        Args:
            param_names: The names of the trained parameters.
            round: Number of completed rounds; 0 in the first round.
        """
        return frozenset()

    def init_merged_base(self, params: Tree) -> Tree:
        """Create the initial value of ``ServerState.merged_base``.

        Args:
            params: The initial parameters of the models, ``[M, ...]``.

        Returns:
            A tree with a leaf ``<module>.base`` ``[M, O, I]`` per adapter; empty if the aggregator does not change base weights.
        """
        return Tree()

    def aggregate(self, server: ServerState, update: CohortUpdate) -> Tree:
        """Combine the updates of a cohort.

        Args:
            server: The state of the server before the round.
            update: The updates of the cohort.

        Returns:
            The update of each model, ``[M, ...]``; zero for models without a client in the cohort.
        """
        return weighted_mean(update.delta, update)

    def after_server_step(self, before: ServerState, after: ServerState, update: CohortUpdate) -> ServerState:
        """Return the state of the server after further changes, such as a change of the base weights.

        Args:
            before: The state of the server before the round.
            after: The state after the step of the server optimizer.
            update: The updates of the cohort.
        """
        return after

    def incompatibilities(self, algorithm: AlgorithmInfo, param_names: Collection[str]) -> list[str]:
        """Return the reasons why the aggregator cannot be used with an algorithm or with the trained parameters.

        Args:
            algorithm: The algorithm that uses the aggregator.
            param_names: The names of the trained parameters.

        Returns:
            One sentence per reason, with a way to fix it.
        """
        return []

    def warnings(self, algorithm: AlgorithmInfo, weighting: str) -> list[str]:
        """Return warnings about the combination with an algorithm.

        Args:
            algorithm: The algorithm that uses the aggregator.
            weighting: ``training.client_weighting``: ``tokens``, ``examples`` or ``uniform``.

        Returns:
            One sentence per warning.
        """
        return []

    def cohort_warnings(self, cohort_size: int) -> list[str]:
        """Return warnings about a cohort that is too small for the aggregator."""
        return []


@dataclass(frozen=True)
class NormClippedMean(Mean):
    """The weighted mean of updates whose norm is clipped, which limits the influence of each client.

    Sun, Kairouz, Suresh & McMahan, "Can You Really Backdoor Federated Learning?", 2019, arXiv:1911.07963 (norm thresholding):
    sum_k p_k delta_k / max(1, ||delta_k|| / max_norm).

    Args:
        max_norm: Largest norm of the update of a client over all trained parameters. Longer updates are scaled down to it.
    """

    max_norm: Annotated[float, Gt(0)] = 1.0

    def aggregate(self, server: ServerState, update: CohortUpdate) -> Tree:
        return weighted_mean(update.delta * (self.max_norm / update.delta.norm().clamp_min(self.max_norm)), update)


@dataclass(frozen=True)
class Unweighted(Mean):
    """Base class of aggregators that ignore the weights of clients, because they compare clients or must not reveal participation."""

    def incompatibilities(self, algorithm: AlgorithmInfo, param_names: Collection[str]) -> list[str]:
        reasons = super().incompatibilities(algorithm, param_names)
        own_name, algorithm_name = type(self).__name__, type(algorithm).__name__
        if algorithm.reweights_clients:
            reasons.append(
                f"{algorithm_name} computes client weights from the reports of all clients, but {own_name} ignores weights; use Mean"
            )
        if algorithm.one_client_per_model:
            reasons.append(f"{algorithm_name} has only one client per model, but {own_name} needs several; use Mean")
        return reasons

    def warnings(self, algorithm: AlgorithmInfo, weighting: str) -> list[str]:
        messages = super().warnings(algorithm, weighting)
        if weighting != "uniform":
            messages.append(f"{type(self).__name__} ignores client weights; client_weighting={weighting!r} is not used for the updates")
        return messages


@dataclass(frozen=True)
class Robust(Unweighted):
    """Base class of aggregators that tolerate some Byzantine clients, which send arbitrary updates."""

    def warnings(self, algorithm: AlgorithmInfo, weighting: str) -> list[str]:
        messages = super().warnings(algorithm, weighting)
        if "client_state" in algorithm.uploads:
            messages.append(
                f"{type(self).__name__} tolerates Byzantine clients in the updates only: the client states that "
                f"{type(algorithm).__name__} also uploads are averaged without protection"
            )
        return messages


__all__ = ["AlgorithmInfo", "Mean", "Robust", "Unweighted", "cluster_mean", "cluster_sum", "has_update", "rows_by_model", "weighted_mean"]
