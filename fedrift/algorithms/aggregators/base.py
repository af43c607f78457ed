"""The base classes of aggregators, and the properties of an algorithm that an aggregator checks.

Axis letters: C clients of the cohort, M models of the server.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar, Protocol

from ...core.optimizers import Optimizer
from ...core.tree import Tree
from ...core.types import CohortUpdate, ServerState


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
class Aggregator(ABC):
    """Base class of aggregators.

    An aggregator combines the updates ``[C, ...]`` of a cohort into one update per model, ``[M, ...]``. It is a field of an
    algorithm, as in ``FedProx(mu=0.1, aggregator=Median())``, so it works with every algorithm. A new aggregator is a frozen
    dataclass that derives from ``Aggregator``, or from an aggregator that it changes, and implements ``aggregate``.

    Example:
        >>> from dataclasses import dataclass, replace
        >>> import fedrift
        >>> from fedrift.algorithms.aggregators.base import Aggregator
        >>> from fedrift.algorithms.aggregators.mean import weighted_mean
        >>> @fedrift.register("aggregator")
        ... @dataclass(frozen=True)
        ... class UniformMean(Aggregator):
        ...     def aggregate(self, server, update):
        ...         uniform = (update.weight > 0).to(update.weight)
        ...         return weighted_mean(update.delta, replace(update, weight=uniform))
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

    @abstractmethod
    def aggregate(self, server: ServerState, update: CohortUpdate) -> Tree:
        """Combine the updates of a cohort.

        Args:
            server: The state of the server before the round.
            update: The updates of the cohort.

        Returns:
            The update of each model, ``[M, ...]``; zero for models without a client in the cohort.
        """

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
class Unweighted(Aggregator):
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
