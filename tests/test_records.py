"""Test records and the trajectories made of them."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from fedrift.core.errors import UserError
from fedrift.core.records import Record, Trajectory

NAN = float("nan")


@pytest.fixture
def run() -> Trajectory:
    return Trajectory(
        [
            Record(0, "loss", "", -1, 5.0),
            Record(0, "loss", "sport", -1, 5.5),
            Record(0, "loss", "", 0, 5.1),
            Record(1, "update.norm", "", 0, 0.5),
            Record(1, "update.norm", "", 2, 0.7),
            Record(2, "loss", "", -1, NAN),
            Record(2, "loss", "sport", -1, 5.2),
        ]
    )


def test_a_curve_has_one_value_per_round_and_nan_for_missing_ones(run):
    assert run.rounds.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(run.curve("loss", "sport"), [5.5, NAN, 5.2])


def test_a_table_has_a_column_for_every_client_up_to_the_highest_number(run):
    assert run.clients == (0, 1, 2)
    np.testing.assert_array_equal(run.client_table("update.norm"), [[NAN] * 3, [0.5, NAN, 0.7], [NAN] * 3])


def test_a_value_written_as_nan_differs_from_one_never_written(run):
    np.testing.assert_array_equal(run.curve("loss"), [5.0, NAN, NAN])
    assert run.observed_mask("loss").tolist() == [True, False, True]


def test_the_last_of_two_rows_for_the_same_value_counts():
    run = Trajectory([Record(1, "loss", "", -1, 4.0), Record(1, "loss", "", -1, 3.0)])
    assert run.curve("loss").tolist() == [3.0]
    assert run.to_frame()["value"].tolist() == [3.0]


def test_names_are_sorted_and_exclude_empty_ones(run):
    assert run.metrics == ("loss", "update.norm")
    assert run.domains == ("sport",)
    assert run.domains_of("loss") == ("sport",) and run.domains_of("nothing") == ()


def test_the_frame_is_tidy(run):
    frame = run.to_frame()
    assert list(frame.columns) == ["round", "metric", "domain", "client", "value"]
    assert len(frame) == 7
    assert frame[(frame.metric == "loss") & (frame.client == 0)].value.tolist() == [5.1]


def test_a_wrong_metric_is_refused_with_the_existing_ones(run):
    with pytest.raises(UserError, match=r"no metric .lss.*did you mean 'loss'\? it has \['loss'"):
        run.curve("lss")


def test_a_wrong_domain_is_refused_with_the_existing_ones(run):
    with pytest.raises(UserError, match=r"no 'loss' of domain 'sports'; did you mean 'sport'"):
        run.curve("loss", "sports")


def test_a_request_for_the_wrong_shape_is_refused_with_the_existing_one(run):
    with pytest.raises(UserError, match=r"table\('update.norm'\)"):
        run.curve("update.norm")
    only = Trajectory([Record(0, "update.consensus", "", -1, 0.5)])
    with pytest.raises(UserError, match=r"curve\('update.consensus'\)"):
        only.client_table("update.consensus")


def test_a_run_without_records_has_an_empty_trajectory():
    run = Trajectory([])
    assert (len(run.rounds), run.metrics, run.domains, run.clients, len(run.to_frame())) == (0, (), (), (), 0)


def test_writing_into_a_curve_does_not_change_the_trajectory(run):
    run.curve("loss")[:] = 0
    assert run.curve("loss")[0] == 5.0


def test_records_store_diagnosis_and_report_work_without_torch(tmp_path):
    script = """
import sys
class Absent:  # an entry None in sys.modules would do, but scipy takes that for torch itself
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ImportError(name)
sys.meta_path.insert(0, Absent())
from pathlib import Path
import fedrift.diagnosis
from fedrift.core.records import Record
from fedrift.report import write_report
from fedrift.storage import Run
root = Path(sys.argv[1])
run = Run(root, "a1")
run.write_json("experiment", {"seed": 0})
run.append_records(Record(round, "loss", "", -1, 5.0 - round / 10) for round in range(6))
page = write_report([("a", run.config, run.trajectory(), None, run.status, run.environment)], root)
assert page.stat().st_size > 500_000
assert not [name for name, module in sys.modules.items() if name.split(".")[0] == "torch" and module]
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
