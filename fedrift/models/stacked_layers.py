"""Modules that wear their clients' weights: one forward pass of a frozen network, C clients' trained parts.

The rows of a pass are the clients' sequences one after the other, ``[C * B, T, ...]``. A worn
module looks up the weights of the day in its ``ActiveParams`` and treats the rows of each client with
the client's own. Whoever wears nothing is the network as it was.
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
    """What a network wears now: the trees' leaves, each leading with C. The one mutable thing, and no global."""

    def __init__(self) -> None:
        self.leaves = Tree()
        self.num_rows = 0  # C * B sequences in this pass


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """(inputs, outputs) of a linear map, None for any other module. GPT-2's Conv1D holds its weight transposed."""
    if isinstance(module, Conv1D):
        return module.weight.shape[0], module.weight.shape[1]
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    return None


def is_norm(module: nn.Module) -> bool:
    """Whether a module is called a norm."""
    return "Norm" in type(module).__name__


def is_known(module: nn.Module) -> bool:
    """Whether a module with weights is a linear map, an embedding or a norm."""
    return linear_shape(module) is not None or isinstance(module, nn.Embedding) or is_norm(module)


class PerClientLora(nn.Module):
    """A frozen linear map and, beside it, each client's low-rank one: y = W x + s B_c A_c x."""

    def __init__(self, base: nn.Module, path: str, active_params: ActiveParams, scale: float) -> None:
        super().__init__()
        self.base, self.path, self.scale = base, path, scale
        self.active_params = active_params

    @property
    def weight(self) -> Tensor:
        """The frozen one, for who asks for its type; `check` finds out who computes with it."""
        return self.base.weight  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        if not self.active_params.leaves:
            return y
        down, up = (self.active_params.leaves[f"{self.path}.{name}"].to(x.dtype) for name in "AB")  # kept in full precision
        rows = x.reshape(len(down), -1, x.shape[-1])  # [C, B*T, I]
        low = torch.bmm(rows, down.mT)  # [C, B*T, R]
        under = self.active_params.leaves.get(f"{self.path}.base")  # [1 or C, O, I]: merged under the adapters by the server
        if under is not None:
            y = y + self.scale * torch.matmul(rows, under.mT.to(x.dtype)).view_as(y)
        return torch.baddbmm(y.view(len(down), -1, y.shape[-1]), low, up.mT, alpha=self.scale).view_as(y)


class PerClientModule(nn.Module):
    """A module whose weights each client has for itself."""

    def __init__(self, base: nn.Module, path: str, active_params: ActiveParams) -> None:
        super().__init__()
        self.base, self.path, self.active_params = base, path, active_params
        self.has_bias = getattr(base, "bias", None) is not None

    @staticmethod
    def wrap(module: nn.Module, path: str, active_params: ActiveParams) -> PerClientModule:
        """The worn form of a module, by its kind."""
        kind: Any = type(module)
        if kind in (nn.Linear, Conv1D):
            return PerClientLinear(module, path, active_params)
        if kind is nn.Embedding and module.max_norm is None:
            return PerClientEmbedding(module, path, active_params)
        if is_norm(module) and PerClientNorm.is_supported(module):
            return PerClientNorm(module, path, active_params)
        return PerClientLoop(module, path, active_params)

    @property
    def weight(self) -> Tensor:
        """The frozen one, for who asks for its type; `check` finds out who computes with it."""
        return self.base.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """As `weight`."""
        return self.base.bias  # type: ignore[return-value]

    def client_weight(self, name: str) -> Tensor:
        return self.active_params.leaves[f"{self.path}.{name}"].to(self.base.get_parameter(name).dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_per_client(x) if self.active_params.leaves else self.base(x)

    def forward_per_client(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class PerClientLoop(PerClientModule):
    """A module of any kind with all that is inside it: it works once for each client, with the client's weights."""

    def forward(self, *args: Any, **named: Any) -> Any:
        leaves, names = self.active_params.leaves, [name for name, _ in self.base.named_parameters()]
        if not leaves:
            return self.base(*args, **named)
        weights = {name: self.client_weight(name) for name in names}
        count = len(next(iter(weights.values())))
        first = next((leaf for leaf in tree_leaves((args, named)) if isinstance(leaf, Tensor) and leaf.ndim), torch.zeros(0))
        alike = first.ndim == 1 or len(first) % self.active_params.num_rows > 0  # positions, the same for all rows
        size = 0 if alike else len(first)

        def part(client: int) -> Callable[[Any], Any]:
            def one(leaf: Any) -> Any:
                return leaf.chunk(count)[client] if size and isinstance(leaf, Tensor) and leaf.shape[:1] == (size,) else leaf

            return one

        found = [
            functional_call(self.base, {name: leaf[client] for name, leaf in weights.items()}, *tree_map(part(client), (args, named)))
            for client in range(count)
        ]
        rows = self.active_params.num_rows // count

        def together(*parts: Any) -> Any:
            if not isinstance(parts[0], Tensor) or parts[0].ndim == 0:
                return parts[0]
            one = [leaf.unsqueeze(0) if first.ndim == 1 else leaf for leaf in parts]
            return torch.cat([leaf if size and len(leaf) > 1 else leaf.expand(rows, *leaf.shape[1:]) for leaf in one])

        return tree_map(together, *found)


class PerClientLinear(PerClientModule):
    def forward_per_client(self, x: Tensor) -> Tensor:
        weight = self.client_weight("weight")  # [C, O, I]; Conv1D: [C, I, O]
        matrix = weight if isinstance(self.base, Conv1D) else weight.mT
        rows = x.reshape(len(weight), -1, x.shape[-1])  # [C, B*T, I]
        y = torch.baddbmm(self.client_weight("bias").unsqueeze(1), rows, matrix) if self.has_bias else torch.bmm(rows, matrix)
        return y.view(*x.shape[:-1], y.shape[-1])


class PerClientNorm(PerClientModule):
    """The norm without its scale and shift, then each client's. The base is kept with scale 1 and shift 0."""

    def __init__(self, base: nn.Module, path: str, active_params: ActiveParams) -> None:
        super().__init__(base, path, active_params)
        self.eps: float = getattr(base, "eps", getattr(base, "variance_epsilon", 1e-6))

    @staticmethod
    def is_supported(module: Any) -> bool:
        """Whether a norm is LayerNorm or RMSNorm, of one scale for each number and perhaps a shift, and nothing else."""
        if [name for name, _ in module.named_parameters()] not in (["weight"], ["weight", "bias"]) or module.weight.ndim != 1:
            return False
        ours = PerClientNorm(module, "", ActiveParams())
        scale = torch.linspace(0.5, 2, module.weight.numel()).to(module.weight)  # the module's own may all be 0 or 1
        own = {"weight": scale, **({"bias": scale - 1} if ours.has_bias else {})}
        probe = torch.linspace(-2, 3, 4 * len(scale)).view(4, -1).to(scale)
        try:
            theirs = functional_call(module, own, (probe,))
        except Exception:  # it takes something else than states
            return False
        found = ours.normalize(probe) * scale + own.get("bias", 0)
        return isinstance(theirs, Tensor) and torch.allclose(found, theirs, rtol=1e-4, atol=1e-5)

    def normalize(self, x: Tensor) -> Tensor:
        if isinstance(self.base, nn.LayerNorm):
            return F.layer_norm(x, x.shape[-1:], None, None, self.eps)
        return F.rms_norm(x, x.shape[-1:], None, self.eps)

    def forward_per_client(self, x: Tensor) -> Tensor:
        scale = self.client_weight("weight")  # [C, H]
        shape = (len(scale), *[1] * (x.ndim - 1), scale.shape[-1])
        y = self.normalize(x).unflatten(0, (len(scale), -1)) * scale.view(shape)  # [C, B, T, H]
        if self.has_bias:
            y = y + self.client_weight("bias").view(shape)
        return y.flatten(0, 1)


class PerClientEmbedding(PerClientModule):
    def forward_per_client(self, x: Tensor) -> Tensor:
        table = self.client_weight("weight")  # [C, V, H]
        if len(x) != self.active_params.num_rows:  # positions, the same for all rows: [1, T]
            x = x.expand(self.active_params.num_rows, *x.shape[1:])
        first = torch.arange(len(table), device=x.device) * table.shape[1]
        shifted = x.unflatten(0, (len(table), -1)) + first.view(-1, *[1] * x.ndim)
        found = F.embedding(shifted.flatten(0, 1), table.flatten(0, 1))
        blank: Any = self.base.padding_idx  # its row is not trained by being read
        return found if blank is None else found.where(x.ne(blank).unsqueeze(-1), found.detach())
