"""Test that a profile reports what it measured and does not change the run."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from fedrift.algorithms import Scaffold
from fedrift.cli.app import app
from fedrift.config.schema import edit_config
from fedrift.core.errors import UserError
from fedrift.engine.run import run_experiment
from fedrift.profiling import profile_run
from fedrift.profiling.hints import find_hints
from fedrift.profiling.operations import ELEMENTWISE, HEAD, IDLE, OPTIMIZER, storage_bytes, sum_by_kind
from fedrift.storage.tensors import load_tensors
from tests.small_experiment import experiment, make_cache

LENGTH, WIDE, INNER, RANK, BLOCKS = 16, 32, 48, 8, 2  # of the model of the small experiment
KEYS, VALUES = 16, 16


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    """Return a profile of three rounds of SCAFFOLD, its folder, and the same run without a profile."""
    folder = tmp_path_factory.mktemp("profile")
    asked = edit_config(experiment(folder), {"algorithm": Scaffold()})
    found = profile_run(asked, make_cache(folder), num_rounds=2, folder=folder / "profiled")

    def stop(progress):
        if progress.round == 3:
            raise Killed

    with pytest.raises(Killed):
        run_experiment(asked, make_cache(folder), stop)
    return found, folder


def test_profiled_rounds_equal_rounds_without_profile(profiled):
    found, folder = profiled
    mine, _ = load_tensors(folder / "profiled" / found.id / "state.safetensors")
    plain, said = load_tensors(folder / "runs" / found.id / "state.safetensors")
    assert said["round"] == 3
    assert mine.keys() == plain.keys()
    differ = {name for name in plain if not torch.equal(mine[name], plain[name])}
    assert differ <= {"client_states.slot"}  # the position of a client's state in the file; the digests are compared


def test_shares_sum_to_one_and_every_second_is_attributed(profiled):
    found, _ = profiled
    assert math.isclose(sum(phase["share"] for phase in found.phases), 1)
    assert math.isclose(sum(found.training["shares"].values()), 1)
    assert math.isclose(sum(found.training["seconds"].values()), found.training["total"])
    assert all(seconds > 0 for kind, seconds in found.training["seconds"].items() if kind != IDLE)
    times = {phase["name"]: phase["times"] for phase in found.phases}
    assert times["training"] == times["probe losses"] == 4
    assert times["load model"] == times["round 0: evaluation"] == 1


def test_counted_flops_equal_the_closed_form(profiled):
    found, folder = profiled
    words = json.loads((folder / "model-llama" / "config.json").read_text())["vocab_size"]
    read = WIDE + KEYS + VALUES  # outputs of the joint map of queries, keys and values
    maps = WIDE * read + WIDE * WIDE + 3 * WIDE * INNER
    low, high = WIDE * 2 * RANK, read * 2 * RANK  # adapters of queries and values, computed together
    block = 2 * 2 * maps + 2 * 3 * low + 2 * 3 * high + 3.5 * 4 * LENGTH * WIDE  # forward and backward; attention has 2 and 5 products
    whole = BLOCKS * block - 2 * WIDE * read - 2 * low  # no trained parameter is below the first block, so it has no gradient
    places = LENGTH / (LENGTH - 1) / (1 - found.compute["padding"])  # positions read for each predicted one
    assert found.compute["flops_per_token"] == pytest.approx(places * whole + 4 * words * WIDE, rel=0.01)
    assert 0 < found.compute["share_of_peak"] < 1


def test_the_bytes_of_adapters_and_client_states_are_exact(profiled):
    found, _ = profiled
    adapters = 4 * BLOCKS * (RANK * (WIDE + WIDE) + RANK * (WIDE + VALUES))
    held = found.memory["bytes"]
    assert held["server models (1)"] == 2 * adapters  # the model, and the change of the last round
    assert held["states of 3 clients"] == 3 * adapters  # c_i
    assert held["server optimizer state and broadcast"] == adapters  # c
    assert held["models, gradients and states in a pass"] == 2 * 5 * adapters
    assert found.traffic == {"up": 2 * adapters, "down": 2 * adapters}
    assert held["activations and temporary tensors of a step"] > 0
    assert sum(held.values()) == found.memory["resident_peak"]


def test_shared_memory_of_two_tensors_counts_once():
    whole = torch.zeros(10, 4)
    assert storage_bytes([whole, whole[:5], torch.zeros(3)]) == 160 + 12


def test_operations_are_attributed_to_their_callers():
    def event(number, name, above=None, took=1.0, start=0):
        return SimpleNamespace(
            id=number,
            name=name,
            cpu_parent=above,
            self_cpu_time_total=took * 1e6,
            cpu_time_total=10e6,
            time_range=SimpleNamespace(start=start, end=100 - start),
        )

    root = event(0, "fedrift.training")
    loss, step = event(1, "fedrift.loss", root, 0.5, 1), event(2, "fedrift.optimizer", root, 0.5, 1)
    head = event(3, "FrozenHead", loss, 0.5, 2)
    seconds, total = sum_by_kind(
        [root, loss, step, head, event(4, "aten::mm", head, 1, 3), event(5, "aten::mul", step, 2, 3), event(6, "aten::mul", loss, 3, 3)],
        is_cuda=False,
    )
    assert (seconds[HEAD], seconds[OPTIMIZER], seconds[ELEMENTWISE], seconds[IDLE]) == (1, 2, 3, 4)
    assert total == 10


def plan(**changes):
    return SimpleNamespace(
        training=SimpleNamespace(batch_size=2, max_seq_length=64, num_rounds=20),
        evaluation=SimpleNamespace(interval=1, final_blocks_per_domain=40),
        **changes,
    )


def phases(**seconds):
    return [{"name": name.replace("_", " "), "seconds": each, "times": 20, "total": 20 * each} for name, each in seconds.items()]


def test_hints_are_ordered_by_cost():
    told = find_hints(
        phases(training=5.0, probe_losses=4.0),
        plan(),
        0.0,
        [
            {"clients": 4, "batch": 2, "chosen": True, "tokens_per_second": 1000.0},
            {"clients": 1, "batch": 2, "chosen": False, "tokens_per_second": 1250.0},
            {"clients": 4, "batch": 4, "chosen": False, "tokens_per_second": 900.0},
        ],
        0.22,
    )
    assert told == [
        "Evaluation of the losses takes 44 % of a run. With evaluation.interval=5 it would take 14 %.",
        "--clients-per-pass 1 gave 1.25x the tokens per second of the current 4 clients per pass.",
    ]
    assert find_hints(phases(training=5.0), plan(), 0.0, [], 0.7) == [
        "No phase stands out: training takes 100 % of a run and reaches 70 % of the machine's peak."
    ]
    assert find_hints(phases(training=5.0), plan(), 0.3, [], 0.7)[0].startswith("30 % of the trained positions are padding")


def test_an_experiment_without_rounds_is_refused(tmp_path):
    with pytest.raises(UserError, match="0 rounds"):
        profile_run(experiment(tmp_path, "training.num_rounds=0"), make_cache(tmp_path))


def test_the_command_prints_and_writes_a_profile_and_a_trace(tmp_path, monkeypatch):
    import yaml

    (tmp_path / "e.yaml").write_text(yaml.safe_dump(experiment(tmp_path).to_dict()))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDRIFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "160")
    ask = ["profile", "e.yaml", "training.num_rounds=1", "--device", "cpu", "--output", "p.json", "--trace", "t.json"]
    # in a process of its own, because torch reads the level of its profiler's messages once
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run([sys.executable, "-m", "fedrift", *ask], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "profiler_start" not in done.stderr + done.stdout
    assert "products with base weights" in done.stdout and "base weights" in done.stdout
    said = json.loads((tmp_path / "p.json").read_text())
    assert said["training"]["steps"] is None
    assert not (tmp_path / "runs").exists()
    names = {event.get("name") for event in json.loads((tmp_path / "t.json").read_text())["traceEvents"]}
    assert {"fedrift.data", "fedrift.loss", "fedrift.optimizer"} <= names
    assert "create it first" in str(CliRunner().invoke(app, ["profile", "e.yaml", "--output", "none/p.json"]).exception)
