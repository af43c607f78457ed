"""The text that representations are compared on: a few held-out blocks, the domains in turn, the same in every round."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .held_out import HeldOut

FIRST = 2  # the first positions of a block see next to nothing, and are where idle heads look


@dataclass(frozen=True, eq=False)
class Passages:
    """B blocks of T tokens, and the positions in them that count."""

    tokens: Tensor  # [B, T]
    counts: Tensor  # [B, T] bool: not padding, and not among the first of its block

    @property
    def places(self) -> Tensor:
        """Where the positions that count are when blocks lie one after the other, ``[P]``."""
        return self.counts.flatten().nonzero().flatten()


def passages(held: HeldOut, positions: int) -> Passages:
    """The fewest blocks with so many positions that count, or all of them; the blocks' domains in turn."""
    turn = np.zeros(len(held.domain), dtype=int)
    for domain in np.unique(held.domain):
        rows = np.flatnonzero(held.domain == domain)
        turn[rows] = np.arange(len(rows))
    order = np.lexsort((held.domain, turn))
    counts = held.blocks.keep[order].copy()
    counts[:, :FIRST] = False
    enough = int(np.searchsorted(np.cumsum(counts.sum(1)), positions)) + 1
    counts = counts[:enough]
    beyond = np.cumsum(counts.ravel()).reshape(counts.shape) > positions
    return Passages(torch.from_numpy(held.blocks.tokens[order][:enough]), torch.from_numpy(counts & ~beyond))
