"""Linear maps that read the same input, as one product; their adapters beside it as one low-rank product.

A frozen map with adapters gives y = x W' + s (x A') B'. For maps 1, 2, ... of one input, W and A are put one under the
other and B goes into the blocks of a matrix that is zero elsewhere: the input is read once in either direction, and nothing is
computed for W.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..tree import Tree
from .worn import Lora


@dataclass(eq=False)
class Joined:
    """Frozen linear maps of one input, some with adapters. The modules' own weights become views of the joint one."""

    modules: Sequence[nn.Module]
    weight: Tensor = field(init=False)  # [O, I]
    bias: Tensor | None = field(init=False)  # [O]
    ends: list[int] = field(init=False)  # of each map's outputs

    @staticmethod
    def of(modules: Sequence[nn.Module]) -> Joined | None:
        """None where one of the maps is of another kind: quantised, trained as a whole, a stranger."""
        bases = [base_of(module) for module in modules]
        plain = all(type(base) is nn.Linear and type(base.weight) is nn.Parameter for base in bases)
        alike = plain and len({(base.weight.dtype, base.weight.device, base.bias is None) for base in bases}) == 1
        return Joined(modules) if alike else None

    def __post_init__(self) -> None:
        self.join()

    @torch.no_grad()
    def join(self) -> None:
        bases: list[Any] = [base_of(module) for module in self.modules]
        weights = [base.weight.data for base in bases]
        together = adjoining(weights)  # another network with the same parameters may have joined them
        self.weight = torch.cat(weights) if together is None else together
        self.bias = torch.cat([base.bias for base in bases]) if bases[0].bias is not None else None
        self.ends = torch.tensor([base.out_features for base in bases]).cumsum(0).tolist()
        for base, end in zip(bases, self.ends, strict=True):
            base.weight.data = self.weight[end - base.out_features:end]

    def fresh(self) -> Joined:
        """Joined again if the network was moved meanwhile."""
        first: Any = base_of(self.modules[0])
        if first.weight.data_ptr() != self.weight.data_ptr():
            self.join()
        return self

    def plan(self, leaves: Tree, dtype: torch.dtype) -> tuple[Plan, list[Tensor]] | None:
        """How these maps are worn now, and their adapters (A, B, A, B ...); None where something lies under the adapters."""
        worn = [(number, module) for number, module in enumerate(self.modules) if isinstance(module, Lora) and leaves]
        if any(f"{module.path}.base" in leaves for _, module in worn):
            return None
        spans = [((self.ends[number - 1] if number else 0), self.ends[number]) for number, _ in worn]
        factors = [leaves[f"{module.path}.{name}"].to(dtype) for _, module in worn for name in "AB"]
        return Plan(self.weight, self.bias, spans, worn[0][1].scale if worn else 1.0), factors


@dataclass(frozen=True, eq=False)
class Plan:
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
            down, up = torch.cat(list(factors[::2]), 1), self.blocks(factors[1::2])  # [C, nR, I], [C, O, nR]
            rows = rows.view(len(down), -1, x.shape[-1])
            low = torch.bmm(rows, down.mT)  # [C, B*T, nR]
            y.view(len(down), -1, y.shape[-1]).baddbmm_(low, up.mT, alpha=self.scale)
            kept = [x, low, down, up]
        ctx.kept = kept
        return y.view(*x.shape[:-1], -1)

    def blocks(self, ups: Sequence[Tensor]) -> Tensor:
        """B of every map in its block, ``[C, O, nR]``."""
        rank = ups[0].shape[2]
        whole = ups[0].new_zeros(len(ups[0]), len(self.weight), rank * len(ups))
        for number, ((first, last), up) in enumerate(zip(self.spans, ups, strict=True)):
            whole[:, first:last, number * rank:(number + 1) * rank] = up
        return whole

    def backward(self, kept: Sequence[Tensor], slope: Tensor, want_x: bool) -> tuple[Tensor | None, list[Tensor]]:
        """Gradients on x and on the factors, from ``slope [C*B, T, O]``."""
        x = kept[0]
        rows = slope.reshape(-1, slope.shape[-1])
        dx = rows @ self.weight if want_x else None
        found: list[Tensor] = []
        if len(kept) > 1:
            _, low, down, up = kept
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


def adjoining(weights: Sequence[Tensor]) -> Tensor | None:
    """The matrix of which these ``[O_i, I]`` are the rows, one after the other; None where they lie elsewhere."""
    first, end = weights[0], weights[0].data_ptr()
    for weight in weights:
        if not weight.is_contiguous() or weight.data_ptr() != end or \
                weight.untyped_storage().data_ptr() != first.untyped_storage().data_ptr():
            return None
        end += weight.nbytes
    return first.as_strided((sum(map(len, weights)), first.shape[1]), first.stride())


def base_of(module: nn.Module) -> Any:
    """The frozen map under a module's adapters, or the module."""
    return module.base if isinstance(module, Lora) else module
