"""Wrap modules so that one forward pass of a network applies the weights of C clients.

The batch dimension of a pass contains the sequences of all clients in order, ``[C * B, T, ...]``. A wrapped module reads the
current weights from its ``ActiveParams`` and applies each client's weights to that client's rows. Without active weights, it
computes what the original module computes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map
from transformers.pytorch_utils import Conv1D

from ..core.tree import Tree


class ActiveParams:
    """Hold the weights that the wrapped modules of a network apply in the current pass; each leaf is [C, ...]."""

    def __init__(self) -> None:
        self.leaves = Tree()
        self.num_rows = 0  # C * B, the number of sequences in this pass


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """Return (inputs, outputs) of a linear map, or None for any other module.

    GPT-2's Conv1D stores its weight transposed. Some architectures derive modules from `torch.nn.Linear` that compute something else, such
    as the routers of Llama 4, which return two tensors.
    """
    if isinstance(module, Conv1D):
        return module.weight.shape[0], module.weight.shape[1]
    if isinstance(module, nn.Linear) and returns_one_output_per_feature(module):
        return module.in_features, module.out_features
    return None


def returns_one_output_per_feature(module: nn.Linear) -> bool:
    """Return whether a module of a class derived from `torch.nn.Linear` returns one tensor with its output features."""
    if type(module).__module__.split(".")[0] in ("torch", "bitsandbytes"):
        return True
    try:
        with torch.no_grad():
            output = module(torch.zeros(2, module.in_features, dtype=module.weight.dtype, device=module.weight.device))
    except (RuntimeError, ValueError, TypeError, IndexError):  # it expects inputs of another shape
        return False
    return isinstance(output, Tensor) and output.shape == (2, module.out_features)


def is_norm(module: nn.Module) -> bool:
    """Return whether the class name of a module contains "Norm"."""
    return "Norm" in type(module).__name__


def is_known(module: nn.Module) -> bool:
    """Return whether a module with weights is a linear map, an embedding or a norm."""
    return linear_shape(module) is not None or isinstance(module, nn.Embedding) or is_norm(module)


class PerClientLora(nn.Module):
    """A frozen linear map with one low-rank adapter per client: y = W x + s B_c A_c x.

    Args:
        base: The frozen map.
        path: Its path in the network, by which the adapters are looked up.
        active_params: The adapters of the current pass: ``<path>.A`` [C, R, I] and ``<path>.B`` [C, O, R]. An optional
            ``<path>.base`` [1 or C, O, I] is a matrix that the server has merged below the adapters.
        scale: The factor s.
    """

    def __init__(self, base: nn.Module, path: str, active_params: ActiveParams, scale: float) -> None:
        super().__init__()
        self.base, self.path, self.scale = base, path, scale
        self.active_params = active_params

    @property
    def weight(self) -> Tensor:
        """Return the frozen weight, for code that inspects its dtype.

        `StackedModel` detects networks that compute with this weight directly.
        """
        return self.base.weight  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """Apply the map and the adapters, [C*B, ..., I] -> [C*B, ..., O]."""
        y = self.base(x)
        if not self.active_params.leaves:
            return y
        down, up = (
            self.active_params.leaves[f"{self.path}.{name}"].to(x.dtype) for name in "AB"
        )  # the adapters are stored in full precision
        rows = x.reshape(len(down), -1, x.shape[-1])  # [C, B*T, I]
        low = torch.bmm(rows, down.mT)  # [C, B*T, R]
        merged_base = self.active_params.leaves.get(f"{self.path}.base")  # [1 or C, O, I]
        if merged_base is not None:
            y = y + self.scale * torch.matmul(rows, merged_base.mT.to(x.dtype)).view_as(y)
        return torch.baddbmm(y.view(len(down), -1, y.shape[-1]), low, up.mT, alpha=self.scale).view_as(y)


class PerClientModule(nn.Module):
    """A module of which each client has its own weights."""

    def __init__(self, base: nn.Module, path: str, active_params: ActiveParams) -> None:
        super().__init__()
        self.base, self.path, self.active_params = base, path, active_params
        self.has_bias = getattr(base, "bias", None) is not None

    @staticmethod
    def wrap(module: nn.Module, path: str, active_params: ActiveParams) -> PerClientModule:
        """Wrap a module by the implementation for its type."""
        module_type: Any = type(module)
        if module_type in (nn.Linear, Conv1D):
            return PerClientLinear(module, path, active_params)
        if module_type is nn.Embedding and module.max_norm is None:
            return PerClientEmbedding(module, path, active_params)
        if is_norm(module) and PerClientNorm.is_supported(module):
            return PerClientNorm(module, path, active_params)
        return PerClientLoop(module, path, active_params)

    @property
    def weight(self) -> Tensor:
        """Return the frozen weight, for code that inspects its dtype.

        `StackedModel` detects networks that compute with this weight directly.
        """
        return self.base.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """Return the frozen bias, for the same purpose as `weight`."""
        return self.base.bias  # type: ignore[return-value]

    def client_weight(self, name: str) -> Tensor:
        """Return the clients' values of one parameter, [C, ...], in the dtype of the original."""
        return self.active_params.leaves[f"{self.path}.{name}"].to(self.base.get_parameter(name).dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Apply each client's weights to its rows, or the original module if there are no active weights."""
        return self.forward_per_client(x) if self.active_params.leaves else self.base(x)

    def forward_per_client(self, x: Tensor) -> Tensor:
        """Apply each client's weights to its rows of ``x`` [C*B, ...]."""
        raise NotImplementedError


class PerClientLoop(PerClientModule):
    """A module of any type, including its submodules, that runs once per client with the client's weights."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Split tensor arguments by client, run the module for each client and concatenate the outputs."""
        leaves, names = self.active_params.leaves, [name for name, _ in self.base.named_parameters()]
        if not leaves:
            return self.base(*args, **kwargs)
        weights = {name: self.client_weight(name) for name in names}
        count = len(next(iter(weights.values())))
        main_input = next((leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.ndim), torch.zeros(0))
        is_shared = main_input.ndim == 1 or len(main_input) % self.active_params.num_rows > 0  # positions, equal for all rows
        size = 0 if is_shared else len(main_input)

        def arguments_of(client: int) -> Callable[[Any], Any]:
            def select(leaf: Any) -> Any:
                return leaf.chunk(count)[client] if size and isinstance(leaf, Tensor) and leaf.shape[:1] == (size,) else leaf

            return select

        outputs = [
            functional_call(
                self.base, {name: leaf[client] for name, leaf in weights.items()}, *tree_map(arguments_of(client), (args, kwargs))
            )
            for client in range(count)
        ]
        rows = self.active_params.num_rows // count

        def concatenate(*parts: Any) -> Any:
            if not isinstance(parts[0], Tensor) or parts[0].ndim == 0:
                return parts[0]
            batched = [leaf.unsqueeze(0) if main_input.ndim == 1 else leaf for leaf in parts]
            return torch.cat([leaf if size and len(leaf) > 1 else leaf.expand(rows, *leaf.shape[1:]) for leaf in batched])

        return tree_map(concatenate, *outputs)


class PerClientLinear(PerClientModule):
    """A linear map or Conv1D of which each client has its own weight and bias."""

    def forward_per_client(self, x: Tensor) -> Tensor:
        """Apply each client's map, [C*B, ..., I] -> [C*B, ..., O]."""
        weight = self.client_weight("weight")  # [C, O, I]; Conv1D: [C, I, O]
        matrix = weight if isinstance(self.base, Conv1D) else weight.mT
        rows = x.reshape(len(weight), -1, x.shape[-1])  # [C, B*T, I]
        y = torch.baddbmm(self.client_weight("bias").unsqueeze(1), rows, matrix) if self.has_bias else torch.bmm(rows, matrix)
        return y.view(*x.shape[:-1], y.shape[-1])


class PerClientNorm(PerClientModule):
    """A LayerNorm or RMSNorm of which each client has its own scale and shift."""

    def __init__(self, base: nn.Module, path: str, active_params: ActiveParams) -> None:
        super().__init__(base, path, active_params)
        self.eps: float = getattr(base, "eps", getattr(base, "variance_epsilon", 1e-6))

    @staticmethod
    def is_supported(module: Any) -> bool:
        """Return whether a norm is a LayerNorm or RMSNorm with one scale per feature and an optional shift.

        The norm is compared numerically with this implementation.
        """
        if [name for name, _ in module.named_parameters()] not in (["weight"], ["weight", "bias"]) or module.weight.ndim != 1:
            return False
        candidate = PerClientNorm(module, "", ActiveParams())
        scale = torch.linspace(0.5, 2, module.weight.numel()).to(
            module.weight
        )  # the scales of the module may all be 0 or 1, which would hide a difference
        weights = {"weight": scale, **({"bias": scale - 1} if candidate.has_bias else {})}
        probe = torch.linspace(-2, 3, 4 * len(scale)).view(4, -1).to(scale)
        try:
            expected = functional_call(module, weights, (probe,))
        except Exception:  # the module needs other inputs than states
            return False
        actual = candidate.normalize(probe) * scale + weights.get("bias", 0)
        return isinstance(expected, Tensor) and torch.allclose(actual, expected, rtol=1e-4, atol=1e-5)

    def normalize(self, x: Tensor) -> Tensor:
        """Normalize the last dimension without scale and shift."""
        if isinstance(self.base, nn.LayerNorm):
            return F.layer_norm(x, x.shape[-1:], None, None, self.eps)
        return F.rms_norm(x, x.shape[-1:], None, self.eps)

    def forward_per_client(self, x: Tensor) -> Tensor:
        """Normalize, then apply each client's scale and shift, [C*B, ..., H]."""
        scale = self.client_weight("weight")  # [C, H]
        shape = (len(scale), *[1] * (x.ndim - 1), scale.shape[-1])
        y = self.normalize(x).unflatten(0, (len(scale), -1)) * scale.view(shape)  # [C, B, T, H]
        if self.has_bias:
            y = y + self.client_weight("bias").view(shape)
        return y.flatten(0, 1)


class PerClientEmbedding(PerClientModule):
    """An embedding of which each client has its own table."""

    def forward_per_client(self, x: Tensor) -> Tensor:
        """Look up each client's rows, [C*B, T] -> [C*B, T, H]."""
        # The lookup is in the stored dtype, and its result is cast: on CPUs the gradient of a lookup in bfloat16 is summed in
        # bfloat16, in which a token that occurs 1,000 times counts as one that occurs 256 times (torch 2.13.0).
        table = self.active_params.leaves[f"{self.path}.weight"]  # [C, V, H]
        if len(x) != self.active_params.num_rows:  # positions [1, T], equal for all rows
            x = x.expand(self.active_params.num_rows, *x.shape[1:])
        offsets = torch.arange(len(table), device=x.device) * table.shape[1]
        indices = x.unflatten(0, (len(table), -1)) + offsets.view(-1, *[1] * x.ndim)
        weight: Any = self.base.weight
        embeddings = F.embedding(indices.flatten(0, 1), table.flatten(0, 1)).to(weight.dtype)
        padding_idx: Any = self.base.padding_idx  # as in nn.Embedding, the row of the padding token gets no gradient
        return embeddings if padding_idx is None else embeddings.where(x.ne(padding_idx).unsqueeze(-1), embeddings.detach())
