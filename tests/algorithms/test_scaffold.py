"""Test that SCAFFOLD keeps the invariant of its paper and its closed-form values, and that known bugs are detected."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from fedrift.algorithms import FedAvg, Scaffold
from fedrift.algorithms.aggregators.mean import cluster_sum
from fedrift.core.optimizers import AdamW, Sgd
from tests.quadratics import Q2, clients, path, train

ITERATES = [1.3837893354, 0.6699790781, 0.6283130012, 0.6922771306, 0.7443112481, 0.7737159831]


def count_rounds_to(x: list[float], goal: float, within: float = 1e-6) -> int:
    return next(number for number, at in enumerate(x, 1) if abs(at - goal) < within)


def max_control_error(algorithm, cohort: int) -> float:
    """Return the largest |c - mean_k c_k| in 30 rounds with ``cohort`` of 5 clients."""
    group = clients((1, 4, 2, 3, 5), (0, 1, -2, 3, 7), 6)
    done = train(algorithm, group, until=30, cohort=cohort, optimizer=Sgd(0.05))
    return max((d.after.server.broadcast["x"][0] - d.after.client_states.gather_all()["x"].mean(0)).abs().max().item() for d in done)


def test_the_first_round_is_fedavg_bit_for_bit():
    assert path(train(Scaffold(), Q2(), until=1)) == path(train(FedAvg(), Q2(), until=1))


@pytest.mark.parametrize("cohort", [1, 2, 5])
def test_the_server_control_is_the_mean_of_the_client_controls_for_every_cohort_size(cohort):
    assert max_control_error(Scaffold(), cohort) < 1e-12


def test_the_path_of_scaffold_equals_the_known_path_to_the_optimum():
    done = train(Scaffold(), Q2(), until=60)
    assert path(done)[:6] == pytest.approx(ITERATES, abs=1e-9)
    assert count_rounds_to(path(done), 0.8) == 18
    assert done[-1].after.client_states.gather_all()["x"].flatten().tolist() == pytest.approx([0.8, -0.8], abs=1e-9)
    assert done[-1].after.server.broadcast["x"].item() == pytest.approx(0, abs=1e-9)


def test_one_of_two_clients_per_round_still_reaches_the_optimum():
    assert path(train(Scaffold(), Q2(), until=120, cohort=1))[-1] == pytest.approx(0.8, abs=1e-6)


def test_with_identical_clients_scaffold_is_fedavg():
    expected = [1.4294967296, 1.0461168602, 1.0049517602, 1.0005316912, 1.0000570899]
    assert path(train(Scaffold(), clients((2, 2), (1, 1)), until=5)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("steps", "gap", "needed"), [(2, 1.0, 65), (2, 10.0, 66), (2, 100.0, 69), (10, 1.0, 18), (10, 10.0, 24), (10, 100.0, 28)]
)
def test_on_the_lower_bound_pair_heterogeneity_hardly_slows_it(steps, gap, needed):
    pair = clients((2, 0), (0, 0), steps, slope=(gap, -gap))
    assert count_rounds_to(path(train(Scaffold(), pair, until=90, x=1.0)), 0.0) == needed


def test_the_client_state_is_option_two_of_the_paper_under_sgd():
    """c_k+ = c_k - c + (w - y) / (K lr), where K is the number of steps taken and lr the learning rate of the round."""
    schedule = lambda round: 1 / (1 + round)  # noqa: E731
    group = clients((1, 4, 2), (0, 1, 3), (4, 9, 2))
    for done in train(Scaffold(), group, until=6, cohort=2, lr_schedule=schedule):
        lr = 0.1 * schedule(done.before.round)
        old = done.before.client_states.gather_all()["x"][done.cohort]
        steps = done.update.steps[:, None]
        displaced = old - done.before.server.broadcast["x"] - done.update.delta["x"] / (steps * lr)
        assert torch.allclose(done.update.client_state["x"], displaced, atol=1e-10)


@pytest.mark.slow
def test_clients_with_momentum_or_adam_reach_the_optimum():
    """With the displacement over K lr, momentum diverges; with mean raw gradients it reaches the optimum."""
    ball = train(Scaffold(), Q2(), until=150, optimizer=Sgd(0.02, momentum=0.9))
    assert path(ball)[-1] == pytest.approx(0.8, abs=1e-8)
    adam = path(train(Scaffold(), Q2(5), until=120, x=0.6, optimizer=AdamW(0.003)))[-1]
    plain = path(train(FedAvg(), Q2(5), until=120, x=0.6, optimizer=AdamW(0.003)))[-1]
    assert abs(adam - 0.8) < 0.02 < abs(plain - 0.8)


def test_the_control_variate_of_a_new_client_is_zero():
    for done in train(Scaffold(), clients((1, 4, 2, 3), (0, 1, -2, 3)), until=3, cohort=1):
        absent = torch.ones(4, dtype=torch.bool).index_fill(0, done.cohort, False)
        assert torch.equal(done.after.client_states.gather_all()["x"][absent], done.before.client_states.gather_all()["x"][absent])
    assert (train(Scaffold(), Q2(), until=1)[0].before.client_states.gather_all()["x"] == 0).all()


def test_unsound_settings_have_warnings():
    assert Scaffold().warnings(AdamW(), "uniform")
    assert any("uniform" in said for said in Scaffold().warnings(Sgd(), "tokens"))
    assert Scaffold().warnings(Sgd(), "uniform") == []


# Bugs of public implementations: each must break the invariant or miss the optimum.


@dataclass(frozen=True)
class SignFlipped(Scaffold):
    def transform_grad(self, grad, at):
        return grad + at.client_state - at.broadcast


@dataclass(frozen=True)
class DividedByCohort(Scaffold):
    def server_update(self, server, update):
        shared = server.broadcast + cluster_sum(update.state_delta, update) / len(update.weight)
        return replace(super().server_update(server, update), broadcast=shared)


@dataclass(frozen=True)
class WrongStepCount(Scaffold):
    def update_client_state(self, at):
        return at.client_state - at.broadcast + (at.global_params - at.params) / (5 * at.lr)  # K is 10 or 6


@dataclass(frozen=True)
class ControlsNeverStored(Scaffold):
    def update_client_state(self, at):
        return at.global_params.zeros_like()  # FL-bench: c_k is never stored


@dataclass(frozen=True)
class StartsAtTheWeights(Scaffold):
    def init_broadcast(self, params):
        return params

    def init_client_state(self, params):
        return params.zeros_like()


@dataclass(frozen=True)
class UpdatedTooEarly(Scaffold):
    """The server updates c twice, once before the clients read it."""

    def server_update(self, server, update):
        once = super().server_update(server, update)
        return replace(once, broadcast=once.broadcast + cluster_sum(update.state_delta, update) / update.cluster_sizes)


@pytest.mark.parametrize("bug", [UpdatedTooEarly, SignFlipped, DividedByCohort, WrongStepCount, ControlsNeverStored, StartsAtTheWeights])
def test_injected_bugs_are_detected(bug):
    x = path(train(bug(), Q2(), until=6))
    assert x != pytest.approx(ITERATES, abs=1e-6) or max_control_error(bug(), cohort=2) > 1e-6
