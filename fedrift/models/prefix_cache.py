"""The frozen blocks below everything that is trained: what they make of a sequence is computed once and kept.

Kept under the hash of a sequence's tokens: in memory and, when that is full, in a file that ends with the process; when both
are full it is computed again. The weights never change while a network is worn, so nothing kept can be out of date. Every
sequence goes through the blocks alone, whoever stands beside it in a batch: matrix products may round otherwise in other
company, and a run that resumes with nothing kept must come out the same.
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

from .trainable import find_blocks

MEMORY_BYTES, DISK_BYTES = 1 << 29, 1 << 32  # bytes


def count_frozen_blocks(network: nn.Module, trained: Collection[str]) -> int:
    """How many blocks lie below everything that is trained; 0 where something outside the blocks is, such as the embedding."""
    if not any(isinstance(module, nn.ModuleList) for module in network.modules()):
        return 0
    path = find_blocks(network)[0] + "."
    numbers = [int(name.removeprefix(path).split(".")[0]) if name.startswith(path) else 0 for name in trained]
    return min(numbers, default=0)


class StopForward(Exception):
    """The blocks that were asked have worked."""


class PrefixCache:
    """The first ``num_blocks`` blocks of a network, which can stand aside for what they made of the same tokens earlier."""

    def __init__(self, network: Any, num_blocks: int, memory_bytes: int = MEMORY_BYTES, disk_bytes: int = DISK_BYTES) -> None:
        self.network, self.blocks = network, list(find_blocks(network)[1])[:num_blocks]
        self.memory_bytes, self.disk_bytes = memory_bytes, disk_bytes
        self.entries: dict[bytes, Tensor | int] = {}  # [T, H], or where it stands in the file
        self.file: Any = None
        self.empty_states = torch.empty(0)
        self.mode: str | Tensor = "work"  # "stop": at the last of the blocks; a tensor [C*B, T, H] stands in for them
        self.num_extra_outputs: int | None = None  # what a block returns beside its states, in a tuple; None: states alone
        for number, block in enumerate(self.blocks):
            vars(block)["forward"] = MethodType(self._make_forward(number == num_blocks - 1), block)

    def _make_forward(self, last: bool) -> Any:
        def forward(block: Any, states: Tensor, *more: Any, **named: Any) -> Any:
            if isinstance(self.mode, Tensor):
                out = self.mode if last else states
                return out if self.num_extra_outputs is None else (out, *[None] * self.num_extra_outputs)
            made = type(block).forward(block, states, *more, **named)
            if last and self.mode == "stop":
                self.mode, self.num_extra_outputs = (made[0], len(made) - 1) if isinstance(made, tuple) else (made, None)
                raise StopForward
            return made

        return forward

    def restore_blocks(self) -> None:
        """Let the blocks work for themselves again."""
        for block in self.blocks:
            vars(block).pop("forward", None)

    @contextmanager
    def substitute(self, tokens: Tensor) -> Iterator[None]:
        """While the network reads ``tokens [C*B, T]``, what is kept of them takes the place of the blocks."""
        self.mode = torch.stack([self.get(row) for row in tokens])
        try:
            yield
        finally:
            self.mode = "work"

    def get(self, tokens: Tensor) -> Tensor:
        """What the blocks make of ``tokens [T]``, ``[T, H]``."""
        key = blake2b(tokens.cpu().numpy().tobytes(), digest_size=16).digest()
        found = self.entries.get(key)
        if isinstance(found, int):
            return self.read_from_file(found, len(tokens))
        if found is None:
            found = self.compute(tokens)
            self.store(key, found)
        return found

    @torch.no_grad()
    def compute(self, tokens: Tensor) -> Tensor:
        self.mode = "stop"
        try:
            self.network.base_model(input_ids=tokens[None], use_cache=False)
        except StopForward:
            assert isinstance(self.mode, Tensor)
            return self.mode[0]
        finally:
            self.mode = "work"
        raise AssertionError("the network went past its own blocks")

    def store(self, key: bytes, states: Tensor) -> None:
        size = states.numel() * states.element_size()
        if self.memory_bytes >= size:
            self.memory_bytes, self.entries[key] = self.memory_bytes - size, states.clone()
        elif self.disk_bytes >= size and states.device.type == "cpu":
            self.file = self.file or TemporaryFile()  # noqa: SIM115 - closed with the process
            self.disk_bytes, self.entries[key] = self.disk_bytes - size, self.file.seek(0, 2)
            self.empty_states = states[:0]
            self.file.write(states.contiguous().view(torch.uint8).numpy().tobytes())

    def read_from_file(self, offset: int, length: int) -> Tensor:
        size = length * self.empty_states.shape[-1] * self.empty_states.element_size()
        self.file.seek(offset)
        numbers = torch.from_numpy(np.frombuffer(self.file.read(size), dtype=np.uint8).copy())
        return numbers.view(self.empty_states.dtype).view(length, -1)
