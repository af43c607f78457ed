"""Test FedProx against its closed forms, and that the bugs of public implementations are detected."""

from __future__ import annotations

import pytest
import torch

from fedrift.algorithms import FedAvg, FedProx
from fedrift.core.optimizers import AdamW, Sgd
from fedrift.core.tree import Tree
from tests.quadratics import Q2, make_local_state, path, train


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("mu", "fixed_point", "rate"),
    [(0.1, 0.6080669772, 0.20188), (1.0, 0.6416687560, 0.37723), (5.0, 0.7272935260, 0.69445), (10.0, 0.7586014871, 0.81170)],
)
def test_fedprox_trades_bias_for_speed(mu, fixed_point, rate):
    x = path(train(FedProx(mu=mu), Q2(), until=150))
    assert x[-1] == pytest.approx(fixed_point, abs=1e-9)
    assert (x[1] - fixed_point) / (x[0] - fixed_point) == pytest.approx(rate, abs=1e-4)


def test_a_large_mu_with_a_fixed_learning_rate_diverges_in_the_loss_form_only():
    assert abs(path(train(FedProx(mu=100.0), Q2(), until=3))[-1]) > 1e6
    still = train(FedProx(mu=1e6, proximal="prox_step"), Q2(), until=1)[0]
    assert still.update.delta["x"].abs().max().item() < 1e-3


def test_the_decoupled_form_solves_the_proximal_step_exactly():
    """y <- (y - lr g + lr mu w) / (1 + lr mu); its fixed point is that of the proximal objective."""
    y, w, lr, mu = 2.0, 5.0, 0.1, 3.0
    at = make_local_state(Tree(x=torch.tensor([[y]])), Tree(x=torch.tensor([[w]])), lr)
    stepped = Tree(x=torch.tensor([[y - lr * 4.0]]))
    assert FedProx(mu=mu, proximal="prox_step").after_step(stepped, at)["x"].item() == pytest.approx(
        (y - lr * 4.0 + lr * mu * w) / (1 + lr * mu)
    )


@pytest.mark.parametrize("form", ["gradient", "prox_step"])
@pytest.mark.parametrize("optimizer", [Sgd(0.05, momentum=0.5), AdamW(0.01)])
def test_mu_zero_is_fedavg_bit_for_bit(form, optimizer):
    plain = train(FedAvg(), Q2(), until=5, optimizer=optimizer, max_grad_norm=0.7)
    prox = train(FedProx(mu=0.0, proximal=form), Q2(), until=5, optimizer=optimizer, max_grad_norm=0.7)
    assert path(plain) == path(prox)


def test_the_proximal_term_is_the_gradient_of_the_squared_distance():
    y = torch.tensor([[2.0, -1.0]], dtype=torch.float64, requires_grad=True)
    w = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    (0.3 / 2 * (y - w).pow(2).sum()).backward()
    at = make_local_state(Tree(x=y.detach()), Tree(x=w))
    assert torch.allclose(FedProx(mu=0.3).transform_grad(Tree(x=torch.zeros_like(w)), at)["x"], y.grad)


def test_the_first_local_step_equals_that_of_fedavg():
    one = [train(algorithm, Q2(1), until=4) for algorithm in (FedAvg(), FedProx(mu=2.0))]
    assert path(one[0]) == path(one[1])  # y = w at the only step, so the proximal term is zero
    for done in train(FedProx(mu=2.0), Q2(3), until=3):
        x, lr, mu = done.before.server.params["x"][0, 0].item(), 0.1, 2.0
        for a, b, moved in zip((1, 4), (0, 1), done.update.delta["x"][:, 0].tolist(), strict=True):
            y = x
            for _ in range(3):
                y -= lr * (a * (y - b) + mu * (y - x))
            assert moved == pytest.approx(y - x, abs=1e-12)


def test_fedprox_warns_that_mu_is_not_comparable_under_adam():
    assert FedProx().warnings(AdamW(), "tokens")
    assert not FedProx().warnings(Sgd(), "tokens")
    assert not FedProx(proximal="prox_step").warnings(AdamW(), "tokens")


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("mu", "fixed_point"), [(0.1, 0.5176470588), (1.0, 0.6153846154), (5.0, 0.7272727273), (10.0, 0.7586206897), (100.0, 0.7952755906)]
)
def test_exact_local_solutions_end_nearer_the_optimum_for_larger_mu(mu, fixed_point):
    """x = [sum p a b / (a + mu)] / [sum p a / (a + mu)], approached at the rate sum p mu / (a + mu)."""

    def after(x: float) -> float:
        return path(train(FedProx(mu=mu, proximal="prox_step"), Q2(400), until=1, x=x, optimizer=Sgd(0.1)))[0]

    assert after(fixed_point) == pytest.approx(fixed_point, abs=1e-9)
    assert after(fixed_point + 1) - fixed_point == pytest.approx((mu / (1 + mu) + mu / (4 + mu)) / 2, abs=1e-9)


@pytest.mark.parametrize(("mu", "reach"), [(10.0, 1.142857), (1e2, 0.153846), (1e4, 0.00159936), (1e6, 1.6e-5)])
def test_clients_move_less_for_larger_mu(mu, reach):
    """The farthest client moves by a |x - b| / (a + mu) from x = 5, here by 16 / (4 + mu)."""
    moved = train(FedProx(mu=mu, proximal="prox_step"), Q2(400), until=1)[0].update.delta["x"].abs().max().item()
    assert moved == pytest.approx(reach, rel=1e-5)
