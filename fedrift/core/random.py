"""Named random streams: each purpose has its own generator, so that no draw changes another draw.

``numpy_stream(seed, "cohort", 12)`` is the same generator in every process and on every machine, regardless of earlier draws.
This module does not import torch, because partitioning works without it.
"""

from __future__ import annotations

import json
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, TypeAlias

import numpy as np
from annotated_types import Interval

Seed: TypeAlias = Annotated[int, Interval(ge=0, le=2**53 - 1)]
"""The range of seeds in configurations. JSON numbers and tables represent integers up to 2**53 - 1 exactly."""


def derive_seed(seed: int, *purpose: str | int) -> int:
    """Derive a 63-bit seed from a seed and a purpose.

    Args:
        seed: The seed of the run.
        *purpose: The name of the random stream, followed by indices such as the round or the client.

    Returns:
        A number that depends on the arguments only. The built-in ``hash()`` would differ from process to process.
    """
    encoded = json.dumps([seed, *purpose]).encode()
    return int.from_bytes(sha256(encoded).digest()[:8], "big") >> 1


def numpy_stream(seed: int, *purpose: str | int) -> np.random.Generator:
    """Return the numpy generator of one purpose, seeded with ``derive_seed(seed, *purpose)``."""
    return np.random.default_rng(derive_seed(seed, *purpose))


if TYPE_CHECKING:
    import torch

MERSENNE_WORDS = 624


def torch_stream(seed: int, *purpose: str | int) -> torch.Generator:
    """Return the torch generator of one purpose, seeded with ``derive_seed(seed, *purpose)``.

    The generator is on the CPU, so that the draws do not depend on the device to which the result is moved.
    ``torch.Generator.manual_seed`` of a CPU generator uses only the low 32 bits of its seed (torch 2.13), so that two of about
    77,000 streams would probably be equal. Therefore all 624 words of the Mersenne Twister are filled from the whole seed.
    """
    import torch  # a module-level import would make numpy_stream depend on torch

    whole = derive_seed(seed, *purpose)
    generator = torch.Generator().manual_seed(whole)
    state = generator.get_state()
    words = state.numpy().view(np.uint64)  # initial seed; left and seeded; next; the 624 words; cached normal draws
    words[3 : 3 + MERSENNE_WORDS] = np.random.SeedSequence(whole).generate_state(MERSENNE_WORDS)
    generator.set_state(state)
    return generator
