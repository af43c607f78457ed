"""How many clients train in one forward pass: as many as fit the memory and, on a CPU, as keep its cache warm."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import psutil
import torch
from torch import nn

# On a CPU a pass of a small model slows down once its activations leave the cache (measured: 8 x 128 tokens
# a client stacked are slower than one after the other, 2 x 64 twice as fast).
CPU_TOKENS = 4096
# A large model fills its products with few clients (DistilGPT2, 8 x 64 tokens each: three are as fast as eight): more of them
# only hold more memory.
CPU_BYTES = 1e9
ROOM = 0.5  # of the free memory


def micro_cohort(network: nn.Module, cohort: int, batch: int, length: int, device: torch.device, passes: int = 1) -> int:
    """Clients for one pass of ``batch`` sequences of ``length`` tokens each; at least 1, at most the cohort.

    ``passes``: how many forward passes of a step are kept for one backward pass: 2 where an algorithm compares
    representations (MOON) beside the loss. Passes without a gradient keep nothing.
    """
    tokens = batch * length
    need = passes * tokens * bytes_per_token(network)
    most = [cohort, ROOM * free_memory(device) // need]
    if device.type == "cpu":
        most += [CPU_TOKENS // tokens, CPU_BYTES // need]
    return max(1, int(min(most)))


def faster(step: Callable[[int], object], micro: int, trials: int = 3, tie: float = 0.03) -> int:
    """``micro`` clients at once or one after the other, whichever takes ``step(clients)`` sooner for each client, at best.

    A choice by the clock: it is to be written down, so that a run that resumes makes it no second time.
    """
    best = {}
    for count in (1, micro):
        step(count)  # the first is slower than the rest
        spent = []
        for _ in range(trials):
            begun = perf_counter()
            step(count)
            spent.append(perf_counter() - begun)
        best[count] = min(spent) / count
    return 1 if best[1] < (1 - tie) * best[micro] else micro


def bytes_per_token(network: nn.Module) -> int:
    """Activations that a training step keeps for one token, about: what a block's maps read and write, in float32."""
    config: Any = network.config
    width = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or 4 * width
    return int(4 * config.num_hidden_layers * (14 * width + 5 * inner))


def free_memory(device: torch.device) -> int:
    """Bytes that are free for tensors on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
