"""Test docs/peft.md: its code runs, and its numbers are those of fedrift and the installed PEFT."""

from __future__ import annotations

import re
import shlex
import warnings
from pathlib import Path

import peft
import pytest
import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

import fedrift
from fedrift.cli.app import app

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "peft.md").read_text(encoding="utf-8")
NUM_CLIENTS, RANK, SIZE = 4, 4, 32


class OneLayer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = torch.nn.Linear(SIZE, SIZE, bias=False)

    def forward(self, x):
        return self.proj(x)


def client_factors(equal: bool) -> list[dict[str, torch.Tensor]]:
    """Return A and B of each client: a shared part and a part of its own, or the shared part only."""
    draw = torch.Generator().manual_seed(0)
    shapes = {"base_model.model.proj.lora_A.weight": (RANK, SIZE), "base_model.model.proj.lora_B.weight": (SIZE, RANK)}
    shared = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    own = [{name: torch.randn(shape, generator=draw) for name, shape in shapes.items()} for _ in range(NUM_CLIENTS)]
    return [{name: shared[name] + (0.0 if equal else 0.5) * leaf for name, leaf in one.items()} for one in own]


def model_with(clients: list[dict[str, torch.Tensor]]):
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["proj"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = get_peft_model(OneLayer(), config, adapter_name="client0")
    for number, factors in enumerate(clients):
        if number:
            model.add_adapter(f"client{number}", config)
        set_peft_model_state_dict(model, factors, adapter_name=f"client{number}")
    return model


def delta(model, name: str) -> torch.Tensor:
    return model.base_model.model.proj.get_delta_weight(name).detach().double()


def peft_mean(model, count: int, kind: str) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"svd_rank": RANK} if kind == "svd" else {}
        model.add_weighted_adapter(
            [f"client{k}" for k in range(count)], [1 / count] * count, f"{kind}{count}", combination_type=kind, **options
        )
    return delta(model, f"{kind}{count}")


def table_rows(folder: Path) -> list[str]:
    """Return the rows of the table on the page."""
    model = model_with(client_factors(equal=False))
    mean = sum(delta(model, f"client{k}") for k in range(NUM_CLIENTS)) / NUM_CLIENTS
    rows = []
    model.save_pretrained(folder)
    folders = [folder / f"client{k}" for k in range(NUM_CLIENTS)]
    for method in ("fedavg", "flexlora", "fedex", "flora"):
        result = fedrift.aggregate_adapters(folders, method)
        rows.append(f"| `fedrift.aggregate_adapters`, `{method}` | {result.rank} | {result.remaining_error:.2f} |")
    for kind in ("linear", "svd", "cat"):
        found = peft_mean(model, NUM_CLIENTS, kind)
        rank = model.peft_config[f"{kind}{NUM_CLIENTS}"].r
        rows.append(f"| PEFT's `add_weighted_adapter`, `{kind}` | {rank} | {((found - mean).norm() / mean.norm()).item():.2f} |")
    return rows


def test_the_table_equals_the_results_of_fedrift_and_peft(tmp_path):
    assert f"PEFT {peft.__version__}" in PAGE
    assert [line for line in PAGE.splitlines() if line.startswith(("| `fedrift.", "| PEFT's"))] == table_rows(tmp_path)


def test_linear_is_as_many_times_too_large_as_there_are_equal_clients():
    model = model_with(client_factors(equal=True))
    times = {count: (peft_mean(model, count, "linear").norm() / delta(model, "client0").norm()).item() for count in (2, 4)}
    assert times == pytest.approx({2: 2.0, 4: 4.0}, rel=1e-4)
    words = " ".join(PAGE.split())
    for count, name in ((2, "Two"), (4, "four")):
        assert f"{name} equal adapters at weight 1/{count} give {times[count]:.1f} times the update of one" in words


def test_the_code_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
        base = LlamaForCausalLM(LlamaConfig(vocab_size=20, **shape))
        base.save_pretrained("base")
        for number in range(NUM_CLIENTS):
            fresh = LlamaForCausalLM.from_pretrained("base")
            get_peft_model(fresh, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)).save_pretrained(f"client{number}")
    (command,) = re.findall(r"^fedrift (aggregate-adapters .*)$", PAGE, re.MULTILINE)
    assert CliRunner().invoke(app, [*shlex.split(command)[:-1], "by-command"]).exit_code == 0
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(code, found := {"base": base})
    assert found["result"].is_exact and found["result"].error > 0.1 and Path("by-command/adapter_config.json").exists()
