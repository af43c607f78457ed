"""Test the privacy accountant against bounds that can be computed by hand, and how the privacy loss depends on its parameters."""

from __future__ import annotations

import math

import pytest

from fedrift.algorithms.aggregators import DPMean
from fedrift.core.errors import UserError

pytest.importorskip("dp_accounting", reason="needs the extra: pip install fedrift[privacy]")

from fedrift.algorithms.aggregators.private import compute_epsilon

SETTING = {"num_rounds": 50, "cohort_size": 10, "num_clients": 1000, "delta": 1e-4}


def test_one_full_round_is_the_gaussian_mechanism_with_sensitivity_two_clips():
    """At the reported epsilon the exact delta (Balle & Wang 2018, Theorem 8) is slightly below the requested delta."""

    def normal(x):
        return 0.5 * math.erfc(-x / math.sqrt(2))

    said, sigma = compute_epsilon(DPMean(noise_multiplier=8.0), num_rounds=1, cohort_size=100, num_clients=100, delta=1e-5), 4.0
    exact = normal(1 / (2 * sigma) - said * sigma) - math.exp(said) * normal(-1 / (2 * sigma) - said * sigma)
    assert 1e-7 < exact < 1e-5


def test_epsilon_grows_with_rounds_and_cohort_and_falls_with_noise():
    def epsilon(noise=4.0, **changed):
        return compute_epsilon(DPMean(noise_multiplier=noise), **{**SETTING, **changed})

    plain = epsilon()
    assert plain < epsilon(num_rounds=200)
    assert plain < epsilon(cohort_size=50) < epsilon(cohort_size=1000)
    assert epsilon(noise=8.0) < plain


@pytest.mark.parametrize("noise", [1.0, 4.0])
def test_epsilon_grows_with_the_cohort_up_to_full_participation(noise):
    """This also holds for large cohorts, where the bound for sampling is looser: at noise 4 it is 31.68."""
    epsilon = [
        compute_epsilon(DPMean(noise_multiplier=noise), num_rounds=30, cohort_size=cohort, num_clients=100, delta=1e-5)
        for cohort in (1, 30, 99, 100)
    ]
    assert epsilon == sorted(epsilon)
    assert epsilon[0] < epsilon[1] < epsilon[2] == epsilon[3]
    if noise == 4.0:
        assert epsilon[-1] == pytest.approx(15.85, abs=0.01)


def test_invalid_cohort_sizes_and_deltas_are_refused():
    for changed in ({"cohort_size": 0}, {"cohort_size": 1001}, {"delta": 0.0}, {"delta": 1.0}, {"delta": math.nan}, {"num_rounds": -1}):
        with pytest.raises(UserError, match=f"{next(iter(changed))}: expected"):
            compute_epsilon(DPMean(), **{**SETTING, **changed})


def test_without_noise_epsilon_is_infinite_and_without_rounds_it_is_zero():
    assert compute_epsilon(DPMean(noise_multiplier=0.0), **SETTING) == math.inf
    assert compute_epsilon(DPMean(), **{**SETTING, "num_rounds": 0}) == 0
    assert compute_epsilon(DPMean(noise_multiplier=1e30), **SETTING) == 0
