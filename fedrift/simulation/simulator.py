"""What the round loop needs of those who train: simulated here, real machines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Set
from dataclasses import dataclass, fields, replace
from itertools import islice
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.optimizers import Optimizer
from ..core.tree import Tree
from ..core.types import CohortUpdate, FederatedState, LocalState, LossFn

RepresentFn = Callable[[Tree], tuple[Tensor, Tensor]]
"""``params [A, ...] -> (z [A, B, H], counts [A, B])``: how a model represents the batch at hand, and which of it is there."""

LocalRegularizer = Callable[[LocalState, RepresentFn], Tensor]
"""``(local [A], represent) -> [A]``: what clients minimise beside their loss. ``local`` holds the clients at work, A of C."""


class ClientAlgorithm(Protocol):
    """The client half of an algorithm (``algorithms/base.py`` says what each hook is)."""

    uploads: ClassVar[frozenset[str]]

    def frozen_params(self, param_names: Collection[str], round: int) -> frozenset[str]: ...
    def init_local(self, params: Tree, client_state: Tree) -> Tree: ...
    def local_regularizer(self) -> LocalRegularizer | None: ...
    def transform_grad(self, grad: Tree, local: LocalState) -> Tree: ...
    def after_step(self, params: Tree, local: LocalState) -> Tree: ...
    def on_step_end(self, grad: Tree, local: LocalState, active: Tensor) -> LocalState: ...
    def client_update(self, local: LocalState) -> Tree: ...
    def personal_algorithm(self) -> ClientAlgorithm | None: ...
    def update_client_state(self, local: LocalState) -> Tree: ...


class ClientPool(Protocol):
    """N clients that can be asked to train."""

    @property
    def size(self) -> int: ...

    def train(self, state: FederatedState, algorithm: ClientAlgorithm, cohort: Tensor) -> CohortUpdate:
        """One round of local training by the clients ``cohort [C]``."""
        ...


# A fleet on one machine: the whole cohort trains in one forward pass.
#
# Everything a cohort has is stacked along C. The clients' rows do not touch, so one backward pass
# of the sum of their losses gives each its own gradient: no process, no copy of the base model, no
# ``vmap``. A cohort that memory cannot hold is cut into micro-cohorts, one after the other.

ClientWeighting = Literal["tokens", "examples", "uniform"]
"""What a client's update counts with in the mean over a round.

``tokens``: the tokens that it learnt from in this round, the first of every block left out; with ``training.local_steps`` these
are nearly the same for all clients, whatever they hold, and with ``training.local_epochs`` they go by what they hold.
``examples``: n_k of McMahan et al. (2017, arXiv:1602.05629, Algorithm 1), the training examples (blocks) that it holds, however
many steps it takes. ``uniform``: all alike.
"""


class Batches(Protocol):
    """``(round, cohort [C]) -> one batch per local step``, each a dict of tensors that lead with C.

    ``weight [C]`` counts the trained tokens of each client (1 if absent), ``held [C]`` the training examples that it holds,
    in this batch or not, the same in every step of a round (needed where ``examples`` are the weights).
    Where clients take different numbers of steps, ``rows [A]`` names the clients still at work
    and everything else leads with A.
    """

    def __call__(self, round: int, cohort: Tensor) -> Iterable[dict[str, Tensor]]: ...


RepresentBatchFn = Callable[[Tree, dict[str, Tensor]], tuple[Tensor, Tensor]]
"""``(params [A, ...], batch) -> (z [A, B, H], counts [A, B])``; ``mean_hidden_states`` is that of language models."""


class Schedule(Protocol):
    """``round -> factor`` on the learning rate, constant within a round."""

    def __call__(self, round: int) -> float: ...


BatchRegularizer = Callable[[Tree, Tree], Tensor]  # (leaves [A, ...], what lies under them) -> [A]


def constant_schedule(round: int) -> float:
    return 1.0


@dataclass(frozen=True)
class ClientSimulator:
    """N clients that share one machine.

    ``max_grad_norm``: each client's gradient is scaled down to this length at every step. ``clients_per_pass``: at most
    so many clients in one forward pass; the results differ by rounding only. ``represent_fn``: how models see a
    batch, for algorithms that compare representations.
    """

    size: int
    loss_fn: LossFn
    batches: Batches
    optimizer: Optimizer
    max_grad_norm: float | None = None
    client_weighting: ClientWeighting = "tokens"
    lr_schedule: Schedule = constant_schedule
    clients_per_pass: int | None = None
    represent_fn: RepresentBatchFn | None = None

    def train(self, state: FederatedState, algorithm: ClientAlgorithm, cohort: Tensor) -> CohortUpdate:
        """One round of local training, ``cohort [C] -> CohortUpdate``."""
        parts = cohort.split(self.clients_per_pass or len(cohort))  # type: ignore[no-untyped-call]
        return concat_updates([self._train_clients(state, algorithm, part) for part in parts])

    def _train_clients(self, state: FederatedState, algorithm: ClientAlgorithm, cohort: Tensor) -> CohortUpdate:
        group, old = state.cluster_ids[cohort], state.client_states.gather(cohort)
        at, tokens, told = self._local_steps(state, algorithm, cohort)
        aside = algorithm.personal_algorithm()
        if aside is not None:
            at = replace(at, client_state=aside.update_client_state(self._local_steps(state, aside, cohort)[0]))
        sizes = state.cluster_ids.bincount(minlength=state.server.num_models)
        return make_update(at, algorithm.client_update(at), old, algorithm.update_client_state(at), tokens, told, group, sizes)

    def _local_steps(self, state: FederatedState, algorithm: ClientAlgorithm, cohort: Tensor) -> tuple[LocalState, Tensor, Tensor]:
        """The local steps: where the clients ended, their tokens ``[C]`` and losses (first, mean) ``[C, 2]``."""
        server, group = state.server, state.cluster_ids[cohort]
        start, under = server.params.take(group), server.base_for(group)
        device = next(iter(start.values())).device
        scale = self.lr_schedule(state.round)
        optimizer = replace(self.optimizer, lr=self.optimizer.lr * scale) if scale != 1 else self.optimizer  # type: ignore[type-var]
        zero = torch.zeros(len(cohort), dtype=torch.float64)
        memory = state.client_states.gather(cohort).to(device)
        at = LocalState(
            algorithm.init_local(start, memory),
            start,
            server.broadcast.take(group),
            memory,
            mean_grad=start.zeros_like(),
            steps=zero,
            loss=zero * torch.nan,
            weight=zero,
            lr=optimizer.lr,
        )
        moments = optimizer.init(start)
        frozen, penalty = algorithm.frozen_params(start.keys(), state.round), algorithm.local_regularizer()
        tokens, held, total = zero, zero, zero
        for batch in self.batches(state.round, cohort):
            rows, batch = split_active_rows(batch, len(cohort))
            more = penalty and self._bind_regularizer(penalty, at, batch, rows)
            loss, grad = value_and_gradient(self.loss_fn, at.params, batch, rows, frozen, under, more)
            ours = torch.zeros(len(cohort), dtype=torch.bool).index_fill(0, rows, True)
            steps = at.steps + ours
            share = (1 / steps.clamp_min(1)) * ours
            count = scatter_rows(batch.get("weight", torch.ones(len(rows))), rows, len(cohort))
            first = torch.where(ours & at.loss.isnan(), scatter_rows(loss, rows, len(cohort)), at.loss)
            tokens, total = tokens + count, total + scatter_rows(loss, rows, len(cohort)) * count
            if self.client_weighting == "examples":
                held = torch.where(ours, scatter_rows(examples_per_client(batch), rows, len(cohort)), held)
            weight = {"tokens": tokens, "examples": held, "uniform": (tokens > 0).double()}[self.client_weighting]
            at = replace(at, mean_grad=at.mean_grad.lerp(grad, share.to(device)), steps=steps, loss=first, weight=weight)
            follow = clip_by_norm(algorithm.transform_grad(grad, at), self.max_grad_norm)
            stepped, moved = optimizer.step(at.params, follow, moments)
            stepped = algorithm.after_step(stepped, at)
            if frozen:  # weight decay and momentum would move them
                stepped = Tree({name: at.params[name] if name in frozen else leaf for name, leaf in stepped.items()})
            if not ours.all():  # those who have finished stand still
                mask = ours.to(device)
                stepped, moved = stepped.where(mask, at.params), moved.where(mask, moments)
            at, moments = algorithm.on_step_end(grad, replace(at, params=stepped), ours), moved
        return at, tokens, torch.stack([at.loss, total / tokens.clamp_min(1e-12)], 1)

    def _bind_regularizer(
        self, local_regularizer: LocalRegularizer, local: LocalState, batch: dict[str, Tensor], rows: Tensor
    ) -> BatchRegularizer:
        """The penalty on this batch, of the clients at ``rows``, as a function of their leaves and what is under."""
        represent = self.represent_fn
        if represent is None:
            raise UserError("this algorithm compares representations, and the simulator has none: give it represent_fn=...")
        here = replace(local, global_params=local.global_params.take(rows), client_state=local.client_state.take(rows))
        return lambda leaves, under: local_regularizer(
            replace(here, params=leaves), lambda params: represent(Tree({**params, **under}), batch)
        )


def split_active_rows(batch: dict[str, Tensor], num_clients: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Which of the clients a batch is for, all if it does not say, and the batch without that; the caller's stays as it is."""
    return batch.get("rows", torch.arange(num_clients)), {name: leaf for name, leaf in batch.items() if name != "rows"}


def value_and_gradient(
    loss_fn: LossFn,
    params: Tree,
    batch: dict[str, Tensor],
    rows: Tensor,
    frozen: Set[str] = frozenset(),
    merged_base: Tree | None = None,
    regularizer: BatchRegularizer | None = None,
) -> tuple[Tensor, Tree]:
    """Loss ``[A]`` and gradient ``[C, ...]`` of the clients at ``rows [A]``; the gradient of the others is zero.

    Rows do not touch, so one backward pass of the sum gives all of them. Those at rest cost nothing,
    nor do ``frozen`` leaves, whose gradient is zero. ``merged_base``: what lies under the adapters.
    ``regularizer [A]`` is added to what is differentiated, not to the loss that is told.
    """
    size = len(next(iter(params.values())))
    some = len(rows) < size
    leaves = (params.take(rows) if some else params).map(torch.detach)
    free = {name: leaf.requires_grad_() for name, leaf in leaves.items() if name not in frozen}
    if merged_base:
        merged_base = merged_base.map(lambda leaf: leaf[rows] if some and len(leaf) == size else leaf)
    loss = loss_fn(Tree({**leaves, **merged_base}) if merged_base else leaves, batch)
    goal = loss + regularizer(leaves, merged_base or Tree()) if regularizer else loss
    found = dict(zip(free, torch.autograd.grad(goal.sum(), list(free.values()), materialize_grads=True), strict=True))
    grad = leaves.map(torch.zeros_like) if frozen else Tree(found)
    if frozen:
        grad = Tree({**grad, **found})
    return loss.detach(), params.zeros_like().index_update(rows, grad) if some else grad


def examples_per_client(batch: dict[str, Tensor]) -> Tensor:
    """How many training examples each client of a batch holds, ``[A]``; UserError if the batch does not say."""
    if "held" not in batch:
        raise UserError(
            "client_weighting 'examples' goes by the training examples that clients hold, and the batches have no "
            "'held': give them one, or choose client_weighting 'tokens' or 'uniform'"
        )
    return batch["held"]


def clip_by_norm(grad: Tree, max_norm: float | None) -> Tree:
    """Each client's gradient, scaled down to ``max_norm`` where it is longer."""
    return grad if max_norm is None else grad * (max_norm / grad.norm().clamp_min(max_norm))


def scatter_rows(values: Tensor, rows: Tensor, size: int) -> Tensor:
    """``values [A]`` of the clients at ``rows`` as ``[C]``, zeros elsewhere; float64, on the CPU."""
    return torch.zeros(size, dtype=torch.float64).index_put((rows,), values.detach().double().cpu())


def make_update(
    local: LocalState,
    final_params: Tree,
    old_state: Tree,
    new_state: Tree,
    tokens: Tensor,
    loss: Tensor,
    cluster_ids: Tensor,
    cluster_sizes: Tensor,
) -> CohortUpdate:
    """What the cohort sends. A client with a non-finite number anywhere counts for nothing and changes nothing."""
    delta, new_state = final_params - local.global_params, new_state.to(torch.device("cpu"))
    worked = (local.steps > 0) & (local.weight > 0)  # steps on nothing are no work
    sound = delta.is_finite().cpu() & (loss.isfinite().all(1) | ~worked)
    if new_state:
        new_state = new_state.where(worked, old_state)
        sound = sound & new_state.is_finite()
        new_state = new_state.where(sound, old_state)
    device, gradient = next(iter(delta.values())).device, local.mean_grad
    counts = (sound & worked).to(device)
    if not counts.all():
        delta, gradient = delta.where(counts, delta.zeros_like()), gradient.where(counts, gradient.zeros_like())
    return CohortUpdate(
        delta,
        new_state,
        (new_state - old_state).to(device),
        gradient,
        weight=(local.weight * sound).to(device),
        steps=local.steps,
        loss=loss,
        tokens=tokens,
        failed=~sound,
        cluster_ids=cluster_ids.to(device),
        cluster_sizes=cluster_sizes.to(device),
        lr=torch.full_like(local.steps, local.lr),
    )


def concat_updates(updates: list[CohortUpdate]) -> CohortUpdate:
    """The reports of the micro-cohorts as one."""
    if len(updates) == 1:
        return updates[0]

    def join(name: str) -> Tree | Tensor | int | tuple[str, ...] | None:
        parts = [getattr(part, name) for part in updates]
        if name in ("cluster_sizes", "server_seed", "membership", "notes", "bytes_on_wire"):
            return parts[0]  # type: ignore[no-any-return]
        if isinstance(parts[0], Tree):
            return Tree({leaf: torch.cat([part[leaf] for part in parts]) for leaf in parts[0]})
        return torch.cat(parts)

    return CohortUpdate(**{f.name: join(f.name) for f in fields(CohortUpdate)})  # type: ignore[arg-type]


# What clients would lose under each of the server's models: how they choose one.


@torch.no_grad()
def client_losses_per_model(simulator: ClientSimulator, state: FederatedState, num_batches: int) -> Tensor:
    """Every client's loss under every model on the first batches it would train on next, ``[N, M]``; NaN without any."""
    server = state.server
    total = torch.zeros(simulator.size, server.num_models, dtype=torch.float64)
    count = torch.zeros(simulator.size, dtype=torch.float64)
    for cohort in torch.arange(simulator.size).split(simulator.clients_per_pass or simulator.size):  # type: ignore[no-untyped-call]
        for batch in islice(simulator.batches(state.round, cohort), num_batches):
            rows, batch = split_active_rows(batch, len(cohort))
            who = cohort[rows]
            weight = batch.get("weight", torch.ones(len(who))).double().cpu()
            count[who] += weight
            for model in range(server.num_models):
                group = torch.full((len(who),), model)
                found = simulator.loss_fn(Tree({**server.params.take(group), **server.base_for(group)}), batch)
                total[who, model] += found.double().cpu() * weight
    return total / count.where(count > 0, torch.nan).unsqueeze(1)


__all__ = ["Batches", "ClientSimulator", "ClientWeighting", "client_losses_per_model", "constant_schedule"]
