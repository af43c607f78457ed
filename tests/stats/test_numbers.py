"""Test the statistics against published examples, the output of R and closed forms."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from fedrift import stats as s
from fedrift.core.errors import UserError

SLEEP = np.array([-1.2, -2.4, -1.3, -1.3, 0.0, -1.0, -1.8, -0.8, -4.6, -1.4])  # R: sleep, extra[group 1] - extra[group 2]
# eighths of an inch, cross-fertilized minus self-fertilized
DARWIN = np.array([49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48.0])
INF = math.inf


def test_the_t_interval_equals_that_of_r_on_the_sleep_data():
    """R: t.test(extra ~ group, data = sleep, paired = TRUE): -2.4598858 -0.7001142."""
    found = s.mean_ci(SLEEP)
    assert (found.estimate, found.low, found.high) == pytest.approx((-1.58, -2.4598858, -0.7001142), abs=5e-8)


def test_the_sign_flip_test_equals_fishers_count_for_darwins_plants():
    """Fisher, The Design of Experiments, section 21: 1,726 of 32,768 arrangements, 5.267 per cent."""
    assert s.sign_flip_test(DARWIN).value == 1726 / 32768


def test_a_zero_difference_counts_on_both_sides():
    assert s.sign_flip_test(SLEEP).value == 4 / 1024  # nine seeds have one sign; the tenth can have either


def test_sampled_sign_flips_of_many_seeds_agree_with_the_exact_count():
    d = np.random.default_rng(1).normal(0.3, 1, 21)
    sums = np.zeros(1)
    for value in np.abs(d):
        sums = np.concatenate([sums + value, sums - value])
    exact = (np.abs(sums) >= abs(d.sum()) - 1e-12).mean()
    found = s.sign_flip_test(d)
    assert found.value == pytest.approx(exact, abs=0.005)
    assert "draws" in found.test and found.value == s.sign_flip_test(d).value


@pytest.mark.parametrize(("seeds", "least"), [(1, 1.0), (3, 0.25), (5, 0.0625), (6, 0.03125), (8, 0.0078125), (10, 0.001953125)])
def test_the_smallest_p_value_of_n_seeds_is_known(seeds, least):
    found = s.sign_flip_test(np.linspace(1, 2, seeds))
    assert found.value == found.min_attainable_p == s.min_p(seeds) == least


def test_the_number_of_seeds_for_a_family_is_known():
    assert [s.min_seeds(), s.min_seeds(family_size=8), s.min_seeds(0.5)] == [6, 9, 2]


def test_a_p_value_that_the_seeds_cannot_reach_is_not_printed():
    sharp = np.array([1.0, 1.01, 0.99, 1.0, 1.0])
    for found in (s.sign_flip_test(sharp), s.wilcoxon(sharp)):
        assert str(found) == "5 seeds cannot give a p below 0.062" and not found.is_significant()
    assert str(s.sign_flip_test(np.append(sharp, 1.0))) == "p = 0.031"


def test_the_wilcoxon_test_without_ties_equals_that_of_scipy():
    d = np.array([0.3, -0.1, 0.5, 0.9, -0.2, 1.1, 0.7])
    assert s.wilcoxon(d).value == pytest.approx(stats.wilcoxon(d, mode="exact").pvalue)


def test_a_diverged_run_gets_the_worst_rank():
    d = s.paired_differences(np.array([1.0, INF, 2.0, INF]), np.array([0.5, 1.0, INF, INF]))
    assert d[:3].tolist() == [0.5, INF, -INF] and math.isnan(d[3])  # both diverged, so the difference is missing and not zero
    assert s.wilcoxon(np.array([0.1, 0.2, 0.3, 0.4, 0.5, INF])).value == 2 / 64
    assert s.assign_worst_rank(np.array([1.0, np.nan]), np.array([False, True]), "low").tolist() == [1.0, -INF]


def test_rank_effects_equal_values_computed_by_hand():
    assert s.rank_biserial(np.array([1.0, 2.0, -3.0, 4.0])) == pytest.approx((1 + 2 + 4 - 3) / 10)
    assert s.rank_biserial(np.array([INF, -1.0])) == pytest.approx(1 / 3)


def test_hedges_g_equals_its_formula():
    assert s.hedges_g(SLEEP) == pytest.approx((1 - 3 / (4 * 9 - 1)) * SLEEP.mean() / SLEEP.std(ddof=1), rel=1e-3)
    assert s.hedges_g(np.array([0.0, 2.0, 1.0])) == pytest.approx(math.gamma(1) / math.gamma(0.5))  # J(2) = 1 / sqrt(pi)
    assert math.isnan(s.hedges_g(np.array([1.0])))


def test_holm_equals_values_computed_by_hand():
    p = [0.01, 0.04, 0.03, 0.005]
    assert s.holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert s.holm([0.01, math.nan])[0] == 0.02  # hypotheses without a test still count
    assert not len(s.holm([]))
    for p in np.random.default_rng(0).uniform(0, 0.2, (2, 9)).round(2):  # including ties
        assert s.holm(p) == pytest.approx(multipletests(p, method="holm")[1])


def test_the_clopper_pearson_interval_equals_that_of_r():
    """R: binom.test(7, 20)$conf.int is 0.1539092 0.5921885; for none of n the bound is 1 - .025^(1/n)."""
    found = s.clopper_pearson(7, 20)
    assert (found.low, found.high) == pytest.approx((0.1539092, 0.5921885), abs=5e-8)
    assert s.clopper_pearson(0, 20).high == pytest.approx(1 - 0.025 ** (1 / 20))


def test_mcnemar_counts_only_seeds_that_differ():
    first, second = np.array([1] * 7 + [0] + [1] * 5), np.array([0] * 7 + [1] + [1] * 5)
    assert s.mcnemar(first, second).value == pytest.approx(2 * 9 / 256)
    assert s.mcnemar(first, first).value == 1.0
    assert s.mcnemar(np.ones(5), np.zeros(5)).value == s.mcnemar(np.ones(5), np.zeros(5)).min_attainable_p == 0.0625


def test_pages_test_is_the_exact_permutation_test_of_the_levels():
    """Computed over all (3!)^4 orders of four seeds."""
    table = np.array([[1.0, 2, 3], [2, 1, 3], [1, 2, 3], [1, 3, 2]])
    ranks = np.argsort(np.argsort(table, axis=1), axis=1) + 1
    seen = (ranks * [1, 2, 3]).sum()
    rows = [np.dot(order, [1, 2, 3]) for order in itertools.permutations([1, 2, 3])]
    sums = [sum(choice) for choice in itertools.product(rows, repeat=4)]
    assert s.page_trend_test(table).value == pytest.approx(2 * np.mean(np.array(sums) >= seen))
    assert s.page_trend_test(table).value == pytest.approx(s.page_trend_test(-table).value)


def test_pages_test_equals_the_example_of_scipy():
    """Ratings of three ways of teaching by ten students: exact one-sided p = 0.0018191."""
    table = [[3, 4, 3], [2, 2, 4], [3, 3, 5], [1, 3, 2], [2, 3, 2], [2, 4, 5], [1, 2, 4], [3, 4, 4], [2, 4, 5], [1, 3, 4]]
    assert s.page_trend_test(np.array(table)).value == pytest.approx(2 * 0.0018191161948127822)


def test_spearmans_test_permutes_within_seeds():
    x, y, seed = np.tile([0.1, 0.4, 0.8], 3), np.array([1, 2, 3, 101, 102, 103, 11, 12, 13.0]), np.repeat([0, 1, 2], 3)
    found = s.spearman_within_blocks(x, y, seed)
    assert (found.rho, found.p.value, found.p.seeds) == (pytest.approx(1.0), pytest.approx(2 / 216), 3)
    assert s.spearman_within_blocks(x, np.where(y == 103, INF, y), seed).rho == pytest.approx(1.0)


def test_the_power_of_many_seeds_is_that_of_the_t_test():
    assert s.power(20, 2.0, 1.7, 0.01) == pytest.approx(TTestPower().power(2 / 1.7, 20, 0.01), abs=1e-8)


@pytest.mark.parametrize("seeds, alpha", [(6, 0.05), (7, 0.025), (8, 0.01)])
def test_the_power_of_few_seeds_is_that_of_the_sign_test(seeds, alpha):
    """Only seeds of equal sign can be significant: P(all above 0) + P(all below). The t test claims 8 to 17 % more."""
    for effect in (0.0, 1.0, 1.8):
        exact = stats.norm.cdf(effect) ** seeds + stats.norm.cdf(-effect) ** seeds
        assert s.power(seeds, effect, 1.0, alpha) == pytest.approx(exact, abs=0.01)
    assert s.min_detectable_effect(seeds, 0.1, alpha) == pytest.approx(0.1 * stats.norm.ppf(0.8 ** (1 / seeds)), rel=0.01)
    assert TTestPower().power(1.5, seeds, alpha) > s.power(seeds, 1.5, 1.0, alpha) + 0.05


def test_a_trend_over_two_levels_is_a_sign_test_without_the_ties():
    found = s.page_trend_test(np.array([[1.0, 2], [1, 2], [3, 3], [1, 2], [2, 1], [0, 1], [0, 2], [1, 4]]))
    assert (found.value, found.seeds, found.test) == (pytest.approx(2 * (1 + 7) / 2**7), 7, "exact sign test")
    assert s.page_trend_test(np.ones((4, 2))).value == 1.0


@pytest.mark.parametrize("seeds", [6, 8, 10, 30])
def test_the_detectable_effect_has_the_stated_power(seeds):
    effect = s.min_detectable_effect(seeds, 0.2)
    assert s.power(seeds, effect, 0.2) == pytest.approx(0.8, abs=2e-3)


def test_five_seeds_detect_no_effect_of_any_size():
    assert s.min_detectable_effect(5, 0.001) == INF and s.min_detectable_effect(8, 0.001, alpha=0.05 / 8) == INF


def test_tost_equals_the_interval_within_the_margin():
    d = np.array([0.002, -0.001, 0.003, 0.0, -0.002, 0.001, 0.0, 0.002])
    interval = s.tost(d, 1.0).interval
    edge = max(abs(interval.low), abs(interval.high))
    assert s.tost(d, edge * 1.001).p.value < 0.05 < s.tost(d, edge * 0.999).p.value
    assert s.tost(d, edge).p.value == pytest.approx(0.05)


def test_two_seeds_never_show_equivalence():
    assert not s.tost(np.array([1e-9, -1e-9]), 0.01).p.is_significant() and s.detectable_margin(4, 1.0) == INF


def test_fieller_bounds_are_where_t_reaches_its_quantile():
    rng = np.random.default_rng(0)
    b = rng.normal(2, 0.3, 8)
    a = 0.6 * b + rng.normal(0, 0.2, 8)
    found = s.ratio_ci(a, b)
    for bound in (found.low, found.high):
        assert abs(stats.ttest_1samp(a - bound * b, 0).statistic) == pytest.approx(stats.t.ppf(0.975, 7))
    assert s.ratio_ci(a, b - b.mean() + 0.01).high == INF  # the denominator may be 0


def test_the_log_ratio_is_converted_back():
    found = s.geometric_mean_ratio(np.array([0.2, 0.4, 0.1]), np.array([0.1, 0.2, 0.05]))
    assert (found.estimate, found.low, found.high) == pytest.approx((2, 2, 2))
    assert math.isnan(s.geometric_mean_ratio(np.array([0.0, 1]), np.array([1.0, 1])).estimate)


def test_bootstrap_draws_whole_clusters_and_refuses_seeds():
    values = np.repeat(np.random.default_rng(0).normal(size=40), 25)
    alone, whole = s.bootstrap_items(values), s.bootstrap_items(values, np.repeat(np.arange(40), 25))
    assert (whole.high - whole.low) / (alone.high - alone.low) == pytest.approx(5, rel=0.2)  # the square root of 25 items per cluster
    with pytest.raises(UserError, match="mean_ci or sign_flip_test"):
        s.bootstrap_items(np.arange(10.0))


numbers = st.lists(st.floats(-5, 5, allow_nan=False).map(lambda x: round(x, 2)), min_size=1, max_size=9).map(np.array)


@settings(max_examples=60, deadline=None)
@given(numbers)
def test_sign_tests_are_symmetric(d):
    assert s.sign_flip_test(d).value == pytest.approx(s.sign_flip_test(-d).value)
    assert s.wilcoxon(d).value == pytest.approx(s.wilcoxon(d * 7).value)
    assert s.sign_flip_test(d).value >= s.sign_flip_test(d).min_attainable_p - 1e-12


@settings(max_examples=60, deadline=None)
@given(numbers)
def test_the_median_lies_in_its_interval(d):
    found = s.median_ci(d)
    assert found.low <= found.estimate <= found.high
    assert found.confidence_level >= (0.95 if len(d) >= 6 else 0)


@pytest.mark.parametrize("test", [s.sign_flip_test, s.wilcoxon])
@pytest.mark.parametrize("odd", [[math.nan] * 6, [1.0, math.nan, 2.0, 3.0, 4.0, 5.0]])
def test_numbers_that_are_missing_have_no_p(test, odd):
    """Every comparison with NaN is false, so that no sign pattern would be as extreme and p would be 0."""
    result = test(np.array(odd))
    assert math.isnan(result.value) and str(result) == "no p" and not result.is_significant()


def test_infinite_differences_have_no_sign_flip_p_and_large_ones_have_one():
    assert math.isnan(s.sign_flip_test(np.array([math.inf] * 6)).value)
    small = np.array([1.0, -1.0, 1.0, 1.0, 1.0, 1.5])
    assert s.sign_flip_test(1e308 * small).value == s.sign_flip_test(small).value == 0.1875  # 12 of 64 patterns
    assert s.wilcoxon(np.array([math.inf] * 6)).value == 0.03125


def test_a_median_of_missing_numbers_has_no_interval():
    interval = s.median_ci(np.array([1.0, math.nan, 2.0, 3.0, 4.0, 5.0]))
    assert all(math.isnan(value) for value in (interval.estimate, interval.low, interval.high))


def test_nothing_is_equivalent_within_a_margin_that_is_no_number():
    assert s.tost(np.zeros(6), math.nan).p.value == 1.0
