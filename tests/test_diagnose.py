"""Test the verdict on a run with trajectories of given values."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedrift.core.records import Record, Trajectory
from fedrift.diagnosis import judge_run

NAN = float("nan")


def trajectory(loss, rounds=None, **domains) -> Trajectory:
    """Return a run with these global and per-domain losses."""
    rounds = range(len(loss)) if rounds is None else rounds
    records = [Record(round, "loss", "", -1, float(value)) for round, value in zip(rounds, loss, strict=True)]
    for domain, curve in domains.items():
        records += [Record(round, "loss", domain, -1, float(value)) for round, value in zip(rounds, curve, strict=True)]
    return Trajectory(records)


def falling_losses(rounds=20, end=4.5):
    return np.linspace(5.0, end, rounds)


def test_a_run_equal_to_its_baseline_has_no_finding():
    judged = judge_run(trajectory(falling_losses(), sport=falling_losses()), trajectory(falling_losses(), sport=falling_losses()))
    assert judged.grade == "none" and not judged.reasons
    assert judged.sentence.startswith(
        "The final perplexity is 94.9, as high as the matched IID baseline's (+0.0 %; +0.000 nats per token)."
    )
    assert "No failure was found beyond the IID baseline." in judged.sentence
    assert "0.05 nats per token" in judged.sentence and "single seed" in judged.sentence


def test_the_final_loss_is_the_mean_of_the_last_five():
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


def test_round_0_does_not_count_for_the_final_loss_of_a_short_run():
    run, baseline = trajectory([5.0, 4.5, 4.0]), trajectory([5.0, 4.3, 3.8])
    judged = judge_run(run, baseline)
    assert judged.final_loss == pytest.approx(4.25) and judged.gap_to_iid == pytest.approx(0.2)
    assert judge_run(trajectory([5.0]), trajectory([4.9])).gap_to_iid == pytest.approx(0.1)  # the only evaluation


def test_the_gap_is_in_nats_and_in_per_cent_of_perplexity():
    judged = judge_run(trajectory(falling_losses() + 0.2), trajectory(falling_losses()))
    assert judged.gap_to_iid == pytest.approx(0.2)
    assert judged.perplexity_gap_percent == pytest.approx(100 * (math.exp(0.2) - 1))
    assert judged.grade == "suspected"
    assert "0.200 nats per token above the IID baseline's (+22.1 % perplexity)" in judged.sentence
    assert "not confirm" in judged.sentence


def test_an_unfinished_run_is_compared_with_the_same_rounds_of_its_baseline():
    judged = judge_run(trajectory(falling_losses(20)[:8]), trajectory(falling_losses(20)))
    assert judged.gap_to_iid == pytest.approx(0) and judged.grade == "none"


def test_the_gap_is_between_the_means_of_the_last_five_shared_evaluations():
    baseline = np.full(8, 4.0)
    run = baseline + [0, 0, 0, 0.01, 0.02, 0.03, 0.04, 0.4]
    assert judge_run(trajectory(run), trajectory(baseline)).gap_to_iid == pytest.approx(0.1)


def test_a_run_better_than_its_baseline_has_no_finding():
    judged = judge_run(trajectory(falling_losses() - 0.2), trajectory(falling_losses()))
    assert judged.grade == "none" and "77.7, 17.2 below the matched IID baseline's 94.9 (-18.1 %; -0.200 nats per token)" in judged.sentence


def test_the_worst_domain_has_the_largest_gap_and_not_the_highest_loss():
    run = trajectory(falling_losses(), hard=falling_losses() + 2, sport=falling_losses() + 0.15)
    baseline = trajectory(falling_losses(), hard=falling_losses() + 2, sport=falling_losses())
    judged = judge_run(run, baseline)
    assert judged.worst_domain == "sport" and judged.worst_domain_gap == pytest.approx(0.15)
    assert judged.reasons == ("the final loss on sport is 0.150 nats per token above the IID baseline's",)


def test_without_a_baseline_the_verdict_states_no_effect_of_heterogeneity():
    judged = judge_run(trajectory(falling_losses(), hard=falling_losses() + 2, sport=falling_losses()))
    assert judged.worst_domain == "hard" and math.isnan(judged.worst_domain_gap) and math.isnan(judged.gap_to_iid)
    assert judged.grade == "none" and "Without an IID baseline" in judged.sentence


def test_variability_is_the_mean_change_of_the_domains_minus_the_net_change():
    still = np.full(10, 4.0)
    late = np.array([4.0] * 5 + [4.0, 4.1, 4.0, 4.1, 4.0])
    early = np.array([4.0, 4.9, 4.0, 4.9, 4.0] + [4.0] * 5)
    baseline = trajectory(still, a=4 + (late - 4) / 4, b=4 + (early - 4) / 4)
    judged = judge_run(trajectory(still, a=late, b=early), baseline)
    assert judged.domain_variability == pytest.approx(0.05)
    assert judged.domain_variability_ratio == pytest.approx(4)
    assert judged.reasons == ("domain losses fluctuate 4.0 times as much as in the IID baseline",)


def test_a_small_variability_in_nats_is_not_a_finding_at_any_ratio():
    zigzag = np.array([4.0, 4.001] * 5)
    judged = judge_run(trajectory(zigzag, a=zigzag), trajectory(zigzag, a=(zigzag - 4) / 10 + 4))
    assert judged.domain_variability_ratio == pytest.approx(10) and judged.grade == "none"


def test_variability_is_measured_on_the_same_rounds_of_both_runs():
    zigzag = np.array([4.0, 4.1] * 5 + [4.0] * 10)
    judged = judge_run(trajectory(zigzag[:10], a=zigzag[:10]), trajectory(zigzag, a=zigzag))
    assert judged.domain_variability_ratio == pytest.approx(1)


@pytest.mark.parametrize("odd", [NAN, float("inf")])
def test_a_non_finite_loss_is_divergence_at_any_length(odd):
    judged = judge_run(trajectory([5.0, odd]), trajectory([5.0, 4.9]))
    assert judged.has_diverged and judged.grade == "suspected"
    assert "not a finite number in round 1" in judged.sentence


def test_an_infinity_in_one_client_is_divergence():
    run = trajectory(falling_losses())
    judged = judge_run(Trajectory([*run.records, Record(3, "train.loss", "", 2, float("inf"))]))
    assert judged.has_diverged and "client 2" in judged.sentence


def test_an_absent_client_is_not_divergence():
    run = trajectory(falling_losses())
    assert not judge_run(Trajectory([*run.records, Record(3, "train.loss", "", 2, NAN)])).has_diverged


def test_a_failed_client_is_reported():
    run = trajectory(falling_losses())
    failed = [Record(3, "failed", "", 0, 0.0), Record(4, "failed", "", 2, 1.0)]
    judged = judge_run(Trajectory([*run.records, *failed]), run)
    assert judged.reasons == ("client 2 failed, first in round 4",) and not judged.has_diverged


@pytest.mark.parametrize(
    ("loss", "diverged"),
    [
        ([4, 3, 2, 7, 7, 7], True),  # above 1.5 * 4 and 2 + ln 4 for three rounds
        ([4, 3, 2, 7, 7, 2], False),  # for two rounds only
        ([4, 3, 2, 7, 7, 2, 7, 7], False),  # not in succession
        ([4, 3, 2, 5.9, 5.9, 5.9], False),  # below 1.5 times the start
        ([1, 0.9, 0.8, 2, 2, 2], False),  # above 1.5 times the start, not ln 4 above the lowest
    ],
)
def test_divergence_is_a_loss_above_both_limits_for_three_rounds(loss, diverged):
    assert judge_run(trajectory(loss)).has_diverged is diverged


def test_divergence_is_dated_to_its_first_round():
    assert "the loss diverges from round 30 on" in judge_run(trajectory([4, 3, 2, 7, 7, 7], range(0, 60, 10))).sentence


def test_a_very_short_run_has_no_verdict():
    judged = judge_run(trajectory([5.0, 5.0]), trajectory([5.0, 4.0]))
    assert judged.grade == "none" and "Too early to judge" in judged.sentence


def test_the_verdict_on_an_empty_run_states_that_there_are_no_records():
    judged = judge_run(Trajectory([]))
    assert judged.grade == "none" and math.isnan(judged.final_loss) and "nothing to judge" in judged.sentence


def test_a_baseline_without_records_is_ignored():
    judged = judge_run(trajectory(falling_losses(), sport=falling_losses()), Trajectory([]))
    assert math.isnan(judged.gap_to_iid) and math.isnan(judged.perplexity_gap_percent)
    assert "Without an IID baseline" in judged.sentence


def test_the_sentence_starts_with_perplexity_and_gap():
    noise = np.tile([0.4, -0.4, -0.2, 0.2], 5)
    judged = judge_run(trajectory(falling_losses(20, 4.3) + noise + 0.07), trajectory(falling_losses(20, 4.3)))
    assert judged.grade == "none" and abs(judged.gap_to_iid) > 0.05
    assert judged.sentence.startswith("The final perplexity is ")
    assert "above the matched IID baseline's" in judged.sentence and f"{judged.gap_to_iid:+.3f} nats per token" in judged.sentence


def test_a_run_that_ends_above_the_untrained_model_states_this_first():
    judged = judge_run(trajectory([4.0] + [4.008] * 8), trajectory([4.0] + [3.9] * 8))
    assert judged.sentence.startswith("The run ends above the untrained model: perplexity 55.0 after training, 54.6 before.")
    assert "5.6 above the matched IID baseline's 49.4 (+11.4 %; +0.108 nats per token)" in judged.sentence
    assert "above the untrained" not in judge_run(trajectory([4.0] + [3.98] * 8)).sentence


def test_the_sentence_states_which_of_the_two_runs_diverged():
    calm, wild = trajectory(falling_losses(6)), trajectory([5.0, 4.0, 4.0, 9.0, 9.0, 9.0])
    assert ". Both runs diverged. The final perplexity is" in judge_run(wild, wild).sentence
    assert "The matched IID baseline diverged, and this run did not." in judge_run(calm, wild).sentence
    assert "diverged." not in judge_run(wild, calm).sentence and judge_run(wild, calm).sentence.startswith("Training failed: ")
    lost = trajectory([5.0, 4.0, 4.0, NAN, NAN, NAN])
    assert "Both runs diverged. The final perplexity is not finite." in judge_run(lost, lost).sentence
    assert "IID baseline's is not finite because that run diverged" in judge_run(calm, lost).sentence
    huge = judge_run(trajectory([5.0, 800.0, 800.0, 800.0, 800.0, 800.0]), calm).sentence
    assert "more than 1e+300, more than 1e+300 above" in huge and "more than +10,000 %" in huge
