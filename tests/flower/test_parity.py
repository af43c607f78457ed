"""Test that a run over Flower equals the local run: same cohorts, batches and arithmetic."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from fedrift.algorithms import Ditto, FedAvg, FedProx, Scaffold
from fedrift.algorithms.aggregators import FFALoRA
from fedrift.clustering import CFL, IFCA, NoClustering, RandomClustering, SoftClustering, TextClustering, UpdateClustering
from fedrift.core import optimizers
from fedrift.engine.clustering import ClusteringRuntime
from fedrift.engine.loop import init_state, run_rounds
from fedrift.simulation import ClientSimulator
from fedrift.simulation.simulator import client_losses_per_model
from tests.clustering.synthetic_clients import documents, make_client_info
from tests.flower.loopback import run_over_flower, with_clusters
from tests.laws.federation import SUBJECTS, Data, data, loss, max_difference, params, represent, tensors, train

ALGORITHMS = [*SUBJECTS.values(), FedProx(mu=0.1)]


def max_server_difference(over, here) -> float:
    """Return the largest difference between two servers' tensors."""
    one, two = tensors(over.after), tensors(here.after)
    parts = [name for name in two if not name.startswith("client_states/")]
    return max((one[name].double() - two[name].double()).abs().max().item() for name in parts)


@pytest.mark.sample(12)
@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=repr)
def test_a_run_over_flower_equals_the_local_run(algorithm, tmp_path):
    """Client states stay on their nodes, and what the server reads of them is sent."""
    deal = data(dtype=torch.float32)
    here = train(algorithm, deal, until=3, cohort=3)
    over = run_over_flower(algorithm, deal, tmp_path, until=3, cohort=3)
    for one, two in zip(over, here, strict=True):
        assert one.cohort.tolist() == two.cohort.tolist()
        assert max_server_difference(one, two) < 1e-5
        for name in ("weight", "steps", "tokens", "lr"):
            assert torch.equal(getattr(one.update, name), getattr(two.update, name))
        assert torch.allclose(one.update.loss, two.update.loss, rtol=1e-5)


def test_float64_is_transmitted_exactly(tmp_path):
    deal = data()
    assert max_difference(run_over_flower(Scaffold(), deal, tmp_path)[-1].after, train(Scaffold(), deal)[-1].after) < 1e-14


@pytest.mark.parametrize("algorithm", [FedAvg(), Scaffold()], ids=repr)
def test_clients_of_several_models_train_over_flower(algorithm, tmp_path):
    deal = data(dtype=torch.float32)
    first = with_clusters(init_state(algorithm, params(torch.float32), 5), [0, 1, 1, 0, 2])
    here = train(algorithm, deal, until=4, cohort=3, state=first)
    over = run_over_flower(algorithm, deal, tmp_path, until=4, cohort=3, state=first)
    assert max_server_difference(over[-1], here[-1]) < 1e-5
    assert len(over[-1].after.server.params["h"]) == 3


STRATEGIES = [
    TextClustering(num_clusters=2),
    UpdateClustering(num_clusters=2),
    IFCA(2, num_batches=1),
    RandomClustering(cluster_sizes=(2, 3)),
    CFL(interval=2, eps1=9.0, eps2=1e-6, gamma=0.0, min_cluster_size=1),
]
CLUSTERED = [(strategy, Scaffold()) for strategy in STRATEGIES] + [
    (strategy, algorithm)
    for strategy in STRATEGIES[:2]
    for algorithm in (FedAvg(), FedProx(mu=0.1), FedAvg(server_optimizer=optimizers.Adam(0.05)))
]


def make_clustering(strategy: NoClustering, algorithm: FedAvg, deal: Data) -> tuple[ClusteringRuntime, ClientSimulator]:
    """Return a clustering of clients with two kinds of text, and the local client simulator."""
    client_pool = ClientSimulator(5, loss, deal, optimizers.Sgd(0.05), represent_fn=represent)
    vectors, _ = documents(5, 1.0, 0, domains=2)
    return ClusteringRuntime(
        strategy, make_client_info(vectors, losses=partial(client_losses_per_model, client_pool)), algorithm
    ), client_pool


@pytest.mark.sample(4)
@pytest.mark.parametrize("strategy, algorithm", CLUSTERED, ids=repr)
def test_training_with_clusters_over_flower_equals_local_training(strategy, algorithm, tmp_path):
    """The server assigns clusters; SCAFFOLD's c of each cluster is the mean of its members' c_k."""
    deal = data(dtype=torch.float32)
    work, client_pool = make_clustering(strategy, algorithm, deal)
    there, _ = make_clustering(strategy, algorithm, deal)
    here = list(
        run_rounds(
            work.init_state(params(torch.float32)),
            client_pool,
            algorithm,
            num_rounds=4,
            cohort_size=3,
            seed=3,
            recluster=work.recluster,
            sample_clients=work.sample_cohort,
        )
    )
    over = run_over_flower(algorithm, deal, tmp_path, until=4, cohort=3, work=there)
    for one, two in zip(over, here, strict=True):
        assert one.cohort.tolist() == two.cohort.tolist()
        assert one.after.cluster_ids.tolist() == two.after.cluster_ids.tolist()
        assert max_server_difference(one, two) < 1e-5
    after = over[-1].after
    assert after.server.num_models > 1
    for name, c in after.server.broadcast.items():
        for group in after.cluster_ids.unique().tolist():
            assert torch.allclose(c[group], after.client_states.gather_all()[name][after.cluster_ids == group].mean(0), atol=1e-6)


def test_clients_with_soft_clusters_train_over_flower(tmp_path):
    deal, algorithm = data(dtype=torch.float32), FedAvg(aggregator=FFALoRA())
    strategy = SoftClustering(TextClustering(num_clusters=2), temperature=1.0)
    (work, client_pool), (there, _) = make_clustering(strategy, algorithm, deal), make_clustering(strategy, algorithm, deal)
    here = list(
        run_rounds(
            work.init_state(params(torch.float32)),
            work.wrap_client_pool(client_pool),
            algorithm,
            num_rounds=3,
            cohort_size=3,
            seed=3,
            sample_clients=work.sample_cohort,
        )
    )
    over = run_over_flower(algorithm, deal, tmp_path, until=3, cohort=3, work=there)
    assert max_server_difference(over[-1], here[-1]) < 1e-5
    assert (over[-1].update.membership > 0.01).all()


def test_clients_with_unequal_steps_and_without_data_train_over_flower(tmp_path):
    deal = data((3, 0, 1, 2, 3), dtype=torch.float32)
    here, over = train(Scaffold(), deal), run_over_flower(Scaffold(), deal, tmp_path)
    assert max_server_difference(over[-1], here[-1]) < 1e-5
    assert over[-1].update.weight[1] == 0 and not over[-1].update.failed[1]


def test_the_state_of_a_personalized_algorithm_stays_on_its_node(tmp_path):
    deal = data(dtype=torch.float32)
    over, here = run_over_flower(Ditto(), deal, tmp_path)[-1], train(Ditto(), deal)[-1]
    first = init_state(Ditto(), params(torch.float32), 5).client_states.gather_all()
    # the server never receives it
    assert all(torch.equal(leaf, first[name]) for name, leaf in over.after.client_states.gather_all().items())
    from fedrift.flower.client import load_client_state

    own = load_client_state(tmp_path / "0" / "client-2.safetensors", first.take(slice(0, 1)), 3)
    assert all(torch.allclose(leaf[0], here.after.client_states.gather_all()[name][2], atol=1e-5) for name, leaf in own.items())


@pytest.mark.parametrize("algorithm", SUBJECTS.values(), ids=SUBJECTS)
def test_the_server_reads_only_the_parts_of_an_update_that_the_algorithm_uploads(algorithm):
    """``uploads`` names these parts; without all others the next server state is the same."""
    from dataclasses import replace

    done = train(algorithm, data(), until=2)[-1]
    update = done.update
    lost = {part: getattr(update, part).map(lambda leaf: leaf * torch.nan) for part in ("mean_grad", "client_state", "state_delta")}
    kept = {"mean_grad"} & algorithm.uploads | ({"client_state", "state_delta"} if "client_state" in algorithm.uploads else set())
    blind = replace(update, **{part: tree for part, tree in lost.items() if part not in kept})
    after = algorithm.server_update(done.before.server, blind)
    for part in ("params", "broadcast", "opt_state", "merged_base"):
        for name, leaf in getattr(done.after.server, part).items():
            assert torch.equal(getattr(after, part)[name], leaf)
