"""The server half and the client half as nodes make them, in one process: whole runs, and documents that stay where they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

from fedrift.errors import UserError
from fedrift.flower.client import client_app
from fedrift.flower.fleet import OWN
from fedrift.flower.node import of
from fedrift.flower.server import begin
from fedrift.run import carry_out
from fedrift.setting import resolve
from tests.flower.loopback import NODE, Loopback
from tests.flower.test_deployment import TWO, assert_same_curves, invariant
from tests.worlds import experiment, stock

CANARY = "zanzibar"  # a word of client 0's own documents, and of nothing else


def asked(folder: Path, *overrides: str):
    return resolve(experiment(folder, *TWO, "plan.rounds=2", "evaluate.blocks=1", *overrides), stock(folder))


def over(wanted, folder: Path, data: dict[int, str] | None = None) -> tuple[Loopback, dict[str, object]]:
    """A node for each client, and the configuration of the server."""
    written, apps = json.dumps(wanted.written()), {}
    for number in range(wanted.partition.clients):
        made = of(written, number, data=(data or {}).get(number, ""), keeps=str(folder / "kept"), device="cpu", threads="1")
        apps[NODE + number] = (client_app(lambda context, made=made: made), Context(1, NODE + number, {}, RecordDict(), {}))
    return Loopback(apps), {"experiment": written, "runs": str(folder / "runs"), "device": "cpu", "threads": 1,
                            "least": wanted.plan.cohort(wanted.partition.clients), "patience": 60.0, "join": 0.0}


@pytest.mark.parametrize("overrides", [
    ("algorithm=Scaffold",), ("algorithm=Ditto", "plan.weighting=examples"),
    ("algorithm=Scaffold", "partition.clients=3", "mitigation={is: ByUpdate, clusters: 2}"),
    ("algorithm=FedProx", "partition.clients=3", "mitigation={is: ByText, clusters: 2, encoder: hashing}"),
    ("partition.clients=3", "mitigation={is: ByLoss, clusters: 2, batches: 1}")], ids=" ".join)
def test_the_two_halves_together_are_the_run_on_one_machine(overrides, tmp_path):
    wanted = asked(tmp_path, *overrides)
    here = carry_out(wanted, stock(tmp_path, micro=1, threads=1))
    there = begin(*over(wanted, tmp_path / "elsewhere"))
    assert there.id == here.id
    assert_same_curves(there, here)
    if "mitigation" in overrides[-1]:
        assert there.read_json("mitigation") == here.read_json("mitigation")
    elif overrides == ("algorithm=Scaffold",):
        invariant(there)


def own_texts(folder: Path) -> str:
    folder.mkdir()
    for number in range(30):
        (folder / f"{number}.txt").write_text(f"{CANARY} " + " ".join(f"{CANARY} warm bread number {number}" for _ in range(8)))
    return str(folder)


def test_documents_of_a_nodes_own_are_trained_on_and_never_leave_it(tmp_path):
    wanted = asked(tmp_path)
    grid, config = over(wanted, tmp_path / "elsewhere", {0: own_texts(tmp_path / "own")})
    run = begin(grid, config)
    told = [event for event in run.events() if event["kind"] == "client"]
    assert [(event["round"], event["client"], event["message"]) for event in told] == [(1, 0, OWN)]
    plain = begin(*over(wanted, tmp_path / "dealt"))
    losses, dealt = (one.trajectory().table("train.loss")[-1] for one in (run, plain))
    assert losses[0] != pytest.approx(dealt[0], rel=1e-3), "client 0 trained on something else"
    for path in (tmp_path / "elsewhere").rglob("*"):
        assert not path.is_file() or CANARY.encode() not in path.read_bytes(), path
    for message in (*grid.sent, *grid.came):
        content = message.content
        assert CANARY not in content["said"]["json"]
        assert CANARY.encode() not in content["fedrift"]["trees"].data


def test_a_mitigation_that_reads_what_the_experiment_deals_is_refused_with_documents_of_their_own(tmp_path):
    wanted = asked(tmp_path, "mitigation={is: ByText, clusters: 2, encoder: hashing}")
    grid, config = over(wanted, tmp_path / "elsewhere", {0: own_texts(tmp_path / "own")})
    with pytest.raises(UserError, match="client 0 trains on documents of its own, and ByText decides"):
        begin(grid, config)
