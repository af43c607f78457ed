"""Training batches of clients, stragglers, and the number of clients per forward pass.

Axis letters: C clients of the cohort, A clients with a step in the current batch, B blocks per batch, T tokens per block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor, nn

from ..core.random import numpy_stream
from ..core.types import StragglerPolicy
from ..data.tokenization import Blocks


@dataclass(frozen=True, eq=False)
class TextBatches:
    """Batches of text for a cohort, stacked over its clients.

    All clients take ``local_steps`` steps per round. With ``local_epochs`` instead, the number of steps depends on the number of
    blocks of a client. A client uses its blocks in a shuffled order, and every block once before any block again. The last
    batch may be smaller than B; it is padded with sequences that do not contribute to the loss. The order depends only on the seed,
    the client and the round, and not on the other clients of the cohort or on interruptions of the run.
    """

    blocks: tuple[Blocks, ...]  # training blocks of each client, N entries
    batch_size: int  # B
    seed: int
    local_steps: int = 1
    local_epochs: float | None = None
    device: torch.device = torch.device("cpu")

    def __call__(self, round: int, cohort: Tensor) -> Iterator[dict[str, Tensor]]:
        """Yield one batch per local step.

        Args:
            round: Number of completed rounds; 0 in the first round.
            cohort: The clients of the round, ``[C]``.

        Yields:
            The batch of the A clients that have not finished their local steps, as ``make_batch`` returns it.
        """
        clients = cohort.tolist()
        block_orders = [self.block_order(client, round) for client in clients]
        num_steps = np.array([-(-len(order) // self.batch_size) for order in block_orders])
        for step in range(int(num_steps.max(initial=0))):
            active = np.flatnonzero(num_steps > step)
            client_blocks = [(clients[row], block_orders[row][step * self.batch_size : (step + 1) * self.batch_size]) for row in active]
            yield self.make_batch(client_blocks, torch.from_numpy(active))

    def block_order(self, client: int, round: int) -> np.ndarray:
        """Return the indices of the blocks that a client uses in a round, in order.

        The shuffled epochs follow each other, and batches are cut from the whole: all batches but the last are full, and a batch can
        hold the end of one epoch and the beginning of the next. McMahan et al. (2017, Algorithm 1) cut each epoch apart.

        Returns:
            The indices, ``[steps * B]``; fewer if the last batch is smaller.
        """
        num_blocks = len(self.blocks[client])
        num_needed = self.local_steps * self.batch_size if self.local_epochs is None else ceil_steps(self.local_epochs * num_blocks)
        if not num_blocks:
            return np.empty(0, dtype=np.int64)
        rng = numpy_stream(self.seed, "order", client, round)
        epochs = [rng.permutation(num_blocks) for _ in range(-(-num_needed // num_blocks))]
        return np.concatenate([np.empty(0, dtype=np.int64), *epochs])[:num_needed]

    def make_batch(self, client_blocks: list[tuple[int, np.ndarray]], rows: Tensor) -> dict[str, Tensor]:
        """Stack blocks of several clients; clients with fewer blocks are padded.

        Args:
            client_blocks: The id of each client and the indices of its blocks, A entries.
            rows: The rows of these clients in the cohort, ``[A]``.

        Returns:
            ``rows [A]``, ``tokens [A, B, T]``, ``loss_mask [A, B, T]`` (false for padding), ``weight [A]`` (predicted tokens) and
            ``num_examples [A]`` (all blocks of the client).
        """
        length = self.blocks[client_blocks[0][0]].tokens.shape[1]
        width = max(len(indices) for _, indices in client_blocks)
        tokens = np.zeros((len(client_blocks), width, length), dtype=np.int64)
        loss_mask = np.zeros((len(client_blocks), width, length), dtype=bool)
        for row, (client, indices) in enumerate(client_blocks):
            tokens[row, : len(indices)] = self.blocks[client].tokens[indices]
            loss_mask[row, : len(indices)] = self.blocks[client].mask[indices]
        return {
            "rows": rows,
            "tokens": torch.from_numpy(tokens).to(self.device),
            "loss_mask": torch.from_numpy(loss_mask).to(self.device),
            "weight": torch.from_numpy(loss_mask[:, :, 1:].sum((1, 2))),  # the first token of a block is context and is not predicted
            "num_examples": torch.tensor([len(self.blocks[client]) for client, _ in client_blocks]),
        }


def ceil_steps(amount: float) -> int:
    """Round up to a whole number, with a tolerance for rounding errors: 2.0000000001 becomes 2."""
    return int(np.ceil(amount - 1e-9))


@dataclass(frozen=True, eq=False)
class StragglingBatches(TextBatches):
    """Batches with stragglers, which are clients that do not finish their local steps.

    Li et al., "Federated Optimization in Heterogeneous Networks" (FedProx), MLSys 2020, arXiv:1812.06127, sections 2 and 5.2: a
    fraction of the devices (0.5 and 0.9 in the paper) does less work than requested, uniformly distributed. FedProx includes the
    work of stragglers in the mean, and FedAvg drops it.

    With probability ``straggler_fraction``, a client takes only the first of its K steps, with a number ~ U{1, ..., K-1}. The stragglers
    and their steps depend only on the seed, the client and the round, so all algorithms and both policies have the same
    stragglers. With the policy ``drop``, a straggler counts as a client without data. The paper samples epochs; fedrift samples
    steps, because a round can be a part of an epoch. A client with a single step takes that step, unless it is dropped.
    """

    straggler_fraction: float = 0.0
    straggler_policy: StragglerPolicy = "partial"

    def block_order(self, client: int, round: int) -> np.ndarray:
        order = super().block_order(client, round)
        num_steps = -(-len(order) // self.batch_size)
        rng = numpy_stream(self.seed, "straggle", client, round)
        if rng.random() >= self.straggler_fraction or not num_steps:
            return order
        num_finished = int(rng.integers(1, num_steps)) if num_steps > 1 else 1
        return order[:0] if self.straggler_policy == "drop" else order[: num_finished * self.batch_size]


# On a CPU, a pass of a small model becomes slow when its activations exceed the cache. Measured: clients with 8 x 128 tokens are slower
# together than one after another, and clients with 2 x 64 tokens are twice as fast together.
CPU_TOKENS_PER_PASS = 4096
# The matrix products of a large model are efficient with few clients already, and more clients only use more memory. Measured with
# DistilGPT2 and 8 x 64 tokens per client: three clients per pass are as fast as eight.
CPU_BYTES_PER_PASS = 1e9
MEMORY_FRACTION = 0.5  # fraction of the free memory that a pass may use


def choose_clients_per_pass(
    network: nn.Module, cohort_size: int, batch_size: int, seq_length: int, device: torch.device, num_passes: int = 1
) -> int:
    """Estimate how many clients should train in one forward pass.

    Args:
        network: The model.
        cohort_size: Number of clients per round.
        batch_size: Sequences per client.
        seq_length: Tokens per sequence.
        device: The device.
        num_passes: Forward passes per step whose activations are stored for the backward pass: 2 for an algorithm that compares
            representations (MOON), else 1.

    Returns:
        A number from 1 to ``cohort_size``.
    """
    tokens = batch_size * seq_length
    bytes_per_client = num_passes * tokens * activation_bytes_per_token(network)
    limits = [cohort_size, MEMORY_FRACTION * free_memory_bytes(device) // bytes_per_client]
    if device.type == "cpu":
        limits += [CPU_TOKENS_PER_PASS // tokens, CPU_BYTES_PER_PASS // bytes_per_client]
    return max(1, int(min(limits)))


def choose_faster(step: Callable[[int], object], clients_per_pass: int, trials: int = 3, tolerance: float = 0.03) -> int:
    """Measure whether several clients per pass are faster than one.

    The result depends on the clock. It must be stored with the run, so that the run continues with the same choice.

    Args:
        step: Computes one step for a number of clients.
        clients_per_pass: The number of clients to compare with one.
        trials: Measurements of each; the fastest counts.
        tolerance: One client per pass must be faster by this fraction to be chosen.

    Returns:
        1 or ``clients_per_pass``.
    """
    seconds_per_client = {}
    for count in (1, clients_per_pass):
        step(count)  # the first step is slower than later ones
        seconds = []
        for _ in range(trials):
            start = perf_counter()
            step(count)
            seconds.append(perf_counter() - start)
        seconds_per_client[count] = min(seconds) / count
    return 1 if seconds_per_client[1] < (1 - tolerance) * seconds_per_client[clients_per_pass] else clients_per_pass


def activation_bytes_per_token(network: nn.Module) -> int:
    """Estimate the bytes of activations per token that a training step stores: inputs and outputs of the linear maps, in float32."""
    config: Any = network.config
    hidden_size = config.hidden_size
    intermediate_size = getattr(config, "intermediate_size", None) or 4 * hidden_size
    return int(4 * config.num_hidden_layers * (14 * hidden_size + 5 * intermediate_size))


def free_memory_bytes(device: torch.device) -> int:
    """Return the free memory of a device in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
