"""Randomness by name: every draw has a purpose, and no draw moves another.

``numpy_stream(seed, "cohort", 12)`` is the same generator in every process and on every machine,
whatever else was drawn before. No torch here: partitions are made without it.
"""

from __future__ import annotations

import json
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, TypeAlias

import numpy as np
from annotated_types import Interval

Seed: TypeAlias = Annotated[int, Interval(ge=0, le=2**53 - 1)]
"""A seed as configurations hold it: JSON and tables keep every digit."""


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit number that only ``seed`` and ``purpose`` decide. (``hash()`` differs from process to process.)"""
    said = json.dumps([seed, *purpose]).encode()
    return int.from_bytes(sha256(said).digest()[:8], "big") >> 1


def numpy_stream(seed: int, *purpose: str | int) -> np.random.Generator:
    """The generator for one purpose."""
    return np.random.default_rng(derive_seed(seed, *purpose))


# Named random streams for tensors; the numpy ones are in ``seeds``.

if TYPE_CHECKING:
    import torch

MERSENNE_WORDS = 624


def torch_stream(seed: int, *purpose: str | int) -> torch.Generator:
    """Return the CPU generator for one purpose. Its draws are the same whatever device the result is moved to.

    ``torch.Generator.manual_seed`` of a CPU generator uses only the low 32 bits of its seed (torch 2.13): among 77,000
    streams two would probably be equal. Therefore all 624 words of the Mersenne Twister are filled from the whole seed.
    """
    import torch  # here: numpy_stream must do without it

    whole = derive_seed(seed, *purpose)
    generator = torch.Generator().manual_seed(whole)
    state = generator.get_state()
    words = state.numpy().view(np.uint64)  # initial seed, left and seeded, next, 624 words, the cache of normal draws
    words[3 : 3 + MERSENNE_WORDS] = np.random.SeedSequence(whole).generate_state(MERSENNE_WORDS)
    generator.set_state(state)
    return generator
