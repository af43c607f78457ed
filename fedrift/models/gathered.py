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

from ..tree import Tree, column
from .stacked import StackedModel


class Stopped(BaseException):
    """The meeting was called off: whoever waited goes home. No ``Exception``, so that no run counts as failed by it."""


@dataclass(eq=False)
class Question:
    """A loss and gradient that a run waits for: ``params [A, ...]``, of which ``want`` are differentiated."""

    model: StackedModel
    params: Tree
    batch: dict[str, Tensor]
    want: tuple[str, ...]
    loss: Tensor | None = None  # [A]
    grad: Tree | None = None  # [A, ...]
    error: Exception | None = None

    @property
    def kind(self) -> tuple[Hashable, ...]:
        """Questions of one kind can be answered by one pass. A leaf that leads with 1 for all clients is its run's own."""
        rows = len(self.batch["tokens"])
        plain = all(len(leaf) == rows for leaf in (*self.params.values(), *self.batch.values()))
        return (id(self.model), tuple(self.params), self.want, tuple(self.batch), tuple(self.batch["tokens"].shape[1:]),
                plain or id(self))


class Meeting:
    """``seats`` threads that wait for each other at every step; at most ``clients`` of all their runs train in one pass."""

    def __init__(self, seats: int, clients: int) -> None:
        self.turn, self.present, self.clients = Condition(), seats, clients
        self.waiting: list[Question] = []
        self.stopped = False
        self.passes: list[int] = []  # clients of each pass so far

    @contextmanager
    def seat(self) -> Iterator[None]:
        """What a thread does at the meeting: with the turn but while it waits; at its end nobody waits for it any more."""
        with self.turn, suppress(Stopped):
            try:
                yield
            finally:
                self.present -= 1
                self._answer_if_complete()

    def ask(self, question: Question) -> Question:
        """Wait until all have asked, and take the answer; called with the turn."""
        if self.stopped:
            raise Stopped
        self.waiting.append(question)
        self._answer_if_complete()
        self.turn.wait_for(lambda: question.loss is not None or question.error is not None or self.stopped)
        if question.error is not None:
            raise question.error
        if question.loss is None:
            raise Stopped
        return question

    def stop(self) -> None:
        """Send everybody home at the next step."""
        self.stopped = True
        with self.turn:
            self.turn.notify_all()

    def _answer_if_complete(self) -> None:
        if self.waiting and len(self.waiting) >= self.present and not self.stopped:
            asked, self.waiting = sorted(self.waiting, key=lambda question: str(question.kind)), []
            for _, alike in groupby(asked, key=lambda question: question.kind):
                for some in self._cut(list(alike)):
                    self._answer(some)
            self.turn.notify_all()

    def _cut(self, alike: list[Question]) -> Iterator[list[Question]]:
        """Whole questions, as many as a pass takes clients."""
        part: list[Question] = []
        for question in alike:
            if part and sum(len(one.batch["tokens"]) for one in (*part, question)) > self.clients:
                yield part
                part = []
            part.append(question)
        yield part

    def _answer(self, alike: list[Question]) -> None:
        """One pass for all; should it fail, each alone, so that an error is its own run's only."""
        try:
            answer(alike)
            self.passes.append(sum(len(question.batch["tokens"]) for question in alike))
        except Exception as error:
            if len(alike) == 1:
                alike[0].error = error
                return
            for question in alike:
                self._answer([question])


def answer(alike: list[Question]) -> None:
    """Losses and gradients of questions of one kind, by one forward and one backward pass."""
    first, sizes = alike[0], [len(question.batch["tokens"]) for question in alike]

    def joined(parts: list[Tensor]) -> Tensor:
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    leaves = Tree({name: joined([question.params[name].detach() for question in alike]) for name in first.params})
    batch = {name: joined([question.batch[name] for question in alike]) for name in first.batch}
    with torch.enable_grad():
        free = {name: leaves[name].requires_grad_() for name in first.want}
        loss = StackedModel.__call__(first.model, leaves, batch)
        found = torch.autograd.grad(loss.sum(), list(free.values()), materialize_grads=True)
    grads = [gradient.split(sizes) for gradient in found]
    for number, (question, own) in enumerate(zip(alike, loss.detach().split(sizes), strict=True)):
        question.grad = Tree({name: parts[number] for name, parts in zip(first.want, grads, strict=True)})
        question.loss = own


class Together(torch.autograd.Function):
    """``leaves [A, ...] -> loss [A]``, computed at a meeting; the gradient is there before anybody asks for it."""

    @staticmethod
    def forward(ctx: Any, model: Gathered, names: tuple[str, ...], batch: dict[str, Tensor], *leaves: Tensor) -> Tensor:
        want = tuple(name for name, needs in zip(names, ctx.needs_input_grad[3:], strict=True) if needs)
        params = Tree(zip(names, leaves, strict=True))
        question = model.meeting.ask(Question(model.plain, params, batch, want))
        ctx.save_for_backward(*(question.grad[name] for name in want))  # type: ignore[index]
        return question.loss  # type: ignore[return-value]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        """Rows do not touch: the slope of each loss scales its own client's gradient."""
        found = iter(ctx.saved_tensors)
        grads = [next(found) if needs else None for needs in ctx.needs_input_grad[3:]]
        return None, None, None, *(grad if grad is None else grad * column(slope, grad) for grad in grads)


class Gathered(StackedModel):
    """A stacked model whose passes with gradients are made at a meeting. Whatever needs none it computes by itself."""

    def __init__(self, plain: StackedModel, meeting: Meeting) -> None:
        self.__dict__.update(vars(plain))
        self.plain, self.meeting = plain, meeting

    def __call__(self, params: Tree, batch: dict[str, Tensor]) -> Tensor:
        if not torch.is_grad_enabled() or not any(leaf.requires_grad for leaf in params.values()):
            return super().__call__(params, batch)
        return Together.apply(self, tuple(params), dict(batch), *params.values())  # type: ignore[no-any-return]


__all__ = ["Gathered", "Meeting"]
