"""Test that the analytic federations have their closed forms, the scores their reference values, and injected failures are detected."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.calibration.analytic import QuadraticFederation, make_mixtures, run_quadratics
from benchmarks.calibration.analytic_failures import INJECTED_FAILURES, quadratic_null_run, run_with_control, with_iid_mixtures
from benchmarks.calibration.score import REPORT_SEEDS, TUNING_SEEDS, count_false_alarms, exact_interval, first_detected, measure_recall
from fedrift.diagnosis import diagnose


def test_fedavg_ends_at_its_fixed_point():
    x = 0.6041260077  # the fixed point of ten local steps
    loss = run_quadratics(QuadraticFederation(num_rounds=15)).curve("loss")[-1]
    assert loss == pytest.approx(x**2 / 4 + (x - 1) ** 2, rel=1e-6)


def test_the_diverging_federation_grows_by_its_factor_and_its_baseline_converges():
    world = QuadraticFederation(a=(1.0, 9.5), b=(0.0, 0.0), lr=0.22, num_rounds=12)
    loss = run_quadratics(world).curve("loss")
    assert loss[-1] / loss[-2] == pytest.approx(1.2253607**2, rel=1e-6)
    assert run_quadratics(with_iid_mixtures(world)).curve("loss")[-1] < 1e-12


def test_mixtures_of_every_severity_have_the_same_documents():
    for severity in (0.0, 0.3, 1.0):
        assert np.asarray(make_mixtures(3, 6, severity)).sum(axis=0) == pytest.approx([2, 2, 2])


def test_a_null_run_differs_from_its_baseline_by_the_draw_only():
    made = quadratic_null_run("FedAvg", 3)
    ours, theirs = made.run.curve("loss"), made.iid_baseline.curve("loss")
    assert ours[0] == theirs[0] and not np.array_equal(ours[1:], theirs[1:])


def test_tuning_and_reporting_use_different_seeds():
    assert not set(TUNING_SEEDS) & set(REPORT_SEEDS) and len(REPORT_SEEDS) >= 20


@pytest.mark.parametrize(("count", "of", "low", "high"), [(0, 20, 0.0, 0.16843), (1, 20, 0.00127, 0.24873), (5, 10, 0.18709, 0.81291)])
def test_rates_have_clopper_and_pearsons_interval(count, of, low, high):
    assert exact_interval(count, of) == pytest.approx((low, high), abs=1e-5)


def test_divergence_is_detected_before_the_end():
    world = QuadraticFederation(a=(1.0, 9.5), lr=0.22, optimum_spread=0.3, num_rounds=24)
    assert 0 < first_detected(run_with_control(world), "divergence") < 24


@pytest.mark.slow
def test_a_control_variate_divided_by_the_cohort_is_confirmed_as_a_bug_only():
    plant = next(plant for plant in INJECTED_FAILURES if plant.failure == "control-variate invariant violated")
    said = {each.failure: each for each in diagnose([plant.make_evidence(seed) for seed in range(3)])}
    assert (
        said["control-variate invariant violated"].grade == "confirmed"
        and said["control-variate invariant violated"].cause == "implementation error"
    )
    assert {name for name, each in said.items() if each.grade == "confirmed"} <= plant.side_effects | {"control-variate invariant violated"}


@pytest.mark.slow
def test_every_injected_failure_is_confirmed_and_no_other():
    assert not [each for each in measure_recall(INJECTED_FAILURES) if each.grade != "confirmed" or each.off_target]


@pytest.mark.slow
def test_nothing_is_confirmed_on_healthy_runs():
    alarms = count_false_alarms({"FedAvg": lambda seed: quadratic_null_run("FedAvg", seed)}, range(100, 110))
    assert not [each for each in alarms if each.confirmed]


def test_a_longer_run_starts_like_a_shorter_one():
    assert (
        run_quadratics(QuadraticFederation(num_rounds=2)).curve("loss")[2]
        == run_quadratics(QuadraticFederation(num_rounds=3)).curve("loss")[2]
    )
