"""A run over Flower is the run on one machine: same cohorts, same batches, same arithmetic."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from fedrift.algorithms import Ditto, FedAvg, FedProx, Scaffold
from fedrift.algorithms.aggregators import FFALoRA
from fedrift.clustering import CFL, IFCA, NoClustering, RandomClustering, SoftClustering, TextClustering, UpdateClustering
from fedrift.clustering.runtime import ClusteringRuntime
from fedrift.core import optimizers
from fedrift.engine.loop import init_state, run_rounds
from fedrift.simulation import ClientSimulator
from fedrift.simulation.simulator import client_losses_per_model
from tests.clustering.synthetic_clients import documents, make_client_info
from tests.flower.loopback import grouped, over_flower
from tests.laws.federation import SUBJECTS, Data, apart, data, loss, params, represent, tensors, train

ALGORITHMS = [*SUBJECTS.values(), FedProx(mu=0.1)]


def gap(over, here) -> float:
    """The largest difference between what two servers hold."""
    one, two = tensors(over.after), tensors(here.after)
    parts = [name for name in two if not name.startswith("client_states/")]
    return max((one[name].double() - two[name].double()).abs().max().item() for name in parts)


@pytest.mark.sample(12)
@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=repr)
def test_a_run_over_flower_is_the_run_on_one_machine(algorithm, tmp_path):
    """All of them: what a client keeps stays on its node, what the server reads of it travels."""
    deal = data(dtype=torch.float32)
    here = train(algorithm, deal, until=3, cohort=3)
    over = over_flower(algorithm, deal, tmp_path, until=3, cohort=3)
    for one, two in zip(over, here, strict=True):
        assert one.cohort.tolist() == two.cohort.tolist()
        assert gap(one, two) < 1e-5
        for name in ("weight", "steps", "tokens", "lr"):
            assert torch.equal(getattr(one.update, name), getattr(two.update, name))
        assert torch.allclose(one.update.loss, two.update.loss, rtol=1e-5)


def test_in_float64_nothing_is_lost_on_the_way(tmp_path):
    deal = data()
    assert apart(over_flower(Scaffold(), deal, tmp_path)[-1].after, train(Scaffold(), deal)[-1].after) < 1e-14


@pytest.mark.parametrize("algorithm", [FedAvg(), Scaffold()], ids=repr)
def test_clients_that_share_several_models(algorithm, tmp_path):
    deal = data(dtype=torch.float32)
    first = grouped(init_state(algorithm, params(torch.float32), 5), [0, 1, 1, 0, 2])
    here = train(algorithm, deal, until=4, cohort=3, state=first)
    over = over_flower(algorithm, deal, tmp_path, until=4, cohort=3, state=first)
    assert gap(over[-1], here[-1]) < 1e-5
    assert len(over[-1].after.server.params["h"]) == 3


SIGNALS = [
    TextClustering(num_clusters=2),
    UpdateClustering(num_clusters=2),
    IFCA(2, num_batches=1),
    RandomClustering(cluster_sizes=(2, 3)),
    CFL(interval=2, eps1=9.0, eps2=1e-6, gamma=0.0, min_cluster_size=1),
]
CLUSTERED = [(signal, Scaffold()) for signal in SIGNALS] + [
    (signal, algorithm)
    for signal in SIGNALS[:2]
    for algorithm in (FedAvg(), FedProx(mu=0.1), FedAvg(server_optimizer=optimizers.Adam(0.05)))
]


def at_work(signal: NoClustering, algorithm: FedAvg, deal: Data) -> tuple[ClusteringRuntime, ClientSimulator]:
    """A clustering over clients of two kinds of text, and the fleet on one machine."""
    fleet = ClientSimulator(5, loss, deal, optimizers.Sgd(0.05), represent_fn=represent)
    vectors, _ = documents(5, 1.0, 0, domains=2)
    return ClusteringRuntime(signal, make_client_info(vectors, losses=partial(client_losses_per_model, fleet)), algorithm), fleet


@pytest.mark.sample(4)
@pytest.mark.parametrize("signal, algorithm", CLUSTERED, ids=repr)
def test_cluster_specific_training_over_flower_is_that_on_one_machine(signal, algorithm, tmp_path):
    """Whoever shares with whom is decided on the server; SCAFFOLD's c of each group is the mean of its own members' c_k."""
    deal = data(dtype=torch.float32)
    work, fleet = at_work(signal, algorithm, deal)
    there, _ = at_work(signal, algorithm, deal)
    here = list(
        run_rounds(
            work.init_state(params(torch.float32)),
            fleet,
            algorithm,
            num_rounds=4,
            cohort_size=3,
            seed=3,
            recluster=work.recluster,
            sample_clients=work.sample_cohort,
        )
    )
    over = over_flower(algorithm, deal, tmp_path, until=4, cohort=3, work=there)
    for one, two in zip(over, here, strict=True):
        assert one.cohort.tolist() == two.cohort.tolist()
        assert one.after.cluster_ids.tolist() == two.after.cluster_ids.tolist()
        assert gap(one, two) < 1e-5
    after = over[-1].after
    assert after.server.num_models > 1
    for name, c in after.server.broadcast.items():
        for group in after.cluster_ids.unique().tolist():
            assert torch.allclose(c[group], after.client_states.gather_all()[name][after.cluster_ids == group].mean(0), atol=1e-6)


def test_clients_between_the_groups_train_over_flower_too(tmp_path):
    deal, algorithm = data(dtype=torch.float32), FedAvg(aggregator=FFALoRA())
    signal = SoftClustering(TextClustering(num_clusters=2), temperature=1.0)
    (work, fleet), (there, _) = at_work(signal, algorithm, deal), at_work(signal, algorithm, deal)
    here = list(
        run_rounds(
            work.init_state(params(torch.float32)),
            work.wrap_client_pool(fleet),
            algorithm,
            num_rounds=3,
            cohort_size=3,
            seed=3,
            sample_clients=work.sample_cohort,
        )
    )
    over = over_flower(algorithm, deal, tmp_path, until=3, cohort=3, work=there)
    assert gap(over[-1], here[-1]) < 1e-5
    assert (over[-1].update.membership > 0.01).all()


def test_clients_of_unequal_numbers_of_steps_and_without_data(tmp_path):
    deal = data((3, 0, 1, 2, 3), dtype=torch.float32)
    here, over = train(Scaffold(), deal), over_flower(Scaffold(), deal, tmp_path)
    assert gap(over[-1], here[-1]) < 1e-5
    assert over[-1].update.weight[1] == 0 and not over[-1].update.failed[1]


def test_the_memory_of_a_personal_algorithm_stays_on_its_node(tmp_path):
    deal = data(dtype=torch.float32)
    over, here = over_flower(Ditto(), deal, tmp_path)[-1], train(Ditto(), deal)[-1]
    first = init_state(Ditto(), params(torch.float32), 5).client_states.gather_all()
    assert all(torch.equal(leaf, first[name]) for name, leaf in over.after.client_states.gather_all().items())  # the server never sees it
    from fedrift.flower.client import load_client_state

    own = load_client_state(tmp_path / "0" / "client-2.safetensors", first.take(slice(0, 1)), 3)
    assert all(torch.allclose(leaf[0], here.after.client_states.gather_all()[name][2], atol=1e-5) for name, leaf in own.items())


@pytest.mark.parametrize("algorithm", SUBJECTS.values(), ids=SUBJECTS)
def test_what_the_server_reads_of_a_report_is_what_the_algorithm_says_travels(algorithm):
    """``uploads`` names it; all else of a report may be missing, and the next server is the same."""
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
