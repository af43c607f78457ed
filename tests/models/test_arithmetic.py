"""Test other precisions than float32: adapters stay in full precision, results stay close, and the device check detects errors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedrift.config.runtime import Runtime, measure_bf16_speedup
from fedrift.core.errors import UserError
from fedrift.core.tree import Tree
from fedrift.engine.run import run_experiment
from fedrift.models.arithmetic import DeviceCheck, compare_step
from fedrift.models.stacked_layers import ActiveParams, PerClientEmbedding
from fedrift.models.stacked_model import StackedModel
from fedrift.models.trainable import All, LastBlocks, Lora
from tests.models.tiny import KINDS, random_model
from tests.small_experiment import experiment, make_cache

TUNES = [Lora(r=2, target_modules=("all",)), LastBlocks(), All()]
TOKENS = torch.arange(2 * 3 * 16).view(2, 3, 16) % 97
BATCH = {"tokens": TOKENS, "loss_mask": torch.arange(16).expand(2, 3, 16) < 13}


@pytest.mark.parametrize("tune", TUNES, ids=lambda tune: type(tune).__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_a_base_in_bfloat16_trains_float32_weights_with_close_results(kind, tune):
    coarse = StackedModel(random_model(kind, dtype=torch.bfloat16).network, tune)
    plain = StackedModel(random_model(kind).network, tune)
    params = plain.init_params().take(torch.zeros(2, dtype=torch.long))
    assert {leaf.dtype for leaf in coarse.init_params().values()} == {torch.float32}
    seen = compare_step(coarse, plain, params, BATCH)
    assert 0 < seen.loss_error < 3e-2
    assert 0 < seen.gradient_error < 3e-2
    seen.check("bfloat16", "this device")


def test_the_gradient_of_a_frequent_token_is_summed_in_float32():
    """Torch sums the gradient of a lookup in bfloat16 in bfloat16, which stops at 256 equal terms (findings/)."""
    active_params, weight = ActiveParams(), torch.zeros(2, 5, 3, requires_grad=True)
    layer = PerClientEmbedding(nn.Embedding(5, 3, dtype=torch.bfloat16), "table", active_params)
    active_params.leaves, active_params.num_rows = Tree({"table.weight": weight}), 8
    found = layer(torch.ones(8, 250, dtype=torch.long))  # 4 sequences of each client
    found.sum().backward()
    assert found.dtype == torch.bfloat16 and weight.grad is not None
    assert weight.grad[:, 1].eq(1000).all() and weight.grad[:, [0, 2, 3, 4]].eq(0).all()


def test_the_device_check_passes_correct_and_detects_wrong_arithmetic():
    plain, model = (StackedModel(random_model("llama").network, Lora()) for _ in range(2))
    params = plain.init_params().take(torch.zeros(2, dtype=torch.long))
    assert compare_step(model, plain, params, BATCH) == DeviceCheck(0.0, pytest.approx(0, abs=1e-12))

    class LinearWithWrongGradient(nn.Module):
        """A linear map with a wrong backward pass, as kernels of some devices have had."""

        def __init__(self, base: nn.Module) -> None:
            super().__init__()
            self.base = base

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.base(x.detach())

    place = "model.layers.1.mlp.down_proj"
    model.network.set_submodule(place, LinearWithWrongGradient(model.network.get_submodule(place)))
    seen = compare_step(model, plain, params, BATCH)
    assert seen.loss_error == 0  # the evaluation alone does not show it
    with pytest.raises(UserError, match="incorrectly"):
        seen.check("float32", "mps")
    with pytest.raises(UserError, match="--device cpu"):
        DeviceCheck(float("nan"), 0.0).check("float32", "mps")


def test_a_run_with_the_device_check_is_unchanged(tmp_path):
    plain = run_experiment(experiment(tmp_path, "training.num_rounds=1"), make_cache(tmp_path))
    other = make_cache(tmp_path, check_device=True)
    asked = run_experiment(
        experiment(tmp_path, "training.num_rounds=1"),
        type(other)(other.runtime.__class__(**{**vars(other.runtime), "runs_dir": tmp_path / "again"})),
    )
    assert asked.records() == plain.records()


def test_a_run_in_bfloat16_is_marked_and_does_not_resume_in_float32(tmp_path):
    run = run_experiment(experiment(tmp_path, "training.num_rounds=1"), make_cache(tmp_path, dtype="bfloat16"))
    assert run.environment["engine"]["dtype"] == "bfloat16"
    (run.folder / "finished.json").unlink()
    with pytest.raises(UserError, match="dtype was 'bfloat16'"):
        run_experiment(experiment(tmp_path, "training.num_rounds=1"), make_cache(tmp_path))


def test_on_a_cpu_auto_is_float32_and_default_options_are_not_stored():
    assert Runtime(device="cpu").numeric_options() == {}
    assert Runtime(device="cpu", dtype="bfloat16").numeric_options() == {"dtype": "bfloat16"}
    assert Runtime(device="cpu", tf32=True, deterministic=False, compiled=True).numeric_options() == {
        "tf32": True,
        "deterministic": False,
        "compiled": True,
    }
    assert measure_bf16_speedup(torch.device("cpu"), size=64) > 0


def test_a_device_without_bfloat16_computes_in_float32(monkeypatch):
    real = torch.ones

    def older(*shape, dtype=None, device=None):
        if dtype == torch.bfloat16:
            raise TypeError("BFloat16 is not supported on MPS")
        return real(*shape, dtype=dtype, device="cpu")

    monkeypatch.setattr(torch, "ones", older)
    assert measure_bf16_speedup(torch.device("mps"), size=8) == 0
    monkeypatch.setattr(Runtime, "resolve_device", lambda self: torch.device("mps"))
    assert Runtime().numeric_options() == {}
    assert Runtime().should_check_device() and not Runtime(check_device=False).should_check_device()


@pytest.mark.slow
def test_compiled_blocks_give_the_same_losses_and_gradients():
    plain, compiled = (StackedModel(random_model("llama").network, Lora()) for _ in range(2))
    compiled.compile()
    compare_step(compiled, plain, plain.init_params().take(torch.zeros(2, dtype=torch.long)), BATCH).check("float32", "the compiler")
