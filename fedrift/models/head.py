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


class FrozenHead(torch.autograd.Function):
    """``(hidden [P, H], weight [V, H], target [P]) -> loss [P]`` in nats; gradients reach ``hidden`` only."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        rows = max(64, CHUNK // len(weight))
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


def widened(logits: Tensor) -> Tensor:
    """Logits as float32 where they came in fewer bits: a sum of exponentials over a vocabulary needs them."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def token_losses(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of each position ``[P]`` under a frozen head."""
    return FrozenHead.apply(hidden, weight, target)  # type: ignore[no-any-return]
