"""What each client of a fleet keeps between rounds.

One small tree a client, not one large one: a round then costs what its cohort keeps, however many clients wait, and the
states before and after it share everything that did not change. Clients that never took part share one tree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .tree import Tree


@dataclass(frozen=True, eq=False)
class ClientStateStore:
    """``clients [N]``, each a tree ``[1, ...]``. A value, as a tree is: ``put`` gives another and writes into none."""

    states: tuple[Tree, ...]

    @classmethod
    def replicate(cls, initial: Tree, num_clients: int) -> ClientStateStore:
        """Of ``size`` clients that all keep ``first [1, ...]``."""
        return cls((initial,) * num_clients)

    @classmethod
    def from_rows(cls, rows: Tree, num_clients: int) -> ClientStateStore:
        """Of the rows of ``whole [N, ...]``, or of N clients that keep nothing."""
        return cls.replicate(Tree(), num_clients).update(torch.arange(num_clients), rows)

    def __bool__(self) -> bool:
        """Whether clients keep anything."""
        return bool(self.states) and bool(self.states[0])  # all keep the same leaves

    def __len__(self) -> int:
        return len(self.states)

    def gather(self, index: Tensor | slice) -> Tree:
        """What some clients keep, ``[len(index), ...]``."""
        some = self.states[index] if isinstance(index, slice) else [self.states[client] for client in index.tolist()]
        return Tree({name: torch.cat([client[name] for client in some]) for name in some[0]}) if some else Tree()

    def gather_all(self) -> Tree:
        """What all clients keep, ``[N, ...]``: a copy of all of it."""
        return self.gather(slice(None))

    def update(self, index: Tensor, rows: Tree) -> ClientStateStore:
        """The memory in which the clients at ``index`` keep ``rows``; this one stays as it was."""
        if not rows:
            return self
        clients = list(self.states)
        for place, client in enumerate(index.tolist()):  # cloned: a view would keep the whole cohort's rows
            clients[client] = rows.take(slice(place, place + 1)).map(torch.clone)
        return ClientStateStore(tuple(clients))

    def num_bytes(self) -> int:
        """Bytes of all that is kept; what several clients share counts once."""
        apart = {id(client): client for client in self.states}
        return sum(leaf.numel() * leaf.element_size() for client in apart.values() for leaf in client.values())


# The nouns of a federated run. All are frozen: a value can be saved, sent, compared and tested.
#
# Axis letters: N clients of the fleet, C clients of the cohort, M models of the server.


@dataclass(frozen=True, eq=False)
class ServerState:
    """What the server holds: M models, what it sends beside them, and its optimiser's moments."""

    params: Tree  # [M, ...]
    broadcast: Tree  # [M, ...] sent to the clients with the params (SCAFFOLD's c); empty for most
    opt_state: Tree  # [M, ...] of the server's optimiser; stays on the server
    merged_base: Tree = field(default_factory=Tree)  # "<module>.base" [M, O, I], merged under the adapters, below their scale

    @property
    def num_models(self) -> int:
        return len(next(iter(self.params.values())))

    def base_for(self, cluster_ids: Tensor) -> Tree:
        """What lies under the adapters of clients that share the models ``group [C]``.

        One model's base leads with 1, not C: it is the same for all and must not be copied for each.
        """
        return self.merged_base.take(cluster_ids) if self.num_models > 1 else self.merged_base


@dataclass(frozen=True, eq=False)
class LocalState:
    """A cohort in the middle of its local steps."""

    params: Tree  # [C, ...] y
    global_params: Tree  # [C, ...] the model that was received, w
    broadcast: Tree  # [C, ...]
    client_state: Tree  # [C, ...] as it was when the round began, unless the algorithm's ``note`` has written in it
    mean_grad: Tree  # [C, ...] mean of the raw gradients of the steps taken so far
    steps: Tensor  # [C] steps taken so far
    loss: Tensor  # [C] training loss of the first step; NaN before it
    weight: Tensor  # [C] what the client counts, so far
    lr: float  # the learning rate of this round


@dataclass(frozen=True, eq=False)
class CohortUpdate:
    """What a cohort sends back. A client that failed has weight 0, delta 0 and its old memory."""

    delta: Tree  # [C, ...] y - w
    client_state: Tree  # [C, ...] the new memory
    state_delta: Tree  # [C, ...] new memory - old memory
    mean_grad: Tree  # [C, ...] mean raw gradient of the local steps; 0 of a client that failed
    weight: Tensor  # [C] what a client counts in the mean: trained tokens, examples, or 1
    steps: Tensor  # [C] local steps taken
    loss: Tensor  # [C, 2] training loss of the first step, and the mean over the steps (nats per token)
    tokens: Tensor  # [C] tokens trained
    failed: Tensor  # [C] bool: non-finite numbers, nothing of it is used
    cluster_ids: Tensor  # [C] which model each client shares
    cluster_sizes: Tensor  # [M] clients that share each model, sampled or not
    lr: Tensor  # [C] learning rate of the local steps
    server_seed: int = 0  # what the server's own draws of this round are made from; the round loop says it
    membership: Tensor | None = None  # [C, M] how much of each client is each model's, where it is not all its group's
    notes: tuple[str, ...] = ()  # [C] what is to be said of each client, above all why it failed; () if nothing of any
    bytes_on_wire: Tensor | None = None  # [C, 2] bytes that travelled to each client and back, where they did


def empty_ids() -> Tensor:
    """Of a fleet whose clients are not known yet, ``[0]``."""
    return torch.zeros(0, dtype=torch.long)


@dataclass(frozen=True, eq=False)
class FederatedState:
    """All that a run is between two rounds; saved, it resumes."""

    round: int
    server: ServerState
    client_states: ClientStateStore  # [N, ...] what each client keeps; zeros for one that never took part
    cluster_ids: Tensor  # [N] which model each client shares
    server_delta: Tree = field(default_factory=Tree)  # [M, ...] what the last round changed of the server's params; empty before round 1
    clustering_state: Tree = field(default_factory=Tree)  # what the mitigation remembers; each leaf has axes of its own
    last_round_seen: Tensor = field(default_factory=empty_ids)  # [N] the last round in which each client's report counted; 0: none yet
    client_means: Tree = field(default_factory=Tree)  # [M, ...] float64, the mean of ``Algorithm.averaged`` over each model's clients


@dataclass(frozen=True, eq=False)
class RoundResult:
    """The evidence of one round: the loop's only output."""

    before: FederatedState
    after: FederatedState
    cohort: Tensor  # [C] client numbers, ascending
    report: CohortUpdate

    @property
    def client_params(self) -> Tree:
        """The clients' models before aggregation, ``[C, ...]``."""
        return self.before.server.params.take(self.before.cluster_ids[self.cohort]) + self.report.delta


LossFn = Callable[[Tree, dict[str, Tensor]], Tensor]
"""``(params [C, ...], batch [C, ...]) -> loss [C]``: all that federated code knows of a language model."""

ReclusterFn = Callable[[RoundResult], FederatedState]
"""A clustering between two rounds: who shares a model with whom from now on."""

ClientSampler = Callable[[FederatedState, int, int], Tensor]
"""``(state, count, seed) -> [C]``: which clients take part in the coming round, ascending."""


def single_cluster(num_clients: int) -> Tensor:
    """Everybody shares model 0, ``[N]``."""
    return torch.zeros(num_clients, dtype=torch.long)


__all__ = ["ClientStateStore"]
