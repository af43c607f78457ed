"""Test the exploratory outcomes: other ends of a run, single rounds, and clients that are away."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from fedrift.core.errors import UserError
from fedrift.core.records import Record, Trajectory
from fedrift.report import study_outcomes
from fedrift.report.study_data import load_study_data
from tests.report.stored_study import make_study

LOSSES = [6.0, 5.0, 5.5, 4.0, 4.5]  # of the federation, in rounds 0 to 4
OWN = {0: [5.0, 3.0, 3.5, 3.6, 3.8], 1: [7.0, 7.0, 6.0, 6.5, 6.6]}  # client 0 trains in round 1, client 1 in round 2
COHORTS = {1: 0, 2: 1}


def make_run(shift: float = 0.0) -> Trajectory:
    """Return a run of three clients, of which one never takes part, and two domains."""
    records = [Record(number, "loss", "", -1, value + shift) for number, value in enumerate(LOSSES)]
    records += [Record(number, "loss", "", client, value + shift) for client, values in OWN.items() for number, value in enumerate(values)]
    records += [Record(number, "loss", "", 2, 7.0) for number in range(5)]
    records += [Record(number, "train.loss", "", client, 1.0) for number, client in COHORTS.items()]
    for domain, scale in (("a", 1.0), ("b", 2.0), ("c", 10.0)):
        records += [Record(number, "loss", domain, -1, 4.0 + scale * shift) for number in range(1, 5)]
    records += [
        Record(4, "final.loss", "", -1, 4.2 + shift),
        Record(4, "final.loss.own", "", 0, 3.0),
        Record(4, "final.loss.own", "", 1, 5.0),
        Record(4, "final.loss.own", "", 2, 4.0),
    ]
    return Trajectory(records)


def test_the_ends_of_a_run():
    run = make_run()
    assert study_outcomes.end_loss(run, "last") == 4.5 and study_outcomes.end_loss(run, "final") == 4.2
    assert study_outcomes.end_loss(run, "last", is_own=True) == pytest.approx((3.8 + 6.6 + 7.0) / 3)
    assert study_outcomes.end_loss(run, "final", is_own=True) == 4.0
    assert study_outcomes.value_in_round(run, "loss", 2) == 5.5 and math.isnan(study_outcomes.value_in_round(run, "loss", 9))
    assert study_outcomes.value_in_round(run, "loss.clients", 0) == pytest.approx(19 / 3)


def test_a_rise_is_counted_from_the_last_round_of_a_client():
    run = make_run()
    assert study_outcomes.rise_after(run, 1, 1) == pytest.approx((3.5 - 3.0 + 6.5 - 6.0) / 2)
    assert study_outcomes.rise_after(run, 1, 3) == pytest.approx(3.5 - 3.0)  # only client 0 is away for three rounds
    assert study_outcomes.rise_after(run, 3, 1) == pytest.approx(3.8 - 3.0)
    assert math.isnan(study_outcomes.rise_after(run, 4, 1))
    # with one style all clients are absent together, after round 2
    assert [losses.tolist() for losses in study_outcomes.list_absences(run, 1, 1)] == [[3.5, 3.6, 3.8], [6.0, 6.5, 6.6], [7.0] * 3]
    assert len(study_outcomes.list_absences(run, 1)) == 2 and len(study_outcomes.list_absences(run, 3)) == 1


def test_the_worst_client_has_the_largest_mean_of_the_last_five_evaluations():
    assert study_outcomes.worst_client(make_run()) == 7.0
    longer = {client: [9.0] * 5 + values for client, values in OWN.items()}
    run = Trajectory(
        [Record(number, "loss", "", client, value) for client, values in longer.items() for number, value in enumerate(values)]
    )
    assert study_outcomes.worst_client(run) == pytest.approx(np.mean(OWN[1]))  # of ten evaluations the last five
    assert math.isnan(study_outcomes.worst_client(Trajectory([Record(1, "loss", "", -1, 3.0)])))


def make_path(rounds: dict[int, tuple[float, float]]) -> Trajectory:
    """Return a run with a distance from the pretrained model and a CKA in each of the rounds, and a distance alone in round 9."""
    records = [Record(number, study_outcomes.DISTANCE, "", -1, distance) for number, (distance, _) in rounds.items()]
    records += [Record(number, "hidden.cka.pretrained", "", -1, cka) for number, (_, cka) in rounds.items()]
    return Trajectory([*records, Record(9, study_outcomes.DISTANCE, "", -1, 99.0)])


def test_representations_are_compared_at_equal_distance_from_the_pretrained_model():
    baseline = make_path({2: (4.0, 0.98), 5: (10.0, 0.92), 8: (8.0, 0.94)})  # it comes back in round 8
    run = make_path({2: (5.0, 0.96), 5: (9.0, 0.90), 8: (12.0, 0.80)})
    assert study_outcomes.at_equal_distance(run, baseline, "hidden.cka.pretrained") == pytest.approx(0.90 - 0.93)
    farther = make_path({2: (11.0, 0.9)})
    assert math.isnan(study_outcomes.at_equal_distance(farther, baseline, "hidden.cka.pretrained"))
    assert math.isnan(study_outcomes.at_equal_distance(run, make_run(), "hidden.cka.pretrained"))
    assert math.isnan(study_outcomes.at_equal_distance(run, baseline, "attention.shift"))


def test_the_gap_of_drawn_domains_leaves_out_the_domain_of_a_client_that_never_trains(monkeypatch):
    data = SimpleNamespace(experiments={"run": {"partition_table": {"domains": ["a", "b", "c"], "tokens": np.eye(3).tolist()}}})
    monkeypatch.setattr(study_outcomes, "trajectories", lambda data: {"run": make_run(0.1)})
    assert study_outcomes.gap_of_drawn(data, "run", make_run()) == pytest.approx(0.15)  # not 1.3 / 3, to which domain c would lift it


def test_the_parts_of_the_gap_by_absence_sum_to_the_gap(monkeypatch):
    data = SimpleNamespace(
        experiments={"run": {"partition_table": {"domains": ["a", "b", "c"], "tokens": np.eye(3).tolist()}}},
        frame=pd.DataFrame({"run": ["run", "base"], "iid_baseline": ["base", ""]}),
    )
    monkeypatch.setattr(study_outcomes, "trajectories", lambda data: {"run": make_run(0.1), "base": make_run()})
    names = ("absent 0 to 0", "absent 1 to 2", "absent 3 to 9", "never drawn")
    # rounds 1 to 4: client 0 trains in round 1, client 1 in round 2, client 2 never; the gaps of the domains are 0.1, 0.2 and 1.0
    shares = [study_outcomes.find_outcome(data, f"share {name}")["run"] for name in names]
    assert shares == pytest.approx([2 / 12, 4 / 12, 1 / 12, 5 / 12])
    parts = [study_outcomes.find_outcome(data, f"gap {name}")["run"] for name in names]
    assert parts == pytest.approx([0.3 / 12, 0.6 / 12, 0.1 / 12, 4.2 / 12])
    assert sum(parts) == pytest.approx(1.3 / 3)


def test_the_verdicts_at_the_last_evaluation_read_the_last_loss(tmp_path):
    data = load_study_data(make_study(tmp_path, effect=0.3))
    last = study_outcomes.find_outcome(data, "last.loss")
    verdict, *_ = study_outcomes.verdicts_at_end(data, "last")
    condition = next(each for each in data.conditions if each.levels == {"algorithm": "FedAvg", "partition.severity": "1"})
    differences = {seed: last[run] - last[condition.baselines[seed]] for seed, run in condition.runs.items()}
    assert dict(verdict.points) == pytest.approx(differences)
    assert dict(verdict.points) != pytest.approx(dict(data.verdicts[0].points)) and verdict.verdict == data.verdicts[0].verdict
    gaps = study_outcomes.find_outcome(data, "last.gap")
    assert {seed: gaps[run] for seed, run in condition.runs.items()} == pytest.approx(differences)
    assert [each.name for each in study_outcomes.verdicts_at_end(replace(data, frame=data.frame.assign(diverged=True)), "last")] == [
        "H1",
        "H2",
    ]


def test_every_outcome_is_found_by_its_name(monkeypatch):
    frame = pd.DataFrame({"run": ["a", "b"], "iid_baseline": ["b", ""]})
    table = {"partition_table": {"domains": ["a", "b", "c"], "tokens": np.eye(3).tolist()}}
    data = SimpleNamespace(frame=frame, outcome_by_run=lambda name: {"a": 5.0, "b": 4.0}, experiments={"a": table})
    runs = {"a": make_run(0.1), "b": make_run()}
    monkeypatch.setattr(study_outcomes, "trajectories", lambda data: runs)
    found = {name: study_outcomes.find_outcome(data, name)["a"] for name in ("last.gap", "final.gap", "last.gain", "final.gain")}
    assert found == pytest.approx({"last.gap": 0.1, "final.gap": 0.1, "last.gain": 1.5, "final.gain": math.nan}, nan_ok=True)
    assert study_outcomes.find_outcome(data, "gain.clients")["b"] == pytest.approx(19 / 3 - 4.0)
    assert study_outcomes.find_outcome(data, "mean of loss")["b"] == pytest.approx(np.mean(LOSSES))
    assert math.isnan(study_outcomes.find_outcome(data, "mean of adapters.error.update")["b"])
    assert study_outcomes.find_outcome(data, "loss in round 2")["b"] == 5.5 and study_outcomes.find_outcome(data, "undrawn")["b"] == 1.0
    assert study_outcomes.find_outcome(data, "worst client") == pytest.approx({"a": 7.0, "b": 7.0})
    assert math.isnan(study_outcomes.find_outcome(data, "hidden.cka.pretrained at equal distance")["a"])
    assert all(
        math.isnan(study_outcomes.find_outcome(data, name)["b"]) for name in ("style.ari", "gap.drawn", "step", "final.personalized")
    )
    assert study_outcomes.find_outcome(data, "gap.drawn")["a"] == pytest.approx(0.15)
    personal = [Record(number, "final.loss.personalized", "", client, number + client) for number in (3, 4) for client in range(3)]
    assert study_outcomes.mean_over_clients(Trajectory(personal), "final.loss.personalized") == 5.0  # of the last evaluation


def test_an_unknown_outcome_is_refused(tmp_path):
    with pytest.raises(UserError, match="unknown outcome 'wins'"):
        study_outcomes.find_outcome(load_study_data(make_study(tmp_path)), "wins")


@pytest.mark.parametrize(("clusters", "agreement"), [([2, 0, 1, 2, 0, 1], 1.0), ([0, 0, 1, 1, 2, 2], -0.25)])
def test_clusters_are_compared_with_the_styles_of_the_clients(monkeypatch, clusters, agreement):
    run = Trajectory([Record(1, "cluster.id", "", client, float(cluster)) for client, cluster in enumerate(clusters)])
    data = SimpleNamespace(experiments={"run": {"partition": {"styles": ["formal", "slang", "short"]}}})
    monkeypatch.setattr(study_outcomes, "trajectories", lambda data: {"run": run})
    assert study_outcomes.style_agreement(data, "run") == pytest.approx(agreement)
