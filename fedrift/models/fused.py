"""Linear maps that read the same input, as one product; their adapters beside it as one low-rank product.

A frozen map with adapters gives y = x W' + s (x A') B'. For maps 1, 2, ... of one input, W and A are put one under the
other and B goes into the blocks of a matrix that is zero elsewhere: the input is read once in either direction, and nothing is
computed for W.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ..core.tree import Tree
from .stacked_layers import ActiveParams, PerClientLora


@dataclass(eq=False)
class FusedLinear:
    """Frozen linear maps of one input, some with adapters. The modules' own weights become views of the joint one."""

    modules: Sequence[nn.Module]
    weight: Tensor = field(init=False)  # [O, I]
    bias: Tensor | None = field(init=False)  # [O]
    output_ends: list[int] = field(init=False)  # of each map's outputs

    @staticmethod
    def try_fuse(modules: Sequence[nn.Module]) -> FusedLinear | None:
        """None where one of the maps is of another kind: quantised, trained as a whole, a stranger."""
        bases = [unwrap_adapter(module) for module in modules]
        plain = all(type(base) is nn.Linear and type(base.weight) is nn.Parameter for base in bases)
        alike = plain and len({(base.weight.dtype, base.weight.device, base.bias is None) for base in bases}) == 1
        return FusedLinear(modules) if alike else None

    def __post_init__(self) -> None:
        self.fuse()

    @torch.no_grad()
    def fuse(self) -> None:
        bases: list[Any] = [unwrap_adapter(module) for module in self.modules]
        weights = [base.weight.data for base in bases]
        together = find_joint_weight(weights)  # another network with the same parameters may have joined them
        self.weight = torch.cat(weights) if together is None else together
        self.bias = torch.cat([base.bias for base in bases]) if bases[0].bias is not None else None
        self.output_ends = torch.tensor([base.out_features for base in bases]).cumsum(0).tolist()
        for base, end in zip(bases, self.output_ends, strict=True):
            base.weight.data = self.weight[end - base.out_features : end]

    def ensure_fused(self) -> FusedLinear:
        """Joined again if the network was moved meanwhile."""
        first: Any = unwrap_adapter(self.modules[0])
        if first.weight.data_ptr() != self.weight.data_ptr():
            self.fuse()
        return self

    def make_plan(self, leaves: Tree, dtype: torch.dtype) -> tuple[PassPlan, list[Tensor]] | None:
        """How these maps are worn now, and their adapters (A, B, A, B ...); None where something lies under the adapters."""
        worn = [(number, module) for number, module in enumerate(self.modules) if isinstance(module, PerClientLora) and leaves]
        if any(f"{module.path}.base" in leaves for _, module in worn):
            return None
        spans = [((self.output_ends[number - 1] if number else 0), self.output_ends[number]) for number, _ in worn]
        factors = [leaves[f"{module.path}.{name}"].to(dtype) for _, module in worn for name in "AB"]
        return PassPlan(self.weight, self.bias, spans, worn[0][1].scale if worn else 1.0), factors


@dataclass(frozen=True, eq=False)
class PassPlan:
    """One pass of joined maps: ``spans`` are the outputs of those with adapters. ``ctx`` keeps what the way back needs."""

    weight: Tensor
    bias: Tensor | None
    spans: list[tuple[int, int]]
    scale: float

    def forward(self, ctx: Any, x: Tensor, factors: Sequence[Tensor]) -> Tensor:
        """``x [C*B, T, I] -> y [C*B, T, O]``; factors ``A [C, R, I]``, ``B [C, O_i, R]`` in turn."""
        rows = x.reshape(-1, x.shape[-1])
        y = rows @ self.weight.T if self.bias is None else torch.addmm(self.bias, rows, self.weight.T)
        ctx.plan, kept = self, [x]
        if factors:
            down, up = torch.cat(list(factors[::2]), 1), self.block_diagonal(factors[1::2])  # [C, nR, I], [C, O, nR]
            rows = rows.view(len(down), -1, x.shape[-1])
            low = torch.bmm(rows, down.mT)  # [C, B*T, nR]
            y.view(len(down), -1, y.shape[-1]).baddbmm_(low, up.mT, alpha=self.scale)
            kept = [x, low, down, up]
        ctx.kept = kept
        return y.view(*x.shape[:-1], -1)

    def block_diagonal(self, up_factors: Sequence[Tensor]) -> Tensor:
        """B of every map in its block, ``[C, O, nR]``."""
        rank = up_factors[0].shape[2]
        whole = up_factors[0].new_zeros(len(up_factors[0]), len(self.weight), rank * len(up_factors))
        for number, ((first, last), up) in enumerate(zip(self.spans, up_factors, strict=True)):
            whole[:, first:last, number * rank : (number + 1) * rank] = up
        return whole

    def backward(self, saved: Sequence[Tensor], grad_output: Tensor, needs_input_grad: bool) -> tuple[Tensor | None, list[Tensor]]:
        """Gradients on x and on the factors, from ``grad_output [C*B, T, O]``."""
        x = saved[0]
        rows = grad_output.reshape(-1, grad_output.shape[-1])
        dx = rows @ self.weight if needs_input_grad else None
        found: list[Tensor] = []
        if len(saved) > 1:
            _, low, down, up = saved
            count, rank = len(down), down.shape[1] // len(self.spans)
            each = rows.view(count, -1, rows.shape[1])
            inner = torch.bmm(each, up).mul_(self.scale)  # [C, B*T, nR]
            if dx is not None:
                dx.view(count, -1, dx.shape[1]).baddbmm_(inner, down)
            ddown = torch.bmm(inner.mT, x.reshape(count, -1, x.shape[-1]))  # [C, nR, I]
            dup = torch.bmm(each.mT, low).mul_(self.scale)  # [C, O, nR]
            for number, (first, last) in enumerate(self.spans):
                part = slice(number * rank, (number + 1) * rank)
                found += [ddown[:, part].contiguous(), dup[:, first:last, part].contiguous()]
        return None if dx is None else dx.view(x.shape), found


def find_joint_weight(weights: Sequence[Tensor]) -> Tensor | None:
    """The matrix of which these ``[O_i, I]`` are the rows, one after the other; None where they lie elsewhere."""
    first, end = weights[0], weights[0].data_ptr()
    for weight in weights:
        if (
            not weight.is_contiguous()
            or weight.data_ptr() != end
            or weight.untyped_storage().data_ptr() != first.untyped_storage().data_ptr()
        ):
            return None
        end += weight.nbytes
    return first.as_strided((sum(map(len, weights)), first.shape[1]), first.stride())


def unwrap_adapter(module: nn.Module) -> Any:
    """The frozen map under a module's adapters, or the module."""
    return module.base if isinstance(module, PerClientLora) else module


# The blocks of Llama-like and GPT-2 networks with fewer passes over memory; what they compute is what transformers computes.
#
# Frozen matrix products are a block's real work; the rest of its time goes into reading and writing what lies between them.
# Here maps that read the same input are one product (``FusedLinear``); rotation, gate and norm are written together with their
# gradients, in place where they can be. Modules keep their names, places and plain forward passes: what these do not cover (a
# cache of keys, the weights of attention, a base merged under the adapters) goes the plain way.

FUSED_ATTENTION = {"LlamaAttention": ("q_proj", "k_proj", "v_proj"), "Qwen2Attention": ("q_proj", "k_proj", "v_proj")}
FUSED_MLP = {"LlamaMLP": ("gate_proj", "up_proj"), "Qwen2MLP": ("gate_proj", "up_proj")}
FUSED_NORM = {"LlamaRMSNorm", "Qwen2RMSNorm"}


def fuse_blocks(network: nn.Module, active_params: ActiveParams) -> None:
    """Give the modules of a network that are known here their fused forward passes."""
    for module in list(network.modules()):
        kind, own = type(module).__name__, vars(module)["_modules"]
        if kind in FUSED_NORM:
            set_forward(module, norm_forward)
        elif kind in FUSED_ATTENTION and getattr(module, "sliding_window", None) is None:
            fuse_maps(module, [own[name] for name in FUSED_ATTENTION[kind]], active_params, attention_forward)
        elif kind in FUSED_MLP and type(own["act_fn"]).__name__ in ("SiLU", "SiLUActivation"):
            fuse_maps(module, [own[name] for name in FUSED_MLP[kind]], active_params, mlp_forward)
        elif kind == "GPT2MLP" and type(own["act"]).__name__ == "NewGELUActivation":
            module.act = nn.GELU(approximate="tanh")  # the same formula; one kernel, not eight


def fuse_maps(module: nn.Module, maps: list[nn.Module], active_params: ActiveParams, forward: Any) -> None:
    joined = FusedLinear.try_fuse(maps)
    if joined is not None:
        vars(module)["fused"] = joined, active_params
        set_forward(module, forward)


def set_forward(module: nn.Module, forward: Any) -> None:
    vars(module)["forward"] = MethodType(forward, module)


def original_forward(module: Any, *args: Any, **more: Any) -> Any:
    """What transformers does."""
    return type(module).forward(module, *args, **more)


def norm_forward(self: Any, x: Tensor) -> Any:
    if x.dtype not in (torch.float32, torch.float64):
        return original_forward(self, x)
    return FusedRMSNorm.apply(x, self.weight, self.variance_epsilon)


def attention_forward(
    self: Any,
    hidden_states: Tensor,
    position_embeddings: Any = None,
    attention_mask: Tensor | None = None,
    past_key_values: Any = None,
    **more: Any,
) -> Any:
    joined, outfit = self.fused
    way = joined.ensure_fused().make_plan(outfit.leaves, hidden_states.dtype)
    if way is None or past_key_values is not None or self.config._attn_implementation != "sdpa":
        return original_forward(
            self,
            hidden_states,
            position_embeddings=position_embeddings,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            **more,
        )
    cos, sin = position_embeddings
    query, key, value = FusedQKVRope.apply(hidden_states, cos, sin, self.head_dim, joined.output_ends, way[0], *way[1])
    mixed, _ = sdpa_attention_forward(self, query, key, value, attention_mask, scaling=self.scaling)
    return self.o_proj(mixed.reshape(*hidden_states.shape[:-1], -1)), None


def mlp_forward(self: Any, x: Tensor) -> Any:
    joined, outfit = self.fused
    way = joined.ensure_fused().make_plan(outfit.leaves, x.dtype)
    return original_forward(self, x) if way is None else self.down_proj(FusedSwiGLU.apply(x, way[0], *way[1]))


class FusedRMSNorm(torch.autograd.Function):
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


class FusedQKVRope(torch.autograd.Function):
    """Queries and keys turned by their positions, and values, ``[C*B, heads, T, D]`` each, of ``x [C*B, T, I]``."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, width: int, ends: list[int], plan: Any, *factors: Tensor
    ) -> tuple[Tensor, ...]:
        y = plan.forward(ctx, x, factors).unflatten(-1, (-1, width))  # [C*B, T, heads, D]
        half = width // 2
        turn = cos[..., None, :half], sin[..., None, :half]  # [1, T, 1, D/2]: both halves turn alike
        first, second = y[:, :, : ends[1] // width].split(half, -1)
        before = first.clone()
        first.mul_(turn[0]).addcmul_(second, turn[1], value=-1)
        second.mul_(turn[0]).addcmul_(before, turn[1])
        ctx.turn, ctx.width, ctx.heads = turn, width, [end // width for end in ends]
        save_context(ctx)
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
        slope[:, :, ctx.heads[1] :] = grads[2].transpose(1, 2)
        dx, found = ctx.plan.backward(ctx.saved_tensors, slope.flatten(2), ctx.needs_input_grad[0])
        return dx, None, None, None, None, None, *found


class FusedSwiGLU(torch.autograd.Function):
    """``x [C*B, T, I] -> silu(gate x) * (up x) [C*B, T, O]``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, plan: Any, *factors: Tensor) -> Tensor:
        y = plan.forward(ctx, x, factors)
        gate, up = y.chunk(2, -1)
        ease = F.silu(gate)
        out = ease * up
        save_context(ctx, y, ease)
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


def save_context(ctx: Any, *more: Tensor) -> None:
    """Save what the plan and its user need, if there is a way back."""
    if any(ctx.needs_input_grad):
        ctx.save_for_backward(*ctx.kept, *more)
    del ctx.kept
