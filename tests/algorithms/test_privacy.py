"""The accountant: bounds that can be checked by hand, and that it spends as it should."""

from __future__ import annotations

import math

import pytest

from fedrift.algorithms.aggregates import Private
from fedrift.errors import UserError

pytest.importorskip("dp_accounting", reason="needs the extra: pip install fedrift[privacy]")

from fedrift.algorithms.privacy import epsilon

SETTING = {"rounds": 50, "cohort": 10, "size": 1000, "delta": 1e-4}


def test_one_full_round_is_the_gaussian_mechanism_with_sensitivity_two_clips():
    """Its exact delta (Balle & Wang 2018, Theorem 8) at the epsilon said is below the delta asked for, and not far."""
    def normal(x):
        return 0.5 * math.erfc(-x / math.sqrt(2))

    said, sigma = epsilon(Private(noise=8.0), rounds=1, cohort=100, size=100, delta=1e-5), 4.0
    exact = normal(1 / (2 * sigma) - said * sigma) - math.exp(said) * normal(-1 / (2 * sigma) - said * sigma)
    assert 1e-7 < exact < 1e-5


def test_it_grows_with_the_rounds_and_the_cohort_and_falls_with_the_noise():
    def spent(noise=4.0, **changed):
        return epsilon(Private(noise=noise), **{**SETTING, **changed})

    plain = spent()
    assert plain < spent(rounds=200)
    assert plain < spent(cohort=50) < spent(cohort=1000)
    assert spent(noise=8.0) < plain


@pytest.mark.parametrize("noise", [1.0, 4.0])
def test_more_clients_in_a_cohort_cost_more_and_never_more_than_everybody(noise):
    """Also where nearly everybody is drawn, and the bound for sampling is looser: at noise 4 it is 31.68."""
    spent = [epsilon(Private(noise=noise), rounds=30, cohort=cohort, size=100, delta=1e-5)
             for cohort in (1, 30, 99, 100)]
    assert spent == sorted(spent)
    assert spent[0] < spent[1] < spent[2] == spent[3]
    if noise == 4.0:
        assert spent[-1] == pytest.approx(15.85, abs=0.01)


def test_a_cohort_that_cannot_be_drawn_and_a_delta_that_is_no_probability_are_refused():
    for changed in ({"cohort": 0}, {"cohort": 1001}, {"delta": 0.0}, {"delta": 1.0}, {"delta": math.nan}, {"rounds": -1}):
        with pytest.raises(UserError, match=f"{next(iter(changed))}: wanted"):
            epsilon(Private(), **{**SETTING, **changed})


def test_without_noise_there_is_no_privacy_and_without_rounds_nothing_is_spent():
    assert epsilon(Private(noise=0.0), **SETTING) == math.inf
    assert epsilon(Private(), **{**SETTING, "rounds": 0}) == 0
    assert epsilon(Private(noise=1e30), **SETTING) == 0
