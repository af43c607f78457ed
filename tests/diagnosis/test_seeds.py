"""Test the findings of several seeds: when a suspicion is confirmed, and which cause is stated."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from fedrift.diagnosis import diagnose
from fedrift.diagnosis.across_seeds import combine_seeds, diagnoses_to_json, format_effect, paired_excess
from fedrift.diagnosis.finding import Finding, RunEvidence, make_not_measured, single_run_grade

from .runs import falling, run


def make_one(statistic=2.0, base=0.0, in_baseline: bool | None = False, **more) -> Finding:
    positive = statistic > 1
    numbers = statistic, base, 1.0
    grade = single_run_grade(positive)
    return Finding("trouble", grade, "there is trouble", *numbers, "nats", is_positive=positive, in_baseline=in_baseline, **more)


def grade(*every: Finding) -> str:
    return combine_seeds(every).grade


def test_one_or_two_seeds_are_suspected_at_most():
    assert grade(make_one()) == grade(make_one(), make_one(2.1)) == "suspected"
    assert "One seed can only raise a suspicion" in combine_seeds([make_one()]).sentence


def test_three_positive_seeds_with_negative_baselines_confirm():
    said = combine_seeds([make_one(2.0), make_one(2.1), make_one(1.9)])
    assert said.grade == "confirmed" and said.cause == "heterogeneity" and said.low > 0


def test_most_seeds_must_be_positive_each_by_itself():
    assert grade(make_one(2.0), make_one(2.1), make_one(0.9), make_one(0.8), make_one(0.7)) == "none"
    assert grade(make_one(2.0), make_one(2.1), make_one(0.9), make_one(0.8)) == "suspected"


def test_a_failure_of_the_baselines_is_not_caused_by_heterogeneity():
    said = combine_seeds([make_one(2.0, 1.9, True), make_one(2.1, 2.0, True), make_one(2.2, 1.8, True)])
    assert (said.grade, said.cause) == ("suspected", "also in IID baseline") and "shows it too" in said.sentence


def test_without_baselines_nothing_is_confirmed_and_no_cause_is_stated():
    said = combine_seeds([make_one(base=math.nan, in_baseline=None)] * 3)
    assert (said.grade, said.cause) == ("suspected", "no baseline")


def test_seeds_with_excesses_of_both_signs_confirm_nothing():
    assert grade(make_one(1.1), make_one(1.1), make_one(90.0)) == "suspected"


def test_a_finding_with_missing_input_stays_suspected_and_names_it():
    said = combine_seeds([replace(make_one(2.0 + k / 10), is_confirmable=False, missing_input="a run at noon") for k in range(3)])
    assert said.grade == "suspected" and "a run at noon" in said.sentence


def test_an_event_is_reported_for_one_seed_and_confirmed_by_consistent_pairs():
    def event(run, baseline):
        numbers = float(run), float(baseline), 0.5
        grade = single_run_grade(run)
        return Finding("trouble", grade, "it happened", *numbers, "event", is_positive=run, in_baseline=baseline, is_event=True)

    assert grade(*[event(True, False)] + [event(False, False)] * 4) == "suspected"
    assert grade(*[event(True, False)] * 2 + [event(False, False)]) == "confirmed"
    assert grade(*[event(True, False)] * 2 + [event(False, True)]) == "suspected"


def test_a_violated_invariant_needs_no_baseline():
    said = combine_seeds([make_one(base=math.nan, in_baseline=None, is_implementation_error=True)] * 3)
    assert (said.grade, said.cause) == ("confirmed", "implementation error")


def test_not_measured_is_a_separate_grade():
    said = combine_seeds(make_not_measured("trouble", "a thermometer") * 3)
    assert said.grade == "not measured" and "a thermometer" in said.sentence and said.num_seeds == 0


def test_none_states_the_smallest_detectable_effect():
    tight, loose = (
        combine_seeds([make_one(0.1), make_one(0.11), make_one(0.09)]),
        combine_seeds([make_one(0.1), make_one(0.9), make_one(-0.9)]),
    )
    assert tight.grade == loose.grade == "none"
    assert tight.detectable_effect == 1.0 and loose.detectable_effect > 1.0 and "would not have been detected" in loose.sentence


def test_the_interval_is_the_paired_t_interval():
    mean, low, high, least = paired_excess([make_one(1.0), make_one(2.0), make_one(3.0)], 0.95, 0.8)
    half = 4.302653 / math.sqrt(3)  # t(.975, 2) times the standard error
    assert (mean, low, high) == pytest.approx((2.0, 2 - half, 2 + half))
    assert least == pytest.approx((4.302653 + 1.060660) / math.sqrt(3))


def test_noise_is_confirmed_in_less_than_five_per_cent():
    draw = np.random.default_rng(0)
    confirmed = [grade(*(make_one(1 + draw.normal(), 1 + draw.normal()) for _ in range(5))) == "confirmed" for _ in range(300)]
    assert np.mean(confirmed) < 0.05


def test_clients_and_locations_are_those_of_most_seeds():
    said = combine_seeds(
        [
            make_one(2.0, clients=(1, 2), locations=("a",)),
            make_one(2.1, clients=(1,), locations=("b",)),
            make_one(1.9, clients=(1, 3), locations=("a",)),
        ]
    )
    assert said.clients == (1,) and said.locations == ("a",)


def test_the_highest_grade_comes_first_and_the_result_is_json():
    import json

    case = [RunEvidence(run(loss=falling() + 0.3 + k / 100), run(loss=falling()), seed=k) for k in range(3)]
    said = diagnose(case)
    assert said[0].failure == "loss gap" and said[0].grade == "confirmed"
    assert json.loads(json.dumps(diagnoses_to_json(said), allow_nan=False))[0]["findings"][0]["failure"] == "loss gap"


def test_an_infinite_excess_is_excluded_from_the_interval():
    assert math.isnan(paired_excess([make_one(math.inf)], 0.95, 0.8)[0])


def test_the_smallest_detectable_effect_is_a_whole_count_or_a_ratio():
    assert format_effect(0.5, "occurrences") == "1 occurrence" and format_effect(1.5, "updates") == "2 updates"
    assert format_effect(math.log(1.5), "log ratio to the baseline") == "1.5 times the baseline"
    assert format_effect(0.05, "nats per token") == "0.05 nats per token" and format_effect(math.nan, "updates") == "nan updates"


def make_occurrence(base: bool | None) -> Finding:
    """Return a positive finding of an event, with its IID baseline or without one."""
    value = math.nan if base is None else float(base)
    return Finding("trouble", "suspected", "it happened", 1.0, value, 0.5, "event", is_positive=True, in_baseline=base, is_event=True)


@pytest.mark.parametrize("pairs", [1, 2, 3])
@pytest.mark.parametrize("is_event", [False, True])
def test_a_confirmation_needs_three_seeds_with_a_baseline(pairs, is_event):
    """Eight seeds show the failure, but few of them have a baseline that could show it too."""
    with_pair, alone = (
        (make_occurrence(False), make_occurrence(None)) if is_event else (make_one(), make_one(base=math.nan, in_baseline=None))
    )
    said = combine_seeds([with_pair] * pairs + [alone] * (8 - pairs))
    assert (said.grade, said.cause) == ("confirmed" if pairs == 3 else "suspected", "heterogeneity")
    assert ("A confirmation requires 3 seeds with an IID baseline." in said.sentence) == (pairs < 3)


def test_most_of_the_pairs_must_show_the_failure():
    """Five seeds without a baseline show it, and one of the three that have one."""
    assert (
        grade(make_occurrence(False), *[replace(make_occurrence(False), is_positive=False)] * 2, *[make_occurrence(None)] * 5)
        == "suspected"
    )
