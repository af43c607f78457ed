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
    """A benchmark whose rounds do not wait for each other."""

    taken = 0

    def next_round(self) -> None:
        self.taken += 1

    def finish(self, ends: dict[str, torch.Tensor]) -> None:
        self.ends = Tree(ends)


@pytest.mark.parametrize("number", [0, 1])
def test_the_client_simulator_and_the_plain_client_end_alike(number):
    work, ends = import_module("peer_speed").SMALL_WORKLOADS[number], {}
    for side in ("fedrift", "bare"):
        turns = BenchmarkWithoutWaiting()
        import_module(f"peer_{side}").run(work, turns)
        assert turns.taken == work.warmup_rounds + work.num_rounds
        ends[side] = turns.ends
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


@pytest.mark.slow
def test_every_framework_ends_alike(tmp_path):
    folder = Path(__file__).resolve().parents[2] / ".peers" / "pfl"
    there = ["fedrift", "bare", "flower", *(["pfl"] if folder.exists() else [])]
    assert import_module("peer_speed").main(["--small", "--sides", *there, "--pfl", str(folder), "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "peers.json").read_text())["rows"]
    assert [row["side"] for row in rows] == there * 2
    assert all(row["difference"] < 1e-5 for row in rows)
