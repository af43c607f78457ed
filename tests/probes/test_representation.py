"""Test measures of representations on states with known results."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrift.probes.representation import anisotropy, cka, effective_rank, mean_cosine, mean_pairwise_cosine

DOUBLE = torch.float64


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def biased(x: torch.Tensor, y: torch.Tensor) -> float:
    """Return CKA without the correction (Kornblith et al. 2019, equation 4, linear kernels), for comparison."""
    x, y = x - x.mean(0), y - y.mean(0)
    return ((x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())).item()


def song_hsic(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the unbiased HSIC of Song et al. 2012, equation 5."""
    n = len(x)
    k, m = (v @ v.T for v in (x, y))
    k, m = k - torch.diag(k.diagonal()), m - torch.diag(m.diagonal())
    one = torch.ones(n, dtype=DOUBLE)
    total = torch.trace(k @ m) + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2)) - 2 * (one @ k @ m @ one) / (n - 2)
    return total / (n * (n - 3))


@pytest.mark.parametrize(("positions", "uncorrected"), [(64, 0.674), (256, 0.334), (1024, 0.110)])
def test_independent_states_are_dissimilar_at_any_number_of_positions(positions, uncorrected):
    x, y = gaussian(20, positions, 128), gaussian(20, positions, 128, seed=1)
    own = torch.stack([cka(x[k : k + 1], y[k : k + 1]).squeeze() for k in range(20 if positions < 1024 else 3)])
    assert own.mean().abs() < 3 * own.std() / len(own) ** 0.5 + 0.002
    assert own.abs().max() < 10 / positions
    assert biased(x[0], y[0]) == pytest.approx(uncorrected, abs=0.02)  # the bias that the correction removes


def test_cka_is_the_ratio_of_songs_estimators():
    x, y = gaussian(30, 7), gaussian(30, 5, seed=1) + 3
    expected = song_hsic(x, y) / (song_hsic(x, x) * song_hsic(y, y)).sqrt()
    assert cka(x[None], y[None]).item() == pytest.approx(expected.item(), rel=1e-10)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-3, 1e3), st.floats(-5, 5))
def test_cka_is_invariant_to_rotation_scale_and_shift(seed, scale, shift):
    x = gaussian(40, 6, seed=seed)
    turn = torch.linalg.qr(gaussian(6, 6, seed=seed + 1))[0]
    assert cka(x[None], (scale * x @ turn + shift)[None]).item() == pytest.approx(1, abs=1e-8)


def test_every_representation_is_compared_with_every_other():
    one, two = gaussian(3, 40, 6), gaussian(2, 40, 9, seed=1)
    found = cka(one, two)
    assert found.shape == (3, 2)
    assert found[2, 1].item() == pytest.approx(cka(one[2:], two[1:]).item(), rel=1e-12)
    assert torch.allclose(cka(one, one), cka(one, one).T)


def test_constant_states_have_no_cka():
    assert cka(torch.ones(1, 10, 4), gaussian(1, 10, 4)).isnan().all()


def test_too_few_positions_for_the_correction_are_refused():
    with pytest.raises(ValueError, match="at least 4"):
        cka(gaussian(1, 3, 4), gaussian(1, 3, 4))


@pytest.mark.parametrize(
    ("states", "rank"),
    [(torch.eye(5), 5.0), (torch.outer(torch.arange(1.0, 9), torch.ones(6)), 1.0), (torch.diag(torch.tensor([4.0, 2, 1, 1])), 3.3636)],
)
def test_effective_rank_counts_directions_that_are_used(states, rank):
    assert effective_rank(states).item() == pytest.approx(rank, abs=5e-5)
    assert effective_rank(17 * states).item() == pytest.approx(rank, abs=5e-5)


def test_effective_rank_of_empty_and_diverged_states_is_missing():
    states = torch.stack([torch.zeros(4, 3), torch.full((4, 3), torch.inf), torch.eye(4, 3)])
    assert effective_rank(states).isnan().tolist() == [True, True, False]


def test_anisotropy_is_the_mean_cosine_of_two_positions():
    assert anisotropy(torch.ones(9, 4)).item() == pytest.approx(1)
    assert anisotropy(torch.eye(4)).item() == pytest.approx(0)
    assert anisotropy(torch.tensor([[1.0, 0], [-2, 0]])).item() == pytest.approx(-1)
    x = gaussian(11, 5)
    way = x / x.norm(dim=1, keepdim=True)
    pairs = torch.ones(11, 11).triu(1).bool()
    assert anisotropy(x).item() == pytest.approx((way @ way.T)[pairs].mean().item())


def test_states_are_compared_at_equal_positions():
    x = gaussian(6, 5)
    assert mean_cosine(x, 3 * x).item() == pytest.approx(1)
    assert mean_cosine(x, -x).item() == pytest.approx(-1)
    assert mean_cosine(torch.eye(4), torch.eye(4).roll(1, 0)).item() == pytest.approx(0)


def test_the_mean_over_pairs_equals_the_mean_of_single_pairs():
    states = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    pairs = [mean_cosine(states[one], states[two]) for one, two in ((0, 1), (0, 2), (1, 2))]
    assert mean_pairwise_cosine(states).item() == pytest.approx(torch.stack(pairs).mean().item())
