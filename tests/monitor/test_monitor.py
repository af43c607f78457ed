"""Test the monitor: it reads new rows, shows the state of all runs, and writes nothing."""

from __future__ import annotations

import math
import os
import time

import pytest

from fedrift.cli.console import sparkline
from fedrift.core.errors import UserError
from fedrift.core.records import Record
from fedrift.diagnosis.cases import group_readable_runs
from fedrift.report.monitor import LossTail, Monitor, group_findings, group_titles, mean_curve, open_monitor
from fedrift.report.web import curves_to_json, row_id, snapshot_to_json
from fedrift.storage import Run, list_runs
from fedrift.studies import StudyManifest

from .stored_runs import ROUNDS, make_manifest, make_rows, start_run


def listing(root) -> set[str]:
    return {f"{path.relative_to(root)} {path.stat().st_mtime_ns}" for path in root.rglob("*") if path.is_file()}


def test_only_new_complete_lines_are_read(tmp_path):
    run = start_run(tmp_path, "a", 2)
    tail = LossTail(run)
    tail.read_new()
    assert (tail.last_round, tail.loss) == (2, pytest.approx(4.8))
    assert tail.curves["sport"] == pytest.approx({0: 5.0, 1: 4.9, 2: 4.8})
    path, place = run.folder / "records.jsonl", tail.offset
    with open(path, "ab") as file:
        file.write(b'[3, "loss", "", -1, 4.')
    tail.read_new()
    assert (tail.last_round, tail.offset) == (2, place)
    with open(path, "ab") as file:
        file.write(b'25]\n[3, "loss", "", -1, null]\n')
    tail.read_new()
    assert tail.last_round == 3 and math.isnan(tail.loss)  # the last of several rows for the same value counts


def test_a_run_with_removed_rows_is_read_again(tmp_path):
    run = start_run(tmp_path, "a", 5)
    tail = LossTail(run)
    tail.read_new()
    run.truncate_after(1)
    tail.read_new()
    assert (tail.last_round, sorted(tail.curves[""])) == (1, [0, 1])


def test_a_run_from_an_archive_is_read_from_its_parquet_file(tmp_path):
    run = start_run(tmp_path, "a", ROUNDS)
    (run.folder / "records.jsonl").unlink()
    tail = LossTail(run)
    tail.read_new()
    assert tail.last_round == ROUNDS and tail.loss == pytest.approx(4.4)


def test_the_gap_uses_the_rounds_of_both_runs(tmp_path):
    one, other = LossTail(start_run(tmp_path, "a", 5, start=5.2)), LossTail(start_run(tmp_path, "b", 3, severity=0.0))
    one.read_new()
    other.read_new()
    assert one.gap_to(other) == pytest.approx(0.2)
    assert math.isnan(one.gap_to(None))


def test_a_study_is_shown_in_every_state_and_nothing_is_written(tmp_path):
    manifest = make_manifest(tmp_path, tmp_path / "world")
    start_run(tmp_path, "run0", ROUNDS, start=5.1)
    start_run(tmp_path, "twin0", 3, severity=0.0)
    manifest.record_failure("run1", "MemoryError: no room\nat all")
    watcher = open_monitor(tmp_path, "tiny")
    before = listing(tmp_path)
    scene = watcher.take_snapshot()
    assert listing(tmp_path) == before
    assert dict(scene.counts) == {"finished": 1, "failed": 1, "unfinished": 1, "missing": 1}
    condition_name, baseline = scene.groups
    assert (condition_name.role, baseline.role) == ("run", "iid_baseline")
    assert [run.state for run in condition_name.runs] == ["finished", "failed"]
    assert condition_name.runs[0].gap == pytest.approx(0.1)
    assert condition_name.runs[1].failure_reason.startswith("MemoryError")
    assert (scene.rounds_done, scene.is_complete) == (ROUNDS + 3, False)
    assert scene.note == ("no process is running, and 2 runs are not finished; repeat the command that started them to continue")


def test_a_run_of_another_process_is_running_and_its_rows_are_read(tmp_path):
    watcher = Monitor(tmp_path)
    run = start_run(tmp_path, "a", 1)
    assert watcher.take_snapshot().groups[0].runs[0].state == "unfinished"
    if child := os.fork():
        try:
            deadline = time.time() + 30
            while (scene := watcher.take_snapshot()).groups[0].runs[0].state != "running" and time.time() < deadline:
                time.sleep(0.02)
            assert scene.groups[0].is_running and scene.note == "" and not scene.is_complete
            run.append_records([Record(2, "loss", "", -1, 4.5)])
            assert watcher.take_snapshot().groups[0].runs[0].rounds_done == 2
        finally:
            os.kill(child, 9)
            os.waitpid(child, 0)
        assert watcher.take_snapshot().groups[0].runs[0].state == "unfinished"
    else:
        with run.lock():
            time.sleep(60)
        os._exit(0)


def test_a_worker_on_another_machine_is_detected_by_its_lease(tmp_path):
    run = start_run(tmp_path, "a", 1)
    (run.folder / "lease.0").write_text('{"host": "elsewhere", "pid": 1, "started_at": 0}')
    assert Monitor(tmp_path).take_snapshot().groups[0].is_running
    os.utime(run.folder / "lease.0", (1, 1))
    assert not Monitor(tmp_path).take_snapshot().groups[0].is_running


def test_finished_and_empty_folders_are_reported(tmp_path):
    assert "no runs in" in Monitor(tmp_path).take_snapshot().note
    assert "has no runs in" in Monitor(tmp_path, StudyManifest(tmp_path, "tiny")).take_snapshot().note
    start_run(tmp_path, "a", ROUNDS)
    scene = Monitor(tmp_path).take_snapshot()
    assert (scene.is_complete, scene.note) == (True, "all runs have ended: 1 finished")
    make_manifest(tmp_path, tmp_path / "world", complete=False)
    assert open_monitor(tmp_path, "tiny").take_snapshot().note.endswith("the runs that tuning selects")
    with pytest.raises(UserError, match="did you mean 'tiny'"):
        open_monitor(tmp_path, "tinny")


def test_the_remaining_time_uses_the_pace_since_monitoring_started(tmp_path):
    now = [0.0]
    run = start_run(tmp_path, "a", 0)
    watcher = Monitor(tmp_path, clock=lambda: now[0])
    assert math.isnan(watcher.take_snapshot().seconds_left)
    run.append_records(make_rows(2, first=1))
    now[0] = 10.0
    assert watcher.take_snapshot().seconds_left == pytest.approx(10.0 / 2 * (ROUNDS - 2))


def test_runs_of_a_folder_are_grouped_with_their_baselines_under_unique_names(tmp_path):
    for seed in (0, 1):
        start_run(tmp_path, f"s{seed}", ROUNDS, start=5.3, seed=seed)
        start_run(tmp_path, f"t{seed}", ROUNDS, severity=0.0, seed=seed)
    start_run(tmp_path, "other", ROUNDS, training={"num_rounds": ROUNDS, "local_steps": 4})
    scene = Monitor(tmp_path).take_snapshot()
    by_arm = {row.condition: row for row in scene.groups}
    assert set(by_arm) == {
        "FedAvg · TopicMix 1, training.local_steps=2",
        "FedAvg · TopicMix 0",
        "FedAvg · TopicMix 1, training.local_steps=4",
    }
    assert [run.gap for run in by_arm["FedAvg · TopicMix 1, training.local_steps=2"].runs] == pytest.approx([0.3, 0.3])
    assert by_arm["FedAvg · TopicMix 0"].role == "iid_baseline"


def test_runs_with_a_concentration_are_compared_with_the_baseline_without_one(tmp_path):
    dirichlet = {"type": "Dirichlet", "num_clients": 2, "severity": 1.0, "alpha": 0.1}
    start_run(tmp_path, "run", ROUNDS, start=5.3, partition=dirichlet)
    start_run(tmp_path, "fork", ROUNDS, start=5.3, partition=dirichlet, fork={"run": "run", "from_round": 2})
    start_run(tmp_path, "iid", ROUNDS, partition={**dirichlet, "severity": 0.0, "alpha": None})
    gaps = {run.run: run.gap for row in Monitor(tmp_path).take_snapshot().groups for run in row.runs}
    assert (gaps["run"], gaps["fork"]) == pytest.approx((0.3, 0.3))
    (group,), _ = group_readable_runs([Run(tmp_path, "run")], list_runs(tmp_path))
    assert group.baselines == (Run(tmp_path, "iid"),)


def test_the_page_receives_curves_as_valid_json(tmp_path):
    manifest = make_manifest(tmp_path, tmp_path / "world")
    run = start_run(tmp_path, "run0", 3)
    start_run(tmp_path, "run1", 5, start=5.2, seed=1)
    run.append_records([Record(4, "loss", "", -1, math.nan), Record(5, "loss", "", -1, 1e9)])
    watcher = Monitor(tmp_path, manifest)
    scene = watcher.take_snapshot()
    said = snapshot_to_json(scene, watcher.domains, 2.0)
    assert said["domains"] == ["sport", "tech"] and said["suggested"] == [row_id(scene.groups[0])]
    got = curves_to_json(watcher, scene, [row_id(scene.groups[0])])
    means = {point["round"]: point["value"] for point in got["points"] if point["kind"] == "mean"}
    assert means == pytest.approx({round: 5.1 - 0.1 * round for round in range(4)})
    assert got["incomplete"] == ["algorithm=FedAvg"] and all(math.isfinite(point["value"]) for point in got["points"])
    assert curves_to_json(watcher, scene, ["nothing"])["points"] == []
    assert mean_curve([]) == {}


def test_findings_appear_during_runs(tmp_path):
    manifest = make_manifest(tmp_path, tmp_path / "world")
    for seed in (0, 1):
        run = start_run(tmp_path, f"run{seed}", 3, seed=seed)
        start_run(tmp_path, f"twin{seed}", ROUNDS, severity=0.0, seed=seed)
        run.append_records([Record(round, "loss", "", -1, 50.0 + round) for round in range(4, 7)])
        run.append_records([Record(round, "loss", domain, -1, 50.0 + round) for round in range(4, 7) for domain in ("sport", "tech")])
    watcher = Monitor(tmp_path, manifest)
    found = watcher.take_snapshot().findings
    assert "divergence" in {each["failure"] for each in found}
    assert all(each["condition"] == "algorithm=FedAvg" for each in found)
    assert watcher.take_snapshot().findings == found


def test_each_failure_is_reported_once_with_heterogeneity_first():
    each = {"grade": "suspected", "failure": "swing", "cause": "heterogeneity", "sentence": ""}
    got = group_findings(
        [
            {**each, "condition": "a", "strength": 2.0},
            {**each, "condition": "b", "strength": 3.0},
            {**each, "condition": "c", "strength": 9.0, "cause": "also in IID baseline"},
            {**each, "condition": "d", "strength": 1.5, "grade": "confirmed"},
        ]
    )
    assert [(one["condition"], one["also"]) for one in got] == [("d", []), ("b", ["a"]), ("c", [])]


def test_sparklines_share_a_scale_and_mark_values_outside():
    assert sparkline([1.0, 2.0, 3.0], 1.0, 3.0) == "▁▅█"
    assert sparkline([1.0, math.nan, 9.0], 1.0, 3.0) == "▁××"
    assert len(sparkline([float(k) for k in range(1000)], 0.0, 999.0)) <= 24
    assert sparkline([], math.nan, math.nan) == ""


def test_an_unreadable_run_does_not_stop_the_monitor(tmp_path):
    run = start_run(tmp_path, "a", 2)
    (Run(tmp_path, "b").folder).mkdir()
    run.mark_failed(2, "it broke")
    scene = Monitor(tmp_path).take_snapshot()
    assert [(seen.state, seen.failure_reason) for seen in scene.groups[0].runs] == [("failed", "it broke")]


def test_an_unreadable_run_hides_no_other_run(tmp_path):
    for name in ("a", "b", "c"):
        start_run(tmp_path, name, 3, seed=ord(name))
    (tmp_path / "b" / "records.jsonl").write_text('[0, "loss", "", -1, 4.5]\n[["loss"\n')
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "experiment.json").write_text("{")
    watcher = Monitor(tmp_path)
    seen = {run.run: run for row in watcher.take_snapshot().groups for run in row.runs}
    assert (seen["a"].rounds_done, seen["c"].rounds_done) == (3, 3)
    assert seen["b"].state == "failed" and "it cannot be read" in seen["b"].failure_reason
    assert "run d cannot be read: " in watcher.take_snapshot().note
    (tmp_path / "b" / "records.jsonl").unlink()
    Run(tmp_path, "b").append_records(make_rows(2))
    watcher.take_snapshot()
    assert {run.run: run.state for row in watcher.take_snapshot().groups for run in row.runs}["b"] == "unfinished"


def test_a_broken_run_of_a_study_hides_no_other_run(tmp_path):
    manifest = make_manifest(tmp_path / "runs", tmp_path)
    start_run(manifest.root, "run0", 3)
    start_run(manifest.root, "twin0", 3, severity=0.0)
    (manifest.root / "twin0" / "experiment.json").write_text("[1]")
    seen = {run.run: run for row in Monitor(manifest.root, manifest).take_snapshot().groups for run in row.runs}
    assert seen["run0"].rounds_done == 3 and seen["run0"].state == "unfinished"


def test_runs_of_one_name_are_named_by_the_settings_that_distinguish_them():
    base = {"algorithm": {"type": "FedAvg"}, "partition": {"type": "TopicMix", "severity": 1.0}}
    training = [
        {"a": 1, "b": 1, "c": 1, "d": 1, "lr": 0.1},
        {"a": 2, "b": 2, "c": 2, "d": 2, "lr": 0.1},
        {"a": 2, "b": 2, "c": 2, "d": 2, "lr": 0.3},
    ]
    titles = group_titles({str(number): {**base, "training": part} for number, part in enumerate(training)})
    assert list(titles.values()) == [
        "FedAvg · TopicMix 1, training.a=1, training.lr=0.1",
        "FedAvg · TopicMix 1, training.a=2, training.lr=0.1",
        "FedAvg · TopicMix 1, training.a=2, training.lr=0.3",
    ]
