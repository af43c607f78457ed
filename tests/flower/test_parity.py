"""A run over Flower is the run on one machine: same cohorts, same batches, same arithmetic."""

from __future__ import annotations

import pytest
import torch

from fedrift import optimizers
from fedrift.algorithms import Ditto, FedAvg, FedDyn, FedProx, FedSGD, Scaffold, ScaffoldWeighted
from fedrift.algorithms.aggregates import FedEx, FLoRA
from fedrift.rounds import begin
from tests.flower.loopback import grouped, over_flower
from tests.laws.federation import SUBJECTS, apart, data, params, tensors, train

ALGORITHMS = [FedAvg(), FedProx(mu=0.1), Scaffold(), FedAvg(server=optimizers.Adam(0.05)), FedDyn(), FedSGD(), ScaffoldWeighted(),
              Ditto(), FedAvg(aggregate=FLoRA()), FedAvg(aggregate=FedEx())]


def gap(over, here) -> float:
    """The largest difference between what two servers hold."""
    one, two = tensors(over.after), tensors(here.after)
    parts = [name for name in two if not name.startswith("memory/")]
    return max((one[name].double() - two[name].double()).abs().max().item() for name in parts)


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=repr)
def test_a_run_over_flower_is_the_run_on_one_machine(algorithm, tmp_path):
    deal = data(dtype=torch.float32)
    here = train(algorithm, deal, until=4, cohort=3)
    over = over_flower(algorithm, deal, tmp_path, until=4, cohort=3)
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


def test_clients_of_unequal_numbers_of_steps_and_without_data(tmp_path):
    deal = data((3, 0, 1, 2, 3), dtype=torch.float32)
    here, over = train(Scaffold(), deal), over_flower(Scaffold(), deal, tmp_path)
    assert gap(over[-1], here[-1]) < 1e-5
    assert over[-1].report.weight[1] == 0 and not over[-1].report.failed[1]


def test_the_memory_of_a_personal_algorithm_stays_on_its_node(tmp_path):
    deal = data(dtype=torch.float32)
    over, here = over_flower(Ditto(), deal, tmp_path)[-1], train(Ditto(), deal)[-1]
    first = begin(Ditto(), params(torch.float32), 5).memory
    assert all(torch.equal(leaf, first[name]) for name, leaf in over.after.memory.items())  # the server never sees it
    from fedrift.flower.memory import recall
    own = recall(tmp_path / "0" / "client-2.safetensors", first.rows(slice(0, 1)), 3)
    assert all(torch.allclose(leaf[0], here.after.memory[name][2], atol=1e-5) for name, leaf in own.items())


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
