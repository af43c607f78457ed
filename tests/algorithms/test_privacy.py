"""The accountant: bounds that can be checked by hand, and that it spends as it should."""

from __future__ import annotations

import math

import pytest

from fedrift.algorithms.aggregators import DPMean
from fedrift.core.errors import UserError

pytest.importorskip("dp_accounting", reason="needs the extra: pip install fedrift[privacy]")

from fedrift.algorithms.privacy_accountant import compute_epsilon

SETTING = {"num_rounds": 50, "cohort_size": 10, "num_clients": 1000, "delta": 1e-4}


def test_one_full_round_is_the_gaussian_mechanism_with_sensitivity_two_clips():
    """Its exact delta (Balle & Wang 2018, Theorem 8) at the epsilon said is below the delta asked for, and not far."""

    def normal(x):
        return 0.5 * math.erfc(-x / math.sqrt(2))

    said, sigma = compute_epsilon(DPMean(noise_multiplier=8.0), num_rounds=1, cohort_size=100, num_clients=100, delta=1e-5), 4.0
    exact = normal(1 / (2 * sigma) - said * sigma) - math.exp(said) * normal(-1 / (2 * sigma) - said * sigma)
    assert 1e-7 < exact < 1e-5


def test_it_grows_with_the_rounds_and_the_cohort_and_falls_with_the_noise():
    def spent(noise=4.0, **changed):
        return compute_epsilon(DPMean(noise_multiplier=noise), **{**SETTING, **changed})

    plain = spent()
    assert plain < spent(num_rounds=200)
    assert plain < spent(cohort_size=50) < spent(cohort_size=1000)
    assert spent(noise=8.0) < plain


@pytest.mark.parametrize("noise", [1.0, 4.0])
def test_more_clients_in_a_cohort_cost_more_and_never_more_than_everybody(noise):
    """Also where nearly everybody is drawn, and the bound for sampling is looser: at noise 4 it is 31.68."""
    spent = [
        compute_epsilon(DPMean(noise_multiplier=noise), num_rounds=30, cohort_size=cohort, num_clients=100, delta=1e-5)
        for cohort in (1, 30, 99, 100)
    ]
    assert spent == sorted(spent)
    assert spent[0] < spent[1] < spent[2] == spent[3]
    if noise == 4.0:
        assert spent[-1] == pytest.approx(15.85, abs=0.01)


def test_a_cohort_that_cannot_be_drawn_and_a_delta_that_is_no_probability_are_refused():
    for changed in ({"cohort_size": 0}, {"cohort_size": 1001}, {"delta": 0.0}, {"delta": 1.0}, {"delta": math.nan}, {"num_rounds": -1}):
        with pytest.raises(UserError, match=f"{next(iter(changed))}: expected"):
            compute_epsilon(DPMean(), **{**SETTING, **changed})


def test_without_noise_there_is_no_privacy_and_without_rounds_nothing_is_spent():
    assert compute_epsilon(DPMean(noise_multiplier=0.0), **SETTING) == math.inf
    assert compute_epsilon(DPMean(), **{**SETTING, "num_rounds": 0}) == 0
    assert compute_epsilon(DPMean(noise_multiplier=1e30), **SETTING) == 0
