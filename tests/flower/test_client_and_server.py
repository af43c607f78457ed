"""Test whole runs of the server part and the client part in one process, and that documents stay on their client."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from flwr.app import Context, RecordDict

from fedrift.core.errors import UserError
from fedrift.engine.cache import resolve_fingerprints
from fedrift.engine.run import run_experiment
from fedrift.flower.client import NodeOptions, load_client, make_client_app
from fedrift.flower.client_pool import MSG_OWN_DOCUMENTS
from fedrift.flower.server import run_server
from tests.flower.loopback import NODE, Loopback
from tests.flower.test_deployment import TWO, assert_same_curves, invariant
from tests.small_experiment import experiment, make_cache

CANARY = "zanzibar"  # a word that only client 0's own documents contain


def make_experiment(folder: Path, *overrides: str):
    asked = experiment(folder, *TWO, "training.num_rounds=2", "evaluation.blocks_per_domain=1", *overrides)
    return resolve_fingerprints(asked, make_cache(folder))


def make_pool(wanted, folder: Path, data: dict[int, str] | None = None) -> tuple[Loopback, dict[str, object]]:
    """Return a node for each client, and the configuration of the server."""
    written, apps = json.dumps(wanted.to_dict()), {}
    for number in range(wanted.partition.num_clients):
        options = NodeOptions(data=(data or {}).get(number, ""), state_dir=str(folder / "kept"), device="cpu", threads="1")
        made = load_client(written, number, options)
        apps[NODE + number] = (make_client_app(lambda context, made=made: made), Context(1, NODE + number, {}, RecordDict(), {}))
    return Loopback(apps), {
        "experiment": written,
        "runs_dir": str(folder / "runs"),
        "device": "cpu",
        "threads": 1,
        "min_results": wanted.training.cohort_size(wanted.partition.num_clients),
        "round_timeout_s": 60.0,
        "join_timeout_s": 0.0,
    }


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    "overrides",
    [
        ("algorithm=Scaffold",),
        ("algorithm=Ditto", "training.client_weighting=examples"),
        ("algorithm=Scaffold", "partition.num_clients=3", "clustering={type: UpdateClustering, num_clusters: 2}"),
        ("algorithm=FedProx", "partition.num_clients=3", "clustering={type: TextClustering, num_clusters: 2, encoder: hashing}"),
        ("partition.num_clients=3", "clustering={type: IFCA, num_clusters: 2, num_batches: 1}"),
    ],
    ids=" ".join,
)
def test_server_and_clients_together_equal_the_local_run(overrides, tmp_path):
    wanted = make_experiment(tmp_path, *overrides)
    here = run_experiment(wanted, make_cache(tmp_path, clients_per_pass=1, threads=1))
    there = run_server(*make_pool(wanted, tmp_path / "elsewhere"))
    assert there.id == here.id
    assert_same_curves(there, here)
    if "clustering" in overrides[-1]:
        assert there.read_json("clustering") == here.read_json("clustering")
    elif overrides == ("algorithm=Scaffold",):
        invariant(there)


def own_texts(folder: Path) -> str:
    folder.mkdir()
    for number in range(30):
        (folder / f"{number}.txt").write_text(f"{CANARY} " + " ".join(f"{CANARY} warm bread number {number}" for _ in range(8)))
    return str(folder)


def test_own_documents_of_a_node_are_used_for_training_and_never_sent(tmp_path):
    wanted = make_experiment(tmp_path)
    grid, config = make_pool(wanted, tmp_path / "elsewhere", {0: own_texts(tmp_path / "own")})
    run = run_server(grid, config)
    told = [event for event in run.events() if event["kind"] == "client"]
    assert [(event["round"], event["client"], event["message"]) for event in told] == [(1, 0, MSG_OWN_DOCUMENTS)]
    plain = run_server(*make_pool(wanted, tmp_path / "dealt"))
    losses, dealt = (one.trajectory().client_table("train.loss")[-1] for one in (run, plain))
    assert losses[0] != pytest.approx(dealt[0], rel=1e-3), "client 0 did not train on its own documents"
    for path in (tmp_path / "elsewhere").rglob("*"):
        assert not path.is_file() or CANARY.encode() not in path.read_bytes(), path
    for message in (*grid.sent, *grid.received):
        content = message.content
        assert CANARY not in content["metadata"]["json"]
        assert CANARY.encode() not in content["fedrift"]["trees"].data


def test_clients_with_own_documents_can_be_stragglers(tmp_path):
    wanted = make_experiment(tmp_path, "training.straggler_fraction=1.0", "training.straggler_policy=drop")
    options = NodeOptions(data=own_texts(tmp_path / "own"), state_dir=str(tmp_path / "kept"), device="cpu", threads="1")
    client = load_client(json.dumps(wanted.to_dict()), 0, options)
    assert not list(client.simulator.batches(0, torch.zeros(1, dtype=torch.long)))


def test_clustering_by_the_partition_is_refused_for_clients_with_own_documents(tmp_path):
    wanted = make_experiment(tmp_path, "clustering={type: TextClustering, num_clusters: 2, encoder: hashing}")
    grid, config = make_pool(wanted, tmp_path / "elsewhere", {0: own_texts(tmp_path / "own")})
    with pytest.raises(UserError, match="client 0 trains on its own documents, but TextClustering clusters"):
        run_server(grid, config)
