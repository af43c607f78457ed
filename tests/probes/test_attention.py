"""Test the attention metrics on attention with known entropy and shift, and on networks."""

from __future__ import annotations

import pytest
import torch

from fedrift.core.tree import Tree
from fedrift.models.introspection import visit_attention
from fedrift.probes.context import select_passages
from fedrift.probes.representation import AttentionProbe, attention_entropy, attention_shift
from tests.models.networks import KINDS
from tests.probes.rounds import held_out, make_round, stacked, with_clusters

LENGTH = 7
COUNTS = torch.ones(2, LENGTH, dtype=torch.bool)
COUNTS[:, :2] = False
TEXT = select_passages(held_out(), 40)


def uniform() -> torch.Tensor:
    """Return attention that is uniform over all visible positions, [2, 1, T, T]."""
    return (torch.ones(LENGTH, LENGTH).tril() / torch.arange(1, LENGTH + 1)[:, None]).expand(2, 1, LENGTH, LENGTH)


def one_hot() -> torch.Tensor:
    return torch.eye(LENGTH).expand(2, 1, LENGTH, LENGTH)


def test_uniform_attention_has_entropy_one_and_attention_to_one_position_zero():
    both = torch.cat([uniform(), one_hot()], dim=1)
    assert attention_entropy(both, COUNTS).tolist() == pytest.approx([1, 0])


def test_attention_to_half_of_the_keys_has_entropy_lower_by_log_two():
    """Attention is uniform over half of eight keys: log 4 / log 8."""
    weights = torch.zeros(1, 1, 8, 8)
    weights[..., 7, :4] = 0.25
    only = torch.zeros(1, 8, dtype=torch.bool)
    only[0, 7] = True
    assert attention_entropy(weights, only).item() == pytest.approx(2 / 3)


def test_masked_positions_do_not_count():
    odd = uniform().clone()
    odd[1, :, 4] = one_hot()[1, :, 4]
    counts = COUNTS.clone()
    assert attention_entropy(odd, counts).item() == pytest.approx(1 - 1 / counts.sum().item())
    counts[1, 4] = False
    assert attention_entropy(odd, counts).item() == pytest.approx(1)


def test_the_shift_is_the_divergence_from_the_reference():
    before, now = torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 3, 3)
    before[..., 2, :] = torch.tensor([0.5, 0.25, 0.25])
    now[..., 2, :] = torch.tensor([0.25, 0.75, 0.0])
    only = torch.tensor([[False, False, True]])
    expected = 0.25 * torch.tensor(0.5).log() + 0.75 * torch.tensor(3.0).log()
    assert attention_shift(now, before, only).item() == pytest.approx(expected.item())
    assert attention_shift(now, now, only).item() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_attention_weights_equal_those_of_transformers(kind):
    model = stacked(kind)
    found = []
    visit_attention(model, model.init_params(), TEXT.tokens, lambda layer, weights: found.append(weights))
    model.network.set_attn_implementation("eager")
    expected = model.network.base_model(input_ids=TEXT.tokens, output_attentions=True).attentions
    assert len(found) == 3
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours[0], theirs, atol=1e-12)
        assert torch.allclose(ours.sum(-1), torch.ones_like(ours.sum(-1)))
        assert (ours.triu(1) == 0).all()


def test_the_network_returns_to_fast_attention():
    model = stacked()
    before = model.sequence_losses(model.init_params(), TEXT.tokens[None], TEXT.mask[None])[0]
    AttentionProbe(model, model.init_params(), TEXT)(make_round(model, [0.5, 0.5]))
    assert model.network.config._attn_implementation == "sdpa"
    assert not any(module._forward_hooks for module in model.network.modules())
    assert torch.equal(before, model.sequence_losses(model.init_params(), TEXT.tokens[None], TEXT.mask[None])[0])


def test_the_network_returns_to_fast_attention_after_an_error():
    model = stacked()

    def refuse(layer, weights):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        visit_attention(model, model.init_params(), TEXT.tokens, refuse)
    assert model.network.config._attn_implementation == "sdpa"
    assert not any(module._forward_hooks for module in model.network.modules())


def test_layers_are_means_of_heads_and_the_total_is_the_mean_of_layers():
    model = stacked()
    done = make_round(model, [0.5, 0.5], server=1.0)
    reading = AttentionProbe(model, model.init_params(), TEXT)(done)
    for metric in ("attention.entropy", "attention.shift"):
        heads = [reading[metric, f"layer 01 head {head:02d}"].item() for head in range(4)]
        assert reading[metric, "layer 01"].item() == pytest.approx(sum(heads) / 4)
        layers = [reading[metric, f"layer {layer:02d}"].item() for layer in range(3)]
        assert reading[metric].item() == pytest.approx(sum(layers) / 3)
    assert 0 < reading["attention.entropy"] < 1 and reading["attention.shift"] > 0


def test_an_unchanged_model_has_no_shift():
    model = stacked()
    reading = AttentionProbe(model, model.init_params(), TEXT).evaluate_state(make_round(model, [0.0]).before)
    assert all(value == 0 for key, value in reading.items() if "attention.shift" in key)


def test_several_models_are_weighted_by_their_clients():
    model = stacked()
    done = make_round(model, [0.0, 0.0, 0.0, 0.0], server=1.0)
    start, moved = model.init_params(), done.after.server.params
    two = Tree({name: torch.cat([start[name], moved[name]]) for name in start})
    probe = AttentionProbe(model, model.init_params(), TEXT)
    whole = probe.evaluate_state(done.after)["attention.shift"].item()
    assert probe.evaluate_state(with_clusters(done.after, [0, 0, 0, 1], two))["attention.shift"].item() == pytest.approx(whole / 4)
    assert probe.evaluate_state(with_clusters(done.after, [1, 1, 1, 1], two))["attention.shift"].item() == pytest.approx(whole)


def test_the_shift_is_from_the_pretrained_model_to_now():
    model = stacked()
    done = make_round(model, [0.5, 0.5], server=2.0)
    seen = []
    for params in (model.init_params(), done.after.server.params):
        visit_attention(model, params, TEXT.tokens, lambda layer, weights: seen.append(weights[0]))
    there, back = attention_shift(seen[3], seen[0], TEXT.mask), attention_shift(seen[0], seen[3], TEXT.mask)
    found = AttentionProbe(model, model.init_params(), TEXT)(done)["attention.shift", "layer 00"].item()
    assert found == pytest.approx(there.mean().item(), rel=1e-9) and there.mean() != pytest.approx(back.mean().item(), rel=1e-3)
