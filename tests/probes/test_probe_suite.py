"""Test the probe suite: which probes run in which round, derived metrics, and the overhead budget in tokens."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedrift.algorithms import FedAvg
from fedrift.core.records import Record
from fedrift.probes.base import (
    DerivedMetric,
    MetricHistory,
    ProbeSuite,
    ScheduledProbe,
    choose_interval,
    federation_value,
    is_due,
    overhead_share,
    overhead_summary,
    overhead_warning,
)
from tests.quadratics import clients, train


def rounds(until: int = 12):
    return train(FedAvg(), clients((1, 4, 2), (0, 1, 3)), until=until)


def seen(when, last: int = 12, deep: int = 5) -> list[int]:
    return [now for now in range(1, last + 1) if is_due(when, now, last, deep)]


def test_every_probe_runs_in_its_rounds_and_in_the_last_one():
    assert seen(1) == list(range(1, 13))
    assert seen(5) == seen("expensive") == [5, 10, 12]
    assert seen("first_and_last") == [1, 12]
    assert seen("last") == [12]


def test_a_probe_of_states_runs_before_the_first_round():
    class StateProbe:
        def __call__(self, done):
            return {"a": float(done.after.round)}

        def evaluate_state(self, state):
            return {"a": float(state.round)}

    def round_probe(done):
        return {"b": 1.0}

    panel = ProbeSuite(
        (ScheduledProbe("a", StateProbe(), 5), ScheduledProbe("b", round_probe), ScheduledProbe("c", StateProbe(), "last")), last_round=12
    )
    done = rounds()
    reading, seconds = panel.evaluate_initial(done[0].before, MetricHistory())
    assert reading == {"a": 0.0}
    assert list(seconds) == ["a"]
    assert [sorted(panel(each, MetricHistory())[0]) for each in done[3:5]] == [["b"], ["a", "b"]]


def test_derived_metrics_use_the_history_and_the_current_values():
    def total(reading, past):
        return {"path": past.total.get(("x", ""), 0.0) + federation_value(reading, "x")}

    panel = ProbeSuite((ScheduledProbe("x", lambda done: {"x": torch.tensor(2.0)}), DerivedMetric("path", total)), last_round=3)
    past, paths = MetricHistory(), []
    for each in rounds(3):
        reading, _ = panel(each, past)
        paths.append(reading["path"])
        past.add_records([Record(each.after.round, "x", "", -1, float(reading["x"]))])
    assert paths == [2.0, 4.0, 6.0]


def test_the_history_keeps_sum_minimum_and_last_value_of_the_federation():
    past = MetricHistory()
    past.add_records(
        [
            Record(1, "loss", "sport", -1, 3.0),
            Record(1, "loss", "", 2, 99.0),
            Record(2, "loss", "sport", -1, 1.0),
            Record(3, "loss", "sport", -1, math.nan),
            Record(4, "loss", "sport", -1, 2.0),
        ]
    )
    assert past.total == {("loss", "sport"): 6.0}
    assert (past.lowest, past.latest) == ({("loss", "sport"): 1.0}, {("loss", "sport"): 2.0})


def nothing(done):
    return {}


def test_the_overhead_of_a_probe_is_its_share_of_all_tokens():
    assert overhead_share(
        [ScheduledProbe("a", nothing, 1, 300.0)], train_tokens=100.0, last_round=10, expensive_interval=5
    ) == pytest.approx(0.5)
    assert overhead_share([ScheduledProbe("a", nothing, "expensive", 300.0)], 100.0, 10, 5) == pytest.approx(600 / 3600)


def test_expensive_probes_run_less_often_until_the_budget_holds():
    look = ScheduledProbe("a", nothing, "expensive", 3000.0)
    assert choose_interval([look], train_tokens=1000.0, last_round=100, max_overhead=0.2) == 5
    assert choose_interval([look], train_tokens=100.0, last_round=100, max_overhead=0.2) == 50
    assert overhead_share([look], 100.0, 100, 50) <= 0.2 < overhead_share([look], 100.0, 100, 20)
    assert choose_interval([look], train_tokens=1e-3, last_round=100, max_overhead=0.2) == 100


@given(st.floats(1, 1e6), st.integers(1, 400), st.floats(0.01, 0.9))
def test_the_chosen_interval_keeps_the_budget_or_is_the_longest(tokens, last, budget):
    looks = [ScheduledProbe("a", nothing, "expensive", tokens), ScheduledProbe("b", nothing, 1, 10.0)]
    every = choose_interval(looks, 1000.0, last, budget)
    assert overhead_share(looks, 1000.0, last, every) <= budget or every == max(last, 1) or every >= last


def test_seconds_are_reported_per_probe_and_an_exceeded_budget_has_a_warning():
    panel = ProbeSuite(
        (ScheduledProbe("losses", nothing), ScheduledProbe("hidden", nothing, "expensive")),
        last_round=10,
        expensive_interval=5,
        max_overhead=0.2,
    )
    rows = [{"round": 1, "train": 8.0, "evaluate": 3.0, "probe.losses": 1.0, "probe.hidden": 2.0}]
    said = overhead_summary(rows, panel)
    assert said["share"] == pytest.approx(3 / 11)
    assert list(said["seconds"]) == ["hidden", "losses"]
    assert overhead_warning(said, 8.0, panel) == (
        "the probes took 27 % of the run's time, which exceeds the budget of 20 %; the slowest probe, hidden, took 67 % "
        "of the probe time; evaluation.expensive_interval=10 would reduce the share to 20 %"
    )
    assert overhead_warning(overhead_summary([{"train": 90.0, "evaluate": 10.0, "probe.losses": 10.0}], panel), 90.0, panel) == ""
    assert "evaluation.interval" in overhead_warning(
        overhead_summary([{"train": 5.0, "evaluate": 5.0, "probe.losses": 5.0}], panel), 5.0, panel
    )


def test_a_missing_number_is_nan():
    reading = {("loss", ""): torch.tensor(2.0), "step": 1.0, "loss": torch.zeros(3)}
    assert (federation_value(reading, "loss"), federation_value(reading, "step")) == (2.0, 1.0)
    assert math.isnan(federation_value(reading, "loss", "sport"))
    assert math.isnan(federation_value(reading, "turn"))
