"""A fleet on one machine: the whole cohort trains in one forward pass.

Everything a cohort has is stacked along C. The clients' rows do not touch, so one backward pass
of the sum of their losses gives each its own gradient: no process, no copy of the base model, no
``vmap``. A cohort that memory cannot hold is cut into micro-cohorts, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, fields, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from ..errors import UserError
from ..optimizers import Optimizer
from ..tree import Tree
from ..values import Local, Objective, Report, State
from .fleet import Penalty, Rule

Weighting = Literal["tokens", "examples", "uniform"]
"""What a client's update counts with in the mean over a round.

``tokens``: the tokens that it learnt from in this round, the first of every block left out; with ``plan.steps`` these are
nearly the same for all clients, whatever they hold, and with ``plan.epochs`` they go by what they hold. ``examples``: n_k of
McMahan et al. (2017, arXiv:1602.05629, Algorithm 1), the training examples (blocks) that it holds, however many steps it
takes. ``uniform``: all alike.
"""


class Batches(Protocol):
    """``(round, cohort [C]) -> one batch per local step``, each a dict of tensors that lead with C.

    ``weight [C]`` counts the trained tokens of each client (1 if absent), ``held [C]`` the training examples that it holds,
    in this batch or not, the same in every step of a round (needed where ``examples`` are the weights).
    Where clients take different numbers of steps, ``rows [A]`` names the clients still at work
    and everything else leads with A.
    """

    def __call__(self, round: int, cohort: Tensor) -> Iterable[dict[str, Tensor]]: ...


Represent = Callable[[Tree, dict[str, Tensor]], tuple[Tensor, Tensor]]
"""``(params [A, ...], batch) -> (z [A, B, H], counts [A, B])``; ``represent.mean_states`` is that of language models."""


class Schedule(Protocol):
    """``round -> factor`` on the learning rate, constant within a round."""

    def __call__(self, round: int) -> float: ...


Regulariser = Callable[[Tree, Tree], Tensor]  # (leaves [A, ...], what lies under them) -> [A]


def constant(round: int) -> float:
    return 1.0


@dataclass(frozen=True)
class SimulatedFleet:
    """N clients that share one machine.

    ``clip``: each client's gradient is scaled down to this length at every step. ``micro``: at most
    so many clients in one forward pass; the results differ by rounding only. ``represent``: how models see a
    batch, for algorithms that compare representations.
    """

    size: int
    objective: Objective
    batches: Batches
    optimizer: Optimizer
    clip: float | None = None
    weighting: Weighting = "tokens"
    schedule: Schedule = constant
    micro: int | None = None
    represent: Represent | None = None

    def train(self, state: State, algorithm: Rule, cohort: Tensor) -> Report:
        """One round of local training, ``cohort [C] -> Report``."""
        parts = cohort.split(self.micro or len(cohort))  # type: ignore[no-untyped-call]
        return joined([self._train(state, algorithm, part) for part in parts])

    def _train(self, state: State, algorithm: Rule, cohort: Tensor) -> Report:
        group, old = state.group[cohort], state.memory.rows(cohort)
        at, tokens, told = self._walk(state, algorithm, cohort)
        aside = algorithm.aside()
        if aside is not None:
            at = replace(at, memory=aside.remember(self._walk(state, aside, cohort)[0]))
        population = state.group.bincount(minlength=state.server.models)
        return report(at, algorithm.finish(at), old, algorithm.remember(at), tokens, told, group, population)

    def _walk(self, state: State, algorithm: Rule, cohort: Tensor) -> tuple[Local, Tensor, Tensor]:
        """The local steps: where the clients ended, their tokens ``[C]`` and losses (first, mean) ``[C, 2]``."""
        server, group = state.server, state.group[cohort]
        start, under = server.params.rows(group), server.under(group)
        device = next(iter(start.values())).device
        scale = self.schedule(state.round)
        optimizer = replace(self.optimizer, lr=self.optimizer.lr * scale) if scale != 1 else self.optimizer  # type: ignore[type-var]
        zero = torch.zeros(len(cohort), dtype=torch.float64)
        memory = state.memory.rows(cohort).to(device)
        at = Local(algorithm.start(start, memory), start, server.shared.rows(group), memory, gradient=start.zeros(),
                   steps=zero, loss=zero * torch.nan, weight=zero, lr=optimizer.lr)
        moments = optimizer.init(start)
        frozen, penalty = algorithm.frozen(start.keys(), state.round), algorithm.penalty()
        tokens, held, total = zero, zero, zero
        for batch in self.batches(state.round, cohort):
            rows, batch = taken_rows(batch, len(cohort))
            more = penalty and self._penalised(penalty, at, batch, rows)
            loss, grad = value_and_gradient(self.objective, at.params, batch, rows, frozen, under, more)
            ours = torch.zeros(len(cohort), dtype=torch.bool).index_fill(0, rows, True)
            steps = at.steps + ours
            share = (1 / steps.clamp_min(1)) * ours
            count = spread(batch.get("weight", torch.ones(len(rows))), rows, len(cohort))
            first = torch.where(ours & at.loss.isnan(), spread(loss, rows, len(cohort)), at.loss)
            tokens, total = tokens + count, total + spread(loss, rows, len(cohort)) * count
            if self.weighting == "examples":
                held = torch.where(ours, spread(held_by(batch), rows, len(cohort)), held)
            weight = {"tokens": tokens, "examples": held, "uniform": (tokens > 0).double()}[self.weighting]
            at = replace(at, gradient=at.gradient.towards(grad, share.to(device)), steps=steps, loss=first, weight=weight)
            follow = clipped(algorithm.correct(grad, at), self.clip)
            stepped, moved = optimizer.step(at.params, follow, moments)
            stepped = algorithm.settle(stepped, at)
            if frozen:  # weight decay and momentum would move them
                stepped = Tree({name: at.params[name] if name in frozen else leaf for name, leaf in stepped.items()})
            if not ours.all():  # those who have finished stand still
                mask = ours.to(device)
                stepped, moved = stepped.where(mask, at.params), moved.where(mask, moments)
            at, moments = algorithm.note(grad, replace(at, params=stepped), ours), moved
        return at, tokens, torch.stack([at.loss, total / tokens.clamp_min(1e-12)], 1)

    def _penalised(self, penalty: Penalty, at: Local, batch: dict[str, Tensor], rows: Tensor) -> Regulariser:
        """The penalty on this batch, of the clients at ``rows``, as a function of their leaves and what is under."""
        represent = self.represent
        if represent is None:
            raise UserError("this algorithm compares representations, and the fleet has none: give it represent=...")
        here = replace(at, start=at.start.rows(rows), memory=at.memory.rows(rows))
        return lambda leaves, under: penalty(
            replace(here, params=leaves), lambda params: represent(Tree({**params, **under}), batch))


def taken_rows(batch: dict[str, Tensor], clients: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Which of the clients a batch is for, all if it does not say, and the batch without that; the caller's stays as it is."""
    return batch.get("rows", torch.arange(clients)), {name: leaf for name, leaf in batch.items() if name != "rows"}


def value_and_gradient(objective: Objective, params: Tree, batch: dict[str, Tensor], rows: Tensor,
                       frozen: Set[str] = frozenset(), under: Tree | None = None,
                       more: Regulariser | None = None) -> tuple[Tensor, Tree]:
    """Loss ``[A]`` and gradient ``[C, ...]`` of the clients at ``rows [A]``; the gradient of the others is zero.

    Rows do not touch, so one backward pass of the sum gives all of them. Those at rest cost nothing,
    nor do ``frozen`` leaves, whose gradient is zero. ``under``: what lies under the adapters. ``more [A]`` is
    added to what is differentiated, not to the loss that is told.
    """
    size = len(next(iter(params.values())))
    some = len(rows) < size
    leaves = (params.rows(rows) if some else params).map(torch.detach)
    free = {name: leaf.requires_grad_() for name, leaf in leaves.items() if name not in frozen}
    if under:
        under = under.map(lambda leaf: leaf[rows] if some and len(leaf) == size else leaf)
    loss = objective(Tree({**leaves, **under}) if under else leaves, batch)
    goal = loss + more(leaves, under or Tree()) if more else loss
    found = dict(zip(free, torch.autograd.grad(goal.sum(), list(free.values()), materialize_grads=True), strict=True))
    grad = leaves.map(torch.zeros_like) if frozen else Tree(found)
    if frozen:
        grad = Tree({**grad, **found})
    return loss.detach(), params.zeros().put(rows, grad) if some else grad


def held_by(batch: dict[str, Tensor]) -> Tensor:
    """How many training examples each client of a batch holds, ``[A]``; UserError if the batch does not say."""
    if "held" not in batch:
        raise UserError("weighting 'examples' goes by the training examples that clients hold, and the batches have no 'held': "
                        "give them one, or choose weighting 'tokens' or 'uniform'")
    return batch["held"]


def clipped(grad: Tree, length: float | None) -> Tree:
    """Each client's gradient, scaled down to ``length`` where it is longer."""
    return grad if length is None else grad * (length / grad.norm().clamp_min(length))


def spread(values: Tensor, rows: Tensor, size: int) -> Tensor:
    """``values [A]`` of the clients at ``rows`` as ``[C]``, zeros elsewhere; float64, on the CPU."""
    return torch.zeros(size, dtype=torch.float64).index_put((rows,), values.detach().double().cpu())


def report(at: Local, end: Tree, old: Tree, new: Tree, tokens: Tensor, loss: Tensor,
           group: Tensor, population: Tensor) -> Report:
    """What the cohort sends. A client with a non-finite number anywhere counts for nothing and changes nothing."""
    delta, new = end - at.start, new.to(torch.device("cpu"))
    worked = (at.steps > 0) & (at.weight > 0)  # steps on nothing are no work
    sound = delta.finite().cpu() & (loss.isfinite().all(1) | ~worked)
    if new:
        new = new.where(worked, old)
        sound = sound & new.finite()
        new = new.where(sound, old)
    device, gradient = next(iter(delta.values())).device, at.gradient
    counts = (sound & worked).to(device)
    if not counts.all():
        delta, gradient = delta.where(counts, delta.zeros()), gradient.where(counts, gradient.zeros())
    return Report(delta, new, (new - old).to(device), gradient, weight=(at.weight * sound).to(device), steps=at.steps,
                  loss=loss, tokens=tokens, failed=~sound, group=group.to(device), population=population.to(device),
                  lr=torch.full_like(at.steps, at.lr))


def joined(reports: list[Report]) -> Report:
    """The reports of the micro-cohorts as one."""
    if len(reports) == 1:
        return reports[0]

    def join(name: str) -> Tree | Tensor | int | tuple[str, ...] | None:
        parts = [getattr(part, name) for part in reports]
        if name in ("population", "draw", "share", "why", "wire"):
            return parts[0]  # type: ignore[no-any-return]
        if isinstance(parts[0], Tree):
            return Tree({leaf: torch.cat([part[leaf] for part in parts]) for leaf in parts[0]})
        return torch.cat(parts)

    return Report(**{f.name: join(f.name) for f in fields(Report)})  # type: ignore[arg-type]


__all__ = ["Batches", "SimulatedFleet", "Weighting", "constant"]
