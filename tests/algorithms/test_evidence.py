"""Test the round metrics of algorithms: age of control variates, length of the momentum, and FedDyn's correction."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedrift.algorithms import FedAvg, FedDyn, FedProx, Scaffold, ScaffoldWeighted
from fedrift.algorithms.aggregators.mean import weighted_mean
from fedrift.core.optimizers import Adam, Sgd
from fedrift.engine.loop import update_participation
from tests.laws.federation import SIZE, SUBJECTS, data, train


@pytest.mark.parametrize("algorithm", [Scaffold(), ScaffoldWeighted()], ids=lambda one: type(one).__name__)
def test_control_variates_record_their_age_and_staleness(algorithm):
    done = train(algorithm, data(), until=6, cohort=2)
    last = torch.zeros(SIZE)
    for each in done:
        said = algorithm.round_metrics(each)
        for row, client in enumerate(each.cohort.tolist()):
            age, stale = said["control.age"][row].item(), said["control.staleness"][row].item()
            if last[client] == 0:
                assert age != age and stale != stale  # a client without a control variate has no age
                continue
            assert age == each.after.round - last[client]
            earlier = done[int(last[client]) - 1]
            kept = earlier.update.mean_grad.take((earlier.cohort == client).nonzero()[0])  # c_k is the gradient of that round
            now = each.update.mean_grad.take(torch.tensor([row]))
            assert stale == pytest.approx(((kept - now).norm() / now.norm()).item(), rel=1e-9)
        last[each.cohort] = each.after.round
        assert said["control.imbalance"] < 1e-12
    assert (last > 0).sum() > 2


@pytest.mark.parametrize("algorithm", [Scaffold(), ScaffoldWeighted()], ids=lambda one: type(one).__name__)
def test_the_stored_mean_of_control_variates_equals_the_mean_over_all_clients(algorithm):
    deal = data().edit(1, 1e300)  # client 1 fails
    for each in train(algorithm, deal, until=12, cohort=2):
        every = algorithm.state_to_average(each.after.client_states.gather_all())
        assert each.after.client_means.keys() == every.keys()
        for name, leaf in every.items():
            mean = each.after.client_means[name]
            assert mean.dtype == torch.float64 and torch.allclose(mean[0], leaf.double().mean(0), rtol=0, atol=1e-14)
    assert each.after.last_participation[1] == 0 and (each.after.last_participation > 0).sum() > 2


def test_client_state_that_differs_from_what_was_sent_is_detected():
    """A client that stores twice the value that it sent is detected, because the mean is over the stored values."""

    class Twice(Scaffold):
        def update_client_state(self, at):
            return at.mean_grad

        def server_update(self, server, update):
            return super().server_update(server, replace(update, state_delta=update.state_delta * 0.5))

    done = train(Twice(), data(), until=1, cohort=2)[0]
    assert Twice().round_metrics(done)["control.imbalance"].item() == pytest.approx(1.0)


def test_a_wrong_server_control_variate_is_detected():
    """If c is divided by the size of the cohort instead of the number of clients, it is 5/2 of the mean."""
    done = train(Scaffold(), data(), until=1, cohort=2)[0]
    wrong = replace(done.after, server=replace(done.after.server, broadcast=done.after.server.broadcast * (SIZE / 2)))
    assert Scaffold().round_metrics(replace(done, after=wrong))["control.imbalance"].item() == pytest.approx(0.6)


def test_server_momentum_is_the_sum_of_the_server_steps():
    algorithm = FedAvg(server_optimizer=Sgd(1.0, momentum=0.5))
    one, two = train(algorithm, data(), until=2)
    gradient = -weighted_mean(two.update.delta, two.update)
    velocity = -0.5 * one.after.server_delta + gradient  # heavy ball: v <- 0.5 v + g, and the first v is the first step
    assert algorithm.round_metrics(two)["server.momentum"].item() == pytest.approx(velocity.norm().item())
    adaptive = FedAvg(server_optimizer=Adam(0.05))
    done = train(adaptive, data(), until=1)[0]
    first = sum((leaf**2).sum() for name, leaf in done.after.server.opt_state.items() if name.startswith("m.")) ** 0.5
    assert adaptive.round_metrics(done)["server.momentum"].item() == pytest.approx(float(first))


def test_the_correction_of_feddyn_is_h_over_alpha():
    done = train(FedDyn(alpha=0.5), data(), until=2)[-1]
    h = done.after.client_states.gather_all().map(lambda leaf: leaf.mean(0, keepdim=True)).norm() / 0.5
    assert FedDyn(alpha=0.5).round_metrics(done)["server.correction"].item() == pytest.approx(h.item())


def test_algorithms_without_client_state_record_no_round_metrics():
    assert FedAvg().round_metrics(train(FedAvg(), data(), until=1)[0]) == {}
    assert FedProx().round_metrics(train(FedProx(), data(), until=1)[0]) == {}


@pytest.mark.parametrize("name", list(SUBJECTS))
def test_every_algorithm_accepts_round_metrics(name):
    done = train(SUBJECTS[name], data(), until=2)[-1]
    for value in SUBJECTS[name].round_metrics(done).values():
        assert torch.as_tensor(value).shape in {(), (len(done.cohort),)}


def test_a_control_variate_of_a_client_without_weight_ages():
    """As a straggler whose work is dropped: the server did not use its update, so its control variate is as old as before."""
    done = train(Scaffold(), data(), until=1)[0]
    weight = done.update.weight.index_fill(0, torch.tensor([1]), 0.0)
    last = update_participation(done.before, done.cohort, replace(done.update, weight=weight))
    assert last.tolist() == [0 if client == done.cohort[1] else 1 for client in range(SIZE)]
