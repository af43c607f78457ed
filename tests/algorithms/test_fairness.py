"""Test that q-FedAvg and AFL reach the known optima between the mean and the minimax."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from fedrift.algorithms import AFL, FedAvg, QFedAvg
from fedrift.algorithms.fair import simplex_threshold
from fedrift.core.optimizers import AdamW, Sgd
from tests.quadratics import Q2, clients, path, train


@pytest.mark.parametrize(("q", "optimum"), [(0.0, 0.8), (1.0, 0.7158963), (5.0, 0.6805196), (20.0, 0.6704129)])
def test_q_moves_the_optimum_towards_equal_losses(q, optimum):
    assert path(train(QFedAvg(q=q), Q2(1), until=150, x=0.7))[-1] == pytest.approx(optimum, abs=2e-6)


def test_q_zero_is_fedavg():
    group = clients((1, 4), (0, 1), 5, weight=(3, 1))
    plain = path(train(FedAvg(), group, until=5))
    assert path(train(QFedAvg(q=0.0), group, until=5)) == pytest.approx(plain, abs=1e-12)


def test_the_first_step_equals_that_of_the_paper():
    """x = 5, q = 1, L = 10: F = (12.5, 32), dw = (5, 16)."""
    f, dw, big = (12.5, 32.0), (5.0, 16.0), 10.0
    step = sum(F * d for F, d in zip(f, dw, strict=True)) / sum(d * d + big * F for F, d in zip(f, dw, strict=True))
    assert path(train(QFedAvg(q=1.0), Q2(1), until=1))[0] == pytest.approx(5 - step, abs=1e-12)


def test_the_step_uses_the_scheduled_learning_rate_of_the_round():
    """A schedule changes L = 1/lr; the step must be that of the paper with the learning rate of the round."""
    halved = train(QFedAvg(q=1.0), Q2(1), until=1, lr_schedule=lambda round: 0.5)
    assert path(halved) == path(train(QFedAvg(q=1.0), Q2(1), until=1, optimizer=Sgd(0.05)))


def test_q_fedavg_is_refused_under_adam():
    assert QFedAvg().incompatibilities(AdamW(), "tokens", ["x"])
    assert not QFedAvg().incompatibilities(Sgd(), "tokens", ["x"])


def test_afl_equalizes_the_losses_at_two_thirds():
    done = train(AFL(lambda_lr=0.2), Q2(1), until=300, x=0.7)
    assert path(done)[-1] == pytest.approx(2 / 3, abs=1e-4)
    assert done[-1].update.loss[:, 0].tolist() == pytest.approx([2 / 9, 2 / 9], abs=1e-4)


def test_the_steps_of_afl_equal_those_of_the_paper():
    """Computed by hand: lambda is projected onto the simplex after every round, and w uses the lambda before it."""
    lam, x, seen = torch.tensor([0.5, 0.5], dtype=torch.float64), 2.0, []
    a, b = torch.tensor([[1, 4], [0, 1]], dtype=torch.float64)
    for _ in range(12):
        losses, grads = a / 2 * (x - b) ** 2, a * (x - b)
        x = x - 0.1 * (lam * grads).sum().item()
        raised = lam + 0.3 / 2 * losses
        options = [raised - (raised.sum() - 1) / 2, torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])]
        lam = min((o.double() for o in options if (o >= 0).all()), key=lambda o: (o - raised).norm().item())
        seen.append(x)
    assert path(train(AFL(lambda_lr=0.3), Q2(1), until=12, x=2.0)) == pytest.approx(seen, abs=1e-9)


def test_the_threshold_projects_onto_the_simplex():
    mu = torch.tensor([3.0, -1.0, 0.5, 2.5], dtype=torch.float64)
    share = (mu - simplex_threshold(mu)).clamp_min(0)
    assert share.sum().item() == pytest.approx(4)
    assert share[1] == 0
    assert share[0] - share[3] == pytest.approx(0.5)


@dataclass(frozen=True)
class LossAfterTraining(QFedAvg):
    def server_update(self, server, update):
        return super().server_update(server, replace(update, loss=update.loss.flip(1)))


@dataclass(frozen=True)
class WeightsOnly(QFedAvg):  # weights F^q without the bound on the step
    def server_update(self, server, update):
        return FedAvg().server_update(server, replace(update, weight=update.weight * update.loss[:, 0] ** self.q))


@dataclass(frozen=True)
class NeverProjected(AFL):
    def server_update(self, server, update):
        return replace(super().server_update(server, update), broadcast=server.broadcast)


def test_bugs_in_fair_algorithms_are_detected():
    right = path(train(QFedAvg(), Q2(3), until=3))
    for bug in (LossAfterTraining, WeightsOnly):
        assert path(train(bug(), Q2(3), until=3)) != pytest.approx(right, abs=1e-6)
    assert path(train(NeverProjected(lambda_lr=0.3), Q2(1), until=12, x=2.0)) != pytest.approx(
        path(train(AFL(lambda_lr=0.3), Q2(1), until=12, x=2.0)), abs=1e-6
    )
