"""Modules that wear their clients' weights: one forward pass of a frozen network, C clients' trained parts.

The rows of a pass are the clients' sequences one after the other, ``[C * B, T, ...]``. A worn
module looks up the weights of the day in its ``Outfit`` and treats the rows of each client with
the client's own. Whoever wears nothing is the network as it was.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..errors import UserError
from ..tree import Tree


class Outfit:
    """What a network wears now: the trees' leaves, each leading with C. The one mutable thing, and no global."""

    def __init__(self) -> None:
        self.leaves = Tree()
        self.rows = 0  # C * B sequences in this pass


def shape_of(module: nn.Module) -> tuple[int, int] | None:
    """(inputs, outputs) of a linear map, None for any other module. GPT-2's Conv1D holds its weight transposed."""
    if isinstance(module, Conv1D):
        return module.weight.shape[0], module.weight.shape[1]
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    return None


class Lora(nn.Module):
    """A frozen linear map and, beside it, each client's low-rank one: y = W x + s B_c A_c x."""

    def __init__(self, base: nn.Module, path: str, outfit: Outfit, scale: float) -> None:
        super().__init__()
        self.base, self.path, self.scale = base, path, scale
        self.outfit = outfit

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        if not self.outfit.leaves:
            return y
        down, up = (self.outfit.leaves[f"{self.path}.{name}"].to(x.dtype) for name in "AB")  # kept in full precision
        rows = x.reshape(len(down), -1, x.shape[-1])  # [C, B*T, I]
        low = torch.bmm(rows, down.mT)  # [C, B*T, R]
        under = self.outfit.leaves.get(f"{self.path}.base")  # [1 or C, O, I]: merged under the adapters by the server
        if under is not None:
            y = y + self.scale * torch.matmul(rows, under.mT.to(x.dtype)).view_as(y)
        return torch.baddbmm(y.view(len(down), -1, y.shape[-1]), low, up.mT, alpha=self.scale).view_as(y)


class Own(nn.Module):
    """A module whose weights each client has for itself."""

    def __init__(self, base: nn.Module, path: str, outfit: Outfit) -> None:
        super().__init__()
        self.base, self.path, self.outfit = base, path, outfit
        self.has_bias = getattr(base, "bias", None) is not None

    @staticmethod
    def of(module: nn.Module, path: str, outfit: Outfit) -> Own:
        """The worn form of a module, by its kind."""
        if shape_of(module):
            return OwnLinear(module, path, outfit)
        if isinstance(module, nn.Embedding):
            return OwnEmbedding(module, path, outfit)
        if isinstance(module, nn.LayerNorm) or "Norm" in type(module).__name__:
            return OwnNorm(module, path, outfit)
        raise UserError(f"cannot train {path} ({type(module).__name__}) as one's own weights: "
                        "use tune: {is: Lora}, which adapts linear maps of any network")

    def leaf(self, name: str) -> Tensor:
        return self.outfit.leaves[f"{self.path}.{name}"].to(self.base.weight.dtype)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.worn(x) if self.outfit.leaves else self.base(x)

    def worn(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class OwnLinear(Own):
    def worn(self, x: Tensor) -> Tensor:
        weight = self.leaf("weight")  # [C, O, I]; Conv1D: [C, I, O]
        matrix = weight if isinstance(self.base, Conv1D) else weight.mT
        rows = x.reshape(len(weight), -1, x.shape[-1])  # [C, B*T, I]
        y = torch.baddbmm(self.leaf("bias").unsqueeze(1), rows, matrix) if self.has_bias else torch.bmm(rows, matrix)
        return y.view(*x.shape[:-1], y.shape[-1])


class OwnNorm(Own):
    """The norm without its scale and shift, then each client's. The base is kept with scale 1 and shift 0."""

    def __init__(self, base: nn.Module, path: str, outfit: Outfit) -> None:
        super().__init__(base, path, outfit)
        self.eps: float = getattr(base, "eps", getattr(base, "variance_epsilon", 1e-6))
        probe = torch.linspace(-2, 3, 4 * base.weight.numel()).view(4, -1).to(base.weight)  # type: ignore[operator,union-attr,arg-type]
        ours = self.plain(probe) * base.weight + (base.bias if self.has_bias else 0)  # type: ignore[operator]
        if not torch.allclose(ours, base(probe), rtol=1e-4, atol=1e-5):
            raise UserError(f"cannot train {path}: {type(base).__name__} is neither LayerNorm nor RMSNorm; "
                            "use tune: {is: Lora}")

    def plain(self, x: Tensor) -> Tensor:
        if isinstance(self.base, nn.LayerNorm):
            return F.layer_norm(x, x.shape[-1:], None, None, self.eps)
        return F.rms_norm(x, x.shape[-1:], None, self.eps)

    def worn(self, x: Tensor) -> Tensor:
        scale = self.leaf("weight")  # [C, H]
        shape = (len(scale), *[1] * (x.ndim - 1), scale.shape[-1])
        y = self.plain(x).unflatten(0, (len(scale), -1)) * scale.view(shape)  # [C, B, T, H]
        if self.has_bias:
            y = y + self.leaf("bias").view(shape)
        return y.flatten(0, 1)


class OwnEmbedding(Own):
    def worn(self, x: Tensor) -> Tensor:
        table = self.leaf("weight")  # [C, V, H]
        if len(x) != self.outfit.rows:  # positions, the same for all rows: [1, T]
            x = x.expand(self.outfit.rows, *x.shape[1:])
        first = torch.arange(len(table), device=x.device) * table.shape[1]
        shifted = x.unflatten(0, (len(table), -1)) + first.view(-1, *[1] * x.ndim)
        return F.embedding(shifted.flatten(0, 1), table.flatten(0, 1))
