"""Test the stacked forward pass against plain transformers and PEFT with one client at a time."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from fedrift.core.errors import UserError
from fedrift.core.tree import Tree
from fedrift.models.export import find_adapter_problem
from fedrift.models.presets import PRESETS
from fedrift.models.stacked_model import StackedModel
from fedrift.models.trainable import PEFT_TESTED_ARCHITECTURES, All, LastBlocks, Lora, default_targets
from fedrift.simulation.simulator import value_and_gradient
from tests.models.networks import KINDS, batch, network

TUNES = [Lora(r=3, lora_alpha=5.0), Lora(r=2, target_modules=("all",)), LastBlocks(1), LastBlocks(2), All()]


def make_model(kind: str, tune, clients: int = 3, dtype=torch.float64) -> tuple[StackedModel, Tree]:
    """Return a stacked model, and parameters that differ between clients."""
    model = StackedModel(network(kind, dtype), tune)
    draw = torch.Generator().manual_seed(1)
    rows = model.init_params().take(torch.zeros(clients, dtype=torch.long))
    return model, rows.map(lambda leaf: leaf + 0.1 * torch.randn(leaf.shape, generator=draw, dtype=torch.float64).to(leaf))


def compute_reference(kind: str, params: Tree, row: int, tune, data: dict, dtype=torch.float64):
    """Return loss and gradients of one client by transformers (and PEFT for adapters)."""
    plain = network(kind, dtype)
    labels = data["tokens"][row].masked_fill(~data["loss_mask"][row], -100)
    if isinstance(tune, Lora):
        modules = list(tune.select_modules(plain))
        plain = get_peft_model(plain, LoraConfig(r=tune.r, lora_alpha=tune.lora_alpha, target_modules=modules))
        leaves = {
            name.replace("base_model.model.", "").replace(".lora_", ".").replace(".default.weight", ""): leaf
            for name, leaf in plain.named_parameters()
            if "lora_" in name
        }
    else:
        leaves = {name: leaf for name, leaf in plain.named_parameters() if name in params}
        plain.requires_grad_(True)
    assert leaves.keys() == params.keys()
    with torch.no_grad():
        for name, leaf in leaves.items():
            leaf.copy_(params[name][row])
    loss = own_loss(plain.eval(), data["tokens"][row], labels)
    return loss, dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def own_loss(plain, tokens, labels):
    """Return the loss in the precision of the network; transformers would convert the logits to float32."""
    logits = plain(input_ids=tokens).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


@pytest.mark.sample(7)
@pytest.mark.parametrize("tune", TUNES, ids=repr)
@pytest.mark.parametrize("kind", KINDS)
def test_every_client_gets_the_loss_and_gradient_of_plain_transformers(kind, tune):
    model, params = make_model(kind, tune)
    data = batch(3)
    close = 1e-10
    loss, grad = value_and_gradient(model, params, data, torch.arange(3))
    for row in range(3):
        expected, slopes = compute_reference(kind, params, row, tune, data)
        assert loss[row].item() == pytest.approx(expected.item(), rel=close)
        for name, slope in slopes.items():
            assert torch.allclose(grad[name][row], slope, atol=close), name


@pytest.mark.parametrize("tune", TUNES, ids=repr)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_stacked_clients_equal_single_clients(tune, dtype, tolerance):
    model, params = make_model("llama", tune, clients=4, dtype=dtype)
    data = batch(4)
    loss, grad = value_and_gradient(model, params, data, torch.arange(4))
    for row in range(4):
        alone = {name: part[row : row + 1] for name, part in data.items()}
        own_loss, own_grad = value_and_gradient(model, params.take(slice(row, row + 1)), alone, torch.arange(1))
        assert torch.allclose(loss[row], own_loss[0], rtol=tolerance)
        for name in grad:
            scale = grad[name][row].abs().max()
            assert (grad[name][row] - own_grad[name][0]).abs().max() <= tolerance * scale + 1e-12, name


def test_inactive_clients_are_not_computed_and_have_no_gradient():
    model, params = make_model("llama", Lora(r=2))
    rows, data = torch.tensor([0, 2]), batch(2)
    loss, grad = value_and_gradient(model, params, data, rows)
    assert loss.shape == (2,)
    assert all((leaf[1] == 0).all() and (leaf[0] != 0).any() for leaf in grad.values())


def test_initial_adapters_do_not_change_the_network():
    plain, data = network("llama"), batch(1)
    model = StackedModel(copy.deepcopy(plain), Lora())
    expected = own_loss(plain, data["tokens"][0], data["tokens"][0].masked_fill(~data["loss_mask"][0], -100))
    assert model(model.init_params(), data)[0].item() == pytest.approx(expected.item(), rel=1e-12)
    ours, theirs = (each(input_ids=data["tokens"][0]).logits for each in (model.network, plain))
    assert torch.allclose(ours, theirs, atol=1e-12)


def test_frozen_weights_have_no_leaf_and_stay_equal_bit_for_bit():
    model, params = make_model("llama", LastBlocks(1))
    assert all(name.startswith("model.layers.2.") for name in params)
    before = {name: leaf.clone() for name, leaf in model.network.named_parameters()}
    value_and_gradient(model, params, batch(3), torch.arange(3))
    assert all(torch.equal(before[name], leaf) and leaf.grad is None for name, leaf in model.network.named_parameters())


def test_padded_positions_have_no_effect():
    model, params = make_model("llama", Lora())
    data = batch(3)
    altered = {**data, "tokens": data["tokens"].clone()}
    altered["tokens"][0, -1, 6:] = 9  # positions that the mask excludes
    assert torch.equal(model(params, data), model(params, altered))
    ends = {**data, "loss_mask": torch.ones_like(data["loss_mask"])}
    assert not torch.equal(model(params, data)[0], model(params, ends)[0])


def test_a_uniform_network_has_the_perplexity_of_its_vocabulary():
    plain = network("untied")
    with torch.no_grad():
        plain.lm_head.weight.zero_()
    model = StackedModel(plain, Lora())
    assert model(model.init_params(), batch(1))[0].exp().item() == pytest.approx(61)


def test_all_clients_and_rounds_start_with_equal_adapters():
    one, two = (StackedModel(network("llama"), Lora()).init_params(3) for _ in range(2))
    other = StackedModel(network("llama"), Lora()).init_params(4)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_an_unknown_target_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match="did you mean 'q_proj'"):
        StackedModel(network("llama"), Lora(target_modules=("q_prj",)))


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        (Lora(target_modules=()), "target_modules is empty"),
        (Lora(r=1_000_000_000), r"trainable.r: 1000000000 exceeds .* maximum is 16 \(of model.layers.0.self_attn.q_proj"),
        (Lora(r=17, target_modules=("v_proj",)), r"maximum is 8 \(of model.layers.0.self_attn.v_proj"),
    ],
)
def test_adapters_without_targets_or_with_too_high_rank_are_refused(tune, message):
    with pytest.raises(UserError, match=message):
        StackedModel(network("llama"), tune)
    assert Lora(r=16).select_modules(network("llama"))  # the full rank of some of the maps


@pytest.mark.parametrize(
    ("kind", "names", "endings"),
    [
        ("gpt_neox", ["query_key_value", "dense"], {"query_key_value"}),
        ("phi", ["q_proj", "k_proj", "fc1"], {"q_proj", "fc1"}),
        ("rwkv", ["key", "output", "other"], {"key", "output"}),
        ("gemma4", ["q_proj"], set()),
        ("nobody", ["q_proj", "k_proj", "v_proj"], {"q_proj", "v_proj"}),
        ("nobody", ["qkv_proj", "o_proj"], {"qkv_proj"}),
        ("nobody", ["one", "two"], {"one", "two"}),
    ],
)
def test_auto_targets_are_the_default_of_peft_then_projections_then_all_maps(kind, names, endings):
    linear = {f"blocks.0.{name}": torch.nn.Linear(2, 2) for name in names}
    if kind == "gemma4":  # PEFT selects these by a pattern
        linear["language_model.layers.0.q_proj"], endings = torch.nn.Linear(2, 2), {"q_proj"}
        assert list(default_targets(linear, kind)) == ["language_model.layers.0.q_proj"]
    assert {path.rsplit(".", 1)[-1] for path in default_targets(linear, kind)} == endings


@pytest.mark.parametrize("kind", PEFT_TESTED_ARCHITECTURES)
def test_what_is_not_checked_before_a_run_is_what_peft_does(kind):
    """The default targets and the modules into which PEFT loads adapters, for the architectures of the presets."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    plain, targets = network(kind), TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING[kind]
    selected = Lora().select_modules(plain)
    assert {path.rsplit(".", 1)[-1] for path in selected} == set(targets)
    assert find_adapter_problem(StackedModel(plain, Lora(r=2, target_modules=("all",))), Lora(r=2, target_modules=("all",))) == ""


def test_the_architectures_of_all_presets_are_checked_against_peft():
    assert {preset.architecture["model_type"] for preset in PRESETS.values()} <= set(PEFT_TESTED_ARCHITECTURES)


def test_a_second_stacked_model_on_one_network_is_refused():
    plain = network("llama")
    StackedModel(plain, Lora())
    for tune in (Lora(), All()):
        with pytest.raises(UserError, match="is already in use by another StackedModel"):
            StackedModel(plain, tune)


def test_too_many_blocks_are_refused():
    with pytest.raises(UserError, match="has only 3 blocks"):
        StackedModel(network("llama"), LastBlocks(4))
