"""Compute the loss of every predicted position without storing all logits at once.

The logits (4,096 to 150,000 per position) are the largest tensor in a training step of a small model. They are computed in
chunks. Each chunk is immediately reduced to the loss and, if the head is frozen, to the gradient with respect to the hidden
states: d loss / d h = softmax(h W^T) W - W[target].

Some architectures add a bias, scale the logits or apply a soft cap: logits = cap tanh(scale (h W^T + b) / cap).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LOGITS_PER_CHUNK = 1 << 22  # 16 MiB in float32
MIN_ROWS_PER_CHUNK = 256  # each chunk reads the head from memory twice, so that very small chunks would be slow
SMALLEST_PROBABILITY = torch.finfo(torch.bfloat16).tiny  # smaller ones have fewer digits in bfloat16, or are 0
MIN_ROWS_BFLOAT16 = 512  # the same in bfloat16, where the products are faster and the memory is not


@dataclass(frozen=True)
class LogitTransform:
    """The transform that an architecture applies to h W^T + b: a factor, then an optional soft cap."""

    scale: float = 1.0  # the factor
    cap: float | None = None  # the bound of the soft cap cap tanh(x / cap), or None

    def __call__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Compute logits [P, V] in at least float32.

        Args:
            hidden: Hidden states, [P, H].
            weight: The matrix of the head, [V, H].
            bias: The bias of the head, [V], or None.
        """
        logits = to_float32(self.scaled_products(hidden, weight, bias))
        return logits if self.cap is None else logits.div_(self.cap).tanh_().mul_(self.cap)

    def scaled_products(self, hidden: Tensor, weight: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """Compute logits [P, V] before the soft cap, in the dtype of the hidden states; ``out`` receives them if it is given."""
        logits = torch.mm(hidden, weight.T, out=out)
        if bias is not None:
            logits += bias
        if self.scale != 1:
            logits *= self.scale
        return logits

    def cap_derivative(self, logits: Tensor) -> Tensor | None:
        """Return the derivative of the soft cap, [P, V], or None if there is no cap."""
        return None if self.cap is None else 1 - (logits / self.cap).square_()


class FrozenHeadLoss(torch.autograd.Function):
    """The loss [P] in nats of a frozen head; only ``hidden`` gets a gradient.

    The inputs are ``hidden [P, H], weight [V, H], target [P], bias [V]`` and the `LogitTransform`.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, to_logits: LogitTransform) -> Tensor:
        """Compute the losses and, if needed, the gradients with respect to ``hidden``, chunk by chunk."""
        needs_grad = ctx.needs_input_grad[0]
        if needs_grad and to_logits.cap is None and hidden.dtype == torch.bfloat16 and hidden.device.type == "cpu":
            loss, grad = bfloat16_losses(hidden, weight, target, bias, to_logits)
            ctx.save_for_backward(grad)
            return loss
        rows = max(MIN_ROWS_PER_CHUNK, LOGITS_PER_CHUNK // len(weight))
        losses, grads = [], []
        for chunk, chunk_targets in zip(hidden.split(rows), target.split(rows), strict=True):
            logits = to_logits(chunk, weight, bias)  # [rows, V]
            cap_grad = to_logits.cap_derivative(logits) if needs_grad else None
            target_logits = logits.gather(1, chunk_targets[:, None]).squeeze(1)
            max_logits = logits.amax(1, keepdim=True)
            exp_logits = logits.sub_(max_logits).exp_()
            total = exp_logits.sum(1)
            losses.append(total.log() + max_logits.squeeze(1) - target_logits)
            if cap_grad is not None:
                probs = exp_logits.div_(total[:, None]).scatter_add_(1, chunk_targets[:, None], -exp_logits.new_ones(len(chunk_targets), 1))
                grads.append(probs.mul_(cap_grad).to(weight.dtype) @ weight)
            elif needs_grad:
                grads.append((exp_logits.to(weight.dtype) @ weight).div_(total[:, None]).sub_(weight[chunk_targets]))
            if needs_grad and to_logits.scale != 1:
                grads[-1] *= to_logits.scale
        if needs_grad:
            ctx.save_for_backward(torch.cat(grads))
        return torch.cat(losses) if losses else hidden.new_zeros(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:  # type: ignore[override]
        """Scale the stored gradients by the gradients of the losses."""
        (hidden_grad,) = ctx.saved_tensors
        return hidden_grad * grad[:, None].to(hidden_grad.dtype), None, None, None, None


def bfloat16_losses(
    hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, to_logits: LogitTransform
) -> tuple[Tensor, Tensor]:
    """Compute losses and gradients for training in bfloat16 on the CPU, where one softmax replaces five passes over the logits.

    The softmax sums in float32 and rounds its results to bfloat16, as the product that reads them would. A loss, which is the logarithm
    of such a result, is therefore exact to 0.004 nats, without bias; the rounding of the logits, which all of bfloat16 has, changes it as
    much or more. All chunks use the same two buffers, because fresh memory costs as much time as a product does.

    Args:
        hidden: Hidden states, [P, H].
        weight: The matrix of the head, [V, H].
        target: The correct token ids, [P].
        bias: The bias of the head, [V], or None.
        to_logits: The transform of the architecture, without a soft cap.

    Returns:
        The losses in float32, [P], and the gradients with respect to ``hidden``, [P, H].
    """
    rows = max(MIN_ROWS_BFLOAT16, LOGITS_PER_CHUNK // len(weight))
    losses, grads = torch.empty(len(hidden)), torch.empty_like(hidden)
    logits_buffer, probs_buffer = hidden.new_empty(2, min(rows, len(hidden)), len(weight))
    for start in range(0, len(hidden), rows):
        chunk = slice(start, start + rows)
        size, targets = len(hidden[chunk]), target[chunk, None]
        logits = to_logits.scaled_products(hidden[chunk], weight, bias, out=logits_buffer[:size])
        probs = torch.softmax(logits, 1, out=probs_buffer[:size])
        target_probs = probs.gather(1, targets).squeeze(1).float()
        losses[chunk] = -target_probs.log()
        if (vanished := target_probs < SMALLEST_PROBABILITY).any():
            exact = torch.logsumexp(logits[vanished].float(), 1) - logits.gather(1, targets)[vanished].squeeze(1).float()
            losses[chunk][vanished] = exact
        torch.mm(probs, weight, out=grads[chunk]).sub_(weight[target[chunk]])
    return losses, grads if to_logits.scale == 1 else grads.mul_(to_logits.scale)


class PerClientHeadLoss(torch.autograd.Function):
    """The losses [C, P] in nats of one head per client; all inputs but the target get gradients.

    The inputs are ``hidden [C, P, H], weight [C, V, H], target [C, P], bias [C, V]`` and the `LogitTransform`. For the backward
    pass, one set of probabilities is stored. If no gradient is needed, logits are computed in chunks and nothing is stored.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, to_logits: LogitTransform) -> Tensor:
        """Compute the losses and store the probabilities for the backward pass."""
        needs_grad = any(ctx.needs_input_grad)
        rows = hidden.shape[1] if needs_grad else max(MIN_ROWS_PER_CHUNK, LOGITS_PER_CHUNK // weight.shape[1])
        losses = torch.empty(target.shape, dtype=to_float32(hidden[:0]).dtype, device=hidden.device)
        probs, cap_grads = list[Tensor](), list[Tensor]()
        for client in range(len(hidden)):
            for start in range(0, hidden.shape[1], rows):
                chunk = slice(start, start + rows)
                logits = to_logits(hidden[client, chunk], weight[client], None if bias is None else bias[client])  # [rows, V]
                cap_grad = to_logits.cap_derivative(logits) if needs_grad else None
                cap_grads += [] if cap_grad is None else [cap_grad]
                target_logits = logits.gather(1, target[client, chunk, None]).squeeze(1)
                max_logits = logits.amax(1, keepdim=True)
                exp_logits = logits.sub_(max_logits).exp_()
                total = exp_logits.sum(1, keepdim=True)
                losses[client, chunk] = (total.log() + max_logits).squeeze(1) - target_logits
                if needs_grad:
                    probs.append(exp_logits.div_(total))
        if needs_grad:
            ctx.to_logits = to_logits
            ctx.save_for_backward(hidden, weight, target, bias, *probs, *cap_grads)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, Tensor | None, None]:  # type: ignore[override]
        """Compute the gradients with respect to hidden states, weights and biases."""
        hidden, weight, target, bias, *stored = ctx.saved_tensors
        hidden_grad, weight_grad = torch.empty_like(hidden), torch.empty_like(weight)
        bias_grad = None if bias is None else torch.empty_like(bias)
        for client, probs in enumerate(stored[: len(hidden)]):
            loss_grad = grad[client][:, None].to(probs.dtype)
            logit_grad = (probs * loss_grad).scatter_add_(1, target[client][:, None], -loss_grad)  # [P, V]
            if ctx.to_logits.cap is not None:
                logit_grad *= stored[len(hidden) + client]
            if ctx.to_logits.scale != 1:
                logit_grad *= ctx.to_logits.scale
            logit_grad = logit_grad.to(hidden.dtype)
            torch.mm(logit_grad, weight[client], out=hidden_grad[client])
            torch.mm(logit_grad.T, hidden[client], out=weight_grad[client])
            if bias_grad is not None:
                bias_grad[client] = logit_grad.sum(0)
        return hidden_grad, weight_grad, None, bias_grad, None


def to_float32(logits: Tensor) -> Tensor:
    """Convert bfloat16 and float16 logits to float32, which a sum of exponentials over a vocabulary needs."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def frozen_head_losses(
    hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None, to_logits: LogitTransform = LogitTransform()
) -> Tensor:
    """Compute the cross-entropy of each position under a frozen head, [P] in nats.

    Args:
        hidden: Hidden states, [P, H].
        weight: The matrix of the head, [V, H].
        target: The correct token ids, [P].
        bias: The bias of the head, [V], or None.
        to_logits: The transform of the architecture.
    """
    return FrozenHeadLoss.apply(hidden, weight, target, bias, to_logits)  # type: ignore[no-any-return]
