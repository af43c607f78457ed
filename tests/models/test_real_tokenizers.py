"""Test a complete run from the command to PEFT files with the real tokenizers of the presets and small random weights."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedrift import load_config
from fedrift.config.runtime import Runtime
from fedrift.engine.build import build_run
from fedrift.engine.cache import ResourceCache, resolve_fingerprints
from fedrift.storage import find_run
from tests.cli.test_cli import run_command
from tests.models.tiny import random_model
from tests.small_experiment import corpus_file

TOKENIZER_FOLDERS = {"gpt2": "gpt2", "qwen2": "qwen2", "llama": "llama2-tinyllama"}


@pytest.mark.sample(1)
@pytest.mark.parametrize("kind", TOKENIZER_FOLDERS)
def test_a_run_and_its_baseline_succeed_with_a_real_tokenizer(kind, tmp_path, shared_data, monkeypatch, capsys):
    tokenizer = AutoTokenizer.from_pretrained(shared_data.parent / "tokenizers" / TOKENIZER_FOLDERS[kind], local_files_only=True)
    small = random_model(kind, tokenizer)
    small.network.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    corpus_file(tmp_path / "corpus.csv")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDRIFT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "e.yaml").write_text(
        json.dumps(
            {
                "dataset": "corpus.csv",
                "model": "./model",
                "trainable": {"type": "Lora", "r": 2, "target_modules": ["all"]},
                "partition": {"type": "TopicMix", "num_clients": 3, "severity": 1.0},
                "algorithm": "Scaffold",
                "training": {
                    "num_rounds": 2,
                    "participation_rate": 0.67,
                    "local_steps": 2,
                    "batch_size": 2,
                    "max_seq_length": 16,
                    "client_optimizer": {"type": "Sgd", "lr": 0.5},
                },
                "evaluation": {
                    "blocks_per_domain": 2,
                    "blocks_per_client": 1,
                    "final_blocks_per_domain": 2,
                    "probes": ["language", "updates", "fairness", "hidden", "attention", "adapters"],
                },
            }
        )
    )

    assert "gap to IID baseline" in run_command(capsys, monkeypatch, "run", "e.yaml", "--iid-baseline", "--device", "cpu")[1]
    every = [find_run(tmp_path / "runs", run["id"]) for run in json.loads(run_command(capsys, monkeypatch, "list", "--json")[1])]
    assert [run.status for run in every] == ["finished", "finished"]
    (skewed,) = [run for run in every if run.config["partition"]["severity"] == 1.0]
    model = skewed.folder / "model"
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "model"), model).eval()

    asked = resolve_fingerprints(
        load_config(tmp_path / "e.yaml"), there := ResourceCache(Runtime(cache_dir=tmp_path / "cache", device="cpu"))
    )
    held = build_run(asked, there).evaluation.losses.held_out.blocks
    tokens, keep = torch.from_numpy(held.tokens), torch.from_numpy(held.mask)
    losses = [
        theirs(input_ids=tokens[rows], labels=tokens[rows].masked_fill(~keep[rows], -100)).loss.item()
        for rows in torch.arange(len(tokens)).view(3, -1)
    ]
    told = skewed.trajectory()
    assert sum(losses) / 3 == pytest.approx(told.curve("loss.macro")[-1], abs=2e-4)
    seen = {row.metric.split(".")[0] for row in skewed.records()}
    assert {"update", "hidden", "attention"} <= seen
