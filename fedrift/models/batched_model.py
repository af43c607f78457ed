"""Combine the training passes of several runs that share a network into joint passes.

The rows of a stacked pass do not interact, so that they may belong to different runs. Each run executes in its own thread, but
only one thread at a time, namely the one that holds the lock. When a run needs a loss with its gradient, it submits its
parameters and batch and waits. Once all running threads wait, one pass along C answers all of them. Nothing runs concurrently
with another computation, so that shared objects (network, tokens, files) need no further locks and results do not depend on
the order of the threads.
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

from ..core.tree import RowBroadcast, Tree
from .stacked_model import StackedModel


class Cancelled(BaseException):
    """The coordinator was cancelled; this is not an ``Exception``, so that no waiting run is reported as failed."""


@dataclass(eq=False)
class GradRequest:
    """A request of one run for losses and gradients."""

    model: StackedModel  # the model of the run
    params: Tree  # the parameters of A clients, [A, ...]
    batch: dict[str, Tensor]  # their batch; each value is [A, ...]
    requested: tuple[str, ...]  # the names of the parameters whose gradients are requested
    loss: Tensor | None = None  # the answer: losses [A]
    grad: Tree | None = None  # the answer: gradients [A, ...]
    error: Exception | None = None  # the error that replaces the answer

    @property
    def batch_key(self) -> tuple[Hashable, ...]:
        """Return a key; one pass can answer all requests with equal keys.

        A request in which a leaf is shared by all clients (leading dimension 1) cannot be combined with other requests.
        """
        rows = len(self.batch["tokens"])
        is_per_client = all(len(leaf) == rows for leaf in (*self.params.values(), *self.batch.values()))
        return (
            id(self.model),
            tuple(self.params),
            self.requested,
            tuple(self.batch),
            tuple(self.batch["tokens"].shape[1:]),
            is_per_client or id(self),
        )


class BatchCoordinator:
    """Let threads wait for each other at every training step and compute their requests together.

    Args:
        num_threads: The number of threads.
        max_clients: The largest number of clients, over all runs, in one pass.

    Example:
        >>> coordinator = BatchCoordinator(num_threads=2, max_clients=64)
        >>> model = BatchedModel(stacked_model, coordinator)
        >>> with coordinator.participant():  # in each of the two threads
        ...     loss = model(params, batch)  # waits for the other thread
    """

    def __init__(self, num_threads: int, max_clients: int) -> None:
        self.condition, self.num_active, self.max_clients = Condition(), num_threads, max_clients
        self.pending: list[GradRequest] = []
        self.is_cancelled = False
        self.pass_sizes: list[int] = []  # number of clients in each pass so far

    @contextmanager
    def participant(self) -> Iterator[None]:
        """Run the body of a thread under the lock.

        The thread releases the lock only while it waits for an answer. When the body ends, other threads no longer wait for it.
        """
        with self.condition, suppress(Cancelled):
            try:
                yield
            finally:
                self.num_active -= 1
                self._compute_if_complete()

    def submit(self, request: GradRequest) -> GradRequest:
        """Submit a request and wait until it has been answered; the calling thread must hold the lock.

        Raises:
            Cancelled: The coordinator was cancelled.
        """
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
        """Stop all threads at their next training step."""
        self.is_cancelled = True
        with self.condition:
            self.condition.notify_all()

    def _compute_if_complete(self) -> None:
        """Answer all requests if every active thread waits for an answer."""
        if self.pending and len(self.pending) >= self.num_active and not self.is_cancelled:
            requests, self.pending = sorted(self.pending, key=lambda request: str(request.batch_key)), []
            for _, group in groupby(requests, key=lambda request: request.batch_key):
                for part in self._split_by_size(list(group)):
                    self._compute(part)
            self.condition.notify_all()

    def _split_by_size(self, requests: list[GradRequest]) -> Iterator[list[GradRequest]]:
        """Split requests into parts of at most ``max_clients`` clients; requests stay whole."""
        part: list[GradRequest] = []
        for request in requests:
            if part and sum(len(member.batch["tokens"]) for member in (*part, request)) > self.max_clients:
                yield part
                part = []
            part.append(request)
        yield part

    def _compute(self, requests: list[GradRequest]) -> None:
        """Answer requests by one pass; if it fails, answer each alone, so that an error affects only its own run."""
        try:
            compute_gradients(requests)
            self.pass_sizes.append(sum(len(request.batch["tokens"]) for request in requests))
        except Exception as error:
            if len(requests) == 1:
                requests[0].error = error
                return
            for request in requests:
                self._compute([request])


def compute_gradients(requests: list[GradRequest]) -> None:
    """Answer requests with equal keys by one forward and one backward pass."""
    first, sizes = requests[0], [len(request.batch["tokens"]) for request in requests]

    def concatenate(parts: list[Tensor]) -> Tensor:
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    leaves = Tree({name: concatenate([request.params[name].detach() for request in requests]) for name in first.params})
    batch = {name: concatenate([request.batch[name] for request in requests]) for name in first.batch}
    with torch.enable_grad():
        inputs = {name: leaves[name].requires_grad_() for name in first.requested}
        loss = StackedModel.__call__(first.model, leaves, batch)
        gradients = torch.autograd.grad(loss.sum(), list(inputs.values()), materialize_grads=True)
    grads = [gradient.split(sizes) for gradient in gradients]
    for number, (request, losses) in enumerate(zip(requests, loss.detach().split(sizes), strict=True)):
        request.grad = Tree({name: parts[number] for name, parts in zip(first.requested, grads, strict=True)})
        request.loss = losses


class CoordinatedLoss(torch.autograd.Function):
    """The loss [A] of ``leaves`` [A, ...], computed by the coordinator; the gradient is computed with it."""

    @staticmethod
    def forward(ctx: Any, model: BatchedModel, names: tuple[str, ...], batch: dict[str, Tensor], *leaves: Tensor) -> Tensor:
        """Submit a request and store the gradient of its answer."""
        requested = tuple(name for name, needs in zip(names, ctx.needs_input_grad[3:], strict=True) if needs)
        params = Tree(zip(names, leaves, strict=True))
        answer = model.coordinator.submit(GradRequest(model.inner, params, batch, requested))
        ctx.save_for_backward(*(answer.grad[name] for name in requested))  # type: ignore[index]
        return answer.loss  # type: ignore[return-value]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        """Scale each client's gradient by the gradient of its loss, because rows do not interact."""
        stored, rows = iter(ctx.saved_tensors), RowBroadcast(grad_output)
        grads = [next(stored) if needs else None for needs in ctx.needs_input_grad[3:]]
        return None, None, None, *(grad if grad is None else grad * rows.over(grad) for grad in grads)


class BatchedModel(StackedModel):
    """A stacked model whose passes with gradients go through a coordinator; it computes passes without gradients itself.

    Args:
        inner: The stacked model, whose attributes are shared.
        coordinator: The coordinator of all threads.
    """

    def __init__(self, inner: StackedModel, coordinator: BatchCoordinator) -> None:
        self.__dict__.update(vars(inner))
        self.inner, self.coordinator = inner, coordinator

    def __call__(self, params: Tree, batch: dict[str, Tensor]) -> Tensor:
        """Return the mean loss of each client, [C], as `StackedModel` does."""
        if not torch.is_grad_enabled() or not any(leaf.requires_grad for leaf in params.values()):
            return super().__call__(params, batch)
        return CoordinatedLoss.apply(self, tuple(params), dict(batch), *params.values())  # type: ignore[no-any-return]
