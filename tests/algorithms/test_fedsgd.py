"""Test that FedSGD is one step of gradient descent on the pooled loss, regardless of the number of batches."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from fedrift.algorithms import FedAvg, FedSGD
from fedrift.core.optimizers import Sgd
from fedrift.engine.loop import init_state, run_rounds
from fedrift.probes import update_geometry
from fedrift.simulation import ClientSimulator
from tests.quadratics import Q2, clients, loss, params, path, train


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


@dataclass(frozen=True)
class UnequalBatches:
    """One client whose first batch has three tokens with their minimum at 0, and whose second has one token with its minimum at 1."""

    def __call__(self, round, cohort):
        for tokens, minimum in ((3.0, 0.0), (1.0, 1.0)):
            b = torch.full((1, 1), minimum, dtype=torch.float64)
            yield {"rows": cohort, "a": torch.ones_like(b), "b": b, "slope": torch.zeros_like(b), "weight": torch.tensor([tokens])}


def test_the_gradient_is_that_of_all_tokens_when_the_last_batch_is_short():
    simulator = ClientSimulator(1, loss, UnequalBatches(), Sgd(0.1))
    algorithm = FedSGD(server_optimizer=Sgd(1.0))
    done = next(iter(run_rounds(init_state(algorithm, params(5.0), 1), simulator, algorithm, num_rounds=1, cohort_size=1, seed=0)))
    assert path([done])[0] == pytest.approx(5 - (3 * 5 + 1 * 4) / 4)


def test_a_round_of_gradients_has_norms_but_no_angles():
    metrics = update_geometry(train(FedSGD(server_optimizer=Sgd(0.1)), Q2(1), until=1)[0])
    assert (metrics["update.norm"] == 0).all() and metrics["gradient.norm", ""] > 0
    assert not {"update.cosine", "update.consensus", "update.diversity", "update.pairwise", "update.divergence"} & set(metrics)
