"""Fuse linear maps that read the same input, and use faster implementations of known transformer blocks.

A frozen map with an adapter computes y = x W' + s (x A') B'. For several maps of one input, the matrices W and A are
concatenated along their outputs, and the matrices B form a block-diagonal matrix. The input is then read only once in the
forward pass and once in the backward pass, and no gradient is computed for W.

Frozen matrix products dominate the arithmetic of a block; the remaining time is spent on reading and writing intermediate
results. Rotary embedding, gate and norm are therefore written together with their gradients, and in place if possible. The
results equal those of transformers. Modules keep their names, positions and original forward methods. The original methods
handle all unsupported cases: a key-value cache, requested attention weights, and matrices merged below adapters.

In bfloat16 on the CPU, two further parts are replaced. The norm of transformers converts its whole input to float32; here only
its sums are float32. The backward pass of torch's fused attention takes 5 to 7 times as long in bfloat16 as in float32. On
processors with bfloat16 products, short sequences that need gradients therefore use a masked softmax between two products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..core.lazy_imports import quiet_imports

with quiet_imports():
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from ..core.tree import Tree
from .stacked_layers import ActiveParams, PerClientLora, PerClientNorm


@dataclass(eq=False)
class FusedLinear:
    """Frozen linear maps of one input, some with adapters; their weights become views of one joint matrix."""

    modules: Sequence[nn.Module]  # the maps
    weight: Tensor = field(init=False)  # the joint matrix, [O, I]
    bias: Tensor | None = field(init=False)  # the joint bias, [O], or None
    output_ends: list[int] = field(init=False)  # the end of each map's outputs within O

    @staticmethod
    def try_fuse(modules: Sequence[nn.Module]) -> FusedLinear | None:
        """Fuse the maps; return None if one is quantized, fully trained or of an unknown type."""
        bases = [unwrap_adapter(module) for module in modules]
        all_linear = all(type(base) is nn.Linear and type(base.weight) is nn.Parameter for base in bases)
        can_fuse = all_linear and len({(base.weight.dtype, base.weight.device, base.bias is None) for base in bases}) == 1
        return FusedLinear(modules) if can_fuse else None

    def __post_init__(self) -> None:
        self.fuse()

    @torch.no_grad()
    def fuse(self) -> None:
        """Concatenate the weights and make those of the modules views of the joint matrix."""
        bases: list[Any] = [unwrap_adapter(module) for module in self.modules]
        weights = [base.weight.data for base in bases]
        joint_weight = find_joint_weight(weights)  # another network that shares the parameters may have fused them already
        self.weight = torch.cat(weights) if joint_weight is None else joint_weight
        self.bias = torch.cat([base.bias for base in bases]) if bases[0].bias is not None else None
        self.output_ends = torch.tensor([base.out_features for base in bases]).cumsum(0).tolist()
        for base, end in zip(bases, self.output_ends, strict=True):
            base.weight.data = self.weight[end - base.out_features : end]

    def ensure_fused(self) -> FusedLinear:
        """Fuse the maps again if the network has been moved to another device or dtype."""
        first: Any = unwrap_adapter(self.modules[0])
        if first.weight.data_ptr() != self.weight.data_ptr():
            self.fuse()
        return self

    def make_plan(self, leaves: Tree, dtype: torch.dtype) -> tuple[PassPlan, list[Tensor]] | None:
        """Plan a pass with the current adapters.

        Args:
            leaves: The active weights; each leaf is [C, ...].
            dtype: The dtype of the pass.

        Returns:
            The plan and the adapter matrices (A, B, A, B, ...), or None if a matrix is merged below an adapter.
        """
        adapted = [(number, module) for number, module in enumerate(self.modules) if isinstance(module, PerClientLora) and leaves]
        if any(f"{module.path}.base" in leaves for _, module in adapted):
            return None
        spans = [((self.output_ends[number - 1] if number else 0), self.output_ends[number]) for number, _ in adapted]
        factors = [leaves[f"{module.path}.{name}"].to(dtype) for _, module in adapted for name in "AB"]
        return PassPlan(self.weight, self.bias, spans, adapted[0][1].scale if adapted else 1.0), factors


@dataclass(frozen=True, eq=False)
class PassPlan:
    """One pass through fused maps; ``ctx`` stores what the backward pass needs."""

    weight: Tensor  # the joint matrix, [O, I]
    bias: Tensor | None  # the joint bias, [O], or None
    spans: list[tuple[int, int]]  # the output ranges of the maps with adapters
    scale: float  # the factor of the adapters

    def forward(self, ctx: Any, x: Tensor, factors: Sequence[Tensor]) -> Tensor:
        """Compute the outputs of all maps.

        Args:
            ctx: The context of the autograd function; ``ctx.saved`` receives the tensors for the backward pass.
            x: The input, [C*B, T, I].
            factors: The adapter matrices A [C, R, I] and B [C, O_i, R] in turn.

        Returns:
            The outputs, [C*B, T, O].
        """
        rows = x.reshape(-1, x.shape[-1])
        y = rows @ self.weight.T if self.bias is None else torch.addmm(self.bias, rows, self.weight.T)
        ctx.plan, saved = self, [x]
        if factors:
            down, up = torch.cat(list(factors[::2]), 1), self.block_diagonal(factors[1::2])  # [C, nR, I], [C, O, nR]
            rows = rows.view(len(down), -1, x.shape[-1])
            low = torch.bmm(rows, down.mT)  # [C, B*T, nR]
            y.view(len(down), -1, y.shape[-1]).baddbmm_(low, up.mT, alpha=self.scale)
            saved = [x, low, down, up]
        ctx.saved = saved
        return y.view(*x.shape[:-1], -1)

    def block_diagonal(self, up_factors: Sequence[Tensor]) -> Tensor:
        """Arrange the matrices B of all maps in a block-diagonal matrix, [C, O, nR]."""
        rank = up_factors[0].shape[2]
        matrix = up_factors[0].new_zeros(len(up_factors[0]), len(self.weight), rank * len(up_factors))
        for number, ((start, stop), up) in enumerate(zip(self.spans, up_factors, strict=True)):
            matrix[:, start:stop, number * rank : (number + 1) * rank] = up
        return matrix

    def backward(self, saved: Sequence[Tensor], grad_output: Tensor, needs_input_grad: bool) -> tuple[Tensor | None, list[Tensor]]:
        """Compute the gradients of the input and of the adapter matrices.

        Args:
            saved: The tensors of the forward pass.
            grad_output: The gradient of the outputs, [C*B, T, O].
            needs_input_grad: Whether the gradient of the input is needed.

        Returns:
            The gradient of the input [C*B, T, I] or None, and the gradients of A and B in turn.
        """
        x = saved[0]
        rows = grad_output.reshape(-1, grad_output.shape[-1])
        input_grad = rows @ self.weight if needs_input_grad else None
        factor_grads: list[Tensor] = []
        if len(saved) > 1:
            _, low, down, up = saved
            count, rank = len(down), down.shape[1] // len(self.spans)
            client_rows = rows.view(count, -1, rows.shape[1])
            low_grad = torch.bmm(client_rows, up).mul_(self.scale)  # [C, B*T, nR]
            if input_grad is not None:
                input_grad.view(count, -1, input_grad.shape[1]).baddbmm_(low_grad, down)
            down_grad = torch.bmm(low_grad.mT, x.reshape(count, -1, x.shape[-1]))  # [C, nR, I]
            up_grad = torch.bmm(client_rows.mT, low).mul_(self.scale)  # [C, O, nR]
            for number, (start, stop) in enumerate(self.spans):
                part = slice(number * rank, (number + 1) * rank)
                factor_grads += [down_grad[:, part].contiguous(), up_grad[:, start:stop, part].contiguous()]
        return None if input_grad is None else input_grad.view(x.shape), factor_grads


def find_joint_weight(weights: Sequence[Tensor]) -> Tensor | None:
    """Return the matrix whose consecutive rows the weights [O_i, I] are, or None if they are not adjacent in memory."""
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
    """Return the frozen map below an adapter, or the module itself if it has no adapter."""
    return module.base if isinstance(module, PerClientLora) else module


MAX_SHORT_LENGTH = 256  # tokens; `ShortAttention` stores one weight per pair of tokens, whose number grows with the square

# The module types with a fused forward pass, and the maps that read the same input in each of them.
FUSED_ATTENTION = {"LlamaAttention": ("q_proj", "k_proj", "v_proj"), "Qwen2Attention": ("q_proj", "k_proj", "v_proj")}
FUSED_MLP = {"LlamaMLP": ("gate_proj", "up_proj"), "Qwen2MLP": ("gate_proj", "up_proj")}
FUSED_NORM = {"LlamaRMSNorm", "Qwen2RMSNorm"}


def fuse_blocks(network: nn.Module, active_params: ActiveParams) -> None:
    """Replace the forward methods of the known modules of a network by fused ones."""
    for module in list(network.modules()):
        type_name, children = type(module).__name__, vars(module)["_modules"]
        if type_name in FUSED_NORM:
            set_forward(module, norm_forward)
        elif isinstance(module, PerClientNorm) and type(module.base).__name__ in FUSED_NORM:
            vars(module)["normalize"] = MethodType(normalize_rows, module)
        elif type_name in FUSED_ATTENTION and getattr(module, "sliding_window", None) is None:
            maps = [children[name] for name in FUSED_ATTENTION[type_name]]
            if not fuse_maps(module, maps, active_params, attention_forward):
                set_forward(module, unfused_attention_forward)
        elif type_name in FUSED_MLP and type(children["act_fn"]).__name__ in ("SiLU", "SiLUActivation"):
            fuse_maps(module, [children[name] for name in FUSED_MLP[type_name]], active_params, mlp_forward)
        elif type_name == "GPT2Attention":
            set_forward(module, gpt2_attention_forward)
        elif type_name == "GPT2MLP" and type(children["act"]).__name__ == "NewGELUActivation":
            module.act = nn.GELU(approximate="tanh")  # the same formula; one kernel, not eight


def fuse_maps(module: nn.Module, maps: list[nn.Module], active_params: ActiveParams, forward: Any) -> bool:
    """Fuse the maps of a module if possible, and set its forward method; return whether they were fused."""
    fused = FusedLinear.try_fuse(maps)
    if fused is not None:
        vars(module)["fused"] = fused, active_params
        set_forward(module, forward)
    return fused is not None


def set_forward(module: nn.Module, forward: Any) -> None:
    """Replace the forward method of one module."""
    vars(module)["forward"] = MethodType(forward, module)


def original_forward(module: Any, *args: Any, **kwargs: Any) -> Any:
    """Run the forward method of transformers."""
    return type(module).forward(module, *args, **kwargs)


def is_cpu_bfloat16(x: Tensor) -> bool:
    """Return whether a tensor has the dtype bfloat16 and is on the CPU."""
    return x.dtype == torch.bfloat16 and x.device.type == "cpu"


def norm_forward(self: Any, x: Tensor) -> Any:
    """Apply the fused RMSNorm in float32, float64 and on the CPU in bfloat16, and the original one otherwise."""
    if x.dtype not in (torch.float32, torch.float64) and not is_cpu_bfloat16(x):
        return original_forward(self, x)
    return FusedRMSNorm.apply(x, self.weight, self.variance_epsilon)


def normalize_rows(self: Any, x: Tensor) -> Tensor:
    """Apply the fused RMSNorm without scale in a norm whose scale each client trains, on the CPU in bfloat16."""
    if not is_cpu_bfloat16(x):
        return PerClientNorm.normalize(self, x)
    return FusedRMSNorm.apply(x, torch.ones_like(self.base.weight), self.eps)  # type: ignore[no-any-return]


def attention_forward(
    self: Any,
    hidden_states: Tensor,
    position_embeddings: Any = None,
    attention_mask: Tensor | None = None,
    past_key_values: Any = None,
    **kwargs: Any,
) -> Any:
    """Apply attention with fused maps, or with separate maps in unsupported cases; the signature is that of transformers."""
    fused, active_params = self.fused
    plan = fused.ensure_fused().make_plan(active_params.leaves, hidden_states.dtype)
    if plan is None or past_key_values is not None or self.config._attn_implementation != "sdpa":
        return unfused_attention_forward(
            self,
            hidden_states,
            position_embeddings=position_embeddings,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            **kwargs,
        )
    cos, sin = position_embeddings
    query, key, value = FusedQKVRope.apply(hidden_states, cos, sin, self.head_dim, fused.output_ends, plan[0], *plan[1])
    mixed = mix_values(self, query, key, value, attention_mask)
    return self.o_proj(mixed.reshape(*hidden_states.shape[:-1], -1)), None


def unfused_attention_forward(
    self: Any,
    hidden_states: Tensor,
    position_embeddings: Any = None,
    attention_mask: Tensor | None = None,
    past_key_values: Any = None,
    **kwargs: Any,
) -> Any:
    """Apply attention with separate maps in bfloat16 on the CPU, or the original one otherwise; the signature is that of transformers."""
    if past_key_values is not None or self.config._attn_implementation != "sdpa" or not is_cpu_bfloat16(hidden_states):
        return original_forward(
            self,
            hidden_states,
            position_embeddings=position_embeddings,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            **kwargs,
        )
    query, key, value = (
        projection(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        for projection in (self.q_proj, self.k_proj, self.v_proj)
    )
    query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
    mixed = mix_values(self, query, key, value, attention_mask)
    return self.o_proj(mixed.reshape(*hidden_states.shape[:-1], -1)), None


def gpt2_attention_forward(
    self: Any, hidden_states: Tensor, past_key_values: Any = None, attention_mask: Tensor | None = None, **kwargs: Any
) -> Any:
    """Apply GPT-2's attention in bfloat16 on the CPU, or the original one otherwise; the signature is that of transformers."""
    is_supported = past_key_values is None and kwargs.get("encoder_hidden_states") is None and self.config._attn_implementation == "sdpa"
    if not (is_supported and is_cpu_bfloat16(hidden_states)):
        return original_forward(self, hidden_states, past_key_values=past_key_values, attention_mask=attention_mask, **kwargs)
    query, key, value = self.c_attn(hidden_states).unflatten(-1, (3, -1, self.head_dim)).permute(2, 0, 3, 1, 4)
    return self.c_proj(mix_values(self, query, key, value, attention_mask).reshape(hidden_states.shape)), None


def mix_values(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Apply causal attention.

    Args:
        module: The attention module of transformers.
        query: The queries, [C*B, heads, T, D].
        key: The keys, [C*B, key-value heads, T, D].
        value: The values, [C*B, key-value heads, T, D].
        attention_mask: A mask in addition to causality, or None.

    Returns:
        The mixed values, [C*B, T, heads, D].
    """
    is_short = query.shape[2] <= MAX_SHORT_LENGTH and attention_mask is None
    if is_short and query.requires_grad and is_cpu_bfloat16(query) and has_bfloat16_products():
        return ShortAttention.apply(query, key, value, module.scaling).transpose(1, 2)
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=module.scaling)[0]


@cache
def has_bfloat16_products() -> bool:
    """Return whether the processor has instructions for matrix products in bfloat16, without which they are slower than in float32."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch lack the function
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def mlp_forward(self: Any, x: Tensor) -> Any:
    """Apply the fused gated MLP, or the original one if a matrix is merged below an adapter."""
    fused, active_params = self.fused
    plan = fused.ensure_fused().make_plan(active_params.leaves, x.dtype)
    return original_forward(self, x) if plan is None else self.down_proj(FusedSwiGLU.apply(x, plan[0], *plan[1]))


class FusedRMSNorm(torch.autograd.Function):
    """``x [..., H], weight [H], eps -> x / rms(x) * weight``; only x gets a gradient. Sums over H are at least float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Compute the norm."""
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=sum_dtype(x))
        inverse_rms = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(x, weight, inverse_rms)
        return torch.mul(x, inverse_rms.to(x.dtype)).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        """Compute the gradient of x."""
        x, weight, inverse_rms = ctx.saved_tensors
        scaled_grad = grad * weight
        projection = (scaled_grad * x).sum(-1, keepdim=True, dtype=sum_dtype(x)).mul_(inverse_rms.pow(3)).div_(-x.shape[-1])
        return scaled_grad.mul_(inverse_rms.to(x.dtype)).addcmul_(x, projection.to(x.dtype)), None, None


def sum_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which sums over ``x`` are computed: float32 for bfloat16, otherwise that of ``x``."""
    return torch.float32 if x.dtype == torch.bfloat16 else x.dtype


class FusedQKVRope(torch.autograd.Function):
    """Queries and keys with rotary position embedding, and values, each [C*B, heads, T, D].

    The inputs are ``x [C*B, T, I]``, the cosines and sines of the positions, the size D of a head, the output ends of the three maps,
    the plan and the adapter matrices.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, width: int, ends: list[int], plan: Any, *factors: Tensor
    ) -> tuple[Tensor, ...]:
        """Compute queries, keys and values, and rotate queries and keys in place."""
        y = plan.forward(ctx, x, factors).unflatten(-1, (-1, width))  # [C*B, T, heads, D]
        half = width // 2
        rotation = cos[..., None, :half], sin[..., None, :half]  # [1, T, 1, D/2]; both halves of a head use the same angles
        first, second = y[:, :, : ends[1] // width].split(half, -1)
        original_first = first.clone()
        first.mul_(rotation[0]).addcmul_(second, rotation[1], value=-1)
        second.mul_(rotation[0]).addcmul_(original_first, rotation[1])
        ctx.rotation, ctx.width, ctx.heads = rotation, width, [end // width for end in ends]
        save_context(ctx)
        return tuple(part.transpose(1, 2) for part in y.tensor_split(ctx.heads[:-1], 2))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        """Compute the gradients of x and of the adapter matrices."""
        (cos, sin), half = ctx.rotation, ctx.width // 2
        query_grad = grads[0]
        output_grad = query_grad.new_empty(len(query_grad), query_grad.shape[2], ctx.heads[-1], ctx.width)
        for target, grad in zip(output_grad.tensor_split(ctx.heads[:-1], 2)[:2], grads[:2], strict=True):
            first, second = grad.transpose(1, 2).split(half, -1)
            torch.mul(first, cos, out=target[..., :half]).addcmul_(second, sin)
            torch.mul(second, cos, out=target[..., half:]).addcmul_(first, sin, value=-1)
        output_grad[:, :, ctx.heads[1] :] = grads[2].transpose(1, 2)
        input_grad, factor_grads = ctx.plan.backward(ctx.saved_tensors, output_grad.flatten(2), ctx.needs_input_grad[0])
        return input_grad, None, None, None, None, None, *factor_grads


class FusedSwiGLU(torch.autograd.Function):
    """``x [C*B, T, I] -> silu(gate x) * (up x) [C*B, T, O]``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, plan: Any, *factors: Tensor) -> Tensor:
        """Compute the gated activations."""
        y = plan.forward(ctx, x, factors)
        gate, up = y.chunk(2, -1)
        activation = F.silu(gate)
        out = activation * up
        save_context(ctx, y, activation)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        """Compute the gradients of x and of the adapter matrices."""
        *saved, y, activation = ctx.saved_tensors
        gate, up = y.chunk(2, -1)
        output_grad = torch.empty_like(y)
        gate_grad, up_grad = output_grad.chunk(2, -1)
        torch.mul(grad, activation, out=up_grad)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=gate_grad)
        input_grad, factor_grads = ctx.plan.backward(saved, output_grad, ctx.needs_input_grad[0])
        return input_grad, None, *factor_grads


class ShortAttention(torch.autograd.Function):
    """Causal attention that stores all attention weights: ``query [S, H, T, D], key and value [S, K, T, D] -> [S, H, T, D]``.

    S is the number of sequences; each of the K key-value heads serves H / K query heads. The last input is the factor of the scores.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Compute the mixed values of every position from those up to it."""
        sequences, heads, length, width = query.shape
        kv_heads = key.shape[1]
        groups, shared = sequences * kv_heads, heads // kv_heads  # query heads that share keys and values form one matrix
        query = (query * scaling).reshape(groups, shared * length, width)
        key, value = key.reshape(groups, length, width), value.reshape(groups, length, width)
        scores = torch.bmm(query, key.mT).view(groups, shared, length, length)
        future = torch.ones(length, length, dtype=torch.bool, device=query.device).triu_(1)
        weights = scores.masked_fill_(future, float("-inf")).softmax(-1).view(groups, shared * length, length)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(query, key, value, weights)
            ctx.scaling = scaling
        return torch.bmm(weights, value).view(sequences, heads, length, width)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # type: ignore[override]
        """Compute the gradients of queries, keys and values."""
        query, key, value, weights = ctx.saved_tensors
        grad_rows = grad.reshape(query.shape)
        value_grad = torch.bmm(weights.mT, grad_rows)
        score_grad = torch._softmax_backward_data(torch.bmm(grad_rows, value.mT), weights, -1, weights.dtype)
        query_grad = torch.bmm(score_grad, key).mul_(ctx.scaling)
        key_grad = torch.bmm(score_grad.mT, query)
        shape = (len(grad), -1, *grad.shape[2:])
        return query_grad.view(shape), key_grad.view(shape), value_grad.view(shape), None


def save_context(ctx: Any, *tensors: Tensor) -> None:
    """Save the tensors of the plan and further ones for the backward pass, if one is needed."""
    if any(ctx.needs_input_grad):
        ctx.save_for_backward(*ctx.saved, *tensors)
    del ctx.saved
