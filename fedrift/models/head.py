"""The loss of every predicted position, without ever holding all logits.

Logits of 4,096 to 150,000 words for every position are the largest thing in a small model's step.
They are made a chunk at a time and reduced at once to the loss and, the head being frozen, to the
gradient on the hidden states: d loss / d h = softmax(h W^T) W - W[target].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 1 << 22  # logits at once: 16 MiB in float32
ROWS = 256  # but so many positions at least: the head is read from memory twice for every chunk


class FrozenHead(torch.autograd.Function):
    """``(hidden [P, H], weight [V, H], target [P]) -> loss [P]`` in nats; gradients reach ``hidden`` only."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        rows = max(ROWS, CHUNK // len(weight))
        want = ctx.needs_input_grad[0]
        losses, slopes = [], []
        for part, words in zip(hidden.split(rows), target.split(rows), strict=True):
            logits = widened(part @ weight.T)  # [rows, V]
            aim = logits.gather(1, words[:, None]).squeeze(1)
            top = logits.amax(1, keepdim=True)
            power = logits.sub_(top).exp_()
            total = power.sum(1)
            losses.append(total.log() + top.squeeze(1) - aim)
            if want:
                slopes.append((power.to(weight.dtype) @ weight).div_(total[:, None]).sub_(weight[words]))
        if want:
            ctx.save_for_backward(torch.cat(slopes))
        return torch.cat(losses) if losses else hidden.new_zeros(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (slope,) = ctx.saved_tensors
        return slope * grad[:, None].to(slope.dtype), None, None


class OwnHead(torch.autograd.Function):
    """``(hidden [C, P, H], weight [C, V, H], target [C, P]) -> loss [C, P]`` in nats; gradients reach hidden and weight.

    Of the logits the probabilities are kept, once; where no gradient is wanted nothing is, and a chunk is made at a time.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        want = any(ctx.needs_input_grad)
        rows = hidden.shape[1] if want else max(ROWS, CHUNK // weight.shape[1])
        losses, shares = torch.empty(target.shape, dtype=widened(hidden[:0]).dtype, device=hidden.device), []
        for client in range(len(hidden)):
            for first in range(0, hidden.shape[1], rows):
                part = slice(first, first + rows)
                logits = widened(hidden[client, part] @ weight[client].T)  # [rows, V]
                aim = logits.gather(1, target[client, part, None]).squeeze(1)
                top = logits.amax(1, keepdim=True)
                power = logits.sub_(top).exp_()
                total = power.sum(1, keepdim=True)
                losses[client, part] = (total.log() + top).squeeze(1) - aim
                if want:
                    shares.append(power.div_(total))
        if want:
            ctx.save_for_backward(hidden, weight, target, *shares)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        hidden, weight, target, *shares = ctx.saved_tensors
        to_hidden, to_weight = torch.empty_like(hidden), torch.empty_like(weight)
        for client, share in enumerate(shares):
            each = grad[client][:, None].to(share.dtype)
            slope = (share * each).scatter_add_(1, target[client][:, None], -each).to(hidden.dtype)  # [P, V]
            torch.mm(slope, weight[client], out=to_hidden[client])
            torch.mm(slope.T, hidden[client], out=to_weight[client])
        return to_hidden, to_weight, None


def widened(logits: Tensor) -> Tensor:
    """Logits as float32 where they came in fewer bits: a sum of exponentials over a vocabulary needs them."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def token_losses(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of each position ``[P]`` under a frozen head."""
    return FrozenHead.apply(hidden, weight, target)  # type: ignore[no-any-return]
