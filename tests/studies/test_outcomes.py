"""Test the outcomes of a run against values computed by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from fedrift.core.errors import UserError
from fedrift.core.records import Record, Trajectory
from fedrift.diagnosis.failures import DIVERGENCE_METRICS
from fedrift.diagnosis.finding import domain_variability
from fedrift.studies import Study, evaluate_study_hypotheses
from fedrift.studies.outcomes import has_diverged, list_recorded_metrics, summarize_metric
from tests.report.stored_study import make_study


def run(loss, **domains) -> Trajectory:
    rows = [
        Record(round, "loss", domain, -1, value) for domain, values in {"": loss, **domains}.items() for round, value in enumerate(values)
    ]
    return Trajectory(tuple(rows))


def test_the_final_value_is_the_mean_of_the_last_five_and_nan_stays_nan():
    assert summarize_metric("loss", run([9, 5, 4, 3, 2, 1])) == 3
    assert math.isnan(summarize_metric("loss", run([9, 5, 4, 3, math.nan, 1])))
    assert math.isnan(summarize_metric("bits", run([1, 2])))


def test_values_of_domains_and_clients_are_summarized():
    one = run([4, 2, 3], sport=[6, 7, 8])
    assert summarize_metric("loss:max", one) == 3 and summarize_metric("loss:mean", one) == 2.5  # round 0 is before training
    assert summarize_metric("loss:max", run([4])) == 4
    assert summarize_metric("loss:last", one) == 3
    assert summarize_metric("loss@sport", one) == 7.5  # round 0 does not count for the final value
    assert summarize_metric("loss@sport", run([4], sport=[6])) == 6
    clients = Trajectory(
        tuple(Record(round, "update.cosine", "", client, value) for round, client, value in [(1, 0, 0.2), (1, 1, 0.4), (2, 2, 0.6)])
    )
    assert summarize_metric("update.cosine", clients) == pytest.approx(0.45)  # the mean of .3 and .6
    with pytest.raises(UserError, match="use mean, max, min, last"):
        summarize_metric("loss:median", one)


def test_a_gap_uses_the_evaluations_of_both_runs():
    ours, iid_baseline = run([5, 4, 3], sport=[5, 5, 5], tech=[1, 1, 1]), run([5, 4], sport=[4, 4], tech=[2, 2])
    assert summarize_metric("gap", ours, iid_baseline) == 0
    assert summarize_metric("gap.worst", ours, iid_baseline) == 1
    assert math.isnan(summarize_metric("gap", ours))


def test_the_oscillation_index_is_the_rise_divided_by_the_descent():
    assert summarize_metric("oscillation", run([10, 8, 6, 5, 4, 3, 2, 1, 0.5, 0])) == 0
    assert summarize_metric("oscillation", run([10, 5, 4, 5, 4, 5, 4, 5, 4, 5])) == pytest.approx(3 / 6)  # starting at round 3
    assert math.isnan(summarize_metric("oscillation", run([1, 2, 3])))


def test_movement_includes_net_change_and_variability_does_not():
    falls, zigzag = [5, 4, 3, 2, 1, 0], [5, 4, 3, 3.5, 3, 3.5]
    for domain, moved, swung in ((falls, 1.0, 0.0), (zigzag, 0.5, (1.0 - 0.0) / 2)):
        one = run(falls, a=domain)
        assert summarize_metric("movement", one) == moved
        assert domain_variability(one, one.rounds) == pytest.approx(swung)
    assert "movement" in Study("s", {}).metrics and "movement" not in list_recorded_metrics(["movement"])


def test_rounds_to_a_loss_are_infinite_if_it_is_not_reached():
    assert summarize_metric("rounds.to:4", run([5, 4.5, 4, 3])) == 2
    assert summarize_metric("rounds.to:1", run([5, 4])) == math.inf
    with pytest.raises(UserError, match="needs a loss"):
        summarize_metric("rounds.to:low", run([5]))


def test_divergence_is_a_non_finite_or_strongly_rising_loss():
    assert has_diverged(run([4, math.nan]))
    assert has_diverged(run([4, math.inf, 4]))
    assert has_diverged(run([4, 3, 9, 9, 9]))
    assert not has_diverged(run([4, 3, 9, 9, 4]))
    assert not has_diverged(run([4, 3.9, 4.1]))


def test_a_dead_model_counts_as_diverged_although_its_loss_is_low():
    level = math.log(64)
    assert has_diverged(Trajectory((*run([5.0, level, level]).records, Record(0, "loss.uniform", "", -1, level))))


def test_only_required_records_are_read():
    assert set(list_recorded_metrics(["gap", "rounds.to:4", "update.cosine", "loss@sport:max"])) == {
        *DIVERGENCE_METRICS,
        "loss",
        "update.cosine",
    }


def test_start_gain_and_the_share_of_the_gain_that_is_missing():
    ours, baseline = run([5, 4.6, 4.6, 4.6, 4.6, 4.6]), run([5, 4.5, 4.5, 4.5, 4.5, 4.5])
    assert summarize_metric("start", ours, baseline) == 5
    assert summarize_metric("gain", ours, baseline) == pytest.approx(0.4)
    assert summarize_metric("baseline.gain", ours, baseline) == pytest.approx(0.5)
    assert summarize_metric("gap.relative", ours, baseline) == pytest.approx(0.2)
    assert summarize_metric("gap.relative", run([5, 5.25]), run([5, 4.5])) == pytest.approx(1.5)  # it ends above its initial loss
    assert math.isnan(summarize_metric("gap.relative", ours)) and math.isnan(summarize_metric("baseline.gain", ours))
    assert math.isnan(summarize_metric("gap.relative", ours, run([5, 5])))
    assert summarize_metric("baseline.gain", ours, run([5, math.nan])) == -math.inf
    late = Trajectory((Record(1, "loss", "", -1, 4.0),))
    assert math.isnan(summarize_metric("start", late)) and math.isnan(summarize_metric("gain", late))


def federation(losses, took_part) -> Trajectory:
    """Return the clients' losses in each round and the participants."""
    rows = [Record(round, "loss", "", client, value) for round, values in enumerate(losses) for client, value in enumerate(values)]
    rows += [Record(round, "train.loss", "", client, 4.0) for round, clients in enumerate(took_part) for client in clients]
    return Trajectory(tuple(rows))


def test_the_loss_of_an_absent_client_increases():
    away = federation([[4, 4]] * 3 + [[3.9, 4.1], [4.1, 3.9]] * 3, [[], [1], [0]] + [[0], [1]] * 3)
    assert summarize_metric("absence", away) == pytest.approx(0.2)
    assert summarize_metric("baseline.absence", run([4, 3]), away) == pytest.approx(0.2)
    level = federation([[4, 5]] * 10, [[]] + [[0], [1], [0]] + [[1], [0]] * 3)  # one text has a higher loss, but no client falls behind
    assert summarize_metric("absence", level) == pytest.approx(0.0)
    assert math.isnan(summarize_metric("absence", federation([[4, 5]] * 4, [[]] + [[0, 1]] * 3)))
    assert math.isnan(summarize_metric("absence", run([4, 3])))
    assert "train.loss" in list_recorded_metrics(["absence"])


def test_the_mean_of_the_own_losses_of_clients_is_computed():
    assert summarize_metric("loss.clients", federation([[9, 9], [4, 6], [3, 5]], [[], [0], [1]])) == 4.5
    assert math.isnan(summarize_metric("loss.clients", run([4, 3])))


def test_a_run_that_two_stages_share_has_its_baseline_in_both(tmp_path):
    """Only FedAvg is in the second stage, which has no IID baselines; its gap must count in a mean over both algorithms."""
    hypotheses = [{"type": "Greater", "name": "H", "metric": "gap"}]
    manifest = make_study(tmp_path, seeds=6, severities=(1.0,), hypotheses=hypotheses)
    _, (whole,) = evaluate_study_hypotheses(manifest)
    content = manifest.read()
    shared = [entry for entry in content["runs"] if entry.role == "run" and entry.factors["algorithm"] == "FedAvg"]
    manifest.write({**content, "runs": [*content["runs"], *(replace(entry, stage="second", iid_baseline="") for entry in shared)]})
    frame, (found,) = evaluate_study_hypotheses(manifest)
    assert (found.effect, found.seeds, found.verdict) == (pytest.approx(whole.effect), 6, "supported")
    assert frame.loc[frame["stage"] == "second", "gap"].notna().all()


def test_a_stored_study_with_an_unknown_metric_is_reported(tmp_path):
    """The hypothesis of a study that exists is not refused; it has no result, although runs diverged."""
    manifest = make_study(tmp_path, seeds=6, severities=(1.0,), algorithms=("FedAvg",), more={"training.client_optimizer.lr": [1.0, 100.0]})
    content = manifest.read()
    said = {**content["study"]["hypotheses"][0], "metric": "gapp", "group": {"training.client_optimizer.lr": 100.0}, "contrast": "none"}
    manifest.write({**content, "study": {**content["study"], "hypotheses": [said]}})
    frame, (found,) = evaluate_study_hypotheses(manifest)
    assert frame["diverged"].any() and found.verdict == "inconclusive" and math.isnan(found.effect)
    assert "no run that ended without diverging has a value of 'gapp'" in found.sentence
