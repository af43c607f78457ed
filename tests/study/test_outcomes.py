"""Outcomes of a run, by hand."""

from __future__ import annotations

import math

import pytest

from fedrift.detectors.curves import swing
from fedrift.detectors.divergence import READ
from fedrift.errors import UserError
from fedrift.records import Record, Trajectory
from fedrift.study import Study
from fedrift.study.outcomes import diverged, needed, outcome


def run(loss, **domains) -> Trajectory:
    rows = [Record(round, "loss", domain, -1, value) for domain, values in {"": loss, **domains}.items()
            for round, value in enumerate(values)]
    return Trajectory(tuple(rows))


def test_the_end_is_the_mean_of_the_last_five_and_nan_stays_nan():
    assert outcome("loss", run([9, 5, 4, 3, 2, 1])) == 3
    assert math.isnan(outcome("loss", run([9, 5, 4, 3, math.nan, 1])))
    assert math.isnan(outcome("bits", run([1, 2])))


def test_moments_domains_and_clients():
    one = run([4, 2, 3], sport=[6, 7, 8])
    assert outcome("loss:max", one) == 3 and outcome("loss:mean", one) == 2.5  # round 0 is not trained
    assert outcome("loss:max", run([4])) == 4
    assert outcome("loss:last", one) == 3
    assert outcome("loss@sport", one) == 7.5  # round 0 is no end
    assert outcome("loss@sport", run([4], sport=[6])) == 6
    clients = Trajectory(tuple(Record(round, "update.cosine", "", client, value) for round, client, value in [
        (1, 0, 0.2), (1, 1, 0.4), (2, 2, 0.6)]))
    assert outcome("update.cosine", clients) == pytest.approx(0.45)  # the mean of .3 and .6
    with pytest.raises(UserError, match="there are mean, max, min, last"):
        outcome("loss:median", one)


def test_a_gap_is_over_the_evaluations_that_both_have():
    ours, twin = run([5, 4, 3], sport=[5, 5, 5], tech=[1, 1, 1]), run([5, 4], sport=[4, 4], tech=[2, 2])
    assert outcome("gap", ours, twin) == 0
    assert outcome("gap.worst", ours, twin) == 1
    assert math.isnan(outcome("gap", ours))


def test_the_oscillation_index_is_upward_moves_by_descent():
    assert outcome("oscillation", run([10, 8, 6, 5, 4, 3, 2, 1, 0.5, 0])) == 0
    assert outcome("oscillation", run([10, 5, 4, 5, 4, 5, 4, 5, 4, 5])) == pytest.approx(3 / 6)  # from round 3 on
    assert math.isnan(outcome("oscillation", run([1, 2, 3])))


def test_movement_counts_a_fall_and_a_swing_does_not():
    falls, zigzag = [5, 4, 3, 2, 1, 0], [5, 4, 3, 3.5, 3, 3.5]
    for domain, moved, swung in ((falls, 1.0, 0.0), (zigzag, 0.5, (1.0 - 0.0) / 2)):
        one = run(falls, a=domain)
        assert outcome("movement", one) == outcome("swing", one) == moved  # its name in studies that are stored
        assert swing(one, one.rounds) == pytest.approx(swung)
    assert "movement" in Study("s", {}).outcomes and "movement" not in needed(["movement", "swing"])


def test_rounds_to_a_loss_are_infinite_where_it_is_not_reached():
    assert outcome("rounds.to:4", run([5, 4.5, 4, 3])) == 2
    assert outcome("rounds.to:1", run([5, 4])) == math.inf
    with pytest.raises(UserError, match="wants a loss"):
        outcome("rounds.to:low", run([5]))


def test_divergence_is_a_loss_that_is_no_number_or_runs_away():
    assert diverged(run([4, math.nan]))
    assert diverged(run([4, math.inf, 4]))
    assert diverged(run([4, 3, 9, 9, 9]))
    assert not diverged(run([4, 3, 9, 9, 4]))
    assert not diverged(run([4, 3.9, 4.1]))


def test_a_dead_model_counts_as_diverged_though_its_loss_is_low():
    level = math.log(64)
    assert diverged(Trajectory((*run([5.0, level, level]).records, Record(0, "loss.uniform", "", -1, level))))


def test_only_what_is_needed_is_read():
    assert set(needed(["gap", "rounds.to:4", "update.cosine", "loss@sport:max"])) == {*READ, "loss", "update.cosine"}
