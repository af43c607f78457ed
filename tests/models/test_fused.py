"""Test that fused blocks give the losses, gradients and states of the plain modules, and which modules they do not replace."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers.utils import logging

from fedrift.core.tree import Tree
from fedrift.models import fused
from fedrift.models.export import save_model
from fedrift.models.stacked_model import StackedModel
from fedrift.models.trainable import All, LastBlocks, Lora
from fedrift.simulation.simulator import value_and_gradient
from tests.models.networks import KINDS, batch, network

FUSED_TRAINABLES = [Lora(r=3, lora_alpha=5.0), Lora(r=2, target_modules=("all",)), LastBlocks(1), All()]
ROUNDING = {torch.float64: 1e-10, torch.float32: 2e-4}


def fused_and_plain(kind: str, tune, dtype=torch.float64, clients: int = 3) -> tuple[StackedModel, StackedModel, Tree]:
    """Return a fused model, a plain one, and parameters that differ between clients."""
    ours, plain = (StackedModel(network(kind, dtype), tune, fused=ours) for ours in (True, False))
    draw = torch.Generator().manual_seed(1)
    rows = ours.init_params().take(torch.zeros(clients, dtype=torch.long))
    return ours, plain, rows.map(lambda leaf: leaf + 0.1 * torch.randn(leaf.shape, generator=draw, dtype=torch.float64).to(leaf))


@pytest.mark.sample(10)
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("tune", FUSED_TRAINABLES, ids=repr)
@pytest.mark.parametrize("kind", KINDS)
def test_fused_blocks_have_the_losses_and_gradients_of_plain_ones(kind, tune, dtype):
    ours, plain, params = fused_and_plain(kind, tune, dtype)
    loss, grad = value_and_gradient(ours, params, batch(3), torch.arange(3))
    expected, slopes = value_and_gradient(plain, params, batch(3), torch.arange(3))
    assert torch.allclose(loss, expected, rtol=ROUNDING[dtype])
    for name, slope in slopes.items():
        assert float((grad[name] - slope).norm() / slope.norm()) <= ROUNDING[dtype], name


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_fused_blocks_are_used(kind, monkeypatch):
    ours, _, params = fused_and_plain(kind, Lora(target_modules=("q_proj", "down_proj")))
    used = []
    for function in (fused.FusedRMSNorm, fused.FusedQKVRope, fused.FusedSwiGLU):
        monkeypatch.setattr(
            function, "apply", lambda *said, function=function, apply=function.apply: (used.append(function), apply(*said))[1]
        )
    ours(params, batch(3))
    assert used.count(fused.FusedQKVRope) == used.count(fused.FusedSwiGLU) == 3 and used.count(fused.FusedRMSNorm) == 7


def test_the_merged_base_is_used_without_fusing():
    ours, plain, params = fused_and_plain("llama", Lora(r=2))
    draw = torch.Generator().manual_seed(5)
    under = {
        f"{path}.base": torch.randn(1, module.out_features, module.in_features, generator=draw, dtype=torch.float64)
        for path, module in ours.modules.items()
    }
    with_it = Tree({**params, **under})
    assert torch.allclose(ours(with_it, batch(3)), plain(with_it, batch(3)), rtol=1e-10)
    assert not torch.allclose(ours(with_it, batch(3)), ours(params, batch(3)), rtol=1e-3)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_generation_with_a_key_value_cache_equals_that_of_the_plain_network(kind):
    plain = network(kind, torch.float32)
    ours = StackedModel(copy.deepcopy(plain), Lora()).network
    said = dict(max_new_tokens=8, do_sample=False, use_cache=True)
    start = torch.arange(3, 9)[None]
    assert torch.equal(ours.generate(start, **said), plain.generate(start, **said))


def test_a_network_in_another_precision_fuses_its_weights_again():
    ours, _, params = fused_and_plain("llama", Lora(), torch.float32)
    ours.network.double()
    plain = StackedModel(network("llama", torch.float32).double(), Lora(), fused=False)
    wide = params.to(torch.float64)
    assert torch.allclose(ours(wide, batch(3)), plain(wide, batch(3)), rtol=1e-6)
    first = ours.network.model.layers[0].self_attn
    assert first.fused[0].weight.dtype == torch.float64
    assert first.k_proj.weight.data_ptr() != 0 and torch.equal(first.fused[0].weight[16:24], first.k_proj.weight)


def test_fused_weights_share_memory_with_the_network_and_are_saved(tmp_path, capfd):
    ours, *_ = fused_and_plain("llama", LastBlocks(1), torch.float32)
    mlp = ours.network.model.layers[0].mlp
    assert mlp.gate_proj.weight.untyped_storage().data_ptr() == mlp.up_proj.weight.untyped_storage().data_ptr()
    from fedrift.algorithms import FedAvg
    from fedrift.engine.loop import init_state

    settings = logging.get_verbosity(), logging.is_progress_bar_enabled()
    save_model(tmp_path, ours, LastBlocks(1), "llama", init_state(FedAvg(), ours.init_params(), 1).server)
    assert capfd.readouterr() == ("", "")  # no progress bar of transformers
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == settings
    from safetensors.torch import load_file

    kept = {name: leaf for file in tmp_path.rglob("*.safetensors") for name, leaf in load_file(file).items()}
    fresh = dict(network("llama", torch.float32).named_parameters())
    for name in ("model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight", "model.layers.2.mlp.up_proj.weight"):
        assert torch.equal(kept[name], fresh[name])


def test_unknown_and_quantized_modules_are_not_fused():
    class Odd(nn.Linear):
        pass

    plain = network("llama", torch.float32)
    plain.model.layers[1].mlp.up_proj.__class__ = Odd
    ours = StackedModel(plain, Lora())
    assert "fused" not in vars(ours.network.model.layers[1].mlp)
    assert "fused" in vars(ours.network.model.layers[0].mlp)


def test_frozen_states_have_no_gradient():
    ours, _, params = fused_and_plain("llama", Lora(target_modules=("v_proj",)))
    leaves = params.map(lambda leaf: leaf.detach().requires_grad_())
    found = []
    block = ours.network.model.layers[0]
    block.self_attn.register_forward_pre_hook(lambda module, args, said: found.append(said["hidden_states"]), with_kwargs=True)
    ours(leaves, batch(3))
    assert not found[0].requires_grad  # the input of the first block does not depend on trained weights
