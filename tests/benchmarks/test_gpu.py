"""Test the scripts of `make gpu` with tiny networks on the CPU."""

from __future__ import annotations

import json
from importlib import import_module

import pytest
import torch

from fedrift.models.presets import PRESETS
from fedrift.models.stacked_model import StackedModel


@pytest.fixture(autouse=True)
def _as_modules(scripts):
    pass


def small(tmp_path, *more: str) -> list[str]:
    return ["--device", "cpu", "--small", "--out", str(tmp_path), *more]


@pytest.mark.slow
def test_every_check_passes_on_this_device(tmp_path, capsys):
    assert import_module("gpu_check").main(small(tmp_path)) == 0
    said = json.loads((tmp_path / "gpu-check-cpu-small.json").read_text())
    assert said["fine"] and not said["failed"]
    assert {"cpu", "torch"} <= {said["device"].split(",")[0], *said["packages"]}
    checks = " ".join(found["check"] for found in said["found"])
    for what in ("one by one", "peft", "bfloat16", "twice", "resumed", "together", "pocket", "distilgpt2", "qwen", "tinyllama"):
        assert what in checks


@pytest.mark.slow
def test_failed_checks_and_errors_are_reported_and_other_checks_still_run(tmp_path, capsys, monkeypatch):
    check = import_module("gpu_check")

    def breaks(where):
        raise RuntimeError("no kernel image")
        yield

    def use_params_of_first_client(self, params, batch):  # every client uses the parameters of the first one
        return honest(self, params.take(torch.zeros(len(batch["tokens"]), dtype=torch.long)), batch)

    honest = StackedModel.__call__
    monkeypatch.setattr(check, "SHAPES", ("pocket",))
    monkeypatch.setattr(check, "CHECKS", (breaks, check.check_stacked_against_sequential))
    monkeypatch.setattr(StackedModel, "__call__", use_params_of_first_client)
    assert check.main(small(tmp_path)) == 1
    said = json.loads((tmp_path / "gpu-check-cpu-small.json").read_text())
    assert said["failed"] == {"breaks": "RuntimeError: no kernel image"}
    assert [found["got"] > found["most"] for found in said["found"]] == [True] * 3


@pytest.mark.slow
def test_the_speed_measurement_can_be_interrupted_and_continued(tmp_path, capsys):
    speed = import_module("gpu_speed")
    asked = small(tmp_path, "--models", "pocket")
    assert speed.main([*asked, "--minutes", "0"]) == 0
    assert "2 left; repeat the same command to measure them" in capsys.readouterr().out
    for _ in range(2):  # the second call has nothing left to measure
        assert speed.main(asked) == 0
    rows = json.loads((tmp_path / "gpu-speed-cpu-small.json").read_text())["rows"]
    assert [(row["clients"], row["sequences"]) for row in rows] == [(3, 1), (2, 2)]
    assert all(row["differ"] < 1e-3 and row["stacked_tokens_per_s"] > 0 for row in rows)


def test_flops_per_token_are_four_times_the_multiplied_weights():
    speed, comparison = import_module("gpu_speed"), import_module("comparison")
    network = comparison.load_network("tinyllama-1.1b", torch.device("cpu"), torch.float32, small=True)
    width, inner, heads, keys, words = 32, 48, 32, 16, 97
    block = width * (heads + 2 * keys) + heads * width + 3 * width * inner
    assert speed.flops_per_token(network) == 4 * (2 * block + width * words)  # the head multiplies, the embedding is a lookup


@pytest.mark.parametrize("name", PRESETS)
def test_small_networks_have_the_architecture_of_their_preset(name):
    network = import_module("comparison").load_network(name, torch.device("cpu"), torch.float32, small=True)
    assert network.config.model_type == PRESETS[name].architecture["model_type"]
    assert network.num_parameters() < 100_000


@pytest.mark.slow
def test_the_grid_stops_at_the_time_limit_and_continues_later(tmp_path, capsys):
    study = import_module("gpu_study")
    asked = small(tmp_path / "out", "--runs", str(tmp_path / "runs"), "--together", "3")
    assert study.main([*asked, "--minutes", "0.005"]) == 0
    first = json.loads((tmp_path / "out" / "gpu-study-cpu-small.json").read_text())
    assert first["left"] > 0
    assert study.main(asked) == 0
    said = json.loads((tmp_path / "out" / "gpu-study-cpu-small.json").read_text())
    assert (said["left"], said["failed"], said["finished"]) == (0, [], said["runs"])
    assert (tmp_path / "out" / "gpu-study-cpu-small.zip").exists()
