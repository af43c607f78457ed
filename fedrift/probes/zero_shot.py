"""What the pretrained model makes of a text is read once for all runs that share a stock, whatever their seed or algorithm."""

from __future__ import annotations

from collections.abc import Hashable, MutableMapping
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor

from ..tree import Tree
from .loss import Judge

Known = MutableMapping[Hashable, Tensor]  # losses by what they are of


@dataclass(frozen=True)
class ZeroShot:
    """A judge that remembers its answers about the model with which every run begins.

    ``start [1, ...]`` is this run's w_0. Adapters begin at B = 0 whatever their A is, so the function is the pretrained one in
    every run, bit for bit, and ``known`` can be shared by all of one model and one arithmetic: ``name`` says which.
    """

    judge: Judge
    start: Tree
    name: Hashable
    known: Known

    def positions(self, params: Tree, tokens: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of every token after the first, and which of them count, both ``[C, B, T-1]``."""
        if torch.is_grad_enabled() or not self.begins(params):
            return self.judge.positions(params, tokens, keep)
        key = self.name, tuple(tokens.shape), digest(tokens), digest(keep)
        if key not in self.known:
            self.known[key] = self.judge.positions(params, tokens, keep)[0]
        return self.known[key], keep[:, :, 1:]

    def sums(self, params: Tree, tokens: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Summed loss and predicted tokens of every sequence, both ``[C, B]``."""
        losses, counted = self.positions(params, tokens, keep)
        return losses.sum(2), counted.sum(2)

    def begins(self, params: Tree) -> bool:
        """Whether this is w_0, with nothing under it."""
        return all(torch.equal(leaf, self.start[name]) if name in self.start else not bool(leaf.any())
                   for name, leaf in params.items())


def digest(values: Tensor) -> bytes:
    return blake2b(values.cpu().contiguous().numpy().tobytes(), digest_size=16).digest()


__all__ = ["ZeroShot"]
