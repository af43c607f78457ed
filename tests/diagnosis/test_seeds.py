"""Findings of several seeds: when suspected becomes confirmed, and whose doing it is."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from fedrift.diagnosis import diagnose
from fedrift.diagnosis.across_seeds import combine_seeds, diagnoses_to_json, paired_excess
from fedrift.diagnosis.finding import Finding, RunEvidence, make_not_measured, single_run_grade

from .runs import falling, run


def one(statistic=2.0, base=0.0, shown: bool | None = False, **more) -> Finding:
    positive = statistic > 1
    grade = single_run_grade(positive)
    return Finding("trouble", grade, "there is trouble", statistic, base, 1.0, "nats", is_positive=positive, in_baseline=shown, **more)


def grade(*every: Finding) -> str:
    return combine_seeds(every).grade


def test_one_or_two_seeds_are_suspected_at_most():
    assert grade(one()) == grade(one(), one(2.1)) == "suspected"
    assert "One seed can only raise a suspicion" in combine_seeds([one()]).sentence


def test_three_positive_seeds_with_calm_twins_confirm():
    said = combine_seeds([one(2.0), one(2.1), one(1.9)])
    assert said.grade == "confirmed" and said.cause == "heterogeneity" and said.low > 0


def test_most_seeds_must_be_positive_each_by_itself():
    assert grade(one(2.0), one(2.1), one(0.9), one(0.8), one(0.7)) == "none"
    assert grade(one(2.0), one(2.1), one(0.9), one(0.8)) == "suspected"


def test_what_the_twins_show_too_is_not_the_skews_doing():
    said = combine_seeds([one(2.0, 1.9, True), one(2.1, 2.0, True), one(2.2, 1.8, True)])
    assert (said.grade, said.cause) == ("suspected", "also in IID baseline") and "shows it too" in said.sentence


def test_without_twins_nothing_is_confirmed_nor_laid_on_the_skew():
    said = combine_seeds([one(base=math.nan, shown=None)] * 3)
    assert (said.grade, said.cause) == ("suspected", "no baseline")


def test_seeds_that_disagree_about_the_excess_confirm_nothing():
    assert grade(one(1.1), one(1.1), one(90.0)) == "suspected"


def test_what_wants_more_evidence_stays_suspected_and_says_what():
    said = combine_seeds([replace(one(2.0 + k / 10), is_confirmable=False, missing_input="a run at noon") for k in range(3)])
    assert said.grade == "suspected" and "a run at noon" in said.sentence


def test_an_event_is_worth_a_word_in_one_seed_and_needs_pairs_that_point_one_way():
    def event(run, twin):
        numbers = float(run), float(twin), 0.5
        grade = single_run_grade(run)
        return Finding("trouble", grade, "it happened", *numbers, "event", is_positive=run, in_baseline=twin, is_event=True)

    assert grade(*[event(True, False)] + [event(False, False)] * 4) == "suspected"
    assert grade(*[event(True, False)] * 2 + [event(False, False)]) == "confirmed"
    assert grade(*[event(True, False)] * 2 + [event(False, True)]) == "suspected"


def test_a_broken_identity_needs_no_twin():
    said = combine_seeds([one(base=math.nan, shown=None, is_implementation_error=True)] * 3)
    assert (said.grade, said.cause) == ("confirmed", "implementation error")


def test_not_measured_is_a_state_of_its_own():
    said = combine_seeds(make_not_measured("trouble", "a thermometer") * 3)
    assert said.grade == "not measured" and "a thermometer" in said.sentence and said.num_seeds == 0


def test_none_says_the_smallest_effect_that_would_have_been_called():
    tight, loose = combine_seeds([one(0.1), one(0.11), one(0.09)]), combine_seeds([one(0.1), one(0.9), one(-0.9)])
    assert tight.grade == loose.grade == "none"
    assert tight.detectable_effect == 1.0 and loose.detectable_effect > 1.0 and "would not have been detected" in loose.sentence


def test_the_interval_is_the_paired_t_interval():
    mean, low, high, least = paired_excess([one(1.0), one(2.0), one(3.0)], 0.95, 0.8)
    half = 4.302653 / math.sqrt(3)  # t(.975, 2) times the standard error
    assert (mean, low, high) == pytest.approx((2.0, 2 - half, 2 + half))
    assert least == pytest.approx((4.302653 + 1.060660) / math.sqrt(3))


def test_placebo_twins_of_noise_confirm_in_less_than_five_per_cent():
    draw = np.random.default_rng(0)
    confirmed = [grade(*(one(1 + draw.normal(), 1 + draw.normal()) for _ in range(5))) == "confirmed" for _ in range(300)]
    assert np.mean(confirmed) < 0.05


def test_clients_and_places_are_those_of_most_seeds():
    said = combine_seeds(
        [one(2.0, clients=(1, 2), locations=("a",)), one(2.1, clients=(1,), locations=("b",)), one(1.9, clients=(1, 3), locations=("a",))]
    )
    assert said.clients == (1,) and said.locations == ("a",)


def test_the_gravest_comes_first_and_all_of_it_is_json():
    import json

    case = [RunEvidence(run(loss=falling() + 0.3 + k / 100), run(loss=falling()), seed=k) for k in range(3)]
    said = diagnose(case)
    assert said[0].failure == "loss gap" and said[0].grade == "confirmed"
    assert json.loads(json.dumps(diagnoses_to_json(said), allow_nan=False))[0]["findings"][0]["failure"] == "loss gap"


def test_an_interval_of_an_excess_that_is_infinite_leaves_it_out():
    assert math.isnan(paired_excess([one(math.inf)], 0.95, 0.8)[0])
