"""Test that random streams are named, independent of each other, and depend on the whole seed."""

from __future__ import annotations

import numpy as np
import torch

from fedrift.core import random
from fedrift.core.random import derive_seed, numpy_stream, torch_stream


def test_equal_names_give_equal_streams():
    for stream in (
        lambda *words: torch.rand(3, generator=torch_stream(*words)).tolist(),
        lambda *words: numpy_stream(*words).random(3).tolist(),
    ):
        assert stream(1, "a") == stream(1, "a") and len({str(stream(*words)) for words in ((1, "a"), (2, "a"), (1, "b"), (1, "a", 0))}) == 4


def test_seeds_with_equal_low_32_bits_give_different_draws(monkeypatch):
    """The CPU generator of torch 2.13 uses only the low 32 bits of a seed."""
    draws = []
    for whole in (5, 5 + 2**32, 5 + 2**62):
        monkeypatch.setattr(random, "derive_seed", lambda seed, *purpose, whole=whole: whole)
        draws.append(torch.rand(4, generator=torch_stream(0)).tolist())
    assert len({tuple(each) for each in draws}) == 3


def test_a_torch_stream_equals_the_mersenne_twister_of_numpy():
    words = np.random.SeedSequence(derive_seed(5, "y")).generate_state(624)
    twister = np.random.MT19937()
    twister.state = {"bit_generator": "MT19937", "state": {"key": words, "pos": 624}}
    expected = [int(each) for each in twister.random_raw(1300)]  # longer than two updates of the internal state
    drawn = torch.randint(0, 2**32, (650,), generator=torch_stream(5, "y")).tolist()  # the low word of each 64-bit draw
    assert drawn == expected[1::2]
