"""What clients train on, step by step: their own blocks, in an order that only they and the round decide."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..corpus.blocks import Blocks
from ..seeds import numpy_stream


@dataclass(frozen=True, eq=False)
class TextBatches:
    """Batches of B blocks of T tokens for each client of a cohort, stacked: ``tokens``, ``keep`` ``[A, B, T]``.

    ``steps`` batches a round for everybody, or, with ``epochs``, as many as each client's blocks make: clients
    then differ in their number of steps, and A counts those still at work. A client reads its blocks in a
    shuffled order, all of them before any comes again; the last batch of an epoch may be smaller (padded with
    sequences that nothing is learnt from). The order depends on (seed, client, round): who else takes part,
    and whether the run was interrupted, changes nothing.
    """

    blocks: tuple[Blocks, ...]  # N
    size: int  # B
    seed: int
    steps: int = 1
    epochs: float | None = None
    device: torch.device = torch.device("cpu")

    def __call__(self, round: int, cohort: Tensor) -> Iterator[dict[str, Tensor]]:
        clients = cohort.tolist()
        order = [self.order(client, round) for client in clients]
        count = np.array([-(-len(rows) // self.size) for rows in order])
        for step in range(int(count.max(initial=0))):
            work = np.flatnonzero(count > step)
            yield self.batch([(clients[row], order[row][step * self.size:(step + 1) * self.size]) for row in work],
                             torch.from_numpy(work))

    def order(self, client: int, round: int) -> np.ndarray:
        """Which of its blocks a client reads this round, in order, ``[steps * B]`` or fewer at the end of an epoch."""
        have = len(self.blocks[client])
        need = self.steps * self.size if self.epochs is None else round_up(self.epochs * have)
        if not have:
            return np.empty(0, dtype=np.int64)
        draw = numpy_stream(self.seed, "order", client, round)
        passes = [draw.permutation(have) for _ in range(-(-need // have))]
        return np.concatenate([np.empty(0, dtype=np.int64), *passes])[:need]

    def batch(self, picks: list[tuple[int, np.ndarray]], rows: Tensor) -> dict[str, Tensor]:
        """The stacked batch of (client, blocks) pairs; fewer than B blocks are filled up with padding."""
        length = self.blocks[picks[0][0]].tokens.shape[1]
        wide = max(len(chosen) for _, chosen in picks)
        tokens = np.zeros((len(picks), wide, length), dtype=np.int64)
        keep = np.zeros((len(picks), wide, length), dtype=bool)
        for row, (client, chosen) in enumerate(picks):
            tokens[row, :len(chosen)] = self.blocks[client].tokens[chosen]
            keep[row, :len(chosen)] = self.blocks[client].keep[chosen]
        return {
            "rows": rows,
            "tokens": torch.from_numpy(tokens).to(self.device),
            "keep": torch.from_numpy(keep).to(self.device),
            "weight": torch.from_numpy(keep[:, :, 1:].sum((1, 2))),  # predicted tokens: the first of a block is context
            "examples": torch.tensor([len(chosen) for _, chosen in picks]),  # in this batch
            "held": torch.tensor([len(self.blocks[client]) for client, _ in picks]),
        }


def round_up(amount: float) -> int:
    """The next whole number, 2.0000000001 being 2."""
    return int(np.ceil(amount - 1e-9))
