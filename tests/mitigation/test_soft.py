"""Soft groups: without temperature they are the hard ones, with endless temperature they are none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedrift.algorithms import FedAvg, FedProx, Scaffold
from fedrift.mitigation import ByText, Soft, Vanilla
from fedrift.mitigation.decision import Ground
from fedrift.mitigation.soft import mixture
from fedrift.mitigation.work import Work
from fedrift.optimizers import Adam, Sgd
from fedrift.rounds import rounds
from fedrift.run import carry_out
from tests.quadratics import clients, fleet_of, params

from .plant import documents, ground
from .worlds import Killed, asked, at, killed_at, outcome

ALGORITHMS = [FedAvg(), FedProx(mu=0.5), FedAvg(server=Sgd(1.0, momentum=0.9)), FedAvg(server=Adam(0.05)), Scaffold()]


def train(mitigation, algorithm, held: Ground, until: int = 4):
    group = clients((1, 4, 2, 3, 1.5, 2.5), (0, 1, -1, 2, 0.5, 1.5), 3, weight=(1, 2, 1, 3, 1, 2))
    work, fleet = Work(mitigation, held, algorithm), fleet_of(group)
    return work, list(rounds(work.begin(params(5.0, 1)), work.fleet(fleet), algorithm, until=until, cohort=6, seed=0,
                             regroup=work.regroup, draw=work.draw))


@pytest.fixture(scope="module")
def held() -> Ground:
    return ground(documents(6, 1.0, 0, domains=3, each=20, noise=0.05)[0])


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=str)
def test_at_temperature_zero_it_is_the_groups_of_by_text(algorithm, held):
    text = ByText(clusters=3)
    hard, (_, soft) = train(text, algorithm, held)[1], train(Soft(text, temperature=1e-9), algorithm, held)
    for one, two in zip(hard, soft, strict=True):
        for part in ("params", "shared", "moments"):
            for name, leaf in getattr(one.after.server, part).items():
                assert torch.allclose(leaf, getattr(two.after.server, part)[name], atol=1e-12), (part, name)
        assert torch.equal(one.after.group, two.after.group)
        kept = two.after.memory.whole()
        assert all(torch.allclose(leaf, kept[name], atol=1e-12) for name, leaf in one.after.memory.whole().items())


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=str)
def test_at_endless_temperature_it_is_no_mitigation(algorithm, held):
    vanilla, (_, soft) = train(Vanilla(), algorithm, held)[1], train(Soft(ByText(clusters=3), temperature=1e12), algorithm, held)
    for one, two in zip(vanilla, soft, strict=True):
        for model in range(3):
            for part in ("params", "shared", "moments"):
                for name, leaf in getattr(one.after.server, part).items():
                    assert torch.allclose(leaf[0], getattr(two.after.server, part)[name][model], rtol=1e-9, atol=1e-9)


def test_the_servers_controls_are_judged_by_the_mean_of_those_they_are_mixed_of(held):
    """Client by client they differ from it, and no round is broken for that."""
    work, (*_, last) = train(Soft(ByText(clusters=3), temperature=0.05), Scaffold(), held)
    assert Scaffold().evidence(work.seen(last))["control.imbalance"] < 1e-12


def test_a_round_is_the_formula(held):
    """w = sum_c pi_kc w_c; w_c += sum_k pi_kc p_k D_k / sum_k pi_kc p_k, by hand."""
    work, done = train(Soft(ByText(clusters=3), temperature=1.0), FedAvg(), held, until=2)
    share, second = done[1].before.mitigation["share"], done[1]
    assert torch.allclose(share.sum(1), torch.ones(6, dtype=share.dtype))
    assert 0.05 < float(share.min()) < float(share.max()) < 0.95
    start = share @ second.before.server.params["x"]  # [N, 1]
    weight = second.report.weight
    for model in range(3):
        part = share[:, model] * weight
        wanted = second.before.server.params["x"][model] + (part[:, None] * second.report.delta["x"]).sum(0) / part.sum()
        assert torch.allclose(second.after.server.params["x"][model], wanted)
    seen = work.seen(second)
    assert torch.allclose(seen.before.server.params["x"], start)
    assert torch.allclose(seen.local["x"], start + second.report.delta["x"])  # what probes see is what clients had


def test_the_mixture_is_a_softmax_of_squared_distances():
    points, centroids = np.array([[0.0, 0.0], [1.0, 0.0]]), np.array([[0.0, 0.0], [1.0, 0.0]])
    found = mixture(points, centroids, 1.0)
    assert found[0, 0] == pytest.approx(1 / (1 + np.exp(-1))) and np.allclose(found.sum(axis=1), 1)
    assert np.array_equal(mixture(points, centroids, 1e-300), np.eye(2))


@pytest.mark.parametrize("overrides", [("algorithm={is: FedAvg, aggregate: FFA}",), ("tune={is: LastK, blocks: 1}",)], ids=str)
def test_a_soft_run_resumes_bit_for_bit_and_judges_clients_by_their_mixtures(world, tmp_path, overrides):
    wanted = asked(world, Soft(ByText(encoder="hashing", clusters=3), temperature=0.2), "plan.rounds=3", *overrides)
    unbroken = carry_out(wanted, at(world, tmp_path / "unbroken"))
    with pytest.raises(Killed):
        carry_out(wanted, at(world, tmp_path / "broken"), killed_at(1))
    assert outcome(unbroken) == outcome(carry_out(wanted, at(world, tmp_path / "broken")))
    (said,) = unbroken.read_json("mitigation")
    assert 1 < said["effective"] < 3 and np.allclose(np.sum(said["share"], axis=1), 1)
    assert len(np.unique(unbroken.trajectory().table("loss")[-1])) == 6


def test_soft_and_hard_agree_in_a_whole_run(world, tmp_path):
    text, last = ByText(encoder="hashing", clusters=3), "tune={is: LastK, blocks: 1}"
    hard = carry_out(asked(world, text, last, "plan.rounds=2"), at(world, tmp_path))
    soft = carry_out(asked(world, Soft(text, temperature=1e-9), last, "plan.rounds=2"), at(world, tmp_path))
    for metric in ("loss", "loss.before", "loss.after"):
        one, two = (run.trajectory().table(metric) for run in (hard, soft))
        assert np.allclose(one, two, atol=1e-6, equal_nan=True)
