"""Cache the output of the frozen blocks below everything that is trained, by token sequence.

The cache key is the hash of the tokens of a sequence. Outputs are stored in memory and, once that is full, in a temporary file
that is deleted when the process ends. Once both are full, outputs are recomputed. The frozen weights never change while a
`StackedModel` uses the network, so that cached outputs stay valid.

Every sequence passes through the blocks in a batch of its own. Matrix products can round differently in batches of other sizes,
and a resumed run, which starts with an empty cache, must give the same result as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from tempfile import TemporaryFile
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .trainable import find_backbone, find_blocks

MEMORY_BYTES, DISK_BYTES = 1 << 29, 1 << 32  # default limits


def count_frozen_blocks(network: nn.Module, trained: Collection[str]) -> int:
    """Count the blocks below everything that is trained.

    Args:
        network: The network.
        trained: The paths of the trained modules.

    Returns:
        The number of blocks, which is 0 if a module outside the blocks is trained, such as the embedding.
    """
    if not any(isinstance(module, nn.ModuleList) for module in network.modules()):
        return 0
    prefix = find_blocks(network)[0] + "."
    indices = [int(name.removeprefix(prefix).split(".")[0]) if name.startswith(prefix) else 0 for name in trained]
    return min(indices, default=0)


class StopForward(Exception):
    """Stop a forward pass after the last of the cached blocks."""


class PrefixCache:
    """A cache whose entries replace the forward pass of the first ``num_blocks`` blocks of a network.

    Args:
        network: The network; the forward methods of its first blocks are replaced.
        num_blocks: The number of blocks to cache.
        memory_bytes: The limit of the cache in memory.
        disk_bytes: The limit of the cache on disk, used on the CPU only.
    """

    def __init__(self, network: Any, num_blocks: int, memory_bytes: int = MEMORY_BYTES, disk_bytes: int = DISK_BYTES) -> None:
        self.network, self.blocks = network, list(find_blocks(network)[1])[:num_blocks]
        self.memory_bytes, self.disk_bytes = memory_bytes, disk_bytes
        self.entries: dict[bytes, Tensor | int] = {}  # states [T, H], or their offset in the file
        self.file: Any = None
        self.empty_states = torch.empty(0)
        self.mode: str | Tensor = "compute"  # "compute", "stop" (after the last block) or states [C*B, T, H] that replace the blocks
        self.num_extra_outputs: int | None = None  # number of further items in a block's output tuple; None if it returns states only
        for number, block in enumerate(self.blocks):
            vars(block)["forward"] = MethodType(self._make_forward(number == num_blocks - 1), block)

    def _make_forward(self, last: bool) -> Any:
        """Make the forward method of a block; ``last`` marks the last cached block."""

        def forward(block: Any, states: Tensor, *args: Any, **kwargs: Any) -> Any:
            if isinstance(self.mode, Tensor):
                replacement = self.mode if last else states
                return replacement if self.num_extra_outputs is None else (replacement, *[None] * self.num_extra_outputs)
            output = type(block).forward(block, states, *args, **kwargs)
            if last and self.mode == "stop":
                self.mode, self.num_extra_outputs = (output[0], len(output) - 1) if isinstance(output, tuple) else (output, None)
                raise StopForward
            return output

        return forward

    def restore_blocks(self) -> None:
        """Restore the original forward methods of the blocks."""
        for block in self.blocks:
            vars(block).pop("forward", None)

    @contextmanager
    def substitute(self, tokens: Tensor) -> Iterator[None]:
        """Let cached states replace the blocks while the network processes ``tokens`` [C*B, T]."""
        self.mode = torch.stack([self.get(row) for row in tokens])
        try:
            yield
        finally:
            self.mode = "compute"

    def get(self, tokens: Tensor) -> Tensor:
        """Return the output of the blocks [T, H] for ``tokens`` [T], from the cache if possible."""
        key = blake2b(tokens.cpu().numpy().tobytes(), digest_size=16).digest()
        entry = self.entries.get(key)
        if isinstance(entry, int):
            return self.read_from_file(entry, len(tokens))
        if entry is None:
            entry = self.compute(tokens)
            self.store(key, entry)
        return entry

    @torch.no_grad()
    def compute(self, tokens: Tensor) -> Tensor:
        """Compute the output of the blocks [T, H] for ``tokens`` [T]."""
        self.mode = "stop"
        try:
            find_backbone(self.network)(input_ids=tokens[None], use_cache=False)
        except StopForward:
            assert isinstance(self.mode, Tensor)
            return self.mode[0]
        finally:
            self.mode = "compute"
        raise AssertionError("the forward pass did not stop after the cached blocks")

    def store(self, key: bytes, states: Tensor) -> None:
        """Store states [T, H] in memory or on disk if there is room."""
        size = states.numel() * states.element_size()
        if self.memory_bytes >= size:
            self.memory_bytes, self.entries[key] = self.memory_bytes - size, states.clone()
        elif self.disk_bytes >= size and states.device.type == "cpu":
            self.file = self.file or TemporaryFile()  # noqa: SIM115 - it stays open until the process ends
            self.disk_bytes, self.entries[key] = self.disk_bytes - size, self.file.seek(0, 2)
            self.empty_states = states[:0]
            self.file.write(states.contiguous().view(torch.uint8).numpy().tobytes())

    def read_from_file(self, offset: int, length: int) -> Tensor:
        """Read the states [length, H] at an offset of the file."""
        size = length * self.empty_states.shape[-1] * self.empty_states.element_size()
        self.file.seek(offset)
        data = torch.from_numpy(np.frombuffer(self.file.read(size), dtype=np.uint8).copy())
        return data.view(self.empty_states.dtype).view(length, -1)
