"""Test that SCAFFOLD with weights reaches the weighted optimum under quantity skew and keeps its weighted invariant."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from fedrift.algorithms import FedAvg, Scaffold, ScaffoldWeighted
from fedrift.algorithms.aggregators import Median
from fedrift.core.optimizers import AdamW, Sgd, select_prefix
from tests.quadratics import clients, path, train


def unequal_clients(steps=10):
    return clients((1, 4), (0, 1), steps, weight=(9, 1))


GOAL = 4 / (9 + 4)  # sum q a b / sum q a


@pytest.mark.slow
def test_weighted_scaffold_reaches_the_optimum_of_the_token_weighted_objective():
    assert path(train(ScaffoldWeighted(), unequal_clients(), until=90))[-1] == pytest.approx(GOAL, abs=1e-9)
    assert abs(path(train(FedAvg(), unequal_clients(), until=60))[-1] - GOAL) > 0.05


def test_uniform_controls_with_weighted_means_follow_another_path_and_have_a_warning():
    plain, scaled = train(Scaffold(), unequal_clients(), until=8), train(ScaffoldWeighted(), unequal_clients(), until=8)
    assert abs(path(scaled)[-1] - GOAL) < abs(path(plain)[-1] - GOAL)
    assert Scaffold().warnings(Sgd(), "tokens")
    assert not ScaffoldWeighted().warnings(Sgd(), "tokens")


def test_a_mean_that_ignores_weights_has_a_warning_as_without_control_variates():
    """The control variates would be weighted and the mean would not."""
    plain, weighted = (method(aggregator=Median()).warnings(Sgd(), "tokens") for method in (FedAvg, ScaffoldWeighted))
    assert plain and set(plain) <= set(weighted)
    assert any("normalizes" in warning for warning in ScaffoldWeighted().warnings(AdamW(), "tokens"))


def test_with_equal_weights_it_equals_scaffold():
    group = clients((1, 4), (0, 1), 10, weight=(7, 7))
    plain = path(train(Scaffold(), group, until=8))
    assert path(train(ScaffoldWeighted(), group, until=8)) == pytest.approx(plain, abs=1e-12)


@pytest.mark.parametrize("cohort", [1, 2, 5])
def test_the_server_control_is_the_weighted_mean_of_the_client_controls_for_every_cohort_size(cohort):
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
    def transform_grad(self, grad, at):  # uses c - c_k instead of c / (N q_k) - c_k
        mean = at.broadcast["weight"].clamp_min(1e-12)[:, 0]
        own = at.client_state["weight"].clamp_min(1e-12)[:, 0]
        return grad + select_prefix("u", at.broadcast) * (1 / mean) - select_prefix("u", at.client_state) * (1 / own)


def test_the_injected_bug_is_detected():
    right, wrong = path(train(ScaffoldWeighted(), unequal_clients(), until=5)), path(train(Unscaled(), unequal_clients(), until=5))
    assert wrong != pytest.approx(right, abs=1e-4)
