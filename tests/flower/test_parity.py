"""A run over Flower is the run on one machine: same cohorts, same batches, same arithmetic."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from fedrift import optimizers
from fedrift.algorithms import Ditto, FedAvg, FedProx, Scaffold
from fedrift.algorithms.aggregates import FFA
from fedrift.fleet import SimulatedFleet
from fedrift.fleet.choice import losses_of
from fedrift.mitigation import AtRandom, Bipartition, ByLoss, ByText, ByUpdate, Soft, Vanilla
from fedrift.mitigation.work import Work
from fedrift.rounds import begin, rounds
from tests.flower.loopback import grouped, over_flower
from tests.laws.federation import SUBJECTS, Data, apart, data, loss, params, represent, tensors, train
from tests.mitigation.plant import documents, ground

ALGORITHMS = [*SUBJECTS.values(), FedProx(mu=0.1)]


def gap(over, here) -> float:
    """The largest difference between what two servers hold."""
    one, two = tensors(over.after), tensors(here.after)
    parts = [name for name in two if not name.startswith("memory/")]
    return max((one[name].double() - two[name].double()).abs().max().item() for name in parts)


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
            assert torch.equal(getattr(one.report, name), getattr(two.report, name))
        assert torch.allclose(one.report.loss, two.report.loss, rtol=1e-5)


def test_in_float64_nothing_is_lost_on_the_way(tmp_path):
    deal = data()
    assert apart(over_flower(Scaffold(), deal, tmp_path)[-1].after, train(Scaffold(), deal)[-1].after) < 1e-14


@pytest.mark.parametrize("algorithm", [FedAvg(), Scaffold()], ids=repr)
def test_clients_that_share_several_models(algorithm, tmp_path):
    deal = data(dtype=torch.float32)
    first = grouped(begin(algorithm, params(torch.float32), 5), [0, 1, 1, 0, 2])
    here = train(algorithm, deal, until=4, cohort=3, state=first)
    over = over_flower(algorithm, deal, tmp_path, until=4, cohort=3, state=first)
    assert gap(over[-1], here[-1]) < 1e-5
    assert len(over[-1].after.server.params["h"]) == 3


SIGNALS = [ByText(clusters=2), ByUpdate(clusters=2), ByLoss(2, batches=1), AtRandom(sizes=(2, 3)),
           Bipartition(every=2, still=9.0, moving=1e-6, gamma=0.0, least=1)]
CLUSTERED = [(signal, Scaffold()) for signal in SIGNALS] + [
    (signal, algorithm) for signal in SIGNALS[:2]
    for algorithm in (FedAvg(), FedProx(mu=0.1), FedAvg(server=optimizers.Adam(0.05)))]


def at_work(signal: Vanilla, algorithm: FedAvg, deal: Data) -> tuple[Work, SimulatedFleet]:
    """A mitigation over clients of two kinds of text, and the fleet on one machine."""
    fleet = SimulatedFleet(5, loss, deal, optimizers.Sgd(0.05), represent=represent)
    vectors, _ = documents(5, 1.0, 0, domains=2)
    return Work(signal, ground(vectors, losses=partial(losses_of, fleet)), algorithm), fleet


@pytest.mark.parametrize("signal, algorithm", CLUSTERED, ids=repr)
def test_cluster_specific_training_over_flower_is_that_on_one_machine(signal, algorithm, tmp_path):
    """Whoever shares with whom is decided on the server; SCAFFOLD's c of each group is the mean of its own members' c_k."""
    deal = data(dtype=torch.float32)
    work, fleet = at_work(signal, algorithm, deal)
    there, _ = at_work(signal, algorithm, deal)
    here = list(rounds(work.begin(params(torch.float32)), fleet, algorithm, until=4, cohort=3, seed=3, regroup=work.regroup,
                       draw=work.draw))
    over = over_flower(algorithm, deal, tmp_path, until=4, cohort=3, work=there)
    for one, two in zip(over, here, strict=True):
        assert one.cohort.tolist() == two.cohort.tolist()
        assert one.after.group.tolist() == two.after.group.tolist()
        assert gap(one, two) < 1e-5
    after = over[-1].after
    assert after.server.models > 1
    for name, c in after.server.shared.items():
        for group in after.group.unique().tolist():
            assert torch.allclose(c[group], after.memory.whole()[name][after.group == group].mean(0), atol=1e-6)


def test_clients_between_the_groups_train_over_flower_too(tmp_path):
    deal, algorithm = data(dtype=torch.float32), FedAvg(aggregate=FFA())
    signal = Soft(ByText(clusters=2), temperature=1.0)
    (work, fleet), (there, _) = at_work(signal, algorithm, deal), at_work(signal, algorithm, deal)
    here = list(rounds(work.begin(params(torch.float32)), work.fleet(fleet), algorithm, until=3, cohort=3, seed=3,
                       draw=work.draw))
    over = over_flower(algorithm, deal, tmp_path, until=3, cohort=3, work=there)
    assert gap(over[-1], here[-1]) < 1e-5
    assert (over[-1].report.share > 0.01).all()


def test_clients_of_unequal_numbers_of_steps_and_without_data(tmp_path):
    deal = data((3, 0, 1, 2, 3), dtype=torch.float32)
    here, over = train(Scaffold(), deal), over_flower(Scaffold(), deal, tmp_path)
    assert gap(over[-1], here[-1]) < 1e-5
    assert over[-1].report.weight[1] == 0 and not over[-1].report.failed[1]


def test_the_memory_of_a_personal_algorithm_stays_on_its_node(tmp_path):
    deal = data(dtype=torch.float32)
    over, here = over_flower(Ditto(), deal, tmp_path)[-1], train(Ditto(), deal)[-1]
    first = begin(Ditto(), params(torch.float32), 5).memory.whole()
    assert all(torch.equal(leaf, first[name]) for name, leaf in over.after.memory.whole().items())  # the server never sees it
    from fedrift.flower.memory import recall
    own = recall(tmp_path / "0" / "client-2.safetensors", first.rows(slice(0, 1)), 3)
    assert all(torch.allclose(leaf[0], here.after.memory.whole()[name][2], atol=1e-5) for name, leaf in own.items())


@pytest.mark.parametrize("algorithm", SUBJECTS.values(), ids=SUBJECTS)
def test_what_the_server_reads_of_a_report_is_what_the_algorithm_says_travels(algorithm):
    """``tells`` names it; all else of a report may be missing, and the next server is the same."""
    from dataclasses import replace

    done = train(algorithm, data(), until=2)[-1]
    report = done.report
    lost = {part: getattr(report, part).map(lambda leaf: leaf * torch.nan) for part in ("gradient", "memory", "news")}
    kept = {"gradient"} & algorithm.tells | ({"memory", "news"} if "memory" in algorithm.tells else set())
    blind = replace(report, **{part: tree for part, tree in lost.items() if part not in kept})
    after = algorithm.absorb(done.before.server, blind)
    for part in ("params", "shared", "moments", "base"):
        for name, leaf in getattr(done.after.server, part).items():
            assert torch.equal(getattr(after, part)[name], leaf)
