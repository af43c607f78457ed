"""Test that FedSGD is one step of gradient descent on the pooled loss, regardless of the number of batches."""

from __future__ import annotations

import pytest

from fedrift.algorithms import FedAvg, FedSGD
from fedrift.core.optimizers import Sgd
from tests.quadratics import Q2, clients, path, train


@pytest.mark.parametrize("steps", [1, 7])
def test_fedsgd_is_gradient_descent_on_the_pooled_loss(steps):
    expected = path(train(FedAvg(), Q2(1), until=10))
    assert path(train(FedSGD(server_optimizer=Sgd(0.1)), Q2(steps), until=10)) == pytest.approx(expected, abs=1e-12)


def test_fedsgd_needs_132_rounds_on_the_lower_bound_pair():
    """Gradient descent needs 132 rounds (SCAFFOLD paper, section 7); SCAFFOLD with 10 local steps needs 18."""
    x = path(train(FedSGD(), clients((2, 0), (0, 0), 2, slope=(1.0, -1.0)), until=132, x=1.0))
    assert abs(x[-1]) < 1e-6 <= abs(x[-2])


def test_clients_do_not_move_and_weights_count():
    done = train(FedSGD(server_optimizer=Sgd(0.1)), clients((1, 4), (0, 1), 3, weight=(3, 1)), until=1)[0]
    assert (done.update.delta["x"] == 0).all()
    assert path([done])[0] == pytest.approx(5 - 0.1 * (0.75 * 5 + 0.25 * 16))
