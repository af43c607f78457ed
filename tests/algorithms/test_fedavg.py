"""Test FedAvg against its closed forms (x_FA = sum p (1-r) b / sum p (1-r), r = (1 - lr a)^K)."""

from __future__ import annotations

import math

import pytest
import torch

from fedrift.algorithms import FedAvg, LocalOnly
from fedrift.core.optimizers import Sgd
from fedrift.core.tree import Tree
from tests.quadratics import Q2, clients, path, train


@pytest.mark.parametrize(("steps", "fixed_point"), [(1, 0.8), (2, 0.7710843373), (5, 0.6925023465), (10, 0.6041260077), (50, 0.5012917726)])
def test_fedavg_ends_at_the_fixed_point_of_the_closed_form(steps, fixed_point):
    x = path(train(FedAvg(), Q2(steps), until=120 if steps < 10 else 20))
    assert x[-1] == pytest.approx(fixed_point, abs=1e-10)


def test_the_path_of_fedavg_equals_the_known_path():
    expected = [1.3837893354, 0.7424090671, 0.6286522408, 0.6084760424, 0.6048975408]
    assert path(train(FedAvg(), Q2(), until=5)) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(("lr", "fixed_point"), [(0.001, 0.7978358), (0.01, 0.7780381), (0.05, 0.6898783), (0.2, 0.5283664)])
def test_the_bias_of_fedavg_grows_with_the_learning_rate(lr, fixed_point):
    """Training from the fixed point stays there, and training from nearby approaches it at the known rate."""
    stays = path(train(FedAvg(), Q2(), until=1, x=fixed_point, optimizer=Sgd(lr)))[0]
    assert stays == pytest.approx(fixed_point, abs=1e-7)
    rate = ((1 - lr) ** 10 + (1 - 4 * lr) ** 10) / 2
    nearer = path(train(FedAvg(), Q2(), until=1, x=fixed_point + 1, optimizer=Sgd(lr)))[0]
    assert nearer - fixed_point == pytest.approx(rate, abs=1e-6)


def test_one_full_batch_step_is_centralized_gradient_descent():
    x, expected = 5.0, []
    for _ in range(20):
        x -= 0.1 * (0.5 * 1 * x + 0.5 * 4 * (x - 1))
        expected.append(x)
    assert path(train(FedAvg(), Q2(1), until=20)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("steps", "bias"), [(2, 0.0555555556), (10, 0.6202902)])
@pytest.mark.parametrize("gap", [1.0, 10.0, 100.0])
def test_on_the_lower_bound_pair_the_bias_is_linear_in_the_heterogeneity(steps, bias, gap):
    """f1 = x^2 + G x, f2 = -G x: SCAFFOLD paper, section 7; the optimum of the mean is 0."""
    pair = clients((2, 0), (0, 0), steps, slope=(gap, -gap))
    assert path(train(FedAvg(), pair, until=120, x=1.0))[-1] == pytest.approx(bias * gap, rel=1e-6)


def test_only_the_heterogeneous_federation_diverges():
    skewed, mixed = clients((1, 9.5), (0, 0)), clients((5.25, 5.25), (0, 0))
    ratio = path(train(FedAvg(), skewed, until=2, x=1.0, optimizer=Sgd(0.22)))
    assert ratio[1] / ratio[0] == pytest.approx(1.2253607, abs=1e-6)
    assert abs(path(train(FedAvg(), mixed, until=1, x=1.0, optimizer=Sgd(0.22)))[0]) == pytest.approx(8.0e-9, rel=0.02)


def test_partial_participation_fluctuates_with_the_known_standard_deviation():
    """One of two clients per round: stationary mean 0.604126, standard deviation 0.406018."""
    tail = torch.tensor(path(train(FedAvg(), Q2(), until=500, cohort=1))[20:])
    assert tail.mean().item() == pytest.approx(0.6041260, abs=0.06)
    assert tail.std().item() == pytest.approx(0.4060182, abs=0.05)


def test_the_order_of_the_clients_does_not_matter():
    here = path(train(FedAvg(), clients((1, 4, 2), (0, 1, 3), (3, 5, 7), weight=(1, 2, 5)), until=4))
    there = path(train(FedAvg(), clients((2, 1, 4), (3, 0, 1), (7, 3, 5), weight=(5, 1, 2)), until=4))
    assert here == pytest.approx(there, abs=1e-12)


def test_the_mean_lies_between_the_clients_in_every_coordinate():
    group = clients(((1, 2, 3), (4, 1, 2), (2, 2, 2)), ((0, 5, -3), (1, -2, 4), (3, 3, 3)), 4, weight=(1, 2, 3))
    for done in train(FedAvg(), group, until=5):
        after = done.after.server.params["x"]
        assert (after >= done.client_params["x"].amin(0) - 1e-12).all()
        assert (after <= done.client_params["x"].amax(0) + 1e-12).all()


def test_weights_count_tokens_and_a_client_without_tokens_has_weight_zero():
    def end(**options):
        return path(train(FedAvg(), clients((1, 4), (0, 1), (10, 0), weight=(3, 1)), until=25, **options))[-1]

    assert end() == pytest.approx(0.0, abs=1e-10)  # client 1 took no step, so only the optimum of client 0 remains
    r = (0.9**10, 0.6**10)
    weighted = (1 - r[1]) / (3 * (1 - r[0]) + (1 - r[1]))
    both = path(train(FedAvg(), clients((1, 4), (0, 1), 10, weight=(3, 1)), until=25))[-1]
    assert both == pytest.approx(weighted, abs=1e-10)
    uniform = path(train(FedAvg(), clients((1, 4), (0, 1), 10, weight=(3, 1)), until=25, client_weighting="uniform"))[-1]
    assert uniform == pytest.approx(0.6041260077, abs=1e-9)


def test_overwriting_an_update_does_not_change_the_server():
    done = train(FedAvg(), Q2(), until=1)[0]
    before = done.after.server.params["x"].clone()
    done.update.delta["x"].fill_(math.nan)
    done.before.server.params["x"].fill_(math.nan)
    assert torch.equal(done.after.server.params["x"], before)


def test_local_only_clients_reach_their_own_optima():
    done = train(LocalOnly(), clients((1, 4, 2), (0, 1, 3)), until=40)[-1]
    assert done.after.server.params["x"].flatten().tolist() == pytest.approx([0, 1, 3], abs=1e-8)


def test_a_model_without_participants_is_unchanged_under_server_momentum():
    algorithm = LocalOnly(server_optimizer=Sgd(1.0, momentum=0.9))
    for done in train(algorithm, clients((1, 4, 2), (0, 1, 3)), until=6, cohort=1):
        idle = torch.ones(3, dtype=torch.bool).index_fill(0, done.cohort, False)
        assert torch.equal(done.after.server.params["x"][idle], done.before.server.params["x"][idle])


def test_server_momentum_gives_the_known_values():
    """With mean updates of 1, .5, -.25, eta .1 and beta .9, FedAvgM ends at .1, .24, .341."""
    rule, x, moments = Sgd(0.1, momentum=0.9), Tree(x=torch.zeros(1, 1, dtype=torch.float64)), None
    moments, seen = rule.init(x), []
    for delta in (1.0, 0.5, -0.25):
        x, moments = rule.step(x, Tree(x=torch.full((1, 1), -delta, dtype=torch.float64)), moments)
        seen.append(x["x"].item())
    assert seen == pytest.approx([0.1, 0.24, 0.341], abs=1e-12)
