"""SCAFFOLD under quantity skew: the weighted optimum, exactly, and the invariant with its weights."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from fedrift.algorithms import FedAvg, Scaffold, ScaffoldWeighted
from fedrift.core.optimizers import Sgd, select_prefix
from tests.quadratics import clients, path, train


def skewed(steps=10):
    return clients((1, 4), (0, 1), steps, weight=(9, 1))


GOAL = 4 / (9 + 4)  # sum q a b / sum q a


@pytest.mark.slow
def test_it_finds_the_optimum_of_the_token_weighted_objective():
    assert path(train(ScaffoldWeighted(), skewed(), until=90))[-1] == pytest.approx(GOAL, abs=1e-9)
    assert abs(path(train(FedAvg(), skewed(), until=60))[-1] - GOAL) > 0.05


def test_uniform_controls_with_weighted_means_end_elsewhere_on_the_way_and_are_warned_of():
    plain, scaled = train(Scaffold(), skewed(), until=8), train(ScaffoldWeighted(), skewed(), until=8)
    assert abs(path(scaled)[-1] - GOAL) < abs(path(plain)[-1] - GOAL)
    assert Scaffold().warnings(Sgd(), "tokens")
    assert not ScaffoldWeighted().warnings(Sgd(), "tokens")


def test_with_equal_weights_it_is_scaffold():
    group = clients((1, 4), (0, 1), 10, weight=(7, 7))
    plain = path(train(Scaffold(), group, until=8))
    assert path(train(ScaffoldWeighted(), group, until=8)) == pytest.approx(plain, abs=1e-12)


@pytest.mark.parametrize("cohort", [1, 2, 5])
def test_the_servers_control_is_the_mean_of_the_clients_whoever_takes_part(cohort):
    group = clients((1, 4, 2, 3, 5), (0, 1, -2, 3, 7), 6, weight=(1, 2, 3, 4, 9))
    for done in train(ScaffoldWeighted(), group, until=20, cohort=cohort, optimizer=Sgd(0.05)):
        for name, leaf in done.after.server.broadcast.items():
            assert (leaf[0] - done.after.client_states.gather_all()[name].mean(0)).abs().max() < 1e-10


@pytest.mark.slow
def test_partial_participation_still_reaches_the_weighted_optimum():
    group = clients((1, 4, 2), (0, 1, 3), 5, weight=(6, 1, 3))
    goal = (0 + 4 * 1 * 1 + 2 * 3 * 3) / (6 + 4 + 6)
    assert path(train(ScaffoldWeighted(), group, until=300, cohort=1))[-1] == pytest.approx(goal, abs=1e-4)


@dataclass(frozen=True)
class Unscaled(ScaffoldWeighted):
    def transform_grad(self, grad, at):  # c - c_k for c / (N q_k) - c_k
        mean = at.broadcast["weight"].clamp_min(1e-12)[:, 0]
        own = at.client_state["weight"].clamp_min(1e-12)[:, 0]
        return grad + select_prefix("u", at.broadcast) * (1 / mean) - select_prefix("u", at.client_state) * (1 / own)


def test_the_planted_bug_is_seen():
    right, wrong = path(train(ScaffoldWeighted(), skewed(), until=5)), path(train(Unscaled(), skewed(), until=5))
    assert wrong != pytest.approx(right, abs=1e-4)
