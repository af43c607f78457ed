"""The loss of every predicted position, without ever holding all logits.

Logits of 4,096 to 150,000 words for every position are the largest thing in a small model's step.
They are made a chunk at a time and reduced at once to the loss and, the head being frozen, to the
gradient on the hidden states: d loss / d h = softmax(h W^T) W - W[target].

Some architectures add a bias, multiply the logits by a constant or squash them: logits = cap tanh(scale (h W^T + b) / cap).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LOGITS_PER_CHUNK = 1 << 22  # logits at once: 16 MiB in float32
MIN_ROWS_PER_CHUNK = 256  # but so many positions at least: the head is read from memory twice for every chunk


@dataclass(frozen=True)
class LogitTransform:
    """What an architecture does to h W^T + b: a factor, then a soft cap (None: no cap)."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """``hidden [P, H], weight [V, H], bias [V] -> logits [P, V]``, in float32 at least."""
        logits = hidden @ weight.T
        if bias is not None:
            logits += bias
        if self.scale != 1:
            logits *= self.scale
        logits = to_float32(logits)
        return logits if self.cap is None else logits.div_(self.cap).tanh_().mul_(self.cap)

    def cap_derivative(self, logits: Tensor) -> Tensor | None:
        """The derivative of the soft cap, ``[P, V]``; None without one."""
        return None if self.cap is None else 1 - (logits / self.cap).square_()


class FrozenHeadLoss(torch.autograd.Function):
    """``(hidden [P, H], weight [V, H], target [P], bias [V]) -> loss [P]`` in nats; gradients reach ``hidden`` only."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, to_logits: LogitTransform) -> Tensor:
        rows = max(MIN_ROWS_PER_CHUNK, LOGITS_PER_CHUNK // len(weight))
        want = ctx.needs_input_grad[0]
        losses, slopes = [], []
        for part, words in zip(hidden.split(rows), target.split(rows), strict=True):
            logits = to_logits(part, weight, bias)  # [rows, V]
            squashed = to_logits.cap_derivative(logits) if want else None
            aim = logits.gather(1, words[:, None]).squeeze(1)
            top = logits.amax(1, keepdim=True)
            power = logits.sub_(top).exp_()
            total = power.sum(1)
            losses.append(total.log() + top.squeeze(1) - aim)
            if squashed is not None:
                share = power.div_(total[:, None]).scatter_add_(1, words[:, None], -power.new_ones(len(words), 1))
                slopes.append(share.mul_(squashed).to(weight.dtype) @ weight)
            elif want:
                slopes.append((power.to(weight.dtype) @ weight).div_(total[:, None]).sub_(weight[words]))
            if want and to_logits.scale != 1:
                slopes[-1] *= to_logits.scale
        if want:
            ctx.save_for_backward(torch.cat(slopes))
        return torch.cat(losses) if losses else hidden.new_zeros(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:  # type: ignore[override]
        (slope,) = ctx.saved_tensors
        return slope * grad[:, None].to(slope.dtype), None, None, None, None


class PerClientHeadLoss(torch.autograd.Function):
    """``(hidden [C, P, H], weight [C, V, H], target [C, P], bias [C, V]) -> loss [C, P]`` in nats; gradients reach all but
    the target.

    Of the logits the probabilities are kept, once; where no gradient is wanted nothing is, and a chunk is made at a time.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, to_logits: LogitTransform) -> Tensor:
        want = any(ctx.needs_input_grad)
        rows = hidden.shape[1] if want else max(MIN_ROWS_PER_CHUNK, LOGITS_PER_CHUNK // weight.shape[1])
        losses = torch.empty(target.shape, dtype=to_float32(hidden[:0]).dtype, device=hidden.device)
        shares, squashed = list[Tensor](), list[Tensor]()
        for client in range(len(hidden)):
            for first in range(0, hidden.shape[1], rows):
                part = slice(first, first + rows)
                logits = to_logits(hidden[client, part], weight[client], None if bias is None else bias[client])  # [rows, V]
                ease = to_logits.cap_derivative(logits) if want else None
                squashed += [] if ease is None else [ease]
                aim = logits.gather(1, target[client, part, None]).squeeze(1)
                top = logits.amax(1, keepdim=True)
                power = logits.sub_(top).exp_()
                total = power.sum(1, keepdim=True)
                losses[client, part] = (total.log() + top).squeeze(1) - aim
                if want:
                    shares.append(power.div_(total))
        if want:
            ctx.to_logits = to_logits
            ctx.save_for_backward(hidden, weight, target, bias, *shares, *squashed)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, Tensor | None, None]:  # type: ignore[override]
        hidden, weight, target, bias, *kept = ctx.saved_tensors
        to_hidden, to_weight = torch.empty_like(hidden), torch.empty_like(weight)
        to_bias = None if bias is None else torch.empty_like(bias)
        for client, share in enumerate(kept[: len(hidden)]):
            each = grad[client][:, None].to(share.dtype)
            slope = (share * each).scatter_add_(1, target[client][:, None], -each)  # [P, V]
            if ctx.to_logits.cap is not None:
                slope *= kept[len(hidden) + client]
            if ctx.to_logits.scale != 1:
                slope *= ctx.to_logits.scale
            slope = slope.to(hidden.dtype)
            torch.mm(slope, weight[client], out=to_hidden[client])
            torch.mm(slope.T, hidden[client], out=to_weight[client])
            if to_bias is not None:
                to_bias[client] = slope.sum(0)
        return to_hidden, to_weight, None, to_bias, None


def to_float32(logits: Tensor) -> Tensor:
    """Logits as float32 where they came in fewer bits: a sum of exponentials over a vocabulary needs them."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def frozen_head_losses(
    hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None, to_logits: LogitTransform = LogitTransform()
) -> Tensor:
    """Cross-entropy of each position ``[P]`` under a frozen head."""
    return FrozenHeadLoss.apply(hidden, weight, target, bias, to_logits)  # type: ignore[no-any-return]
