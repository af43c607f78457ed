"""Test the coverage of intervals and the size of tests over many studies of known truth.

Seeds are fixed, and margins are about four standard errors.
"""

from __future__ import annotations

import numpy as np
import pytest

from fedrift import stats as s
from fedrift.stats.hypotheses import Greater

from .frames import FACTORS, study


def count_covered(make, truth, times=1500):
    rng = np.random.default_rng(7)
    return np.mean([truth in make(rng) for _ in range(times)])


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_t_intervals_of_few_seeds_have_their_coverage(seeds):
    assert count_covered(lambda rng: s.mean_ci(rng.normal(1, 2, seeds)), 1.0) == pytest.approx(0.95, abs=0.023)


@pytest.mark.parametrize("seeds", [6, 10, 15])
def test_median_intervals_of_skewed_values_have_at_least_their_coverage(seeds):
    rate = count_covered(lambda rng: s.median_ci(rng.exponential(1, seeds)), np.log(2))
    assert rate >= 0.95 - 0.02
    assert rate == pytest.approx(s.median_ci(np.arange(float(seeds))).confidence_level, abs=0.023)


def test_fieller_covers_a_ratio():
    def make(rng):
        whole = rng.normal(1, 0.2, 8)
        return s.ratio_ci(0.8 * whole + rng.normal(0, 0.1, 8), whole)

    assert count_covered(make, 0.8) == pytest.approx(0.95, abs=0.023)


def test_the_clustered_bootstrap_has_its_coverage_and_a_plain_one_does_not():
    rng, inside, plain = np.random.default_rng(3), 0, 0
    for draw in range(60):
        values, cluster = np.repeat(rng.normal(size=30), 8) + rng.normal(0, 0.3, 240), np.repeat(np.arange(30), 8)
        inside += 0.0 in s.bootstrap_items(values, cluster, num_resamples=200, seed=draw)
        plain += 0.0 in s.bootstrap_items(values, num_resamples=200, seed=draw)
    assert inside / 60 > 0.83 and plain / 60 < 0.7


@pytest.mark.parametrize(("seeds", "size"), [(5, 0.0), (6, 2 / 64), (8, 12 / 256), (10, 50 / 1024)])
def test_the_sign_flip_test_has_exactly_its_size_under_the_null(seeds, size):
    rng = np.random.default_rng(11)
    calls = np.mean([s.sign_flip_test(rng.normal(0, 1, seeds)).is_significant() for _ in range(3000)])
    assert calls == pytest.approx(size, abs=0.016)


def test_tost_has_size_five_per_cent_at_its_margin():
    rng = np.random.default_rng(5)
    assert np.mean([s.tost(rng.normal(0.5, 0.2, 10), 0.5).p.is_significant() for _ in range(2000)]) == pytest.approx(0.05, abs=0.02)


def test_the_detectable_margin_has_power_eighty_per_cent():
    rng, margin = np.random.default_rng(6), s.detectable_margin(10, 1.0)
    assert np.mean([s.tost(rng.normal(0, 1, 10), margin).p.is_significant() for _ in range(2000)]) == pytest.approx(0.8, abs=0.036)


def test_the_detectable_effect_has_power_eighty_per_cent():
    rng, effect = np.random.default_rng(8), s.min_detectable_effect(10, 1.0)
    assert np.mean([s.sign_flip_test(rng.normal(effect, 1, 10)).is_significant() for _ in range(2000)]) == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize("times", [8, pytest.param(400, marks=pytest.mark.slow)])
def test_a_study_without_effects_gives_five_per_cent_of_false_verdicts(times):
    """Both algorithms are equal. With ten seeds, 4.9 % of single hypotheses have a verdict, and at most 5 % of the families of three have
    any.
    """
    sides = {"metric": "loss", "group": {"algorithm": "Scaffold"}, "reference": {"algorithm": "FedAvg"}}
    said = [
        Greater(name="alone", family="alone", where={"partition.severity": 1.0}, **sides),
        *(Greater(name=f"{level}", where={"partition.severity": level}, contrast="iid_baseline", **sides) for level in (0.25, 0.5, 1.0)),
    ]
    alone = together = 0
    for draw in range(times):
        found = s.evaluate_hypotheses(said, study(lambda *condition: 0.0, severities=(0.25, 0.5, 1.0), draw=draw), FACTORS)
        alone += found[0].verdict != "inconclusive"
        together += any(one.verdict != "inconclusive" for one in found[1:])
    slack = 4 * np.sqrt(0.05 * 0.95 / times)
    assert alone / times <= 0.05 + slack and together / times <= 0.05 + slack
    assert times < 100 or alone / times >= 0.05 - slack
