"""Data types of a federated run: the states of server and clients, the update of a cohort, and the result of a round.

All types are frozen: no function modifies a state, so a state can be saved, sent and compared.

Axis letters: N clients in total, C clients of the cohort, M models of the server.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from .lazy_imports import torch
from .tree import Tree

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class ClientStateStore:
    """The persistent states of all clients, such as the control variates c_k of SCAFFOLD.

    The store holds one tree ``[1, ...]`` per client instead of one tree ``[N, ...]``. The cost of a round then depends on the size of
    the cohort only, and the stores before and after a round share the states of all other clients. Clients that have not
    participated yet share one tree. The store is immutable: ``update`` returns a new store.
    """

    states: tuple[Tree, ...]  # N trees [1, ...]

    @classmethod
    def replicate(cls, initial: Tree, num_clients: int) -> ClientStateStore:
        """Create the store of ``num_clients`` clients that share the state ``initial [1, ...]``."""
        return cls((initial,) * num_clients)

    @classmethod
    def from_rows(cls, rows: Tree, num_clients: int) -> ClientStateStore:
        """Create the store whose client k has row k of ``rows [N, ...]``; an empty tree means that clients have no state."""
        return cls.replicate(Tree(), num_clients).update(torch.arange(num_clients), rows)

    def __bool__(self) -> bool:
        """Return whether clients have any state."""
        return bool(self.states) and bool(self.states[0])  # the leaves are the same for all clients

    def __len__(self) -> int:
        return len(self.states)

    def gather(self, index: Tensor | slice) -> Tree:
        """Return the states of the clients at ``index`` as one tree ``[len(index), ...]``."""
        selected = self.states[index] if isinstance(index, slice) else [self.states[client] for client in index.tolist()]
        return Tree({name: torch.cat([state[name] for state in selected]) for name in selected[0]}) if selected else Tree()

    def gather_all(self) -> Tree:
        """Return the states of all clients as one tree ``[N, ...]``; this copies all of them."""
        return self.gather(slice(None))

    def update(self, index: Tensor, rows: Tree) -> ClientStateStore:
        """Return a store in which the clients at ``index`` have the states ``rows [len(index), ...]``."""
        if not rows:
            return self
        states = list(self.states)
        for row, client in enumerate(index.tolist()):
            states[client] = rows.take(slice(row, row + 1)).map(torch.clone)  # a view would keep all rows of the cohort in memory
        return ClientStateStore(tuple(states))

    def num_bytes(self) -> int:
        """Return the size of all states in bytes; a state that several clients share counts once."""
        distinct = {id(state): state for state in self.states}
        return sum(leaf.numel() * leaf.element_size() for state in distinct.values() for leaf in state.values())


@dataclass(frozen=True, eq=False)
class ServerState:
    """The state of the server: M models, further broadcast values, and the moments of the server optimizer.

    Without clustering, M is 1.

    Example:
        >>> result.after.server.num_models
        1
    """

    params: Tree  # [M, ...] the trained parameters of the models
    broadcast: Tree  # [M, ...] values that the server sends with the params, such as c of SCAFFOLD; empty for most algorithms
    opt_state: Tree  # [M, ...] moments of the server optimizer, which clients do not receive
    merged_base: Tree = field(default_factory=Tree)  # "<module>.base" [M, O, I]: change of base weights (FedEx) before the scale alpha/r

    @property
    def num_models(self) -> int:
        """The number M of models."""
        return len(next(iter(self.params.values())))

    def base_for(self, cluster_ids: Tensor) -> Tree:
        """Return the merged base weights for clients of the clusters ``cluster_ids [C]``.

        Returns:
            The rows ``[C, O, I]``. If there is one model, the leading axis is 1 instead of C, so that the weights are not copied
            for each client.
        """
        return self.merged_base.take(cluster_ids) if self.num_models > 1 else self.merged_base


@dataclass(frozen=True, eq=False)
class LocalState:
    """The state of a cohort during its local steps. The hooks of algorithms receive it.

    Example:
        >>> class Centered(fedrift.FedAvg):
        ...     def transform_grad(self, grad, local):
        ...         return grad - local.mean_grad
    """

    params: Tree  # [C, ...] the current local models, y
    global_params: Tree  # [C, ...] the models that the clients received, w
    broadcast: Tree  # [C, ...] the values that the server sent with the models
    client_state: Tree  # [C, ...] the persistent states at the start of the round, or as ``Algorithm.on_step_end`` changed them
    mean_grad: Tree  # [C, ...] mean of the raw gradients over the steps so far
    steps: Tensor  # [C] number of steps so far
    loss: Tensor  # [C] training loss of the first step in nats per token; NaN before that step
    weight: Tensor  # [C] weight of the client in the mean: its tokens so far, its examples, or 1
    lr: float  # learning rate of this round


RepresentFn = Callable[[Tree], "tuple[Tensor, Tensor]"]
"""``params [A, ...] -> (z [A, B, H], counts [A, B])``: representations of the current batch, and which sequences are not padding.

A are the clients with a step in the batch, B its sequences per client, and H the width of a representation.
"""

LocalRegularizer = Callable[[LocalState, RepresentFn], "Tensor"]
"""``(local, represent) -> [A]``: a term that clients minimize in addition to their loss. ``local`` has the A clients of the batch."""


@dataclass(frozen=True, eq=False)
class CohortUpdate:
    """The updates that a cohort sends to the server. A failed client has weight 0, delta 0 and its previous state.

    Example:
        >>> result.update.steps.tolist(), result.update.failed.tolist()
        ([2.0, 2.0], [False, False])
    """

    delta: Tree  # [C, ...] change of the local model, y - w
    client_state: Tree  # [C, ...] new persistent states
    state_delta: Tree  # [C, ...] new minus previous persistent states
    mean_grad: Tree  # [C, ...] mean raw gradient over the local steps; 0 for a failed client
    weight: Tensor  # [C] weight of the client in the mean: trained tokens, examples, or 1
    steps: Tensor  # [C] number of local steps
    loss: Tensor  # [C, 2] training loss of the first step, and mean over the steps (nats per token)
    tokens: Tensor  # [C] number of trained tokens
    failed: Tensor  # [C] bool: the client produced non-finite numbers and its update is not used
    cluster_ids: Tensor  # [C] index of the model that each client trains
    cluster_sizes: Tensor  # [M] number of clients per model, whether they are in the cohort or not
    lr: Tensor  # [C] learning rate of the local steps
    server_seed: int = 0  # seed of random draws on the server in this round; the round loop sets it
    membership: Tensor | None = None  # [C, M] weight of each client in each model, for soft clustering; None: cluster_ids apply
    notes: tuple[str, ...] = ()  # [C] messages about clients, such as the reason of a failure; () if there are none
    bytes_on_wire: Tensor | None = None  # [C, 2] bytes sent to and received from each client; None for simulated clients


def no_participation() -> Tensor:
    """Return an empty index tensor, ``[0]``, for a state in which no client has participated."""
    return torch.zeros(0, dtype=torch.long)


@dataclass(frozen=True, eq=False)
class FederatedState:
    """The complete state of a run between two rounds. A run continues from a stored state exactly as if it had not stopped.

    Example:
        >>> result.before.round, result.after.round
        (0, 1)
    """

    round: int  # number of completed rounds
    server: ServerState  # the models and the other state of the server
    client_states: ClientStateStore  # [N, ...] persistent states of the clients
    cluster_ids: Tensor  # [N] index of the model that each client trains
    server_delta: Tree = field(default_factory=Tree)  # [M, ...] change of the server's params in the last round; empty before round 1
    clustering_state: Tree = field(default_factory=Tree)  # state of the clustering strategy; the axes differ from leaf to leaf
    last_participation: Tensor = field(default_factory=no_participation)  # [N] last round with a used update of the client; 0: none
    client_means: Tree = field(default_factory=Tree)  # [M, ...] float64: means of ``Algorithm.state_to_average`` over a model's clients


@dataclass(frozen=True, eq=False)
class RoundResult:
    """The result of one round, which the round loop yields.

    Example:
        >>> result.client_params["x"].tolist(), result.after.server.params["x"].tolist()
        ([[0.0], [0.75]], [[0.375]])
    """

    before: FederatedState  # the state before the round
    after: FederatedState  # the state after the round
    cohort: Tensor  # [C] client ids, ascending
    update: CohortUpdate  # the updates of the cohort

    @property
    def client_params(self) -> Tree:
        """The local models before aggregation, ``[C, ...]``."""
        return self.before.server.params.take(self.before.cluster_ids[self.cohort]) + self.update.delta


LossFn = Callable[[Tree, "dict[str, Tensor]"], "Tensor"]
"""``(params [C, ...], batch [C, ...]) -> loss [C]``. Algorithms and the round loop use a language model only through this function."""

ReclusterFn = Callable[[RoundResult], FederatedState]
"""Returns the state after a round, in which the clients may be assigned to other clusters."""

ClientSampler = Callable[[FederatedState, int, int], "Tensor"]
"""``(state, cohort_size, seed) -> [C]``: ids of the clients that participate in the next round, ascending."""


def single_cluster(num_clients: int) -> Tensor:
    """Return the assignment of all clients to model 0, ``[N]``."""
    return torch.zeros(num_clients, dtype=torch.long)


ClientWeighting = Literal["tokens", "examples", "uniform"]
"""The weight of the update of a client in the mean over a cohort.

``tokens``: the number of tokens that the client predicted in this round. With ``training.local_steps`` it is nearly the same for all
clients, and with ``training.local_epochs`` it is proportional to their data. ``examples``: the number of training examples (blocks) of
the client, regardless of its steps, which is n_k of McMahan et al. (2017, arXiv:1602.05629, Algorithm 1). ``uniform``: 1.
"""

StragglerPolicy = Literal["partial", "drop"]
"""What happens with the finished steps of a straggler: they are used (``partial``) or discarded (``drop``)."""
