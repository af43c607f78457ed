"""A tree: named tensors that add, subtract and scale as one.

All leaves of a tree lead with the same axis: C for a cohort, M for models, N for a fleet. So
``grad - at.memory + at.shared`` is code and the paper's line at once, for all clients together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor


class Tree(dict[str, Tensor]):
    """``{name: tensor}`` with arithmetic, leaf by leaf. The empty tree adds and scales to itself.

    A number scales every leaf; a vector ``[A]`` (A: the leading axis) scales row by row.
    Trees are values: nothing here writes into a leaf.
    """

    def map(self, fn: Callable[..., Tensor], *others: Tree) -> Self:
        """``do`` on every leaf, beside the leaves of the same name in ``others``."""
        for other in others:
            if other.keys() != self.keys():
                odd = sorted(self.keys() ^ other.keys())
                raise KeyError(f"the trees must have the same leaves; these are in one only: {odd}")
        return type(self)({name: fn(leaf, *(other[name] for other in others)) for name, leaf in self.items()})

    def _apply_binary(self, fn: Callable[[Tensor, Tensor | float], Tensor], other: Tree | Tensor | float) -> Self:
        if isinstance(other, Tree):
            return self.map(fn, other)
        if isinstance(other, Tensor) and other.ndim == 1:
            return self.map(lambda leaf: fn(leaf, broadcast_rows(other, leaf)))
        return self.map(lambda leaf: fn(leaf, other))

    def __add__(self, other: Tree | Tensor | float) -> Self:
        return self._apply_binary(torch.add, other)

    def __sub__(self, other: Tree | Tensor | float) -> Self:
        return self._apply_binary(torch.sub, other)

    def __mul__(self, other: Tree | Tensor | float) -> Self:
        return self._apply_binary(torch.mul, other)

    def __truediv__(self, other: Tree | Tensor | float) -> Self:
        return self._apply_binary(torch.div, other)

    __rmul__ = __mul__

    def __neg__(self) -> Self:
        return self.map(torch.neg)

    def lerp(self, other: Tree, weight: Tensor) -> Self:
        """``self + share (other - self)``, row by row by ``share [A]``, in one pass."""
        return self.map(lambda leaf, end: leaf.lerp(end, broadcast_rows(weight, leaf)), other)

    def take(self, index: Tensor | slice) -> Self:
        """The named rows of every leaf, ``[A, ...] -> [len(index), ...]``."""
        return self.map(lambda leaf: leaf[index])

    def index_update(self, index: Tensor, rows: Tree) -> Self:
        """A tree in which the rows at ``index`` are ``rows``; this one stays as it was."""
        return self.map(lambda leaf, new: leaf.index_copy(0, index, new.to(leaf)), rows)

    def where(self, mask: Tensor, other: Tree) -> Self:
        """Our rows where ``mask [A]`` is true, else the rows of ``other``."""
        return self.map(lambda leaf, alt: torch.where(broadcast_rows(mask, leaf), leaf, alt), other)

    def zeros_like(self) -> Self:
        return self.map(torch.zeros_like)

    def dot(self, other: Tree) -> Tensor:
        """The inner product row by row over all leaves, ``[A]``, summed in float64."""
        if not self:
            raise ValueError("an empty tree has no inner product: it has no rows")
        parts = [(to_float64(leaf) * to_float64(other[name])).flatten(1).sum(1) for name, leaf in self.items()]
        return torch.stack(parts).sum(0)

    def norm(self) -> Tensor:
        """The Euclidean length of every row over all leaves, ``[A]``, float64."""
        return self.dot(self).sqrt()

    def is_finite(self) -> Tensor:
        """Which rows hold finite numbers only, ``[A]`` bool."""
        sums = torch.stack([leaf.flatten(1).sum(1).isfinite() for leaf in self.values()]).all(0)
        if sums.all():  # in one pass: what has a finite sum has no NaN and no infinity
            return sums
        return torch.stack([leaf.isfinite().flatten(1).all(1) for leaf in self.values()]).all(0)

    def to(self, *where: torch.device | torch.dtype) -> Self:
        """The same numbers on another device or in another type."""
        return self.map(lambda leaf: leaf.to(*where))


def broadcast_rows(vector: Tensor, leaf: Tensor) -> Tensor:
    """``vector [A]`` shaped to scale the rows of ``leaf [A, ...]``, in the leaf's type unless it is a mask."""
    vector = vector.view(-1, *[1] * (leaf.ndim - 1))
    return vector if vector.dtype == torch.bool else vector.to(leaf.dtype)


def to_float64(leaf: Tensor) -> Tensor:
    """The leaf in float64, for sums that must not lose digits; as it is on MPS, which has no float64."""
    return leaf if leaf.device.type == "mps" else leaf.double()
