"""Test soft clusters: at temperature zero they equal hard clusters, and at infinite temperature they equal no clustering."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedrift.algorithms import FedAvg, FedProx, Scaffold
from fedrift.clustering import NoClustering, SoftClustering, TextClustering
from fedrift.clustering.base import ClientInfo
from fedrift.clustering.one_shot import mixture_weights
from fedrift.core.optimizers import Adam, Sgd
from fedrift.engine.clustering import ClusteringRuntime
from fedrift.engine.loop import run_rounds
from fedrift.engine.run import run_experiment
from tests.quadratics import clients, make_simulator, params
from tests.small_experiment import Killed, killed_at

from .small_runs import make_config, outcome, with_runs_dir
from .synthetic_clients import documents, make_client_info

ALGORITHMS = [FedAvg(), FedProx(mu=0.5), FedAvg(server_optimizer=Sgd(1.0, momentum=0.9)), FedAvg(server_optimizer=Adam(0.05)), Scaffold()]


def train(strategy, algorithm, info: ClientInfo, until: int = 4):
    group = clients((1, 4, 2, 3, 1.5, 2.5), (0, 1, -1, 2, 0.5, 1.5), 3, weight=(1, 2, 1, 3, 1, 2))
    work, simulator = ClusteringRuntime(strategy, info, algorithm), make_simulator(group)
    return work, list(
        run_rounds(
            work.init_state(params(5.0, 1)),
            work.wrap_client_pool(simulator),
            algorithm,
            num_rounds=until,
            cohort_size=6,
            seed=0,
            recluster=work.recluster,
            sample_clients=work.sample_cohort,
        )
    )


@pytest.fixture(scope="module")
def info() -> ClientInfo:
    return make_client_info(documents(6, 1.0, 0, domains=3, each=20, noise=0.05)[0])


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=str)
def test_temperature_zero_equals_text_clustering(algorithm, info):
    text = TextClustering(num_clusters=3)
    hard, (_, soft) = train(text, algorithm, info)[1], train(SoftClustering(text, temperature=1e-9), algorithm, info)
    for one, two in zip(hard, soft, strict=True):
        for part in ("params", "broadcast", "opt_state"):
            for name, leaf in getattr(one.after.server, part).items():
                assert torch.allclose(leaf, getattr(two.after.server, part)[name], atol=1e-12), (part, name)
        assert torch.equal(one.after.cluster_ids, two.after.cluster_ids)
        kept = two.after.client_states.gather_all()
        assert all(torch.allclose(leaf, kept[name], atol=1e-12) for name, leaf in one.after.client_states.gather_all().items())


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=str)
def test_infinite_temperature_equals_no_clustering(algorithm, info):
    unclustered, (_, soft) = (
        train(NoClustering(), algorithm, info)[1],
        train(SoftClustering(TextClustering(num_clusters=3), temperature=1e12), algorithm, info),
    )
    for one, two in zip(unclustered, soft, strict=True):
        for model in range(3):
            for part in ("params", "broadcast", "opt_state"):
                for name, leaf in getattr(one.after.server, part).items():
                    assert torch.allclose(leaf[0], getattr(two.after.server, part)[name][model], rtol=1e-9, atol=1e-9)


def test_server_control_variates_are_compared_with_the_mean_of_their_mixture(info):
    """The control variates differ from it per client, but no invariant is violated."""
    work, (*_, last) = train(SoftClustering(TextClustering(num_clusters=3), temperature=0.05), Scaffold(), info)
    assert Scaffold().round_metrics(work.probe_view(last))["control.imbalance"] < 1e-12


def test_a_round_equals_the_formula(info):
    """w = sum_c pi_kc w_c; w_c += sum_k pi_kc p_k D_k / sum_k pi_kc p_k, computed by hand."""
    work, done = train(SoftClustering(TextClustering(num_clusters=3), temperature=1.0), FedAvg(), info, until=2)
    share, second = done[1].before.clustering_state["membership"], done[1]
    assert torch.allclose(share.sum(1), torch.ones(6, dtype=share.dtype))
    assert 0.05 < float(share.min()) < float(share.max()) < 0.95
    start = share @ second.before.server.params["x"]  # [N, 1]
    weight = second.update.weight
    for model in range(3):
        part = share[:, model] * weight
        expected = second.before.server.params["x"][model] + (part[:, None] * second.update.delta["x"]).sum(0) / part.sum()
        assert torch.allclose(second.after.server.params["x"][model], expected)
    seen = work.probe_view(second)
    assert torch.allclose(seen.before.server.params["x"], start)
    assert torch.allclose(seen.client_params["x"], start + second.update.delta["x"])  # probes receive the models of the clients


def test_the_mixture_is_a_softmax_of_squared_distances():
    points, centroids = np.array([[0.0, 0.0], [1.0, 0.0]]), np.array([[0.0, 0.0], [1.0, 0.0]])
    found = mixture_weights(points, centroids, 1.0)
    assert found[0, 0] == pytest.approx(1 / (1 + np.exp(-1))) and np.allclose(found.sum(axis=1), 1)
    assert np.array_equal(mixture_weights(points, centroids, 1e-300), np.eye(2))


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    "overrides", [("algorithm={type: FedAvg, aggregator: FFALoRA}",), ("trainable={type: LastBlocks, num_blocks: 1}",)], ids=str
)
def test_a_run_resumes_bit_for_bit_and_evaluates_the_mixture_of_each_client(cache, tmp_path, overrides):
    config = make_config(
        cache, SoftClustering(TextClustering(encoder="hashing", num_clusters=3), temperature=0.2), "training.num_rounds=3", *overrides
    )
    unbroken = run_experiment(config, with_runs_dir(cache, tmp_path / "unbroken"))
    with pytest.raises(Killed):
        run_experiment(config, with_runs_dir(cache, tmp_path / "broken"), killed_at(1))
    assert outcome(unbroken) == outcome(run_experiment(config, with_runs_dir(cache, tmp_path / "broken")))
    (said,) = unbroken.read_json("clustering")
    assert 1 < said["effective_models"] < 3 and np.allclose(np.sum(said["membership"], axis=1), 1)
    assert len(np.unique(unbroken.trajectory().client_table("loss")[-1])) == 6


def test_soft_and_hard_clusters_agree_in_a_whole_run(cache, tmp_path):
    text, last = TextClustering(encoder="hashing", num_clusters=3), "trainable={type: LastBlocks, num_blocks: 1}"
    hard = run_experiment(make_config(cache, text, last, "training.num_rounds=2"), with_runs_dir(cache, tmp_path))
    soft = run_experiment(
        make_config(cache, SoftClustering(text, temperature=1e-9), last, "training.num_rounds=2"), with_runs_dir(cache, tmp_path)
    )
    for metric in ("loss", "loss.before", "loss.after"):
        one, two = (run.trajectory().client_table(metric) for run in (hard, soft))
        assert np.allclose(one, two, atol=1e-6, equal_nan=True)
