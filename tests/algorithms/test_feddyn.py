"""Test that FedDyn keeps h as the mean of the clients' g, reaches the exact optimum and follows the known path."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from fedrift.algorithms import FedDyn
from fedrift.algorithms.aggregators.mean import cluster_sum
from fedrift.core.optimizers import AdamW, Sgd
from tests.quadratics import Q2, clients, path, train

EXACT = [-0.7, 0.05, 0.425, 0.6125, 0.70625]


def max_state_error(algorithm, cohort: int) -> float:
    """Return the largest |h - mean_k g_k| in 20 rounds."""
    group = clients((1, 4, 2, 3, 5), (0, 1, -2, 3, 7), 6)
    done = train(algorithm, group, until=20, cohort=cohort, optimizer=Sgd(0.05))
    return max((d.after.server.opt_state["x"][0] - d.after.client_states.gather_all()["x"].mean(0)).abs().max().item() for d in done)


def test_with_solved_local_problems_the_path_equals_that_of_the_paper():
    assert path(train(FedDyn(alpha=1.0), Q2(150), until=5)) == pytest.approx(EXACT, abs=1e-9)


def test_a_small_alpha_overshoots_at_first():
    assert path(train(FedDyn(alpha=0.1), Q2(150), until=1))[0] == pytest.approx(-3.45, abs=0.01)


@pytest.mark.parametrize(("alpha", "lr", "needed"), [(0.1, 0.1, 250), (1.0, 0.1, 27), (10.0, 0.05, 66)])
def test_a_few_local_steps_are_enough_for_the_exact_optimum(alpha, lr, needed):
    done = train(FedDyn(alpha=alpha), Q2(), until=needed, optimizer=Sgd(lr))
    assert abs(path(done)[-1] - 0.8) < 1e-6 < abs(path(done)[-2] - 0.8)


def test_at_the_optimum_the_client_states_are_the_gradients():
    last = train(FedDyn(alpha=1.0), Q2(), until=60)[-1].after
    assert last.client_states.gather_all()["x"].flatten().tolist() == pytest.approx([0.8, -0.8], abs=1e-9)
    assert last.server.opt_state["x"].item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("cohort", [1, 2, 5])
def test_h_is_the_mean_of_the_client_states_for_every_cohort_size(cohort):
    assert max_state_error(FedDyn(alpha=1.0), cohort) < 1e-12


def test_one_of_two_clients_per_round_still_reaches_the_optimum():
    assert path(train(FedDyn(alpha=1.0), Q2(), until=150, cohort=1))[-1] == pytest.approx(0.8, abs=1e-5)


def test_unsound_combinations_are_refused():
    assert FedDyn().incompatibilities(AdamW(), "uniform", ["x"])
    assert FedDyn(server_optimizer=Sgd(0.5)).incompatibilities(Sgd(), "uniform", ["x"])
    assert FedDyn().incompatibilities(Sgd(), "uniform", ["x"]) == []
    assert FedDyn().warnings(Sgd(), "tokens")
    assert not FedDyn().warnings(Sgd(), "uniform")


@dataclass(frozen=True)
class DividedByCohort(FedDyn):
    def server_update(self, server, update):
        extra = (
            cluster_sum(update.state_delta, update) / len(update.weight) - cluster_sum(update.state_delta, update) / update.cluster_sizes
        )
        return super().server_update(replace(server, opt_state=server.opt_state + extra), update)


@dataclass(frozen=True)
class SignFlipped(FedDyn):
    def transform_grad(self, grad, at):
        return grad + at.client_state + self.alpha * (at.params - at.global_params)


@dataclass(frozen=True)
class OmitsTheProximalTerm(FedDyn):
    def transform_grad(self, grad, at):
        return grad - at.client_state


@pytest.mark.parametrize("bug", [DividedByCohort, SignFlipped, OmitsTheProximalTerm])
def test_injected_bugs_are_detected(bug):
    x = path(train(bug(alpha=1.0), Q2(150), until=5))
    assert x != pytest.approx(EXACT, abs=1e-6) or max_state_error(bug(alpha=1.0), cohort=2) > 1e-6
