"""Test that the benchmarks of `make bench` run at their smallest size, that the compared sides end alike, and that they write results."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from importlib import import_module

import pytest
import torch

from fedrift.config.schema import parse_config
from fedrift.core.errors import UserError
from fedrift.core.records import Record, Trajectory
from fedrift.core.tree import Tree
from fedrift.diagnosis.verdict import judge_run
from tests.benchmarks.conftest import ROOT


@pytest.fixture(autouse=True)
def _as_modules(scripts):
    pass


def run_benchmark(tmp_path, name: str, *more: str) -> dict[str, dict]:
    """Run a benchmark and return what it wrote, by file name without the name of the machine."""
    assert import_module(name).main(["--small", "--out", str(tmp_path), *more]) == 0
    return {path.stem.rsplit("-", 1)[0]: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}


@pytest.mark.slow
def test_a_round_is_compared_with_the_plain_loop(tmp_path):
    said = run_benchmark(tmp_path, "loop", "--repeats", "1")
    assert said.keys() == {"loop-pocket", "loop-distilgpt2"}
    for found in said.values():
        (row,) = found["rows"]
        assert row["difference"] < 1e-5 < row["loop_share_of_peak"] + row["stacked_tokens_per_s"]
        assert found["peak_gflops"] > 0 and found["packages"]["torch"]


def test_sides_with_different_results_stop_the_benchmark(scripts):
    comparison = import_module("comparison")
    one = Tree(a=torch.ones(2, 3))
    assert comparison.check_agreement(one, one) == 0
    for other in (one * 1.01, one * torch.nan):
        with pytest.raises(SystemExit, match="nothing to compare"):
            comparison.check_agreement(other, one)


@pytest.mark.slow
def test_whole_blocks_and_all_weights_are_measured(tmp_path):
    said = run_benchmark(tmp_path, "tuning", "--repeats", "1")
    assert [row["difference"] < 1e-4 for row in said["tuning-pocket"]["rows"]] == [True] * 3


@pytest.mark.slow
def test_the_time_of_a_round_grows_with_its_work(tmp_path):
    rows = run_benchmark(tmp_path, "scaling", "--repeats", "1")["scaling"]["rows"]
    assert [(row["axis"], row["value"], row["work"]) for row in rows] == [
        ("clients", 2, 0.67),
        ("clients", 3, 1.0),
        ("rank", 2, 1.0),
        ("rank", 4, 1.0),
    ]
    assert all(row["difference"] < 1e-4 for row in rows)


@pytest.mark.slow
def test_the_time_of_a_round_does_not_grow_with_absent_clients(tmp_path):
    found = run_benchmark(tmp_path, "clients", "--rounds", "3", "--algorithms", "FedAvg", "Scaffold")["clients"]
    assert [(row["algorithm"], row["clients"], row["rounds"]) for row in found["rows"]] == [
        ("FedAvg", [4, 12], 3),
        ("Scaffold", [4, 12], 3),
    ]
    assert all(0 < low <= row["ratio"] <= high for row in found["rows"] for low, high in [row["ratio_quartiles"]])
    assert found["device"] and found["date"]


@pytest.mark.slow
def test_growth_is_measured_for_all_parts(tmp_path):
    found = run_benchmark(tmp_path, "growth", "--rounds", "5")["growth"]
    rounds = [row for row in found["rows"] if row["part"] == "rounds"]
    assert [(row["algorithm"], row["clients"]) for row in rounds] == [
        (name, size) for name in ("FedAvg", "Scaffold") for size in (4, 8, 16)
    ]
    assert all(row["ratio"] > 0 and row["state_bytes"] > 0 and row["record_bytes_per_round"] > 0 for row in rounds)
    assert all((row["client_state_bytes"] > 0) == (row["algorithm"] == "Scaffold") for row in rounds)
    assert {row["part"] for row in found["rows"]} == {"rounds", "memory", "partition"} and found["date"]


def test_a_waiting_client_has_its_own_state_and_partitions_are_timed(scripts):
    growth = import_module("growth")
    memory = [growth.measure_memory(getattr(growth, name)(), 4, 10) for name in ("FedAvg", "Scaffold")]
    assert [row["own_bytes"] for row in memory] == [0, 40]  # ten numbers of four bytes
    rows = growth.measure_partitions((50, 100), 4)
    assert [(row["partition"], row["documents"]) for row in rows] == [(name, size) for name in growth.PARTITIONS for size in (50, 100)]


@pytest.mark.slow
def test_stacked_gradients_equal_those_of_single_clients(tmp_path, monkeypatch):
    gradients = import_module("gradients")
    rows = run_benchmark(tmp_path, "gradients")["gradients"]["rows"]
    assert {row["arithmetic"] for row in rows} == {"float32", "float64"}
    assert all(0 < max(row["alone"], row["plain"]) <= row["most"] for row in rows if row["tuned"] == "adapters")
    monkeypatch.setattr(gradients, "MAX_DIFFERENCE", {torch.float64: 0.0})
    assert gradients.main(["--small", "--out", str(tmp_path)]) == 1


@pytest.mark.slow
def test_memory_is_measured_for_growing_numbers_of_clients(tmp_path):
    memory = import_module("memory")
    cases = [("copies", 3, 3), ("stacked", 3, 3), ("pool", 4, 2), ("pool", 8, 2)]
    rows, ends = [], {}
    for case in cases:
        rows.append(memory.run_case(case, 2, True, tmp_path / "ends.pt"))
        ends[case] = Tree(torch.load(tmp_path / "ends.pt"))
    told = memory.summarize(rows, ends)
    assert max(told["copies_difference"], told["pool_difference"]) < 1e-4
    adapters = sum(leaf[0].numel() for leaf in ends["pool", 8, 2].values())
    assert told["own_bytes"] == 4 * adapters + 16
    ends["stacked", 3, 3] = ends["stacked", 3, 3] * 2
    with pytest.raises(SystemExit, match="nothing to compare"):
        memory.summarize(rows, ends)


@pytest.mark.slow
def test_the_share_of_probes_is_measured(tmp_path):
    rows = run_benchmark(tmp_path, "evaluation")["evaluation"]["rows"]
    assert {"train", "evaluate"} <= {row["phase"] for row in rows}


@pytest.mark.slow
def test_bfloat16_beside_float32(tmp_path):
    rows = run_benchmark(tmp_path, "bf16", "--repeats", "1")["bf16"]["rows"]
    assert [row["model"] for row in rows] == ["pocket", "distilgpt2", "smollm2-135m"]
    for row in rows:
        assert row["difference_float32"] < 1e-4 < row["update_difference"] < 0.05
        assert row["fedrift_gain_lowest"] <= row["fedrift_gain"] <= row["fedrift_gain_highest"]


def test_whole_runs_are_compared_turn_by_turn(scripts):
    whole_runs = import_module("whole_runs")
    spent = {"before": (8, 9), "after": (4, 3)}
    found = {side: [{"demo": whole_runs.Measurement(seconds, 1, 4.5)} for seconds in turns] for side, turns in spent.items()}
    (row,) = whole_runs.make_rows(found, ("demo",))
    assert row == {
        **{"work": "demo", "runs": 1},
        **{"before_s": 8.5, "before_loss": 4.5, "after_s": 3.5, "after_loss": 4.5},
        **{"ratio": 2.5, "ratio_lowest": 2.0, "ratio_highest": 3.0},
    }
    # Both versions get the same settings; each refuses the keys of the other.
    parse_config(whole_runs.make_experiment(is_old=False, small=False))
    with pytest.raises(UserError, match="corpus"):
        parse_config(whole_runs.make_experiment(is_old=True, small=False))
    found["before"][1]["demo"] = whole_runs.Measurement(5, 0, 4.5)
    with pytest.raises(SystemExit, match="demo: the sides did not finish equally many runs"):
        whole_runs.make_rows(found, ("demo",))


@pytest.mark.slow
def test_whole_runs_beside_those_of_the_old_version(tmp_path):
    if subprocess.run(["git", "-C", str(ROOT), "cat-file", "-e", import_module("whole_runs").BEFORE], capture_output=True).returncode:
        pytest.skip("this clone has no history")
    found = run_benchmark(tmp_path, "whole_runs", "--work", "demo")["whole-runs"]
    (row,) = found["rows"]
    assert row["work"] == "demo" and row["before_loss"] == pytest.approx(row["after_loss"], abs=0.05)


@pytest.mark.slow
def test_results_in_bfloat16_beside_those_in_float32(tmp_path):
    found = run_benchmark(tmp_path, "bf16", "--effect", "--seeds", "1")["bf16-effect"]
    assert [row["experiment"] for row in found["rows"]] == ["demo", "topic", "synthetic"]
    assert all(0 < abs(row["loss_difference"]) < 0.05 and row["loss_float32"] > 1 for row in found["rows"])


def test_a_pair_of_runs_is_within_the_limit_if_loss_gap_and_grade_agree(scripts):
    bf16 = import_module("bf16")
    exact = judge_run(trajectory([4.0, 3.0, 2.0]), trajectory([4.0, 3.0, 1.5]))
    for change, within in ((0.004, "yes"), (-0.004, "yes"), (0.006, "no")):
        row = bf16.compare_verdicts("demo", 0, {"float32": exact, "bfloat16": replace(exact, final_loss=exact.final_loss + change)})
        assert row["within_limit"] == within and row["loss_difference"] == pytest.approx(change)
    for changes in ({"gap_to_iid": exact.gap_to_iid - 0.006}, {"grade": "other"}, {"gap_to_iid": float("nan")}):
        assert bf16.compare_verdicts("demo", 0, {"float32": exact, "bfloat16": replace(exact, **changes)})["within_limit"] == "no"


def trajectory(losses: list[float]) -> Trajectory:
    """The records of a run with one loss per round."""
    return Trajectory(tuple(Record(round, "loss", "", -1, value) for round, value in enumerate(losses)))
