"""Test each detector on trajectories with given values: what it reports, what it ignores, and what it cannot measure."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedrift.diagnosis import detectors
from fedrift.diagnosis.convergence import measure_oscillation
from fedrift.diagnosis.detectors import ALL_DETECTORS, run_detectors
from fedrift.diagnosis.drift import age_distance_pairs
from fedrift.diagnosis.failures import find_training_divergence
from fedrift.diagnosis.finding import THRESHOLDS, RunEvidence, RunInfo

from .runs import NAN, falling, run

ZIGZAG = np.array([0.0, 0.4] * 20)


def only(found, failure=None):
    chosen = [finding for finding in found if failure in (None, finding.failure)]
    assert len(chosen) == 1
    return chosen[0]


@pytest.mark.parametrize("detector", ALL_DETECTORS, ids=lambda detector: detector.__name__)
def test_missing_records_give_not_measured_and_never_none(detector):
    for case in (RunEvidence(run()), RunEvidence(run(loss=[4.0, 3.9])), RunEvidence(run(loss=[4.0]), run())):
        found = detector(case)
        assert found and all(finding.grade == "not measured" and finding.missing_input for finding in found)


def test_a_run_with_itself_as_baseline_has_no_finding():
    one = run(
        loss=falling(),
        loss__a=falling(),
        loss__b=falling(),
        update_diversity=[2.0] * 40,
        general_loss=falling(),
        adapters_error_update=[0.01] * 40,
        clients={"loss": [[4.0, 4.1]] * 40, "failed": [[0, 0]] * 40},
    )
    assert {finding.grade for finding in run_detectors(RunEvidence(one, one))} == {"none", "not measured"}


def test_one_run_alone_is_never_confirmed():
    bad = run(loss=[4.0, NAN, NAN], clients={"failed": [[0, 1]] * 3})
    assert {finding.grade for finding in run_detectors(RunEvidence(bad, run(loss=falling())))} <= {"suspected", "none", "not measured"}


def test_growing_server_steps_with_a_rising_loss_are_early_divergence():
    steps = 1.4 ** np.arange(10)
    rising = run(loss=4 + 0.1 * np.arange(10), update_step=steps)
    assert only(detectors.divergence(RunEvidence(rising))).is_positive
    assert not only(detectors.divergence(RunEvidence(run(loss=4 - 0.1 * np.arange(10), update_step=steps)))).is_positive
    slow = run(loss=4 + 0.1 * np.arange(10), update_step=1.2 ** np.arange(10))
    assert find_training_divergence(rising, THRESHOLDS)[0] and not find_training_divergence(slow, THRESHOLDS)[0]


def test_the_oscillation_index_is_upward_moves_over_the_way_down():
    loss = np.concatenate([[6.0], np.tile([4.0, 5.0], 10)])  # after 30 %: 15 values, about 7 of which rise by 1; descent 2
    index, changes, _ = measure_oscillation(run(loss=loss), 0.3)
    late = loss[round(0.3 * len(loss)) :]
    assert index == pytest.approx(np.diff(late).clip(0).sum() / 2) and changes == 1.0


def test_oscillation_is_reported_only_if_the_baseline_oscillates_less():
    wild = run(loss=falling() + ZIGZAG)
    calm = only(detectors.oscillation(RunEvidence(wild, run(loss=falling()))))
    assert calm.is_positive and calm.in_baseline is False
    assert not only(detectors.oscillation(RunEvidence(wild, wild))).is_positive


def test_a_fast_falling_loss_is_not_oscillation():
    fast, slow = falling(first=9), falling(first=4.1)
    found = detectors.oscillation(RunEvidence(run(loss=fast, loss__a=fast), run(loss=slow, loss__a=slow)))
    assert not only(found, "domain oscillation").is_positive


def test_oscillating_domains_are_detected_although_the_mean_is_stable():
    up = run(loss=falling(), loss__a=falling() + ZIGZAG, loss__b=falling() - ZIGZAG)
    finding = only(detectors.oscillation(RunEvidence(up, run(loss=falling(), loss__a=falling(), loss__b=falling()))), "domain oscillation")
    assert finding.is_positive and set(finding.locations) == {"a", "b"}


def make_drifting_run(ratio=2.0, norm=1.0):
    return run(loss=falling() + (ratio - 1) / 5, update_diversity=[ratio] * 40, clients={"update.norm": [[norm, norm]] * 40})


def test_drift_needs_runs_with_other_and_without_local_steps_to_be_confirmed():
    baseline = make_drifting_run(1.0)
    alone = only(detectors.client_drift(RunEvidence(make_drifting_run(), baseline)))
    assert alone.is_positive and not alone.is_confirmable and "FedSGD" in alone.missing_input
    whole = RunEvidence(
        make_drifting_run(), baseline, fedsgd=baseline, local_steps_sweep={5: make_drifting_run(norm=0.5)}, info=RunInfo(local_steps=10)
    )
    assert only(detectors.client_drift(whole)).is_positive and only(detectors.client_drift(whole)).is_confirmable


@pytest.mark.parametrize(
    "change",
    [
        {"fedsgd": make_drifting_run()},  # the gap remains without local steps
        {"local_steps_sweep": {5: make_drifting_run(norm=2.0)}},  # fewer local steps increase the drift
    ],
)
def test_a_gap_that_does_not_depend_on_local_steps_is_not_drift(change):
    assert not only(
        detectors.client_drift(RunEvidence(make_drifting_run(), make_drifting_run(1.0), info=RunInfo(local_steps=10), **change))
    ).is_positive


def test_general_text_is_forgotten_only_if_more_than_in_the_baseline():
    up, flat = run(general_loss=[3.0, 3.1, 3.2, 3.3], loss=[4, 4, 4, 4]), run(general_loss=[3.0] * 4, loss=[4, 4, 4, 4])
    assert only(detectors.forgetting_general_text(RunEvidence(up, flat))).is_positive
    assert not only(detectors.forgetting_general_text(RunEvidence(up, up))).is_positive
    assert only(detectors.forgetting_general_text(RunEvidence(up))).in_baseline is None


def test_forgotten_syntax_is_detected_by_accuracy_or_margin_and_the_phenomenon_is_named():
    good = run(syntax_accuracy=[0.9] * 4, syntax_margin=[2.0] * 4)
    less = run(syntax_accuracy=[0.9, 0.9, 0.9, 0.8], syntax_margin=[2.0] * 4, syntax_accuracy__agreement=[0.9, 0.8, 0.7, 0.6])
    thin = run(syntax_accuracy=[0.9] * 4, syntax_margin=[2.0, 1.9, 1.8, 1.7])
    assert only(detectors.forgetting_syntax(RunEvidence(less, good))).locations == ("agreement",)
    assert only(detectors.forgetting_syntax(RunEvidence(thin, good))).is_positive
    assert not only(detectors.forgetting_syntax(RunEvidence(good, good))).is_positive


def make_alternating_run(rise, rounds=90):
    """Return a run of two clients with a domain each, of which client r // 3 % 2 is absent. A domain rises by ``rise`` per round while its
    client is absent.
    """
    away = np.arange(rounds) // 3 % 2
    loss = np.zeros((rounds, 2))
    for t in range(1, rounds):
        for j in range(2):
            loss[t, j] = loss[t - 1, j] + rise if away[t] == j else 0.0
    steps = np.where(np.arange(2) == away[:, None], NAN, 5.0)
    return run(loss=[4.0] * rounds, loss__a=4 + loss[:, 0], loss__b=4 + loss[:, 1], clients={"train.steps": steps})


def test_a_domain_whose_loss_rises_while_its_client_is_absent_is_forgotten():
    facts = RunInfo(5, ("a", "b"), ((1.0, 0.0), (0.0, 1.0)))
    finding = only(detectors.forgetting_during_absence(RunEvidence(make_alternating_run(0.1), make_alternating_run(0.0), info=facts)))
    assert finding.is_positive and finding.statistic == pytest.approx(0.3) and set(finding.locations) == {"a", "b"}
    assert not only(
        detectors.forgetting_during_absence(RunEvidence(make_alternating_run(0.1), make_alternating_run(0.1), info=facts))
    ).is_positive
    assert not only(
        detectors.forgetting_during_absence(RunEvidence(make_alternating_run(-0.1), make_alternating_run(0.0), info=facts))
    ).is_positive


def test_if_all_clients_hold_all_domains_no_domain_is_absent():
    facts = RunInfo(5, ("a", "b"), ((1.0, 1.0), (1.0, 1.0)))
    assert only(detectors.forgetting_during_absence(RunEvidence(make_alternating_run(0.1), info=facts))).grade == "not measured"


def test_collapse_is_measured_at_the_last_layer_relative_to_the_anchor():
    down = run(hidden_rank_ratio__layer_00=[1.0, 0.5], hidden_rank_ratio__layer_11=[1.0, 0.6])
    early = run(hidden_rank_ratio__layer_00=[1.0, 0.1], hidden_rank_ratio__layer_11=[1.0, 0.9])
    assert only(detectors.representation_collapse(RunEvidence(down, early))).locations == ("layer 11",)
    assert not only(detectors.representation_collapse(RunEvidence(early, down))).is_positive
    assert not only(detectors.representation_collapse(RunEvidence(down, early, centralized=down))).is_positive


def test_collapse_has_the_same_unit_for_run_and_baseline():
    down = run(hidden_rank_ratio__layer_11=[1.0, 0.4], hidden_anisotropy__layer_11=[0.2, 0.3])
    fine = run(hidden_rank_ratio__layer_11=[1.0, 1.0], hidden_anisotropy__layer_11=[0.2, 0.21])
    one, two = (only(detectors.representation_collapse(RunEvidence(*pair))) for pair in ((down, fine), (fine, down)))
    assert one.unit == two.unit == "share of rank" and one.excess == pytest.approx(0.6) == -two.excess


def test_aggregation_error_is_reported_only_with_a_higher_loss():
    free, dear = ({"adapters_error_update": [0.3] * 10, "adapters_error_loss": [cost] * 10} for cost in (0.0, 0.05))
    baseline = run(adapters_error_update=[0.02] * 10)
    assert only(detectors.aggregation_error(RunEvidence(run(**dear), baseline))).is_positive
    assert not only(detectors.aggregation_error(RunEvidence(run(**free), baseline))).is_positive
    unknown = only(detectors.aggregation_error(RunEvidence(run(adapters_error_update=[0.3] * 10), baseline)))
    assert unknown.is_positive and not unknown.is_confirmable


def test_unfairness_compares_clients_with_training_alone():
    def clients(worst):
        return run(loss=[4.0] * 6, clients={"loss": [[5.0] * 4] + [[4.0, 4.0, 4.0, worst]] * 6})

    case = RunEvidence(clients(4.8), clients(4.0), local_only=run(loss=[4.0] * 6, clients={"loss": [[4.5, 4.5, 4.5, 3.5]] * 6}))
    finding = only(detectors.unfairness(case))
    assert finding.is_positive and finding.clients == (3,) and finding.statistic == pytest.approx(0.6)
    fine = RunEvidence(case.run, case.iid_baseline, local_only=run(loss=[4.0] * 6, clients={"loss": [[5.0] * 4] * 6}))
    assert not only(detectors.unfairness(fine)).is_positive


def test_a_client_with_harder_text_is_not_a_case_of_unfairness():
    hard, even = [[5.0, 5.0, 5.0, 5.8]], [[5.0] * 4]
    end, baseline = [[4.0, 4.0, 4.0, 4.8]] * 6, RunEvidence(run(clients={"loss": even + [[4.2] * 4] * 6})).run
    assert not only(detectors.unfairness(RunEvidence(run(loss=[4.0] * 7, clients={"loss": hard + end}), baseline))).is_positive
    late = only(detectors.unfairness(RunEvidence(run(loss=[4.0] * 7, clients={"loss": even + end}), baseline)))
    assert late.is_positive and late.first_round == 1 and late.clients == (3,)


def test_a_constant_loss_above_the_anchor_is_a_stall_and_convergence_is_not():
    still, low = run(loss=[5.0] * 20), run(loss=falling(20, 5.0, 3.0))
    assert only(detectors.stalled_convergence(RunEvidence(still, centralized=low, best_lr=low))).is_positive
    assert not only(detectors.stalled_convergence(RunEvidence(still, centralized=still))).is_positive
    assert not only(detectors.stalled_convergence(RunEvidence(run(loss=5 - 0.05 * np.arange(20)), centralized=low))).is_positive
    assert not only(
        detectors.stalled_convergence(RunEvidence(run(loss=5 + ZIGZAG[:20] * 5), centralized=run(loss=falling(20, 5, 4.5))))
    ).is_positive


def make_control_run(age, far, **curves):
    return run(clients={"control.age": age, "control.staleness": far}, **curves)


def test_stale_control_variates_are_old_and_far_from_the_gradient():
    age = np.arange(1, 31).reshape(15, 2)
    run = make_control_run(age, age / 10)
    finding = only(detectors.control_variates(RunEvidence(run)), "stale control variates")
    assert finding.is_positive
    assert all(set(series.rounds) <= set(run.rounds.tolist()) for series in finding.evidence)
    assert finding.evidence[0].values == pytest.approx([10 * value for value in finding.evidence[1].values])
    assert not only(detectors.control_variates(RunEvidence(make_control_run(age, age / 100))), "stale control variates").is_positive
    assert not only(detectors.control_variates(RunEvidence(make_control_run(age, 4 - age / 10))), "stale control variates").is_positive
    assert len(age_distance_pairs(make_control_run(np.where(age > 10, age, NAN), age))[0]) == 20


def test_a_baseline_with_inaccurate_control_variates_of_any_age_has_no_stale_ones():
    age = np.arange(1, 31).reshape(15, 2)
    said = [
        only(detectors.control_variates(RunEvidence(make_control_run(age, age / 10), baseline)), "stale control variates").in_baseline
        for baseline in (None, make_control_run(age, age / 10), make_control_run(age, 3 + age % 2), make_control_run(age, age / 100))
    ]
    assert said == [None, True, False, False]


def test_control_variates_as_accurate_as_in_the_baseline_are_not_stale():
    age = np.arange(1, 31).reshape(15, 2)
    noisy = make_control_run(age, 1.3 + age / 100)  # minibatch noise makes fresh control variates inaccurate as well
    positive = [
        only(detectors.control_variates(RunEvidence(noisy, baseline)), "stale control variates").is_positive
        for baseline in (None, make_control_run(age, 1.4 - age / 100), make_control_run(age, 0.3 + age / 100))
    ]
    assert positive == [True, False, True]


@pytest.mark.parametrize(("off", "bug"), [(1e-15, False), (1e-6, False), (1e-3, True)])
def test_a_violated_invariant_of_control_variates_is_a_bug(off, bug):
    finding = only(detectors.control_variates(RunEvidence(run(control_imbalance=[off] * 12))), "control-variate invariant violated")
    assert finding.is_positive is bug and finding.is_implementation_error


def test_overshoot_is_a_reversal_with_growing_optimizer_state():
    back, on = [-0.9] * 12, [0.9] * 12

    def at(turn, memory):
        return only(detectors.server_overshoot(RunEvidence(run(update_turn=turn, server_momentum=memory)))).is_positive

    assert at(back, np.arange(12)) and not at(on, np.arange(12)) and not at(back, np.arange(12)[::-1])


def test_every_threshold_is_in_the_file_and_can_be_replaced():
    strict = {**THRESHOLDS, "gap": {"all": 0.001, "domain": 0.001}}
    run_, baseline = run(loss=[4.0] * 6), run(loss=[3.99] * 6)
    assert not only(detectors.loss_gap(RunEvidence(run_, baseline))).is_positive
    assert only(detectors.loss_gap(RunEvidence(run_, baseline, thresholds=strict))).is_positive
    assert math.isclose(THRESHOLDS["divergence"]["climb"], math.log(4), rel_tol=1e-9)
