"""What a clustering may look at, and what it decides.

Axis letters: N clients of the fleet, M models of the server, D documents of a client, E numbers of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..algorithms import FedAvg
from ..core.errors import UserError
from ..core.tree import Tree
from ..core.types import FederatedState, RoundResult, ServerState


def documents_unavailable(client: int) -> list[str]:
    raise UserError("this clustering reads the clients' documents, and there are none here")


def encoder_unavailable(texts: Sequence[str], encoder: str) -> np.ndarray:
    raise UserError("this clustering embeds documents, and there is no encoder here")


def losses_unavailable(state: FederatedState, batches: int) -> Tensor:
    raise UserError("this clustering asks clients for their losses, and this fleet does not answer")


@dataclass(frozen=True, eq=False)
class ClientInfo:
    """What is known of N clients before and beside their reports. ``main_domains`` is the truth, for the oracle and the
    judge only."""

    num_clients: int
    seed: int
    documents: Callable[[int], Sequence[str]] = documents_unavailable  # a client's training documents, and no others
    embed: Callable[[Sequence[str], str], np.ndarray] = encoder_unavailable  # (texts, encoder) -> [D, E] of length one
    # (state, batches) -> [N, M] on the clients' training text
    losses: Callable[[FederatedState, int], Tensor] = losses_unavailable
    main_domains: np.ndarray | None = None  # [N] the domain that most of a client's tokens are of; -1: unknown


@dataclass(frozen=True, eq=False)
class Assignment:
    """Who shares which model from now on, and why.

    ``parents``: the former model that each begins as; if it is not said, models go where most of their clients go.
    ``membership``: how much of each client is each model's, where clients mix them; the rows sum to 1.
    """

    cluster_ids: np.ndarray  # [N] which model each client shares
    num_models: int  # M
    reason: dict[str, Any]  # plain JSON
    parents: np.ndarray | None = None  # [M]
    membership: np.ndarray | None = None  # [N, M]
    centroids: np.ndarray | None = None  # [M, E] for clients that come later
    state: Tree = field(default_factory=Tree)  # what to remember until the next decision

    def describe(self) -> str:
        """The decision for people."""
        sizes = ", ".join(map(str, np.bincount(self.cluster_ids, minlength=self.num_models)))
        told = {"p": "p_value", "silhouette": "silhouette", "ARI of bootstraps": "stability"}
        numbers = [f"{name} {self.reason[key]:.2g}" for name, key in told.items() if np.isfinite(self.reason.get(key, np.nan))]
        if self.reason.get("switched"):
            numbers.append(f"{self.reason['switched']} clients changed")
        verdict = f": {self.reason['verdict']}" if "verdict" in self.reason else ""
        groups = "1 group" if self.num_models == 1 else f"{self.num_models} groups"
        return f"{self.reason['signal']}: {groups} of {sizes} clients{verdict}" + (f" ({'; '.join(numbers)})" if numbers else "")

    def to_json(self, round: int) -> dict[str, Any]:
        """The decision as plain JSON."""
        whole: dict[str, Any] = {"round": round, "group": self.cluster_ids.tolist(), "models": self.num_models, **self.reason}
        if self.membership is not None:
            whole["share"] = self.membership.tolist()
        if self.centroids is not None:
            whole["centroids"] = self.centroids.tolist()
        return {key: nan_to_null(value) for key, value in whole.items()}


def nan_to_null(value: Any) -> Any:
    """Plain JSON has no NaN: what is missing is null."""
    if isinstance(value, dict):
        return {key: nan_to_null(part) for key, part in value.items()}
    return None if isinstance(value, float) and np.isnan(value) else value


def assign_new_clients(assignment: Assignment | dict[str, Any], embeddings: np.ndarray) -> np.ndarray:
    """The model for clients that took no part, ``embeddings [..., E] -> [...]``: that of the nearest centroid.

    ``assignment`` may be an entry of a run's clustering.json.
    """
    found = assignment.centroids if isinstance(assignment, Assignment) else assignment.get("centroids")
    if found is None:
        raise UserError(
            "this clustering did not group clients by descriptors: nobody can be assigned by one; use TextClustering or SoftClustering"
        )
    centroids = np.asarray(found)
    apart = np.linalg.norm(embeddings[..., None, :] - centroids, axis=-1)
    return np.asarray(apart.argmin(axis=-1))


# No clustering: everybody shares one model. The frame of every other: its fields are the settings, its methods the hooks.
#
# A clustering decides which clients share a model. What happens inside such a group is the algorithm's, whichever it is: all
# groups begin from the same weights, and together as many clients train in a round as without clustering.


@dataclass(frozen=True)
class NoClustering:
    has_full_participation_rounds: ClassVar[bool] = False  # whether some rounds call the whole fleet
    needs_client_data: ClassVar[bool] = False  # whether it looks at the clients' documents, or at their losses on them

    def init_assignment(self, client_info: ClientInfo) -> Assignment | None:
        """Before the first round: who shares which model. None: the clustering has nothing to say."""
        return None

    def init_models(self, params: Tree, client_info: ClientInfo) -> Tree:
        """The models ``[M, ...]`` before the first round; all the same unless a clustering must tell them apart."""
        return params

    def refine(self, state: FederatedState, client_info: ClientInfo) -> Assignment | None:
        """Once the first models are there: a second thought."""
        return None

    def needs_full_participation(self, round: int) -> bool:
        """Whether the round after ``round`` rounds calls the whole fleet."""
        return False

    def recluster(self, result: RoundResult, client_info: ClientInfo) -> Assignment | None:
        """After a round: who shares which model from now on. None: nothing changes."""
        return None

    def warnings(self) -> list[str]:
        """What a reader of the results must know."""
        return []

    def incompatibilities(self, algorithm: FedAvg, param_names: Collection[str]) -> list[str]:
        """Why this makes no sense with the algorithm or these trained leaves."""
        return []


def assign_to_one_cluster(size: int) -> np.ndarray:
    """Everybody in group 0, ``[N]``."""
    return np.zeros(size, dtype=np.int64)


# From one grouping to the next: which model goes where, who is held back, and what becomes of the server's state.


def transfer_state(state: FederatedState, assignment: Assignment, algorithm: FedAvg) -> FederatedState:
    """The state under a new grouping: every model with its moments, its last move and what is merged under it.

    What the server keeps as a mean of its members' memories (SCAFFOLD's c) is told anew from the members there are now. Where
    nothing changes, nothing is touched.
    """
    group, parents = (
        (assignment.cluster_ids, assignment.parents)
        if assignment.parents is not None
        else match_clusters(state.cluster_ids.numpy(), assignment.cluster_ids, state.server.num_models, assignment.num_models)
    )
    assert parents is not None
    new, rows = torch.as_tensor(group).long(), torch.as_tensor(parents).long()
    server, moved = state.server, state.server_delta
    if not torch.equal(rows, torch.arange(server.num_models)):
        server, moved = select_models(server, rows), moved.take(rows.to(tree_device(moved)) if moved else rows)
        state = replace(state, client_means=Tree())
    if not torch.equal(new, state.cluster_ids):
        server = algorithm.on_recluster(server, state.client_states.gather_all(), new)
        state = replace(state, client_means=Tree())  # of other members: the round loop computes them anew
    return replace(state, server=server, server_delta=moved, cluster_ids=new, clustering_state=assignment.state)


def select_models(server: ServerState, model_ids: torch.Tensor) -> ServerState:
    """The server with these of its models."""
    model_ids = model_ids.to(tree_device(server.params))
    return ServerState(*(tree.take(model_ids) for tree in (server.params, server.broadcast, server.opt_state, server.merged_base)))


def match_clusters(old: np.ndarray, new: np.ndarray, num_old: int, num_new: int) -> tuple[np.ndarray, np.ndarray]:
    """Models go with their clients: the new groups ``[N]``, numbered after the old they overlap most, and ``parents [M]``.

    Numbers are given so that as many clients as can be keep theirs (Kuhn, Naval Research Logistics 2, 1955); a group left over
    begins as the model that most of its members had.
    """
    from scipy.optimize import linear_sum_assignment

    both = np.zeros((num_new, num_old), dtype=np.int64)
    np.add.at(both, (new, old), 1)
    number = np.full(num_new, -1)
    for group, before in zip(*linear_sum_assignment(-both), strict=True):
        if before < num_new and both[group, before]:
            number[group] = before
    free = [one for one in range(num_new) if one not in set(number.tolist())]
    number[number < 0] = free
    parents = np.empty(num_new, dtype=np.int64)
    parents[number] = both.argmax(axis=1)
    return number[new], parents


def apply_hysteresis(distances: np.ndarray, current: np.ndarray, ratio: float) -> np.ndarray:
    """Who is nearest to which group, ``distances [N, M] -> [N]``; a client leaves its own for one at less than ``ratio`` of its
    distance only."""
    rows = np.arange(len(distances))
    best = distances.argmin(axis=1)
    return np.where(distances[rows, best] < ratio * distances[rows, current], best, current)


def tree_device(tree: Tree) -> torch.device:
    return next(iter(tree.values())).device


__all__ = [
    "Assignment",
    "ClientInfo",
    "NoClustering",
    "apply_hysteresis",
    "assign_new_clients",
    "assign_to_one_cluster",
    "match_clusters",
    "select_models",
    "transfer_state",
]
