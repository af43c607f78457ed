"""Test gradient dissimilarity on quadratics with known gradients, and that noise does not count."""

from __future__ import annotations

import math

import pytest
import torch

from fedrift.core.tree import Tree
from fedrift.probes.updates import gradient_dissimilarity, mean_gradient
from tests.quadratics import DOUBLE, Q2, loss


def gradients(x: float = 5.0) -> Tree:
    """Return g = a (x - b) of Q2: (1 * 5, 4 * 4) at 5."""
    group = Q2()
    batch = {"a": group.a, "b": group.b, "slope": group.slope, "weight": group.weight}
    return mean_gradient(loss, Tree(x=torch.full((2, 1), x, dtype=DOUBLE)), [batch])


def test_gradients_of_quadratics_are_exact():
    assert gradients()["x"].flatten().tolist() == pytest.approx([5, 16])
    found = gradient_dissimilarity(gradients(), gradients(), torch.ones(2))
    assert found["gradient.G2"].item() == pytest.approx(5.5**2)
    assert found["gradient.B2"].item() == pytest.approx((25 + 256) / 2 / 10.5**2)
    assert found["gradient.diversity"].item() == pytest.approx((25 + 256) / 21**2)
    assert found["gradient.cosine"].item() == pytest.approx(1)


def test_clients_are_weighted_by_their_shares():
    found = gradient_dissimilarity(gradients(), gradients(), torch.tensor([3.0, 1.0]))
    mean, square = (3 * 5 + 16) / 4, (3 * 25 + 256) / 4
    assert found["gradient.G2"].item() == pytest.approx(square - mean**2)
    assert found["gradient.B2"].item() == pytest.approx(1 + (square - mean**2) / mean**2)


def test_at_the_optimum_of_the_mean_there_is_no_ratio_and_clients_are_opposed():
    found = gradient_dissimilarity(gradients(0.8), gradients(0.8), torch.ones(2))
    assert found["gradient.G2"].item() == pytest.approx(0.8**2)
    assert found["gradient.cosine"].item() == pytest.approx(-1)
    assert not found["gradient.B2"] < 1e6


def test_batches_are_weighted():
    def batch(a, weight):
        return {
            "a": torch.tensor([[a]], dtype=DOUBLE),
            "b": torch.zeros(1, 1),
            "slope": torch.zeros(1, 1),
            "weight": torch.tensor([weight]),
        }

    found = mean_gradient(loss, Tree(x=torch.ones(1, 1, dtype=DOUBLE)), [batch(1.0, 1.0), batch(4.0, 3.0)])
    assert found["x"].item() == pytest.approx((1 * 1 + 3 * 4) / 4)


def test_the_noise_of_samples_does_not_count():
    """Identical clients have two noisy halves: one half alone shows a difference, the two halves together do not."""
    draw = torch.Generator().manual_seed(0)
    truth, found, naive = torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(6, 4).double(), [], []
    for _ in range(2000):
        one, two = (Tree(x=truth + 0.5 * torch.randn(6, 4, generator=draw).double()) for _ in range(2))
        found.append(gradient_dissimilarity(one, two, torch.ones(6))["gradient.G2"].item())
        naive.append(gradient_dissimilarity(one, one, torch.ones(6))["gradient.G2"].item())
    error = 4 * torch.tensor(found).std().item() / math.sqrt(len(found))
    assert abs(sum(found) / len(found)) < error < 0.05
    assert sum(naive) / len(naive) == pytest.approx(5 / 6 * 4 * 0.25, rel=0.05)


def test_a_client_without_gradient_does_not_affect_the_cosine_of_the_others():
    one = Tree(x=torch.tensor([[1.0, 0], [1.0, 0], [0, 0]]))
    assert gradient_dissimilarity(one, one, torch.ones(3))["gradient.cosine"].item() == pytest.approx(1)
