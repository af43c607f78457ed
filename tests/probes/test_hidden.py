"""Test the metrics of hidden states on rounds with known movement of the clients."""

from __future__ import annotations

import pytest
import torch

from fedrift.core.tree import Tree
from fedrift.models.introspection import visit_hidden_states
from fedrift.models.trainable import All, Lora, find_blocks
from fedrift.probes.context import select_passages
from fedrift.probes.representation import HiddenStates, cka
from tests.models.networks import KINDS
from tests.probes.rounds import held_out, make_round, noise, stacked, with_clusters

TEXT = select_passages(held_out(), 40)


def probe(model) -> HiddenStates:
    return HiddenStates(model, model.init_params(), TEXT)


@pytest.mark.parametrize("kind", KINDS)
def test_the_hidden_states_equal_those_of_transformers(kind):
    model = stacked(kind)
    params = model.init_params() + noise(model.init_params(), 0.3, 1)
    both = Tree({name: torch.cat([model.init_params()[name], leaf]) for name, leaf in params.items()})
    found = {}
    visit_hidden_states(model, both, TEXT.tokens, lambda layer, states: found.__setitem__(layer, states.clone()))
    expected = model.network.base_model(input_ids=TEXT.tokens, output_hidden_states=True).hidden_states
    assert sorted(found) == [0, 1, 2]
    for layer in (0, 1):  # the last entry of transformers' list is after the final norm
        assert torch.allclose(found[layer][0], expected[layer + 1], atol=1e-12)
    assert not torch.allclose(found[1][1], expected[2], atol=1e-3)


def test_no_hook_remains_in_the_network():
    model = stacked()
    tokens, keep = TEXT.tokens[None], TEXT.mask[None]
    before = model.sequence_losses(model.init_params(), tokens, keep)[0]
    probe(model)(make_round(model, [0.5, 0.5]))
    assert not any(module._forward_hooks for module in model.network.modules())
    assert torch.equal(before, model.sequence_losses(model.init_params(), tokens, keep)[0])


def test_an_unchanged_model_equals_the_pretrained_one():
    model = stacked()
    reading = probe(model).evaluate_state(make_round(model, [0.0, 0.0]).before)
    for name in ("hidden.cosine.pretrained", "hidden.cka.pretrained", "hidden.rank.ratio"):
        assert reading[name].item() == pytest.approx(1)
        assert reading[name, "layer 02"].item() == pytest.approx(1)
    assert 0 < reading["hidden.anisotropy"] < 1


def test_a_client_that_moves_farther_is_less_similar_to_the_server():
    model = stacked()
    reading = probe(model)(make_round(model, [0.0, 0.1, 3.0], server=0.0))
    near, close, far = reading["hidden.cka.server"].tolist()
    assert near == pytest.approx(1) and near > close > far
    assert reading["hidden.cka.server", "layer 01"].shape == (3,)
    near, close, far = reading["hidden.cosine.server"].tolist()
    assert near == pytest.approx(1) and near > close > far


def test_equal_clients_are_similar_for_every_server():
    model = stacked()
    done = make_round(model, [0.0, 0.0, 0.0], server=1.0)
    reading = probe(model)(done)
    assert reading["hidden.cka.clients"].item() == pytest.approx(1)
    assert reading["hidden.cosine.clients"].item() == pytest.approx(1)
    assert reading["hidden.cosine.server"].max() < 0.999
    assert reading["hidden.cka.pretrained"] < 0.999


def test_training_of_the_last_block_does_not_change_lower_layers():
    model = stacked()
    done = make_round(model, [0.0, 0.0], server=1.0)
    last = done.after.server.params
    start = model.init_params()
    moved = Tree({name: last[name] if ".2." in name else start[name] for name in last})
    reading = probe(model).evaluate_state(with_clusters(done.after, [0, 0], moved))
    assert reading["hidden.cosine.pretrained", "layer 01"].item() == pytest.approx(1)
    assert reading["hidden.cosine.pretrained", "layer 02"] < 0.9999


def test_a_client_is_compared_with_the_model_that_it_shares():
    model = stacked()
    done = make_round(model, [0.0, 0.0], server=0.0)
    start, other = model.init_params(), model.init_params() + noise(model.init_params(), 2.0, 5)
    two = Tree({name: torch.cat([start[name], other[name]]) for name in start})
    split = with_clusters(done.after, [0, 1], two)
    reading = probe(model)(type(done)(done.before, split, done.cohort, done.update))
    same, apart = reading["hidden.cka.server"].tolist()
    assert same == pytest.approx(1) and apart < 0.999
    alone = [
        probe(model).evaluate_state(with_clusters(done.after, [0, 0], params))["hidden.cka.pretrained"].item() for params in (start, other)
    ]
    assert reading["hidden.cka.pretrained"].item() == pytest.approx(sum(alone) / 2)


def test_a_client_that_failed_has_no_number_and_does_not_count():
    model = stacked()
    reading = probe(model)(make_round(model, [0.3, 9.0, 0.5], failed=(1,)))
    assert reading["hidden.cka.server"].isnan().tolist() == [False, True, False]
    one = probe(model)(make_round(model, [0.3, 9.0], failed=(0, 1)))
    assert "hidden.cka.server" not in one and "hidden.rank" in one


def test_a_diverged_model_has_missing_values_and_no_error():
    model = stacked()
    reading = probe(model)(make_round(model, [0.1, 0.1], server=float("nan")))
    assert reading["hidden.rank"].isnan() and reading["hidden.cka.pretrained"].isnan()


def test_whole_networks_can_be_inspected():
    model = stacked(tune=All())
    reading = probe(model)(make_round(model, [0.0, 0.05], server=0.0))
    assert reading["hidden.cka.server"][0].item() == pytest.approx(1)
    assert reading["hidden.cosine.pretrained"].item() == pytest.approx(1, abs=1e-6)  # trained norms use double precision


@pytest.mark.parametrize("tune", [Lora(r=2), All()], ids=repr)
def test_an_evaluation_does_not_change_the_round(tune):
    model = stacked(tune=tune)
    done = make_round(model, [0.2, 0.1])
    kept = done.after.server.params.map(torch.clone), done.update.delta.map(torch.clone)
    probe(model)(done)
    assert all(torch.equal(kept[0][name], done.after.server.params[name]) for name in kept[0])
    assert all(torch.equal(kept[1][name], done.update.delta[name]) for name in kept[1])


def test_passages_alternate_between_domains_without_padding():
    held = held_out(12, 12, 3)
    few = select_passages(held, 30)
    assert len(few.tokens) == 3  # ten positions for each
    assert {tuple(row) for row in few.tokens.tolist()} == {tuple(held.blocks.tokens[row]) for row in (0, 4, 8)}
    assert not few.mask[:, :2].any() and few.mask.sum() == 30
    everything = select_passages(held, 10**6)
    assert len(everything.tokens) == 12 and len(everything.positions) == int(held.blocks.mask[:, 2:].sum())
    assert len(select_passages(held, 25).positions) == 25


def test_a_compiled_network_is_inspected_without_compilation():
    plain, compiled = stacked(), stacked()
    for block in find_blocks(compiled.network)[1]:
        block.compile(backend="aot_eager")
    done = make_round(plain, [0.3, 0.2])
    one, two = probe(plain)(done), probe(compiled)(done)
    assert one.keys() == two.keys()
    assert all(torch.allclose(torch.as_tensor(one[key]), torch.as_tensor(two[key])) for key in one)


def test_clients_are_compared_in_pairs_and_never_with_themselves():
    model = stacked()
    done = make_round(model, [0.3, 2.0])
    found = {}
    visit_hidden_states(model, done.client_params, TEXT.tokens, lambda layer, states: found.__setitem__(layer, states.clone()))
    states = found[2].flatten(1, 2)[:, TEXT.positions]
    reading = probe(model)(done)
    assert reading["hidden.cka.clients", "layer 02"].item() == pytest.approx(cka(states[:1], states[1:]).item(), rel=1e-9)
