"""Interface of clustering strategies: the information that a strategy receives and the assignment that it returns.

Axis letters: N clients in total, M models of the server, D documents of a client, E dimensions of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..algorithms import FedAvg
from ..core.errors import UserError
from ..core.lazy_imports import torch
from ..core.tree import Tree
from ..core.types import FederatedState, RoundResult, ServerState

if TYPE_CHECKING:
    from torch import Tensor


def documents_unavailable(client: int) -> list[str]:
    """Raise a UserError; default of ``ClientInfo.documents``."""
    raise UserError(
        "This clustering strategy reads the clients' documents, but none are available here. Use a strategy that does not read them."
    )


def encoder_unavailable(texts: Sequence[str], encoder: str) -> np.ndarray:
    """Raise a UserError; default of ``ClientInfo.embed``."""
    raise UserError("This clustering strategy embeds documents, but no encoder is available here. Use a strategy that embeds no documents.")


def losses_unavailable(state: FederatedState, batches: int) -> Tensor:
    """Raise a UserError; default of ``ClientInfo.losses``."""
    raise UserError("This clustering strategy needs the clients' losses, but this client pool does not compute them. Use another strategy.")


@dataclass(frozen=True, eq=False)
class ClientInfo:
    """The information about N clients that is available to a clustering strategy in addition to their updates.

    Attributes:
        num_clients: N, the number of clients.
        seed: Seed of the run.
        documents: Function from a client index to the client's training documents.
        embed: Function from (texts, name of the encoder) to unit-length embeddings, [D, E].
        losses: Function from (state, number of batches) to the loss of each model on each client's training text, [N, M].
        main_domains: Domain with most of each client's tokens, [N]; -1 if unknown. These are ground truth, so only the oracle strategy and
            the evaluation may use them.
    """

    num_clients: int
    seed: int
    documents: Callable[[int], Sequence[str]] = documents_unavailable
    embed: Callable[[Sequence[str], str], np.ndarray] = encoder_unavailable
    losses: Callable[[FederatedState, int], Tensor] = losses_unavailable
    main_domains: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Assignment:
    """The decision of a clustering strategy: which clients share which model from now on, and the reason.

    Attributes:
        cluster_ids: Index of the model that each client shares, [N].
        num_models: M, the number of models.
        reason: The evidence for the decision, as plain JSON.
        parents: Previous model with which each model starts, [M]. If None, models follow the majority of their clients.
        membership: Weight of each model in each client's mixture, [N, M], for strategies that mix models. The rows sum to 1.
        centroids: Centroid of each cluster in embedding space, [M, E], to which later clients can be assigned.
        state: Tensors that the strategy needs at its next decision.
    """

    cluster_ids: np.ndarray
    num_models: int
    reason: dict[str, Any]
    parents: np.ndarray | None = None
    membership: np.ndarray | None = None
    centroids: np.ndarray | None = None
    state: Tree = field(default_factory=Tree)

    def describe(self) -> str:
        """Return the decision as one line of text."""
        sizes = ", ".join(map(str, np.bincount(self.cluster_ids, minlength=self.num_models)))
        reason_keys = {"p": "p_value", "silhouette": "silhouette", "bootstrap ARI": "stability"}
        numbers = [f"{name} {self.reason[key]:.2g}" for name, key in reason_keys.items() if np.isfinite(self.reason.get(key, np.nan))]
        if self.reason.get("switched"):
            numbers.append(f"{self.reason['switched']} clients changed cluster")
        verdict = f": {self.reason['verdict']}" if "verdict" in self.reason else ""
        groups = "1 cluster" if self.num_models == 1 else f"{self.num_models} clusters"
        return f"{self.reason['signal']}: {groups} of {sizes} clients{verdict}" + (f" ({'; '.join(numbers)})" if numbers else "")

    def to_json(self, round: int) -> dict[str, Any]:
        """Return the decision as plain JSON.

        Args:
            round: Number of rounds before the decision.
        """
        entry: dict[str, Any] = {"round": round, "cluster_ids": self.cluster_ids.tolist(), "num_models": self.num_models, **self.reason}
        if self.membership is not None:
            entry["membership"] = self.membership.tolist()
        if self.centroids is not None:
            entry["centroids"] = self.centroids.tolist()
        return {key: nan_to_null(value) for key, value in entry.items()}


def nan_to_null(value: Any) -> Any:
    """Replace NaN by None in a number or a nested dictionary, because plain JSON has no NaN."""
    if isinstance(value, dict):
        return {key: nan_to_null(part) for key, part in value.items()}
    return None if isinstance(value, float) and np.isnan(value) else value


def assign_new_clients(assignment: Assignment | dict[str, Any], embeddings: np.ndarray) -> np.ndarray:
    """Assign clients that took no part in training to the model with the nearest centroid.

    Args:
        assignment: The decision, or an entry of a run's clustering.json.
        embeddings: Mean embedding of each client, [..., E].

    Returns:
        Model of each client, [...].

    Raises:
        UserError: The decision has no centroids.
    """
    centroid_rows = assignment.centroids if isinstance(assignment, Assignment) else assignment.get("centroids")
    if centroid_rows is None:
        raise UserError(
            "This clustering has no centroids, so new clients cannot be assigned to its clusters. Use TextClustering or SoftClustering."
        )
    centroids = np.asarray(centroid_rows)
    distances = np.linalg.norm(embeddings[..., None, :] - centroids, axis=-1)
    return np.asarray(distances.argmin(axis=-1))


# The base class of all strategies: its fields are the settings, and its methods are the hooks. A strategy only decides which
# clients share a model. Within a cluster the federated algorithm runs unchanged, all clusters start from the same weights, and
# each round trains as many clients as without clustering.


@dataclass(frozen=True)
class NoClustering:
    """The default strategy, in which all clients share one model, and the base class of all other strategies.

    To write a strategy, subclass it, decorate the class with ``@dataclass(frozen=True)`` and override the hooks that differ.

    Example:
        >>> @dataclass(frozen=True)
        ... class EvenAndOdd(NoClustering):  # each client trains one of two models, by its index
        ...     def init_assignment(self, client_info: ClientInfo) -> Assignment:
        ...         cluster_ids = np.arange(client_info.num_clients) % 2
        ...         return Assignment(cluster_ids, num_models=2, reason={"signal": "EvenAndOdd", "k": 2})
        >>> EvenAndOdd().init_assignment(ClientInfo(num_clients=3, seed=0)).cluster_ids.tolist()
        [0, 1, 0]
    """

    has_full_participation_rounds: ClassVar[bool] = False  # whether some rounds train all clients
    needs_client_data: ClassVar[bool] = False  # whether it uses the clients' documents or their losses on them

    def init_assignment(self, client_info: ClientInfo) -> Assignment | None:
        """Return the assignment before the first round, or None for a single shared model."""
        return None

    def init_models(self, params: Tree, client_info: ClientInfo) -> Tree:
        """Return the models before the first round.

        Args:
            params: The M initial models, all equal, [M, ...].
            client_info: Information about the clients.

        Returns:
            The models, [M, ...]; the default returns ``params``.
        """
        return params

    def refine(self, state: FederatedState, client_info: ClientInfo) -> Assignment | None:
        """Return a revised assignment once the initial models exist, or None to keep the first one.

        Args:
            state: The state before the first round, with the initial models.
            client_info: Information about the clients.
        """
        return None

    def needs_full_participation(self, round: int) -> bool:
        """Return whether the round that follows ``round`` completed rounds trains all clients."""
        return False

    def recluster(self, result: RoundResult, client_info: ClientInfo) -> Assignment | None:
        """Return the assignment after a round, or None to keep the current one.

        Args:
            result: The round's states, cohort and updates.
            client_info: Information about the clients.
        """
        return None

    def warnings(self) -> list[str]:
        """Return warnings that a reader of the results needs."""
        return []

    def incompatibilities(self, algorithm: FedAvg, param_names: Collection[str]) -> list[str]:
        """Return the reasons why this strategy cannot be combined with the algorithm or the trained parameters.

        Args:
            algorithm: The federated algorithm.
            param_names: Names of the trained parameters.
        """
        return []

    def check_num_clients(self, num_clients: int) -> None:
        """Raise UserError if the settings of this strategy do not fit the number of clients."""


def assign_to_one_cluster(size: int) -> np.ndarray:
    """Return the assignment of all clients to cluster 0, [N]."""
    return np.zeros(size, dtype=np.int64)


# Transfer of models and server state from one assignment to the next.


def transfer_state(state: FederatedState, assignment: Assignment, algorithm: FedAvg) -> FederatedState:
    """Return the state under a new assignment.

    Each model keeps its server optimizer state, its last update and the weights merged into its base. Means over the states of a cluster's
    clients (such as SCAFFOLD's c) are recomputed from the cluster's new clients. Nothing changes if the assignment is the same.

    Args:
        state: The current state.
        assignment: The new assignment.
        algorithm: The federated algorithm, whose hook ``on_recluster`` recomputes the means.
    """
    cluster_ids, parents = (
        (assignment.cluster_ids, assignment.parents)
        if assignment.parents is not None
        else match_clusters(state.cluster_ids.numpy(), assignment.cluster_ids, state.server.num_models, assignment.num_models)
    )
    assert parents is not None
    new_ids, rows = torch.as_tensor(cluster_ids).long(), torch.as_tensor(parents).long()
    server, server_delta = state.server, state.server_delta
    if not torch.equal(rows, torch.arange(server.num_models)):
        server, server_delta = select_models(server, rows), server_delta.take(rows.to(server_delta.device) if server_delta else rows)
        state = replace(state, client_means=Tree())
    if not torch.equal(new_ids, state.cluster_ids):
        server = algorithm.on_recluster(server, state.client_states.gather_all(), new_ids)
        state = replace(state, client_means=Tree())  # means over the previous clients of each cluster; the round loop recomputes them
    return replace(state, server=server, server_delta=server_delta, cluster_ids=new_ids, clustering_state=assignment.state)


def select_models(server: ServerState, model_ids: torch.Tensor) -> ServerState:
    """Return the server state with a selection of its models.

    Args:
        server: The server state with M models.
        model_ids: Indices of the selected models.
    """
    model_ids = model_ids.to(server.params.device)
    return ServerState(*(tree.take(model_ids) for tree in (server.params, server.broadcast, server.opt_state, server.merged_base)))


def match_clusters(old: np.ndarray, new: np.ndarray, num_old: int, num_new: int) -> tuple[np.ndarray, np.ndarray]:
    """Renumber new clusters so that as many clients as possible keep their cluster number.

    The matching solves the assignment problem (Kuhn, Naval Research Logistics 2, 1955). An unmatched cluster starts with the model
    that most of its clients had.

    Args:
        old: Previous cluster of each client, [N].
        new: New cluster of each client, [N].
        num_old: Number of previous clusters.
        num_new: M, the number of new clusters.

    Returns:
        The renumbered cluster of each client, [N], and the previous model with which each new model starts (``parents``), [M].
    """
    from scipy.optimize import linear_sum_assignment

    overlap = np.zeros((num_new, num_old), dtype=np.int64)
    np.add.at(overlap, (new, old), 1)
    new_number = np.full(num_new, -1)
    for cluster, old_cluster in zip(*linear_sum_assignment(-overlap), strict=True):
        if old_cluster < num_new and overlap[cluster, old_cluster]:
            new_number[cluster] = old_cluster
    unused = [candidate for candidate in range(num_new) if candidate not in set(new_number.tolist())]
    new_number[new_number < 0] = unused
    parents = np.empty(num_new, dtype=np.int64)
    parents[new_number] = overlap.argmax(axis=1)
    return new_number[new], parents


def apply_hysteresis(distances: np.ndarray, current: np.ndarray, ratio: float) -> np.ndarray:
    """Return the nearest cluster of each client, with hysteresis.

    A client leaves its current cluster only if the distance to the nearest one is below ``ratio`` times the distance to its own.

    Args:
        distances: Distance of each client to each cluster, [N, M].
        current: Current cluster of each client, [N].
        ratio: Largest ratio of the two distances at which a client moves.

    Returns:
        Cluster of each client, [N].
    """
    rows = np.arange(len(distances))
    best = distances.argmin(axis=1)
    return np.where(distances[rows, best] < ratio * distances[rows, current], best, current)
