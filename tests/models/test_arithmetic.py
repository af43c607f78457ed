"""Other arithmetic than float32: adapters stay in full precision, results stay near, and the canary tells a wrong device."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedrift.errors import UserError
from fedrift.models.canary import Canary, replay
from fedrift.models.stacked import StackedModel
from fedrift.models.tune import Full, LastK, Lora
from fedrift.run import carry_out
from fedrift.runtime import Runtime, speed_up
from tests.models.tiny import KINDS, random_model
from tests.worlds import experiment, stock

TUNES = [Lora(rank=2, targets=("all",)), LastK(), Full()]
TOKENS = torch.arange(2 * 3 * 16).view(2, 3, 16) % 97
BATCH = {"tokens": TOKENS, "keep": torch.arange(16).expand(2, 3, 16) < 13}


@pytest.mark.parametrize("tune", TUNES, ids=lambda tune: type(tune).__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_a_base_in_bfloat16_trains_weights_in_float32_and_stays_near(kind, tune):
    coarse = StackedModel(random_model(kind, dtype=torch.bfloat16).network, tune)
    plain = StackedModel(random_model(kind).network, tune)
    params = plain.template().rows(torch.zeros(2, dtype=torch.long))
    assert {leaf.dtype for leaf in coarse.template().values()} == {torch.float32}
    seen = replay(coarse, plain, params, BATCH)
    assert 0 < seen.loss < 3e-2
    assert 0 < seen.gradient < 3e-2
    seen.check("bfloat16", "this device")


def test_the_canary_is_silent_where_nothing_is_wrong_and_sings_where_something_is():
    plain, model = (StackedModel(random_model("llama").network, Lora()) for _ in range(2))
    params = plain.template().rows(torch.zeros(2, dtype=torch.long))
    assert replay(model, plain, params, BATCH) == Canary(0.0, pytest.approx(0, abs=1e-12))

    class Crooked(nn.Module):
        """A linear map whose backward pass is wrong, as devices' kernels have been."""

        def __init__(self, base: nn.Module) -> None:
            super().__init__()
            self.base = base

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.base(x.detach())

    place = "model.layers.1.mlp.down_proj"
    model.network.set_submodule(place, Crooked(model.network.get_submodule(place)))
    seen = replay(model, plain, params, BATCH)
    assert seen.loss == 0  # evaluation alone would not notice
    with pytest.raises(UserError, match="wrongly"):
        seen.check("float32", "mps")
    with pytest.raises(UserError, match="--device cpu"):
        Canary(float("nan"), 0.0).check("float32", "mps")


def test_a_run_can_ask_the_canary_and_is_the_same_run(tmp_path):
    plain = carry_out(experiment(tmp_path, "plan.rounds=1"), stock(tmp_path))
    other = stock(tmp_path, canary=True)
    asked = carry_out(experiment(tmp_path, "plan.rounds=1"), type(other)(other.runtime.__class__(
        **{**vars(other.runtime), "root": tmp_path / "again"})))
    assert asked.records() == plain.records()


def test_a_run_in_bfloat16_says_so_and_does_not_resume_in_float32(tmp_path):
    run = carry_out(experiment(tmp_path, "plan.rounds=1"), stock(tmp_path, dtype="bfloat16"))
    assert run.environment["engine"]["dtype"] == "bfloat16"
    (run.folder / "finished.json").unlink()
    with pytest.raises(UserError, match="dtype was 'bfloat16'"):
        carry_out(experiment(tmp_path, "plan.rounds=1"), stock(tmp_path))


def test_on_a_cpu_auto_is_float32_and_defaults_are_not_written():
    assert Runtime(device="cpu").engine() == {}
    assert Runtime(device="cpu", dtype="bfloat16").engine() == {"dtype": "bfloat16"}
    assert Runtime(device="cpu", tf32=True, deterministic=False, compiled=True).engine() == {
        "tf32": True, "deterministic": False, "compiled": True}
    assert speed_up(torch.device("cpu"), side=64) > 0


def test_a_device_without_bfloat16_computes_in_float32(monkeypatch):
    real = torch.ones

    def older(*shape, dtype=None, device=None):
        if dtype == torch.bfloat16:
            raise TypeError("BFloat16 is not supported on MPS")
        return real(*shape, dtype=dtype, device="cpu")

    monkeypatch.setattr(torch, "ones", older)
    assert speed_up(torch.device("mps"), side=8) == 0
    monkeypatch.setattr(Runtime, "torch_device", lambda self: torch.device("mps"))
    assert Runtime().engine() == {}
    assert Runtime().watched() and not Runtime(canary=False).watched()


@pytest.mark.slow
def test_compiled_blocks_give_the_same_losses_and_gradients():
    plain, compiled = (StackedModel(random_model("llama").network, Lora()) for _ in range(2))
    compiled.compile()
    replay(compiled, plain, plain.template().rows(torch.zeros(2, dtype=torch.long)), BATCH).check("float32", "the compiler")
