"""Verdicts over trajectories built by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedrift.core.records import Record, Trajectory
from fedrift.diagnosis import judge_run

NAN = float("nan")


def trajectory(loss, rounds=None, **domains) -> Trajectory:
    """A run with these global and per-domain losses."""
    rounds = range(len(loss)) if rounds is None else rounds
    records = [Record(round, "loss", "", -1, float(value)) for round, value in zip(rounds, loss, strict=True)]
    for domain, curve in domains.items():
        records += [Record(round, "loss", domain, -1, float(value)) for round, value in zip(rounds, curve, strict=True)]
    return Trajectory(records)


def falling_losses(rounds=20, end=4.5):
    return np.linspace(5.0, end, rounds)


def test_a_run_like_its_twin_is_an_ordinary_finding_of_nothing():
    judged = judge_run(trajectory(falling_losses(), sport=falling_losses()), trajectory(falling_losses(), sport=falling_losses()))
    assert judged.grade == "none" and not judged.reasons
    assert judged.sentence.startswith("The final perplexity is 94.9, as high as the matched IID baseline's (+0.0 %; +0.000 nats).")
    assert "No failure was found beyond the IID baseline." in judged.sentence
    assert "0.05 nats" in judged.sentence and "single seed" in judged.sentence


def test_start_and_end_are_the_first_and_the_mean_of_the_last_five():
    judged = judge_run(trajectory([5.0, 4.9, 4.0, 4.1, 4.2, 4.3, 4.4]))
    assert judged.initial_loss == 5.0 and judged.final_loss == pytest.approx(4.2) and judged.num_evaluations == 7


def test_rounds_without_an_evaluation_do_not_count():
    run = Trajectory(
        [
            *trajectory([5.0, 4.5, 4.0], rounds=[0, 5, 10]).records,
            *(Record(round, "update.consensus", "", -1, 0.5) for round in range(1, 11)),
        ]
    )
    judged = judge_run(run)
    assert judged.num_evaluations == 3 and judged.final_loss == pytest.approx(4.25)


def test_round_0_is_no_end_of_a_short_run():
    run, twin = trajectory([5.0, 4.5, 4.0]), trajectory([5.0, 4.3, 3.8])
    judged = judge_run(run, twin)
    assert judged.final_loss == pytest.approx(4.25) and judged.gap_to_iid == pytest.approx(0.2)
    assert judge_run(trajectory([5.0]), trajectory([4.9])).gap_to_iid == pytest.approx(0.1)  # all there is


def test_the_gap_is_in_nats_and_in_per_cent_of_perplexity():
    judged = judge_run(trajectory(falling_losses() + 0.2), trajectory(falling_losses()))
    assert judged.gap_to_iid == pytest.approx(0.2)
    assert judged.perplexity_gap_percent == pytest.approx(100 * (math.exp(0.2) - 1))
    assert judged.grade == "suspected"
    assert "0.200 nats above the IID baseline's (+22.1% perplexity)" in judged.sentence
    assert "not confirm" in judged.sentence


def test_an_unfinished_run_is_held_against_the_same_rounds_of_its_twin():
    judged = judge_run(trajectory(falling_losses(20)[:8]), trajectory(falling_losses(20)))
    assert judged.gap_to_iid == pytest.approx(0) and judged.grade == "none"


def test_the_gap_is_between_the_means_of_the_last_five_shared_evaluations():
    twin = np.full(8, 4.0)
    run = twin + [0, 0, 0, 0.01, 0.02, 0.03, 0.04, 0.4]
    assert judge_run(trajectory(run), trajectory(twin)).gap_to_iid == pytest.approx(0.1)


def test_a_better_run_than_the_twin_is_no_finding():
    judged = judge_run(trajectory(falling_losses() - 0.2), trajectory(falling_losses()))
    assert judged.grade == "none" and "77.7, 17.2 below the matched IID baseline's 94.9 (-18.1 %; -0.200 nats)" in judged.sentence


def test_the_worst_domain_is_the_one_that_lost_most_against_the_twin_and_not_the_hardest():
    run = trajectory(falling_losses(), hard=falling_losses() + 2, sport=falling_losses() + 0.15)
    twin = trajectory(falling_losses(), hard=falling_losses() + 2, sport=falling_losses())
    judged = judge_run(run, twin)
    assert judged.worst_domain == "sport" and judged.worst_domain_gap == pytest.approx(0.15)
    assert judged.reasons == ("the final loss on sport is 0.150 nats above the IID baseline's",)


def test_without_a_twin_the_hardest_domain_is_named_and_nothing_is_claimed_about_the_skew():
    judged = judge_run(trajectory(falling_losses(), hard=falling_losses() + 2, sport=falling_losses()))
    assert judged.worst_domain == "hard" and math.isnan(judged.worst_domain_gap) and math.isnan(judged.gap_to_iid)
    assert judged.grade == "none" and "Without an IID baseline" in judged.sentence


def test_swing_is_the_mean_change_of_the_domains_less_the_net_change_in_the_second_half():
    still = np.full(10, 4.0)
    late = np.array([4.0] * 5 + [4.0, 4.1, 4.0, 4.1, 4.0])
    early = np.array([4.0, 4.9, 4.0, 4.9, 4.0] + [4.0] * 5)
    twin = trajectory(still, a=4 + (late - 4) / 4, b=4 + (early - 4) / 4)
    judged = judge_run(trajectory(still, a=late, b=early), twin)
    assert judged.domain_variability == pytest.approx(0.05)
    assert judged.domain_variability_ratio == pytest.approx(4)
    assert judged.reasons == ("domain losses fluctuate 4.0 times as much as in the IID baseline",)


def test_a_swing_that_is_tiny_in_nats_is_no_finding_whatever_its_ratio():
    zigzag = np.array([4.0, 4.001] * 5)
    judged = judge_run(trajectory(zigzag, a=zigzag), trajectory(zigzag, a=(zigzag - 4) / 10 + 4))
    assert judged.domain_variability_ratio == pytest.approx(10) and judged.grade == "none"


def test_swing_is_measured_on_the_same_rounds_of_both():
    zigzag = np.array([4.0, 4.1] * 5 + [4.0] * 10)
    judged = judge_run(trajectory(zigzag[:10], a=zigzag[:10]), trajectory(zigzag, a=zigzag))
    assert judged.domain_variability_ratio == pytest.approx(1)


@pytest.mark.parametrize("odd", [NAN, float("inf")])
def test_a_loss_that_is_not_finite_is_divergence_however_short_the_run(odd):
    judged = judge_run(trajectory([5.0, odd]), trajectory([5.0, 4.9]))
    assert judged.has_diverged and judged.grade == "suspected"
    assert "not a finite number in round 1" in judged.sentence


def test_an_infinity_in_one_client_is_divergence():
    run = trajectory(falling_losses())
    judged = judge_run(Trajectory([*run.records, Record(3, "train.loss", "", 2, float("inf"))]))
    assert judged.has_diverged and "client 2" in judged.sentence


def test_a_client_that_sat_out_is_not_divergence():
    run = trajectory(falling_losses())
    assert not judge_run(Trajectory([*run.records, Record(3, "train.loss", "", 2, NAN)])).has_diverged


def test_a_client_that_failed_is_told():
    run = trajectory(falling_losses())
    failed = [Record(3, "failed", "", 0, 0.0), Record(4, "failed", "", 2, 1.0)]
    judged = judge_run(Trajectory([*run.records, *failed]), run)
    assert judged.reasons == ("client 2 failed, first in round 4",) and not judged.has_diverged


@pytest.mark.parametrize(
    ("loss", "diverged"),
    [
        ([4, 3, 2, 7, 7, 7], True),  # above 1.5 * 4 and 2 + ln 4, three times
        ([4, 3, 2, 7, 7, 2], False),  # twice only
        ([4, 3, 2, 7, 7, 2, 7, 7], False),  # not running
        ([4, 3, 2, 5.9, 5.9, 5.9], False),  # below 1.5 times the start
        ([1, 0.9, 0.8, 2, 2, 2], False),  # above 1.5 times the start, not ln 4 above the lowest
    ],
)
def test_a_loss_runs_away_when_it_is_high_by_both_measures_three_times_running(loss, diverged):
    assert judge_run(trajectory(loss)).has_diverged is diverged


def test_a_run_away_is_dated_where_it_begins():
    assert "the loss diverges from round 30 on" in judge_run(trajectory([4, 3, 2, 7, 7, 7], range(0, 60, 10))).sentence


def test_a_run_too_short_is_not_judged():
    judged = judge_run(trajectory([5.0, 5.0]), trajectory([5.0, 4.0]))
    assert judged.grade == "none" and "Too early to judge" in judged.sentence


def test_an_empty_run_says_that_there_is_nothing_to_judge():
    judged = judge_run(Trajectory([]))
    assert judged.grade == "none" and math.isnan(judged.final_loss) and "nothing to judge" in judged.sentence


def test_a_twin_without_records_is_as_good_as_none():
    judged = judge_run(trajectory(falling_losses(), sport=falling_losses()), Trajectory([]))
    assert math.isnan(judged.gap_to_iid) and math.isnan(judged.perplexity_gap_percent)
    assert "Without an IID baseline" in judged.sentence


def test_the_sentence_leads_with_perplexity_and_gap_below_the_noise_limit_too():
    noise = np.tile([0.4, -0.4, -0.2, 0.2], 5)
    judged = judge_run(trajectory(falling_losses(20, 4.3) + noise + 0.07), trajectory(falling_losses(20, 4.3)))
    assert judged.grade == "none" and abs(judged.gap_to_iid) > 0.05
    assert judged.sentence.startswith("The final perplexity is ")
    assert "above the matched IID baseline's" in judged.sentence and f"{judged.gap_to_iid:+.3f} nats" in judged.sentence


def test_a_run_that_ends_above_the_untrained_model_says_so_first():
    judged = judge_run(trajectory([4.0] + [4.008] * 8), trajectory([4.0] + [3.9] * 8))
    assert judged.sentence.startswith("The run ends above the untrained model: perplexity 55.0 after training, 54.6 before.")
    assert "5.6 above the matched IID baseline's 49.4 (+11.4 %; +0.108 nats)" in judged.sentence
    assert "above the untrained" not in judge_run(trajectory([4.0] + [3.98] * 8)).sentence


def test_the_sentence_says_which_of_the_two_runs_diverged():
    calm, wild = trajectory(falling_losses(6)), trajectory([5.0, 4.0, 4.0, 9.0, 9.0, 9.0])
    assert ". Both runs diverged. The final perplexity is" in judge_run(wild, wild).sentence
    assert "The matched IID baseline diverged, and this run did not." in judge_run(calm, wild).sentence
    assert "diverged." not in judge_run(wild, calm).sentence and judge_run(wild, calm).sentence.startswith("Training failed: ")
    lost = trajectory([5.0, 4.0, 4.0, NAN, NAN, NAN])
    assert "Both runs diverged. The final perplexity is not finite." in judge_run(lost, lost).sentence
    assert "IID baseline's is not finite because that run diverged" in judge_run(calm, lost).sentence
    huge = judge_run(trajectory([5.0, 800.0, 800.0, 800.0, 800.0, 800.0]), calm).sentence
    assert "more than 1e+300, more than 1e+300 above" in huge and "more than +10,000 %" in huge
