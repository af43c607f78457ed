"""Test the quality at a budget and the cost to a target, computed from the records of runs."""

from __future__ import annotations

import math

import pytest

import fedrift
from fedrift.core.errors import UserError
from fedrift.core.records import Record, Trajectory
from fedrift.report.document import Section
from fedrift.report.study_data import load_study_data
from fedrift.report.study_setup import cost_protocols_section, format_outcome
from fedrift.studies.outcomes import COST_RECORDS, CostMetric, build_study_table, list_recorded_metrics, parse_cost_metric, summarize_metric
from tests.small_experiment import experiment

LOSSES = {0: 5.0, 2: 4.5, 4: 4.1, 6: 4.3}
TIMINGS = [{"round": number, "train": 2.0, "evaluate": 9.0} for number in range(1, 7)]


def trajectory(wire=False):
    """Return records of a run with two of three clients per round, 100 bytes down and 50 up for each, and 10 and 30 tokens."""
    rows = [Record(number, "loss", "", -1, loss) for number, loss in LOSSES.items()]
    for number in range(1, 7):
        rows += [Record(number, "cost.down", "", -1, 100.0), Record(number, "cost.up", "", -1, 50.0)]
        for client, tokens in ((number % 3, 10.0), ((number + 1) % 3, 30.0)):
            rows += [Record(number, "weight", "", client, 1.0), Record(number, "train.tokens", "", client, tokens)]
            rows += [Record(number, "wire.down", "", client, 1000.0), Record(number, "wire.up", "", client, 1.0)] if wire else []
    return Trajectory(rows)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("loss.under:bytes=1", 5.0),  # only the untrained model
        ("loss.under:bytes=599", 5.0),
        ("loss.under:bytes=600", 4.5),
        ("loss.under:bytes=1e9", 4.3),  # the last evaluation instead of the best
        ("loss.under:tokens=160", 4.1),
        ("loss.under:seconds=4", 4.5),
        ("bytes.to:4.5", 600.0),
        ("bytes.to:4.2", 1200.0),
        ("tokens.to:4.2", 160.0),
        ("seconds.to:4.2", 8.0),
        ("bytes.to:9", 0.0),
        ("bytes.to:1", math.inf),
    ],
)
def test_the_cost_metrics_of_a_run_equal_known_values(name, value):
    assert summarize_metric(name, trajectory(), timings=TIMINGS) == value


def test_measured_bytes_have_priority_over_computed_sizes():
    assert summarize_metric("bytes.to:4.5", trajectory(wire=True)) == 2 * 2 * 1001


def test_missing_records_give_nan():
    bare = Trajectory([Record(number, "loss", "", -1, loss) for number, loss in LOSSES.items()])
    for name in ("bytes.to:4.2", "tokens.to:4.2", "seconds.to:4.2", "loss.under:bytes=5"):
        assert math.isnan(summarize_metric(name, bare)), name
    assert math.isnan(summarize_metric("tokens.to:4.2", Trajectory([Record(1, "train.tokens", "", 0, 5.0)])))


@pytest.mark.parametrize("name", ["loss.under:watts=5", "loss.under:bytes", "loss.under:bytes=-1", "bytes.to:low", "tokens.to:"])
def test_invalid_names_are_refused(name):
    with pytest.raises(UserError, match=r"needs a number above 0|has the cost 'watts'"):
        parse_cost_metric(name)


def test_other_metrics_are_not_cost_metrics():
    assert parse_cost_metric("rounds.to:4.2") is parse_cost_metric("loss") is parse_cost_metric("cost.up:max") is None
    assert set(COST_RECORDS) <= set(list_recorded_metrics(["bytes.to:4.2"])) and "weight" not in list_recorded_metrics(["loss"])


def test_a_study_has_cost_columns_and_its_report_a_section(tmp_path):
    base = experiment(tmp_path, "training.num_rounds=3", "evaluation.final_blocks_per_domain=0", 'evaluation.probes=["cost"]')
    names = ["loss", "loss.under:bytes=1e9", "tokens.to:9", "seconds.to:9", "bytes.to:0.1"]
    study = {"name": "costs", "base": base.to_dict(), "metrics": names, "factors": {"training.local_steps": [1, 3]}}
    manifest = fedrift.study(study, runs_dir=tmp_path / "runs")
    table = build_study_table(manifest, roles=("run",))
    assert (table["loss.under:bytes=1e9"] < 7).all() and (table["tokens.to:9"] == 0).all() and (table["seconds.to:9"] == 0).all()
    assert (table["bytes.to:0.1"] == math.inf).all()
    section = cost_protocols_section(load_study_data(manifest))
    assert isinstance(section, Section)
    (shown,) = section.blocks
    assert len(shown.rows) == 2 and shown.columns[1].startswith("loss within") and any("tokens to" in column for column in shown.columns)
    assert all(cell != "–" for row in shown.rows for cell in row)


@pytest.mark.parametrize(
    ("values", "within", "reached"),
    [
        ([4.0, 4.2, 4.4], "4.200", "4 tokens (3/3)"),
        ([4.0, math.nan, math.nan], "–", "4 tokens (1/1)"),
        ([math.nan] * 3, "–", "–"),
        ([math.inf, 4.0, math.inf], "∞", "4 tokens (1/3)"),
    ],
)
def test_a_mean_over_some_of_the_seeds_is_not_shown(values, within, reached):
    assert format_outcome(CostMetric("tokens", 9.0, True), values) == within
    assert format_outcome(CostMetric("tokens", 9.0, False), values) == reached
