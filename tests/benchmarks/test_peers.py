"""Test that the same work by every framework ends alike and that missing frameworks are reported; `-m slow` adds Flower and pfl."""

from __future__ import annotations

import json
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from fedrift.core.tree import Tree


@pytest.fixture(autouse=True)
def _as_modules(scripts):
    pass


class BenchmarkWithoutWaiting:
    """A benchmark whose rounds do not wait for each other; it evaluates if there is a model."""

    def __init__(self, has_model: bool) -> None:
        self.taken, self.has_model, self.losses = 0, has_model, list[float]()

    def next_round(self, evaluate) -> None:
        self.taken += 1
        self.losses += [evaluate()] if self.has_model else []

    def finish(self, ends: dict[str, torch.Tensor], evaluate) -> None:
        self.ends = Tree(ends)
        self.losses += [evaluate()] if self.has_model else []


@pytest.mark.parametrize("number", [0, 1])
def test_the_client_simulator_and_the_plain_client_end_alike(number):
    work, ends, losses = import_module("peer_speed").SMALL_WORKLOADS[number], {}, {}
    for side in ("fedrift", "bare"):
        turns = BenchmarkWithoutWaiting(bool(work.model))
        import_module(f"peer_{side}").run(work, turns)
        assert turns.taken == work.warmup_rounds + work.num_rounds
        ends[side], losses[side] = turns.ends, turns.losses
    assert losses["fedrift"] == pytest.approx(losses["bare"], abs=1e-5)
    assert len(set(losses["bare"])) == (turns.taken + 1 if work.model else 0)  # training changes what is evaluated
    assert import_module("comparison").relative_difference(ends["fedrift"], ends["bare"]) < 1e-5
    start = Tree({name: leaf[0] for name, leaf in work.initial_params.items()})
    assert import_module("comparison").relative_difference(start, ends["bare"]) > 1e-5


def test_a_workload_can_be_converted_to_text_and_back():
    peers, kinds = import_module("peer_speed"), import_module("peer_work")
    assert [kinds.Workload.from_json(str(work)) for work in peers.WORKLOADS] == list(peers.WORKLOADS)


@pytest.mark.slow
def test_a_framework_that_cannot_start_is_reported(tmp_path, capsys, monkeypatch):
    if find_spec("pfl"):
        pytest.skip("pfl is importable here")
    peers = import_module("peer_speed")
    monkeypatch.setattr(peers, "SMALL_WORKLOADS", peers.SMALL_WORKLOADS[:1])
    assert peers.main(["--small", "--sides", "pfl", "--pfl", str(tmp_path), "--out", str(tmp_path)]) == 0
    (row,) = json.loads((tmp_path / "peers.json").read_text())["rows"]
    assert row["absent"] == "ModuleNotFoundError: No module named 'pfl'"
    assert "not measured: ModuleNotFoundError" in capsys.readouterr().out


def test_whole_experiments_with_other_results_are_not_compared():
    whole = import_module("peer_whole")
    one = {"losses": [4.0, 3.0], "params": {"x": torch.ones(3)}}
    assert whole.check_results({"fedrift": one, "bare": one}) == {"fedrift": 0, "bare": 0}
    for other in ({**one, "losses": [4.0, 3.1]}, {**one, "losses": [4.0, float("nan")]}, {**one, "params": {"x": 2 * torch.ones(3)}}):
        with pytest.raises(SystemExit, match=r"other losses|nothing to compare"):
            whole.check_results({"fedrift": one, "bare": other})
    rows = whole.make_rows(whole.WORKLOAD, {"fedrift": [2.0, 4.0], "flower": [6.0, 8.0]}, {"fedrift": 0, "flower": 0}, {"pfl": "missing"})
    assert [(row["side"], row.get("ratio")) for row in rows] == [("fedrift", 1.0), ("flower", 2.5), ("pfl", None)]


@pytest.mark.slow
def test_whole_experiments_end_alike(tmp_path):
    sides = ["fedrift", "bare", "flower"]
    assert import_module("peer_whole").main(["--small", "--sides", *sides, "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("peers-whole-*.json")
    assert [(row["side"], row["difference"] < 1e-5) for row in json.loads(path.read_text())["rows"]] == [(side, True) for side in sides]


@pytest.mark.slow
def test_every_framework_ends_alike(tmp_path):
    folder = Path(__file__).resolve().parents[2] / ".peers" / "pfl"
    there = ["fedrift", "bare", "flower", *(["pfl"] if folder.exists() else [])]
    assert import_module("peer_speed").main(["--small", "--sides", *there, "--pfl", str(folder), "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "peers.json").read_text())["rows"]
    assert [row["side"] for row in rows] == there * 2
    assert all(row["difference"] < 1e-5 for row in rows)
