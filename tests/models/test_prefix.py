"""Test that cached states of the frozen prefix change nothing, wherever they are stored."""

from __future__ import annotations

import pytest
import torch

from fedrift.models.introspection import visit_hidden_states
from fedrift.models.prefix_cache import PrefixCache, count_frozen_blocks
from fedrift.models.stacked_model import StackedModel
from fedrift.models.trainable import All, LastBlocks, Lora
from fedrift.simulation.simulator import value_and_gradient
from tests.models.networks import KINDS, batch, network

UPPER = {"gpt2": "transformer.h.2.attn.c_attn"}
PREFIX_TRAINABLES = {
    "last 1": lambda kind: LastBlocks(1),
    "last 2": lambda kind: LastBlocks(2),
    "upper adapters": lambda kind: Lora(r=2, target_modules=(UPPER.get(kind, "model.layers.2.self_attn.q_proj"),)),
}


def make_model(kind: str, tune, dtype=torch.float64, **said):
    model = StackedModel(network(kind, dtype), tune, **said)
    draw = torch.Generator().manual_seed(1)
    rows = model.init_params().take(torch.zeros(3, dtype=torch.long))
    return model, rows.map(lambda leaf: leaf + 0.1 * torch.randn(leaf.shape, generator=draw, dtype=torch.float64).to(leaf))


def record_used_blocks(model: StackedModel) -> list[int]:
    """Return a list that records which blocks compute attention from now on."""
    found: list[int] = []
    for number, block in enumerate(model.prefix_cache.blocks):
        attention = getattr(block, "self_attn", None) or block.attn
        attention.register_forward_hook(lambda *seen, number=number: found.append(number))
    return found


@pytest.mark.parametrize("tune", PREFIX_TRAINABLES)
@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_equal_those_without_the_prefix_cache(kind, tune):
    model, params = make_model(kind, PREFIX_TRAINABLES[tune](kind))
    whole, _ = make_model(kind, PREFIX_TRAINABLES[tune](kind), use_prefix_cache=False)
    assert model.prefix_cache is not None and whole.prefix_cache is None
    expected, slopes = value_and_gradient(whole, params, batch(3), torch.arange(3))
    for _ in range(2):  # computed first, then read from the cache
        loss, grad = value_and_gradient(model, params, batch(3), torch.arange(3))
        assert torch.allclose(loss, expected, rtol=1e-10)
        for name, slope in slopes.items():
            assert torch.allclose(grad[name], slope, atol=1e-10), name


def test_each_sequence_is_computed_once():
    model, params = make_model("llama", LastBlocks(1))
    model.prefix_cache.entries.clear()
    found = record_used_blocks(model)
    model(params, batch(3))
    assert found == [0, 1] * 9  # each sequence separately
    found.clear()
    model(params, batch(3))
    assert found == []
    model(params, batch(3, seed=1))
    assert len(found) > 0


def test_sequences_with_equal_beginnings_are_distinguished():
    model, params = make_model("llama", LastBlocks(1))
    whole, _ = make_model("llama", LastBlocks(1), use_prefix_cache=False)
    one, other = batch(3), batch(3)
    other["tokens"][:, :, -2:] = 7
    for data in (one, other):
        assert torch.allclose(model(params, data), whole(params, data), rtol=1e-10)
    assert not torch.allclose(model(params, one), model(params, other), rtol=1e-3)


@pytest.mark.parametrize("room", [(0, 1 << 20), (2000, 1 << 20), (2000, 2000), (0, 0)], ids=str)
def test_the_place_of_the_cache_changes_no_bit(room):
    model, params = make_model("llama", LastBlocks(1), torch.float32)
    expected = model(params, batch(3))
    model.prefix_cache = PrefixCache(model.network, 2, *room)
    for _ in range(3):
        assert torch.equal(model(params, batch(3)), expected)
    assert (model.prefix_cache.file is not None) == (room[1] > 0)


def test_other_sequences_in_the_batch_change_no_bit():
    one, _ = make_model("llama", LastBlocks(1), torch.float32)
    other, _ = make_model("llama", LastBlocks(1), torch.float32)
    tokens = batch(3)["tokens"].flatten(0, 1)
    with one.prefix_cache.substitute(tokens), other.prefix_cache.substitute(tokens[4:6]):
        assert torch.equal(one.prefix_cache.mode[4:6], other.prefix_cache.mode)


def test_introspection_computes_all_blocks():
    seen = []
    for prefix in (True, False):
        model, params = make_model("llama", LastBlocks(1), use_prefix_cache=prefix)
        model(params, batch(3))
        states: dict[int, torch.Tensor] = {}
        visit_hidden_states(model, params, batch(1)["tokens"][0], states.__setitem__)
        seen.append(states)
    assert seen[0].keys() == seen[1].keys() == {0, 1, 2}
    assert all(torch.equal(seen[0][layer], seen[1][layer]) for layer in seen[1])


def test_without_a_frozen_prefix_there_is_no_cache():
    plain = network("llama")
    assert count_frozen_blocks(plain, LastBlocks(2).select_modules(plain)) == 1
    for trainable in (LastBlocks(3), All(), Lora()):
        assert count_frozen_blocks(plain, trainable.select_modules(plain)) == 0
