"""Named random streams for tensors; the numpy ones are in ``seeds``."""

from __future__ import annotations

import torch

from .seeds import number


def torch_stream(seed: int, *purpose: str | int) -> torch.Generator:
    """The CPU generator for one purpose: the same draws whatever device the result is moved to."""
    return torch.Generator().manual_seed(number(seed, *purpose))
