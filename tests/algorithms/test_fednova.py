"""Test that FedNova removes the bias of unequal step counts and reaches the known optima."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from fedrift.algorithms import FedAvg, FedNova
from fedrift.algorithms.fedavg import path_length
from fedrift.core.optimizers import AdamW, Sgd
from fedrift.core.tree import Tree
from tests.quadratics import Q2, clients, fixed_point, path, train


def unequal_steps():
    return clients((1, 4), (0, 1), (2, 20))


@pytest.mark.parametrize(
    ("lr", "fedavg", "fednova"), [(1e-3, 0.9747060433, 0.7939636937), (0.01, 0.9655648, 0.7371194), (0.1, 0.8403312, 0.3448193)]
)
def test_unequal_steps_bias_fedavg_and_not_fednova(lr, fedavg, fednova):
    assert fixed_point(FedAvg(), unequal_steps(), lr) == pytest.approx(fedavg, abs=1e-7)
    assert fixed_point(FedNova(), unequal_steps(), lr) == pytest.approx(fednova, abs=1e-7)


def test_with_a_tiny_learning_rate_fednova_reaches_the_optimum_and_fedavg_the_step_weighted_one():
    assert fixed_point(FedNova(), unequal_steps(), 1e-6) == pytest.approx(0.8, abs=1e-5)
    assert fixed_point(FedAvg(), unequal_steps(), 1e-6) == pytest.approx(0.9756097561, abs=1e-5)


def test_with_equal_steps_fednova_is_fedavg():
    assert path(train(FedNova(), Q2(), until=5)) == pytest.approx(path(train(FedAvg(), Q2(), until=5)), abs=1e-12)


def test_effective_steps_under_momentum_equal_the_displacement_by_a_constant_gradient():
    rule, x = Sgd(1.0, momentum=0.7), Tree(x=torch.zeros(1, 1, dtype=torch.float64))
    moments, gone = rule.init(x), []
    for _ in range(6):
        x, moments = rule.step(x, Tree(x=-torch.ones(1, 1, dtype=torch.float64)), moments)
        gone.append(x["x"].item())
    assert path_length(torch.arange(1, 7, dtype=torch.float64), 0.7).tolist() == pytest.approx(gone, abs=1e-12)


def test_the_server_step_is_scaled_by_the_mean_number_of_steps():
    """Two clients have the same constant gradient and take 2 and 20 steps: each sends its gradient, and the server moves by 11."""
    slope = clients((0, 0), (0, 0), (2, 20), slope=(1.0, 1.0))
    assert path(train(FedNova(), slope, until=1, x=0.0, client_weighting="uniform"))[0] == pytest.approx(-0.1 * 11)


def test_unsound_combinations_are_refused():
    assert any("Sgd" in said for said in FedNova().incompatibilities(AdamW(), "tokens", ["x"]))
    assert any("momentum=0.9" in said for said in FedNova().incompatibilities(Sgd(0.1, momentum=0.9), "tokens", ["x"]))
    assert FedNova(momentum=0.9).incompatibilities(Sgd(0.1, momentum=0.9), "tokens", ["x"]) == []


@dataclass(frozen=True)
class OmitsTheMeanSteps(FedNova):
    def server_update(self, server, update):
        return FedAvg().server_update(server, replace(update, delta=update.delta / update.steps.clamp_min(1)))


@dataclass(frozen=True)
class WeightsBySteps(FedNova):
    def server_update(self, server, update):
        return super().server_update(server, replace(update, weight=update.weight * update.steps))


@pytest.mark.parametrize("bug", [OmitsTheMeanSteps, WeightsBySteps])
def test_injected_bugs_are_detected(bug):
    slope = clients((0, 0), (0, 0), (2, 20), slope=(1.0, 1.0))
    moved = path(train(bug(), slope, until=1, x=0.0, client_weighting="uniform"))[0]
    assert moved != pytest.approx(-1.1) or fixed_point(bug(), unequal_steps(), 1e-3) != pytest.approx(0.7939636937, abs=1e-6)
