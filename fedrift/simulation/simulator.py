"""Local training: the interface between the round loop and the clients, and clients that are simulated on one machine.

The simulator stacks the models, states and batches of a cohort along the axis C. The computations of the clients are independent, so one
backward pass of the sum of their losses gives each client its own gradient. This needs no processes, no copies of the base model, and no
``vmap``. A cohort that does not fit into memory is split into micro-cohorts, which train one after another.

Axis letters: N clients in total, C clients of the cohort, A clients with a step in the current batch, M models of the server,
B sequences per batch, H hidden dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Set
from dataclasses import dataclass, fields, replace
from itertools import islice
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.optimizers import Optimizer
from ..core.tree import Tree
from ..core.types import ClientWeighting, CohortUpdate, FederatedState, LocalRegularizer, LocalState, LossFn


class ClientAlgorithm(Protocol):
    """The hooks of an algorithm that run on clients; ``Algorithm`` documents them."""

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
    """N clients that train on request of the round loop, simulated or remote."""

    @property
    def size(self) -> int:
        """The number N of clients."""
        ...

    def train(self, state: FederatedState, algorithm: ClientAlgorithm, cohort: Tensor) -> CohortUpdate:
        """Train the clients of a cohort for one round.

        Args:
            state: The state before the round.
            algorithm: The federated algorithm.
            cohort: The ids of the clients, ascending, ``[C]``.

        Returns:
            The updates of the clients, in the order of ``cohort``.
        """
        ...


class Batches(Protocol):
    """``(round, cohort [C]) -> one batch per local step``. A batch is a dictionary of tensors with the leading axis C. ``round`` is the
    number of finished rounds, 0 in the first.

    The loss function reads the tensors. The simulator itself reads three optional keys. ``weight [C]`` is the number of trained
    tokens of each client in the batch; the default is 1. ``num_examples [C]`` is the number of training examples of each client, which is
    the same in every step and is required for the client weighting ``examples``. If clients take different numbers of steps,
    ``rows [A]`` contains the rows of the cohort that take this step, and the leading axis of all other tensors is A.
    """

    def __call__(self, round: int, cohort: Tensor) -> Iterable[dict[str, Tensor]]: ...


RepresentBatchFn = Callable[[Tree, dict[str, Tensor]], tuple[Tensor, Tensor]]
"""``(params [A, ...], batch) -> (z [A, B, H], counts [A, B])``; language models use ``mean_hidden_states``."""


class Schedule(Protocol):
    """``round -> factor`` of the learning rate, which is constant within a round. ``round`` is 0 in the first round."""

    def __call__(self, round: int) -> float: ...


BatchRegularizer = Callable[[Tree, Tree], Tensor]  # (params [A, ...], merged base weights) -> [A]


def constant_schedule(round: int) -> float:
    """Return the factor 1 for every round."""
    return 1.0


@dataclass(frozen=True)
class ClientSimulator:
    """N simulated clients on one machine.

    Args:
        size: Number of clients N.
        loss_fn: Computes the loss ``[A]`` of each client from params ``[A, ...]`` and a batch.
        batches: The training batches of the clients.
        optimizer: The client optimizer.
        max_grad_norm: Largest norm of the gradient of a client in a step. None: no clipping.
        client_weighting: The weight of a client in the mean.
        lr_schedule: Factor of the learning rate in each round.
        clients_per_pass: Largest number of clients in one forward pass. None: the whole cohort. The results differ only by rounding.
        represent_fn: Computes the representations of a batch, for algorithms that compare representations (MOON).

    Example:
        >>> import torch
        >>> target = torch.tensor([[0.0], [1.0]])  # client k minimizes (x - target_k)^2 / 2
        >>> loss = lambda params, batch: ((params["x"] - batch["target"]) ** 2).sum(1) / 2
        >>> batches = lambda round, cohort: [{"target": target[cohort]}] * 10
        >>> ClientSimulator(2, loss, batches, fedrift.Sgd(0.1)).size
        2
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
        """Train the clients of a cohort for one round, in micro-cohorts of up to ``clients_per_pass`` clients.

        Args:
            state: The state before the round.
            algorithm: The federated algorithm.
            cohort: The ids of the clients, ascending, ``[C]``.

        Returns:
            The updates of the clients, in the order of ``cohort``.

        Raises:
            UserError: The algorithm needs ``represent_fn``, or the client weighting needs batches with ``num_examples``.
        """
        micro_cohorts = cohort.split(self.clients_per_pass or len(cohort))  # type: ignore[no-untyped-call]
        return concat_updates([self._train_clients(state, algorithm, clients) for clients in micro_cohorts])

    def _train_clients(self, state: FederatedState, algorithm: ClientAlgorithm, cohort: Tensor) -> CohortUpdate:
        cluster_ids, old_state = state.cluster_ids[cohort], state.client_states.gather(cohort)
        local, tokens, losses = self._local_steps(state, algorithm, cohort)
        personal = algorithm.personal_algorithm()
        if personal is not None:
            local = replace(local, client_state=personal.update_client_state(self._local_steps(state, personal, cohort)[0]))
        cluster_sizes = state.cluster_ids.bincount(minlength=state.server.num_models)
        final_params, new_state = algorithm.client_update(local), algorithm.update_client_state(local)
        return make_update(local, final_params, old_state, new_state, tokens, losses, cluster_ids, cluster_sizes)

    def _local_steps(self, state: FederatedState, algorithm: ClientAlgorithm, cohort: Tensor) -> tuple[LocalState, Tensor, Tensor]:
        """Compute the local steps; return the final local state, the trained tokens ``[C]``, and the first and mean loss ``[C, 2]``."""
        server, cluster_ids = state.server, state.cluster_ids[cohort]
        received, merged_base = server.params.take(cluster_ids), server.base_for(cluster_ids)
        device = received.device
        lr_factor = self.lr_schedule(state.round)
        optimizer = (
            replace(self.optimizer, lr=self.optimizer.lr * lr_factor) if lr_factor != 1 else self.optimizer  # type: ignore[type-var]
        )
        zero = torch.zeros(len(cohort), dtype=torch.float64)
        client_state = state.client_states.gather(cohort).to(device)
        local = LocalState(
            algorithm.init_local(received, client_state),
            received,
            server.broadcast.take(cluster_ids),
            client_state,
            mean_grad=received.zeros_like(),
            steps=zero,
            loss=zero * torch.nan,
            weight=zero,
            lr=optimizer.lr,
        )
        opt_state = optimizer.init(received)
        frozen, local_regularizer = algorithm.frozen_params(received.keys(), state.round), algorithm.local_regularizer()
        tokens, examples, loss_sum = zero, zero, zero
        for batch in self.batches(state.round, cohort):
            rows, batch = split_active_rows(batch, len(cohort))
            regularizer = local_regularizer and self._bind_regularizer(local_regularizer, local, batch, rows)
            loss, grad = value_and_gradient(self.loss_fn, local.params, batch, rows, frozen, merged_base, regularizer)
            active = torch.zeros(len(cohort), dtype=torch.bool).index_fill(0, rows, True)
            steps = local.steps + active
            step_tokens = scatter_rows(batch.get("weight", torch.ones(len(rows))), rows, len(cohort))
            first_loss = torch.where(active & local.loss.isnan(), scatter_rows(loss, rows, len(cohort)), local.loss)
            tokens, loss_sum = tokens + step_tokens, loss_sum + scatter_rows(loss, rows, len(cohort)) * step_tokens
            if self.client_weighting == "examples":
                examples = torch.where(active, scatter_rows(examples_per_client(batch), rows, len(cohort)), examples)
            # The weight of this step in the running mean. A server that uses the mean itself (FedSGD) needs the gradient of all tokens.
            sends_gradient = "mean_grad" in algorithm.uploads
            grad_weight = step_tokens / tokens.clamp_min(1e-12) if sends_gradient else (1 / steps.clamp_min(1)) * active
            weight = {"tokens": tokens, "examples": examples, "uniform": (tokens > 0).double()}[self.client_weighting]
            mean_grad = local.mean_grad.lerp(grad, grad_weight.to(device))
            local = replace(local, mean_grad=mean_grad, steps=steps, loss=first_loss, weight=weight)
            step_grad = clip_by_norm(algorithm.transform_grad(grad, local), self.max_grad_norm)
            params, new_opt_state = optimizer.step(local.params, step_grad, opt_state)
            params = algorithm.after_step(params, local)
            if frozen:  # weight decay and momentum would change frozen parameters
                params = Tree({name: local.params[name] if name in frozen else leaf for name, leaf in params.items()})
            if not active.all():  # clients that have finished their local steps keep their params and moments
                mask = active.to(device)
                params, new_opt_state = params.where(mask, local.params), new_opt_state.where(mask, opt_state)
            local, opt_state = algorithm.on_step_end(grad, replace(local, params=params), active), new_opt_state
        return local, tokens, torch.stack([local.loss, loss_sum / tokens.clamp_min(1e-12)], 1)

    def _bind_regularizer(
        self, local_regularizer: LocalRegularizer, local: LocalState, batch: dict[str, Tensor], rows: Tensor
    ) -> BatchRegularizer:
        """Return the regularizer of the clients at ``rows`` on a batch, as a function of their params and merged base weights."""
        represent = self.represent_fn
        if represent is None:
            raise UserError("this algorithm compares representations, but the simulator has no represent_fn; pass represent_fn=...")
        active_local = replace(local, global_params=local.global_params.take(rows), client_state=local.client_state.take(rows))
        return lambda active_params, merged_base: local_regularizer(
            replace(active_local, params=active_params), lambda params: represent(Tree({**params, **merged_base}), batch)
        )


def split_active_rows(batch: dict[str, Tensor], num_clients: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Split a batch into the rows of its clients and the other tensors. Without the key ``rows``, the batch has all clients."""
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
    """Compute the losses and gradients of some clients of a cohort with one backward pass.

    The sum of the losses gives each client its own gradient, because the computations of the clients are independent. Other clients
    and frozen parameters cost no computation.

    Args:
        loss_fn: The loss function.
        params: The local models of the cohort, ``[C, ...]``.
        batch: The batch of the clients at ``rows``.
        rows: The rows of the clients in the cohort, ``[A]``.
        frozen: The names of parameters that are not trained; their gradient is zero.
        merged_base: Changes of the base weights under the adapters, with the leading axis C, or 1 if they are the same for all.
        regularizer: A term ``[A]`` that is differentiated together with the loss but is not part of the returned loss.

    Returns:
        The losses ``[A]``, and the gradients ``[C, ...]``, which are zero for clients that are not in ``rows``.
    """
    size = len(next(iter(params.values())))
    is_subset = len(rows) < size
    leaves = (params.take(rows) if is_subset else params).map(torch.detach)
    trained = {name: leaf.requires_grad_() for name, leaf in leaves.items() if name not in frozen}
    if merged_base:
        merged_base = merged_base.map(lambda leaf: leaf[rows] if is_subset and len(leaf) == size else leaf)
    loss = loss_fn(Tree({**leaves, **merged_base}) if merged_base else leaves, batch)
    objective = loss + regularizer(leaves, merged_base or Tree()) if regularizer else loss
    gradients = dict(zip(trained, torch.autograd.grad(objective.sum(), list(trained.values()), materialize_grads=True), strict=True))
    grad = leaves.map(torch.zeros_like) if frozen else Tree(gradients)
    if frozen:
        grad = Tree({**grad, **gradients})
    return loss.detach(), params.zeros_like().index_update(rows, grad) if is_subset else grad


def examples_per_client(batch: dict[str, Tensor]) -> Tensor:
    """Return the number of training examples of each client of a batch, ``[A]``.

    Raises:
        UserError: The batch has no key ``num_examples``.
    """
    if "num_examples" not in batch:
        raise UserError(
            "client_weighting 'examples' needs the number of training examples of each client, but the batches have no "
            "'num_examples'; add that key, or use client_weighting 'tokens' or 'uniform'"
        )
    return batch["num_examples"]


def clip_by_norm(grad: Tree, max_norm: float | None) -> Tree:
    """Scale down the gradients of clients whose norm exceeds ``max_norm``."""
    return grad if max_norm is None else grad * (max_norm / grad.norm().clamp_min(max_norm))


def scatter_rows(values: Tensor, rows: Tensor, size: int) -> Tensor:
    """Place the values ``[A]`` of the clients at ``rows`` into a tensor of zeros ``[size]``, in float64 on the CPU."""
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
    """Create the updates of a cohort.

    A client with any non-finite number has failed: its weight and update are zero, and its persistent state does not change.

    Args:
        local: The state of the cohort after the last local step.
        final_params: The models that the clients send, ``[C, ...]``.
        old_state: The persistent states before the round, ``[C, ...]``, on the CPU.
        new_state: The persistent states after the round, ``[C, ...]``.
        tokens: The number of trained tokens, ``[C]``.
        loss: The loss of the first step and the mean loss, ``[C, 2]``.
        cluster_ids: The index of the model that each client trains, ``[C]``.
        cluster_sizes: The number of clients of each model, ``[M]``.
    """
    delta, new_state = final_params - local.global_params, new_state.to(torch.device("cpu"))
    has_trained = (local.steps > 0) & (local.weight > 0)  # a step without tokens is no training
    is_valid = delta.is_finite().cpu() & (loss.isfinite().all(1) | ~has_trained)
    if new_state:
        new_state = new_state.where(has_trained, old_state)
        is_valid = is_valid & new_state.is_finite()
        new_state = new_state.where(is_valid, old_state)
    device, gradient = delta.device, local.mean_grad
    is_used = (is_valid & has_trained).to(device)
    if not is_used.all():
        delta, gradient = delta.where(is_used, delta.zeros_like()), gradient.where(is_used, gradient.zeros_like())
    return CohortUpdate(
        delta,
        new_state,
        (new_state - old_state).to(device),
        gradient,
        weight=(local.weight * is_valid).to(device),
        steps=local.steps,
        loss=loss,
        tokens=tokens,
        failed=~is_valid,
        cluster_ids=cluster_ids.to(device),
        cluster_sizes=cluster_sizes.to(device),
        lr=torch.full_like(local.steps, local.lr),
    )


def concat_updates(updates: list[CohortUpdate]) -> CohortUpdate:
    """Concatenate the updates of micro-cohorts."""
    if len(updates) == 1:
        return updates[0]

    def join(name: str) -> Tree | Tensor | int | tuple[str, ...] | None:
        values = [getattr(update, name) for update in updates]
        if name in ("cluster_sizes", "server_seed", "membership", "notes", "bytes_on_wire"):  # one value for the whole cohort
            return values[0]  # type: ignore[no-any-return]
        if isinstance(values[0], Tree):
            return Tree({leaf: torch.cat([value[leaf] for value in values]) for leaf in values[0]})
        return torch.cat(values)

    return CohortUpdate(**{f.name: join(f.name) for f in fields(CohortUpdate)})  # type: ignore[arg-type]


@torch.no_grad()
def client_losses_per_model(simulator: ClientSimulator, state: FederatedState, num_batches: int) -> Tensor:
    """Compute the loss of every client under every model of the server, on the first batches of the next round.

    Args:
        simulator: The simulated clients.
        state: The federated state with M models.
        num_batches: Number of batches per client.

    Returns:
        The mean losses per token, ``[N, M]``; NaN for a client without data.
    """
    server = state.server
    loss_sum = torch.zeros(simulator.size, server.num_models, dtype=torch.float64)
    tokens = torch.zeros(simulator.size, dtype=torch.float64)
    for cohort in torch.arange(simulator.size).split(simulator.clients_per_pass or simulator.size):  # type: ignore[no-untyped-call]
        for batch in islice(simulator.batches(state.round, cohort), num_batches):
            rows, batch = split_active_rows(batch, len(cohort))
            clients = cohort[rows]
            weight = batch.get("weight", torch.ones(len(clients))).double().cpu()
            tokens[clients] += weight
            for model in range(server.num_models):
                cluster_ids = torch.full((len(clients),), model)
                losses = simulator.loss_fn(Tree({**server.params.take(cluster_ids), **server.base_for(cluster_ids)}), batch)
                loss_sum[clients, model] += losses.double().cpu() * weight
    return loss_sum / tokens.where(tokens > 0, torch.nan).unsqueeze(1)
