"""Test that runs are found by the first letters of their ids, and that unreadable runs are listed."""

from __future__ import annotations

import json
import os

import pytest

from fedrift.core.errors import UserError
from fedrift.core.records import Record
from fedrift.storage import Run, archive_run, find_run, find_runs, list_runs, list_unreadable, query_frame, try_read_each

CONFIG = {
    "dataset": {"name": "bbc"},
    "model": "pocket",
    "algorithm": {"type": "FedAvg"},
    "partition": {"type": "TopicMix", "severity": 1.0},
    "training": {"num_rounds": 3, "local_steps": 5},
    "seed": 0,
}


@pytest.fixture
def root(tmp_path):
    for age, name in enumerate(["ab12", "ab99", "c0de"]):
        run = Run(tmp_path / "runs", name)
        run.write_json("experiment", CONFIG)
        os.utime(run.folder / "experiment.json", (1000 - age, 1000 - age))
    (tmp_path / "runs" / "notes").mkdir()
    return tmp_path / "runs"


def test_runs_are_listed_from_the_oldest_and_other_folders_are_not_runs(root):
    assert [run.id for run in list_runs(root)] == ["c0de", "ab99", "ab12"]
    assert list_runs(root / "nowhere") == []


def test_a_run_is_found_by_a_prefix_of_its_id(root):
    assert find_run(root, "c") == Run(root, "c0de")
    assert find_run(root, "ab9") == Run(root, "ab99")


def test_a_run_is_found_by_its_folder(root, tmp_path):
    assert find_run(tmp_path, str(root / "ab12")) == Run(root, "ab12")


def test_a_complete_id_has_priority_over_longer_ids(root):
    Run(root, "ab").write_json("experiment", CONFIG)
    assert find_run(root, "ab").id == "ab"


def test_an_ambiguous_prefix_is_refused_with_all_matches(root):
    with pytest.raises(UserError, match="matches 2 runs: ab12, ab99"):
        find_run(root, "ab")


def test_an_unknown_prefix_is_refused_with_the_existing_runs(root):
    with pytest.raises(UserError, match=r"'ab13'.*did you mean 'ab12'.*ab12, ab99, c0de"):
        find_run(root, "ab13")
    with pytest.raises(UserError, match="c0de"):
        find_run(root, "")


def test_a_folder_without_runs_is_refused_with_its_name(tmp_path):
    with pytest.raises(UserError, match="contains no runs"):
        find_run(tmp_path, "ab")


BROKEN = {
    "not JSON": b"{",
    "no text": b"\xff\xfe",
    "empty": b"",
    "a list": b"[]",
    "a number": b"3",
    "nothing in it": b"{}",
    "deep": b"[" * 100_000,
    "an own algorithm of an older fedrift": json.dumps({**CONFIG, "algorithm": {"server_optimizer": {"type": "Sgd"}}}).encode(),
    "a name in the place of a class": json.dumps({**CONFIG, "partition": "TopicMix"}).encode(),
    "rounds that are text": json.dumps({**CONFIG, "training": {"num_rounds": "3"}}).encode(),
    "a severity that is none": json.dumps({**CONFIG, "partition": {"type": "TopicMix", "severity": "much"}}).encode(),
}


@pytest.fixture
def broken(root):
    """A folder with valid runs and one run for each way in which reading can fail."""
    for number, content in enumerate(BROKEN.values()):
        (root / f"bad{number}").mkdir()
        (root / f"bad{number}" / "experiment.json").write_bytes(content)
    (root / "badlink").mkdir()
    (root / "badlink" / "experiment.json").symlink_to("nowhere")
    (root / "badfolder" / "experiment.json").mkdir(parents=True)
    return root


def test_an_unreadable_run_hides_no_other_and_is_listed_with_the_reason(broken):
    assert [run.id for run in list_runs(broken)] == ["c0de", "ab99", "ab12"]
    bad = list_unreadable(broken)
    assert {each.id for each in bad} == {*(f"bad{number}" for number in range(len(BROKEN))), "badfolder"}
    for each in bad:
        assert each.reason and len(each.reason) <= 200 and "\n" not in each.reason
        with pytest.raises(UserError, match=f"run {each.id} cannot be read: "):
            find_run(broken, each.id)
    good, faulty = find_runs(broken, ["c0", "bad0", "ab12", "c0de"])
    assert [run.id for run in good] == ["c0de", "ab12"] and [each.id for each in faulty] == ["bad0"]
    assert find_run(broken, "ab9").id == "ab99"


def test_a_repaired_run_is_listed_again(broken):
    Run(broken, "bad0").write_json("experiment", CONFIG)
    assert "bad0" in [run.id for run in list_runs(broken)]


def test_sql_reads_the_readable_runs_and_names_the_others(broken):
    for name in ("c0de", "ab12", "ab99"):
        Run(broken, name).append_records([Record(0, "loss", "", -1, 4.5)])
    (broken / "ab99" / "records.jsonl").write_text('[0, "loss"\n[')
    Run(broken, "ab12").mark_finished({"rounds": 3, "loss": 4.0})
    (broken / "c0de" / "findings.json").write_text("[[")
    found = query_frame(broken, "SELECT run, status, failure FROM runs").set_index("run")
    assert found.status["ab12"] == "finished" and found.status["c0de"] == "unfinished"
    assert found.status["ab99"] == found.status["bad1"] == "unreadable" and "records.jsonl" in found.failure["ab99"]
    assert query_frame(broken, "SELECT DISTINCT run FROM records ORDER BY run").run.tolist() == ["ab12", "c0de"]
    (broken / "ab12" / "records.parquet").write_bytes(b"PAR1 no parquet")
    (broken / "ab12" / "finished.json").write_text("[")
    found = query_frame(broken, "SELECT run, status FROM runs").set_index("run")
    assert found.status["ab12"] == "unreadable" and found.status["c0de"] == "unfinished"
    assert len(found) == len(BROKEN) + 4


def test_an_unreadable_file_of_a_run_is_refused_in_one_line(root):
    def read(run):
        if run.id == "ab99":
            raise KeyError("a\nb" * 200)
        return run.id

    found, bad = try_read_each(list_runs(root), read)
    assert [each for _, each in found] == ["c0de", "ab12"]
    assert bad[0].id == "ab99" and bad[0].reason.startswith("KeyError: ") and len(bad[0].reason) == 200


def test_a_complete_run_can_be_moved_aside_repeatedly(root):
    run = Run(root, "ab12")
    (run.folder / "records.jsonl").write_text("rows")
    first = archive_run(run)
    assert first == root / "replaced" / "ab12.1" and (first / "records.jsonl").read_text() == "rows"
    assert not run.folder.exists() and "ab12" not in [run.id for run in list_runs(root)]
    run.write_json("experiment", CONFIG)
    assert archive_run(run) == root / "replaced" / "ab12.2"
    other = Run(root, "ab99")
    with other.lock(), pytest.raises(UserError, match="being written by another process"):
        archive_run(other)
    assert other.folder.exists()
