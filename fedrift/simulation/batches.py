"""What clients train on, step by step: their own blocks, in an order that only they and the round decide."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal

import numpy as np
import psutil
import torch
from torch import Tensor, nn

from ..core.random import numpy_stream
from ..data.tokenization import Blocks


@dataclass(frozen=True, eq=False)
class TextBatches:
    """Batches of B blocks of T tokens for each client of a cohort, stacked: ``tokens``, ``keep`` ``[A, B, T]``.

    ``local_steps`` batches a round for everybody, or, with ``local_epochs``, as many as each client's blocks make: clients
    then differ in their number of steps, and A counts those still at work. A client reads its blocks in a
    shuffled order, all of them before any comes again; the last batch of an epoch may be smaller (padded with
    sequences that nothing is learnt from). The order depends on (seed, client, round): who else takes part,
    and whether the run was interrupted, changes nothing.
    """

    blocks: tuple[Blocks, ...]  # N
    batch_size: int  # B
    seed: int
    local_steps: int = 1
    local_epochs: float | None = None
    device: torch.device = torch.device("cpu")

    def __call__(self, round: int, cohort: Tensor) -> Iterator[dict[str, Tensor]]:
        clients = cohort.tolist()
        order = [self.block_order(client, round) for client in clients]
        count = np.array([-(-len(rows) // self.batch_size) for rows in order])
        for step in range(int(count.max(initial=0))):
            work = np.flatnonzero(count > step)
            yield self.make_batch(
                [(clients[row], order[row][step * self.batch_size : (step + 1) * self.batch_size]) for row in work], torch.from_numpy(work)
            )

    def block_order(self, client: int, round: int) -> np.ndarray:
        """Which of its blocks a client reads this round, in order, ``[steps * B]`` or fewer at the end of an epoch."""
        have = len(self.blocks[client])
        need = self.local_steps * self.batch_size if self.local_epochs is None else ceil_steps(self.local_epochs * have)
        if not have:
            return np.empty(0, dtype=np.int64)
        draw = numpy_stream(self.seed, "order", client, round)
        passes = [draw.permutation(have) for _ in range(-(-need // have))]
        return np.concatenate([np.empty(0, dtype=np.int64), *passes])[:need]

    def make_batch(self, client_blocks: list[tuple[int, np.ndarray]], rows: Tensor) -> dict[str, Tensor]:
        """The stacked batch of (client, blocks) pairs; fewer than B blocks are filled up with padding."""
        length = self.blocks[client_blocks[0][0]].tokens.shape[1]
        wide = max(len(chosen) for _, chosen in client_blocks)
        tokens = np.zeros((len(client_blocks), wide, length), dtype=np.int64)
        keep = np.zeros((len(client_blocks), wide, length), dtype=bool)
        for row, (client, chosen) in enumerate(client_blocks):
            tokens[row, : len(chosen)] = self.blocks[client].tokens[chosen]
            keep[row, : len(chosen)] = self.blocks[client].mask[chosen]
        return {
            "rows": rows,
            "tokens": torch.from_numpy(tokens).to(self.device),
            "keep": torch.from_numpy(keep).to(self.device),
            "weight": torch.from_numpy(keep[:, :, 1:].sum((1, 2))),  # predicted tokens: the first of a block is context
            "examples": torch.tensor([len(chosen) for _, chosen in client_blocks]),  # in this batch
            "held": torch.tensor([len(self.blocks[client]) for client, _ in client_blocks]),
        }


def ceil_steps(amount: float) -> int:
    """The next whole number, 2.0000000001 being 2."""
    return int(np.ceil(amount - 1e-9))


# Stragglers: clients that do not finish their local steps, and whose work is kept or dropped.
#
# Li et al., "Federated Optimization in Heterogeneous Networks" (FedProx), MLSys 2020, arXiv:1812.06127, sections 2 and
# 5.2: a share of the devices (0.5 and 0.9 there) does less work than asked, drawn evenly. FedProx takes what they did
# into the mean, FedAvg drops them. Who straggles, and how far they get, depends on (seed, client, round) only, so
# that both ways meet the same stragglers, and so does every algorithm.

StragglerPolicy = Literal["partial", "drop"]


@dataclass(frozen=True, eq=False)
class StragglingBatches(TextBatches):
    """Batches of which each client, with probability ``straggler_fraction``, does only the first of its K, ~ U{1, ..., K-1}.

    The steps it does are those it would have done. ``straggler_policy="drop"``: its steps are lost, and it counts as a client
    without data. The paper draws epochs, we draw steps, since a round here may be a part of an epoch; a client
    with a single step has no fewer to do and, where work is kept, does it.
    """

    straggler_fraction: float = 0.0
    straggler_policy: StragglerPolicy = "partial"

    def block_order(self, client: int, round: int) -> np.ndarray:
        whole = super().block_order(client, round)
        steps = -(-len(whole) // self.batch_size)
        draw = numpy_stream(self.seed, "straggle", client, round)
        if draw.random() >= self.straggler_fraction or not steps:
            return whole
        done = int(draw.integers(1, steps)) if steps > 1 else 1
        return whole[:0] if self.straggler_policy == "drop" else whole[: done * self.batch_size]


# How many clients train in one forward pass: as many as fit the memory and, on a CPU, as keep its cache warm.

# On a CPU a pass of a small model slows down once its activations leave the cache (measured: 8 x 128 tokens
# a client stacked are slower than one after the other, 2 x 64 twice as fast).
CPU_TOKENS_PER_PASS = 4096
# A large model fills its products with few clients (DistilGPT2, 8 x 64 tokens each: three are as fast as eight): more of them
# only hold more memory.
CPU_BYTES_PER_PASS = 1e9
MEMORY_FRACTION = 0.5  # of the free memory


def choose_clients_per_pass(
    network: nn.Module, cohort_size: int, batch_size: int, seq_length: int, device: torch.device, num_passes: int = 1
) -> int:
    """Clients for one pass of ``batch_size`` sequences of ``seq_length`` tokens each; at least 1, at most the cohort.

    ``num_passes``: how many forward passes of a step are kept for one backward pass: 2 where an algorithm compares
    representations (MOON) beside the loss. Passes without a gradient keep nothing.
    """
    tokens = batch_size * seq_length
    need = num_passes * tokens * activation_bytes_per_token(network)
    most = [cohort_size, MEMORY_FRACTION * free_memory_bytes(device) // need]
    if device.type == "cpu":
        most += [CPU_TOKENS_PER_PASS // tokens, CPU_BYTES_PER_PASS // need]
    return max(1, int(min(most)))


def choose_faster(step: Callable[[int], object], clients_per_pass: int, trials: int = 3, tolerance: float = 0.03) -> int:
    """``clients_per_pass`` clients at once or one after the other, whichever takes ``step(clients)`` sooner for each client, at
    best.

    A choice by the clock: it is to be written down, so that a run that resumes makes it no second time.
    """
    best = {}
    for count in (1, clients_per_pass):
        step(count)  # the first is slower than the rest
        spent = []
        for _ in range(trials):
            begun = perf_counter()
            step(count)
            spent.append(perf_counter() - begun)
        best[count] = min(spent) / count
    return 1 if best[1] < (1 - tolerance) * best[clients_per_pass] else clients_per_pass


def activation_bytes_per_token(network: nn.Module) -> int:
    """Activations that a training step keeps for one token, about: what a block's maps read and write, in float32."""
    config: Any = network.config
    width = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or 4 * width
    return int(4 * config.num_hidden_layers * (14 * width + 5 * inner))


def free_memory_bytes(device: torch.device) -> int:
    """Bytes that are free for tensors on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


__all__ = ["StragglerPolicy", "StragglingBatches"]
