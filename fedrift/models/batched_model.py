"""Training passes of several runs made as one: runs with the same network meet at every step.

The rows of a stacked pass do not touch, so they need not belong to the same run. Each run is computed in a thread of its own,
but only one thread at a time: the one that has the turn. Where a run needs a loss with its gradient it lays down its clients'
parts and their batch and waits; when the last has come, one pass along C answers all of them. Between two passes nothing is
computed beside anything else, so what runs share (network, tokens, files) needs no locks, and who comes first changes nothing.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby
from threading import Condition
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..core.tree import Tree, broadcast_rows
from .stacked_model import StackedModel


class Cancelled(BaseException):
    """The meeting was called off: whoever waited goes home. No ``Exception``, so that no run counts as failed by it."""


@dataclass(eq=False)
class GradRequest:
    """A loss and gradient that a run waits for: ``params [A, ...]``, of which ``requested`` are differentiated."""

    model: StackedModel
    params: Tree
    batch: dict[str, Tensor]
    requested: tuple[str, ...]
    loss: Tensor | None = None  # [A]
    grad: Tree | None = None  # [A, ...]
    error: Exception | None = None

    @property
    def batch_key(self) -> tuple[Hashable, ...]:
        """Questions of one kind can be answered by one pass. A leaf that leads with 1 for all clients is its run's own."""
        rows = len(self.batch["tokens"])
        plain = all(len(leaf) == rows for leaf in (*self.params.values(), *self.batch.values()))
        return (
            id(self.model),
            tuple(self.params),
            self.requested,
            tuple(self.batch),
            tuple(self.batch["tokens"].shape[1:]),
            plain or id(self),
        )


class BatchCoordinator:
    """``num_threads`` threads that wait for each other at every step; at most ``max_clients`` of all their runs train in one
    pass."""

    def __init__(self, num_threads: int, max_clients: int) -> None:
        self.condition, self.num_active, self.max_clients = Condition(), num_threads, max_clients
        self.pending: list[GradRequest] = []
        self.is_cancelled = False
        self.pass_sizes: list[int] = []  # clients of each pass so far

    @contextmanager
    def participant(self) -> Iterator[None]:
        """What a thread does at the meeting: with the turn but while it waits; at its end nobody waits for it any more."""
        with self.condition, suppress(Cancelled):
            try:
                yield
            finally:
                self.num_active -= 1
                self._compute_if_complete()

    def submit(self, request: GradRequest) -> GradRequest:
        """Wait until all have asked, and take the answer; called with the turn."""
        if self.is_cancelled:
            raise Cancelled
        self.pending.append(request)
        self._compute_if_complete()
        self.condition.wait_for(lambda: request.loss is not None or request.error is not None or self.is_cancelled)
        if request.error is not None:
            raise request.error
        if request.loss is None:
            raise Cancelled
        return request

    def cancel(self) -> None:
        """Send everybody home at the next step."""
        self.is_cancelled = True
        with self.condition:
            self.condition.notify_all()

    def _compute_if_complete(self) -> None:
        if self.pending and len(self.pending) >= self.num_active and not self.is_cancelled:
            asked, self.pending = sorted(self.pending, key=lambda question: str(question.batch_key)), []
            for _, alike in groupby(asked, key=lambda question: question.batch_key):
                for some in self._split_by_size(list(alike)):
                    self._compute(some)
            self.condition.notify_all()

    def _split_by_size(self, requests: list[GradRequest]) -> Iterator[list[GradRequest]]:
        """Whole questions, as many as a pass takes clients."""
        part: list[GradRequest] = []
        for question in requests:
            if part and sum(len(one.batch["tokens"]) for one in (*part, question)) > self.max_clients:
                yield part
                part = []
            part.append(question)
        yield part

    def _compute(self, requests: list[GradRequest]) -> None:
        """One pass for all; should it fail, each alone, so that an error is its own run's only."""
        try:
            compute_gradients(requests)
            self.pass_sizes.append(sum(len(question.batch["tokens"]) for question in requests))
        except Exception as error:
            if len(requests) == 1:
                requests[0].error = error
                return
            for question in requests:
                self._compute([question])


def compute_gradients(requests: list[GradRequest]) -> None:
    """Losses and gradients of questions of one kind, by one forward and one backward pass."""
    first, sizes = requests[0], [len(question.batch["tokens"]) for question in requests]

    def joined(parts: list[Tensor]) -> Tensor:
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    leaves = Tree({name: joined([question.params[name].detach() for question in requests]) for name in first.params})
    batch = {name: joined([question.batch[name] for question in requests]) for name in first.batch}
    with torch.enable_grad():
        free = {name: leaves[name].requires_grad_() for name in first.requested}
        loss = StackedModel.__call__(first.model, leaves, batch)
        found = torch.autograd.grad(loss.sum(), list(free.values()), materialize_grads=True)
    grads = [gradient.split(sizes) for gradient in found]
    for number, (question, own) in enumerate(zip(requests, loss.detach().split(sizes), strict=True)):
        question.grad = Tree({name: parts[number] for name, parts in zip(first.requested, grads, strict=True)})
        question.loss = own


class CoordinatedLoss(torch.autograd.Function):
    """``leaves [A, ...] -> loss [A]``, computed at a meeting; the gradient is there before anybody asks for it."""

    @staticmethod
    def forward(ctx: Any, model: BatchedModel, names: tuple[str, ...], batch: dict[str, Tensor], *leaves: Tensor) -> Tensor:
        want = tuple(name for name, needs in zip(names, ctx.needs_input_grad[3:], strict=True) if needs)
        params = Tree(zip(names, leaves, strict=True))
        question = model.coordinator.submit(GradRequest(model.inner, params, batch, want))
        ctx.save_for_backward(*(question.grad[name] for name in want))  # type: ignore[index]
        return question.loss  # type: ignore[return-value]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        """Rows do not touch: the slope of each loss scales its own client's gradient."""
        found = iter(ctx.saved_tensors)
        grads = [next(found) if needs else None for needs in ctx.needs_input_grad[3:]]
        return None, None, None, *(grad if grad is None else grad * broadcast_rows(slope, grad) for grad in grads)


class BatchedModel(StackedModel):
    """A stacked model whose passes with gradients are made at a meeting. Whatever needs none it computes by itself."""

    def __init__(self, inner: StackedModel, coordinator: BatchCoordinator) -> None:
        self.__dict__.update(vars(inner))
        self.inner, self.coordinator = inner, coordinator

    def __call__(self, params: Tree, batch: dict[str, Tensor]) -> Tensor:
        if not torch.is_grad_enabled() or not any(leaf.requires_grad for leaf in params.values()):
            return super().__call__(params, batch)
        return CoordinatedLoss.apply(self, tuple(params), dict(batch), *params.values())  # type: ignore[no-any-return]


__all__ = ["BatchCoordinator", "BatchedModel"]
