"""The blocks of Llama-like and GPT-2 networks with fewer passes over memory; what they compute is what transformers computes.

Frozen matrix products are a block's real work; the rest of its time goes into reading and writing what lies between them.
Here maps that read the same input are one product (``joined``); rotation, gate and norm are written together with their
gradients, in place where they can be. Modules keep their names, places and plain forward passes: what these do not cover (a
cache of keys, the weights of attention, a base merged under the adapters) goes the plain way.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from .joined import Joined
from .worn import Outfit

ATTENTION = {"LlamaAttention": ("q_proj", "k_proj", "v_proj"), "Qwen2Attention": ("q_proj", "k_proj", "v_proj")}
GATED = {"LlamaMLP": ("gate_proj", "up_proj"), "Qwen2MLP": ("gate_proj", "up_proj")}
NORM = {"LlamaRMSNorm", "Qwen2RMSNorm"}


def lighten(network: nn.Module, outfit: Outfit) -> None:
    """Give the modules of a network that are known here their lean forward passes."""
    for module in list(network.modules()):
        kind, own = type(module).__name__, vars(module)["_modules"]
        if kind in NORM:
            set_forward(module, norm)
        elif kind in ATTENTION and getattr(module, "sliding_window", None) is None:
            join(module, [own[name] for name in ATTENTION[kind]], outfit, attention)
        elif kind in GATED and type(own["act_fn"]).__name__ in ("SiLU", "SiLUActivation"):
            join(module, [own[name] for name in GATED[kind]], outfit, gated)
        elif kind == "GPT2MLP" and type(own["act"]).__name__ == "NewGELUActivation":
            module.act = nn.GELU(approximate="tanh")  # the same formula; one kernel, not eight


def join(module: nn.Module, maps: list[nn.Module], outfit: Outfit, forward: Any) -> None:
    joined = Joined.of(maps)
    if joined is not None:
        vars(module)["lean"] = joined, outfit
        set_forward(module, forward)


def set_forward(module: nn.Module, forward: Any) -> None:
    vars(module)["forward"] = MethodType(forward, module)


def plain(module: Any, *args: Any, **more: Any) -> Any:
    """What transformers does."""
    return type(module).forward(module, *args, **more)


def norm(self: Any, x: Tensor) -> Any:
    return Rms.apply(x, self.weight, self.variance_epsilon) if x.dtype in (torch.float32, torch.float64) else plain(self, x)


def attention(self: Any, hidden_states: Tensor, position_embeddings: Any = None, attention_mask: Tensor | None = None,
              past_key_values: Any = None, **more: Any) -> Any:
    joined, outfit = self.lean
    way = joined.fresh().plan(outfit.leaves, hidden_states.dtype)
    if way is None or past_key_values is not None or self.config._attn_implementation != "sdpa":
        return plain(self, hidden_states, position_embeddings=position_embeddings, attention_mask=attention_mask,
                     past_key_values=past_key_values, **more)
    cos, sin = position_embeddings
    query, key, value = Rotated.apply(hidden_states, cos, sin, self.head_dim, joined.ends, way[0], *way[1])
    mixed, _ = sdpa_attention_forward(self, query, key, value, attention_mask, scaling=self.scaling)
    return self.o_proj(mixed.reshape(*hidden_states.shape[:-1], -1)), None


def gated(self: Any, x: Tensor) -> Any:
    joined, outfit = self.lean
    way = joined.fresh().plan(outfit.leaves, x.dtype)
    return plain(self, x) if way is None else self.down_proj(Gate.apply(x, way[0], *way[1]))


class Rms(torch.autograd.Function):
    """``x [..., H], weight [H], eps -> x / rms(x) * weight``; gradients reach x only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        rate = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(x, weight, rate)
        return torch.mul(x, rate).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        x, weight, rate = ctx.saved_tensors
        slope = grad * weight
        along = (slope * x).sum(-1, keepdim=True).mul_(rate.pow(3)).div_(-x.shape[-1])
        return slope.mul_(rate).addcmul_(x, along), None, None


class Rotated(torch.autograd.Function):
    """Queries and keys turned by their positions, and values, ``[C*B, heads, T, D]`` each, of ``x [C*B, T, I]``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, width: int, ends: list[int], plan: Any,
                *factors: Tensor) -> tuple[Tensor, ...]:
        y = plan.forward(ctx, x, factors).unflatten(-1, (-1, width))  # [C*B, T, heads, D]
        half = width // 2
        turn = cos[..., None, :half], sin[..., None, :half]  # [1, T, 1, D/2]: both halves turn alike
        first, second = y[:, :, :ends[1] // width].split(half, -1)
        before = first.clone()
        first.mul_(turn[0]).addcmul_(second, turn[1], value=-1)
        second.mul_(turn[0]).addcmul_(before, turn[1])
        ctx.turn, ctx.width, ctx.heads = turn, width, [end // width for end in ends]
        remember(ctx)
        return tuple(part.transpose(1, 2) for part in y.tensor_split(ctx.heads[:-1], 2))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        (cos, sin), half = ctx.turn, ctx.width // 2
        like = grads[0]
        slope = like.new_empty(len(like), like.shape[2], ctx.heads[-1], ctx.width)
        for part, grad in zip(slope.tensor_split(ctx.heads[:-1], 2)[:2], grads[:2], strict=True):
            one, two = grad.transpose(1, 2).split(half, -1)
            torch.mul(one, cos, out=part[..., :half]).addcmul_(two, sin)
            torch.mul(two, cos, out=part[..., half:]).addcmul_(one, sin, value=-1)
        slope[:, :, ctx.heads[1]:] = grads[2].transpose(1, 2)
        dx, found = ctx.plan.backward(ctx.saved_tensors, slope.flatten(2), ctx.needs_input_grad[0])
        return dx, None, None, None, None, None, *found


class Gate(torch.autograd.Function):
    """``x [C*B, T, I] -> silu(gate x) * (up x) [C*B, T, O]``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, plan: Any, *factors: Tensor) -> Tensor:
        y = plan.forward(ctx, x, factors)
        gate, up = y.chunk(2, -1)
        ease = F.silu(gate)
        out = ease * up
        remember(ctx, y, ease)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        *kept, y, ease = ctx.saved_tensors
        gate, up = y.chunk(2, -1)
        slope = torch.empty_like(y)
        to_gate, to_up = slope.chunk(2, -1)
        torch.mul(grad, ease, out=to_up)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=to_gate)
        dx, found = ctx.plan.backward(kept, slope, ctx.needs_input_grad[0])
        return dx, None, *found


def remember(ctx: Any, *more: Tensor) -> None:
    """Save what the plan and its user need, if there is a way back."""
    if any(ctx.needs_input_grad):
        ctx.save_for_backward(*ctx.kept, *more)
    del ctx.kept
