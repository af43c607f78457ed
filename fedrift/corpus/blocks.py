"""Documents packed into blocks of one length, for training and evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .tokens import Tokens


@dataclass(frozen=True, eq=False)
class Blocks:
    """K blocks of T tokens."""

    tokens: np.ndarray  # [K, T] int64
    keep: np.ndarray  # [K, T] bool: False on padding, and only there

    def __len__(self) -> int:
        return len(self.tokens)


def pack(tokens: Tokens, rows: np.ndarray, length: int) -> Blocks:
    """The documents ``rows`` (indices or a mask), in the given order, cut into blocks of ``length`` tokens.

    Every document brings its end token, so one stands between any two. Only the last block is padded; K is 0
    if ``rows`` is empty. Rows of one client packed alone never share a block with another's.
    """
    if length < 1:
        raise ValueError(f"wanted a block length of at least 1, got {length}")
    rows = np.asarray(rows)
    rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
    begin, end = tokens.offset[rows].tolist(), tokens.offset[rows + 1].tolist()
    total = int(tokens.lengths[rows].sum())
    blocks = -(-total // length)
    packed = np.full(blocks * length, tokens.pad, dtype=np.int64)
    # One copy of D slices; an index of every token costs several times as much.
    np.concatenate(
        [tokens.flat[:0], *(tokens.flat[a:z] for a, z in zip(begin, end, strict=True))], out=packed[:total]
    )
    keep = np.arange(blocks * length) < total
    return Blocks(packed.reshape(blocks, length), keep.reshape(blocks, length))
