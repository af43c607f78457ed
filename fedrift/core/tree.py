"""Trees: dictionaries of named tensors with arithmetic.

All leaves of a tree have the same leading axis: C clients of a cohort, M models of the server, or N clients in total.
An expression such as ``grad - local.client_state + local.broadcast`` therefore computes an equation of a paper for all clients of
a cohort at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Self

from .lazy_imports import torch

if TYPE_CHECKING:
    from torch import Tensor


class Tree(dict[str, "Tensor"]):
    """A dictionary ``{name: tensor}`` with arithmetic on all leaves.

    The other operand of ``+``, ``-``, ``*`` and ``/`` is a tree with the same leaves, a number, or a vector ``[A]``, where A is the
    size of the leading axis. A number applies to every leaf; a vector applies row by row. Operations on an empty tree return
    an empty tree. No method writes into a leaf.

    Example:
        >>> import torch
        >>> tree = Tree(w=torch.ones(2, 3), b=torch.zeros(2))
        >>> (tree * torch.tensor([1.0, 2.0]) + tree)["w"][:, 0]
        tensor([2., 3.])
    """

    @property
    def device(self) -> torch.device:
        """The device of the leaves; a tree without leaves has none."""
        return next(iter(self.values())).device

    def map(self, fn: Callable[..., Tensor], *others: Tree) -> Self:
        """Apply a function to every leaf.

        Args:
            fn: A function of one leaf of this tree and of the leaf with the same name in each of ``others``.
            *others: Trees with the same leaf names.

        Returns:
            The tree of the results.

        Raises:
            KeyError: The trees have different leaf names.
        """
        for other in others:
            if other.keys() != self.keys():
                unmatched = sorted(self.keys() ^ other.keys())
                raise KeyError(f"the trees must have the same leaves; these leaves are in only one of them: {unmatched}")
        return type(self)({name: fn(leaf, *(other[name] for other in others)) for name, leaf in self.items()})

    def _apply_binary(self, fn: Callable[[Tensor, Tensor | float], Tensor], other: Tree | Tensor | float) -> Self:
        if isinstance(other, Tree):
            return self.map(fn, other)
        if isinstance(other, torch.Tensor) and other.ndim == 1:
            rows = RowBroadcast(other)
            return self.map(lambda leaf: fn(leaf, rows.over(leaf)))
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
        """Return ``self + weight * (other - self)``, computed row by row in one pass over memory.

        Args:
            other: A tree with the same leaves.
            weight: The interpolation weights of the rows, ``[A]``.
        """
        rows = RowBroadcast(weight)
        return self.map(lambda leaf, target: leaf.lerp(target, rows.over(leaf)), other)

    def take(self, index: Tensor | slice) -> Self:
        """Select rows of every leaf, ``[A, ...] -> [len(index), ...]``."""
        return self.map(lambda leaf: leaf[index])

    def index_update(self, index: Tensor, rows: Tree) -> Self:
        """Return a copy in which the rows at ``index`` are replaced by ``rows``."""
        return self.map(lambda leaf, new: leaf.index_copy(0, index, new.to(leaf)), rows)

    def where(self, mask: Tensor, other: Tree) -> Self:
        """Select the rows of this tree where ``mask [A]`` is true, and the rows of ``other`` elsewhere."""
        rows = RowBroadcast(mask)
        return self.map(lambda leaf, alternative: torch.where(rows.over(leaf), leaf, alternative), other)

    def zeros_like(self) -> Self:
        """Return a tree of zeros with the same leaves and shapes."""
        return self.map(torch.zeros_like)

    def dot(self, other: Tree) -> Tensor:
        """Compute the inner product of each row with the same row of ``other``.

        Args:
            other: A tree with the same leaves.

        Returns:
            The inner products over all leaves, ``[A]``, accumulated in float64.

        Raises:
            ValueError: The tree is empty.
        """
        if not self:
            raise ValueError("the inner product of an empty tree is undefined, because the tree has no rows")
        products = []
        for name, leaf in self.items():
            wide = to_float64(leaf)
            products.append((wide * (wide if other is self else to_float64(other[name]))).flatten(1).sum(1))
        return torch.stack(products).sum(0)

    def norm(self) -> Tensor:
        """Compute the Euclidean norm of each row over all leaves, ``[A]`` in float64."""
        return self.dot(self).sqrt()

    def is_finite(self) -> Tensor:
        """Return which rows contain only finite numbers, ``[A]`` bool."""
        finite_sums = torch.stack([leaf.flatten(1).sum(1).isfinite() for leaf in self.values()]).all(0)
        if finite_sums.all():  # a finite sum proves that all terms are finite, and needs only one pass over memory
            return finite_sums
        return torch.stack([leaf.isfinite().flatten(1).all(1) for leaf in self.values()]).all(0)

    def to(self, *where: torch.device | torch.dtype) -> Self:
        """Convert all leaves to another device or data type, with the arguments of ``torch.Tensor.to``."""
        return self.map(lambda leaf: leaf.to(*where))


def adapter_modules(param_names: Collection[str]) -> list[str]:
    """Return the names of the modules that have a LoRA adapter, which are those with the leaves ``<module>.A`` and ``<module>.B``."""
    return [name.removesuffix(".A") for name in param_names if name.endswith(".A") and name[:-1] + "B" in param_names]


class RowBroadcast:
    """A vector ``[A]`` that broadcasts over the rows of leaves ``[A, ...]``.

    A vector that is not a mask is converted to the dtype of a leaf, once for all leaves of that dtype.
    """

    def __init__(self, vector: Tensor) -> None:
        self.vector, self.is_mask = vector, vector.dtype == torch.bool
        self.converted = {vector.dtype: vector}

    def over(self, leaf: Tensor) -> Tensor:
        """Return the vector in the shape ``[A, 1, ...]`` and, unless it is a mask, in the dtype of a leaf."""
        dtype = self.vector.dtype if self.is_mask else leaf.dtype
        vector = self.converted.get(dtype)
        if vector is None:
            vector = self.converted[dtype] = self.vector.to(dtype)
        return vector.view(-1, *[1] * (leaf.ndim - 1))


def to_float64(leaf: Tensor) -> Tensor:
    """Convert a leaf to float64 for exact sums; return it unchanged on MPS, which does not support float64."""
    return leaf if leaf.device.type == "mps" else leaf.double()
