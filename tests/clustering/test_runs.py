"""Test whole runs with every clustering strategy: resumed bit for bit, recorded in events and a file, with any algorithm."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedrift.clustering import CFL, IFCA, NoClustering, OracleClustering, RandomClustering, SoftClustering, TextClustering, UpdateClustering
from fedrift.clustering.base import assign_new_clients
from fedrift.config.schema import parse_config
from fedrift.core.errors import UserError
from fedrift.engine.build import build_run
from fedrift.engine.cache import resolve_fingerprints
from fedrift.engine.run import run_experiment
from tests.small_experiment import Killed, killed_at, read_state

from .small_runs import make_config, outcome, with_runs_dir

TEXT = TextClustering(encoder="hashing", max_documents=10)
STRATEGIES = [
    TextClustering(encoder="hashing", num_clusters=3),
    RandomClustering(cluster_sizes=(4, 2)),
    OracleClustering(),
    UpdateClustering(num_clusters=2, interval=2),
    IFCA(num_clusters=2, num_batches=2),
    IFCA(num_clusters=2, symmetry_breaking="noise"),
    CFL(eps1=10.0, eps2=0.01, gamma=0.0, interval=2),
]


@pytest.mark.sample(3)
@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: type(strategy).__name__)
def test_an_interrupted_run_resumes_bit_for_bit_with_every_strategy(cache, tmp_path, strategy):
    wanted = make_config(cache, strategy, "algorithm=Scaffold", "training.client_weighting=uniform")
    unbroken = run_experiment(wanted, with_runs_dir(cache, tmp_path / "unbroken"))
    for round in (0, 1, 2):
        with pytest.raises(Killed):
            run_experiment(wanted, with_runs_dir(cache, tmp_path / "broken"), killed_at(round))
    broken = run_experiment(wanted, with_runs_dir(cache, tmp_path / "broken"))
    assert outcome(unbroken) == outcome(broken)
    one, two = (read_state(run) for run in (unbroken, broken))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    trajectory = unbroken.trajectory()
    assert trajectory.client_table("cluster.id").shape[1] == 6 and np.isfinite(trajectory.client_table("cluster.id")).all()
    assert trajectory.curve("loss")[-1] < trajectory.curve("loss")[0]
    assert -1 <= trajectory.curve("cluster.ari")[-1] <= 1


def test_text_clusters_are_the_true_topics_and_lower_the_loss(cache, tmp_path):
    run = run_experiment(make_config(cache, TextClustering(encoder="hashing")), with_runs_dir(cache, tmp_path))
    (said,) = run.read_json("clustering")
    assert said["k"] == 3 and said["p_value"] == 0.01 and said["verdict"] == "stable" and said["bytes"] == 256
    assert run.trajectory().curve("cluster.ari")[-1] == 1
    (event,) = [event for event in run.events() if event["kind"] == "clustering"]
    assert event["message"].startswith("TextClustering: 3 clusters of 2, 2, 2 clients: stable (p 0.01")
    unclustered = run_experiment(make_config(cache, NoClustering()), with_runs_dir(cache, tmp_path))
    assert run.trajectory().curve("loss")[-1] < unclustered.trajectory().curve("loss")[-1]
    assert sorted(path.name for path in (run.folder / "model").iterdir()) == ["0", "1", "2"]


def test_a_new_client_gets_the_model_of_similar_clients(cache, tmp_path):
    wanted, there = resolve_fingerprints(make_config(cache, TEXT), with_runs_dir(cache, tmp_path)), with_runs_dir(cache, tmp_path)
    setting = build_run(wanted, there)
    ((_, decision),) = setting.clustering.pending_assignments
    new = np.stack(
        [
            setting.clustering.client_info.embed(setting.clustering.client_info.documents(client)[10:], "hashing").mean(axis=0)
            for client in range(6)
        ]
    )
    assert assign_new_clients(decision, new).tolist() == decision.cluster_ids.tolist()
    assert assign_new_clients(decision.to_json(0), new[0]).tolist() == decision.cluster_ids[0]
    with pytest.raises(UserError, match="TextClustering or SoftClustering"):
        assign_new_clients({"signal": "IFCA"}, new)


def test_one_cluster_equals_no_clustering_bit_for_bit(cache, tmp_path):
    one = run_experiment(make_config(cache, TextClustering(encoder="hashing", num_clusters=1)), with_runs_dir(cache, tmp_path))
    unclustered = run_experiment(make_config(cache, NoClustering()), with_runs_dir(cache, tmp_path))
    state, other = (read_state(run) for run in (one, unclustered))
    assert all(torch.equal(state[name], other[name]) for name in other)
    same = [row for row in one.records() if row.metric not in ("cluster.id", "cluster.ari", "cluster.nmi")]
    assert same == unclustered.records()


def test_without_clustering_the_id_of_a_run_is_unchanged():
    plain = parse_config({"dataset": "bbc"})
    assert plain.clustering == NoClustering()
    assert (
        plain.id
        == parse_config({"dataset": "bbc", "clustering": "NoClustering"}).id
        != parse_config({"dataset": "bbc", "clustering": "TextClustering"}).id
    )
    assert "TextClustering" in parse_config({"dataset": "bbc", "clustering": {"type": "TextClustering", "num_clusters": 3}}).name
    nested = parse_config(
        {"dataset": "bbc", "clustering": {"type": "RandomClustering", "sizes_from": {"type": "OracleClustering"}, "repeat": 2}}
    )
    assert nested.clustering == RandomClustering(OracleClustering(), repeat=2)
    assert parse_config(nested.to_dict()) == nested
    soft = parse_config({"dataset": "bbc", "clustering": {"type": "SoftClustering", "text": {"encoder": "hashing"}, "temperature": 0.2}})
    assert soft.clustering == SoftClustering(TextClustering(encoder="hashing"), 0.2) and parse_config(soft.to_dict()) == soft


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    "algorithm",
    [
        "Ditto",
        "FedAvgFineTuning",
        "{type: FedAvg, server_optimizer: {type: Adam}}",
        "FedDyn",
        "AFL",
        "MOON",
        "{type: FedAvg, aggregator: FedEx}",
    ],
)
def test_every_algorithm_works_with_clusters(cache, tmp_path, algorithm):
    for strategy in (TEXT, UpdateClustering(num_clusters=2)):
        wanted = make_config(cache, strategy, f"algorithm={algorithm}", "training.num_rounds=2")
        run = run_experiment(wanted, with_runs_dir(cache, tmp_path))
        assert np.isfinite(run.trajectory().curve("loss")).all()
        assert run.trajectory().has_client_table("loss.personalized") == wanted.algorithm.is_personalized


@pytest.mark.parametrize(
    ("algorithm", "clustering", "message"),
    [
        ("LocalOnly", TEXT, "LocalOnly gives every client its own model"),
        ("Centralized", TEXT, "Centralized has no clients to group"),
        ("FedAvg", replace(TEXT, num_clusters=7), "is 7, but there are only 6 clients"),
        ("FedAvg", RandomClustering(cluster_sizes=(3, 4)), r"\[3, 4\] sum to 7, but there are 6 clients"),
        ("FedAvg", RandomClustering(sizes_from=UpdateClustering()), "UpdateClustering, which does not cluster the clients before"),
        ("FedAvg", SoftClustering(TEXT), "aggregator: FFALoRA"),
        ("{type: FedAvg, aggregator: Median}", SoftClustering(TEXT), "weighted means"),
        ("FedDyn", SoftClustering(TEXT), "weighted means"),
    ],
)
def test_unsound_settings_are_refused(cache, tmp_path, algorithm, clustering, message):
    with pytest.raises(UserError, match=message):
        run_experiment(make_config(cache, clustering, f"algorithm={algorithm}"), with_runs_dir(cache, tmp_path))


def test_oracle_clustering_requires_labels(cache, tmp_path):
    wanted = make_config(cache, OracleClustering(), "dataset.label_column=''", "partition={type: Quantity, num_clients: 3}")
    with pytest.raises(UserError, match="TextClustering"):
        run_experiment(wanted, with_runs_dir(cache, tmp_path))


def test_every_round_trains_as_many_clients_as_without_clustering(cache, tmp_path):
    runs = [run_experiment(make_config(cache, strategy), with_runs_dir(cache, tmp_path)) for strategy in (NoClustering(), TEXT)]
    trained = [np.isfinite(run.trajectory().client_table("train.loss")).sum(axis=1).tolist() for run in runs]
    assert trained[0] == trained[1] == [0, 4, 4, 4, 4]


@pytest.mark.parametrize("encoder", ["states", "lsa", "wordllama"])
def test_clusters_are_found_with_every_encoder(cache, tmp_path, encoder):
    if encoder == "wordllama":
        pytest.importorskip("wordllama")
    setting = build_run(resolve_fingerprints(make_config(cache, TextClustering(encoder=encoder)), cache), with_runs_dir(cache, tmp_path))
    ((_, decision),) = setting.clustering.pending_assignments
    found = setting.clustering.measure_agreement(setting.initial_state)["cluster.ari"]
    # the encoder "states" removes the first direction, which is one of the two that separate three topics
    assert (decision.reason["k"], found) == (3, 1) or (encoder == "states" and decision.reason["k"] == 2 and found > 0.4)
    assert decision.reason["bytes"] == 4 * decision.centroids.shape[1]
    assert any("not private" in warning for warning in setting.warnings) == (encoder == "lsa")
