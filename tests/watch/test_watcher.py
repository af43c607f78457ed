"""Looking on: what is new is read, what is there is told, and nothing is written."""

from __future__ import annotations

import math
import os
import time

import pytest

from fedrift.cli.board import sparkline
from fedrift.errors import UserError
from fedrift.records import Record
from fedrift.store import Run
from fedrift.study import Book
from fedrift.watch import Watcher, target
from fedrift.watch.findings import gathered
from fedrift.watch.served import averaged, curves, short, state
from fedrift.watch.tail import Tail

from .made import ROUNDS, begun, booked, rows


def listing(root) -> set[str]:
    return {f"{path.relative_to(root)} {path.stat().st_mtime_ns}" for path in root.rglob("*") if path.is_file()}


def test_a_tail_reads_only_what_is_new_and_waits_for_the_end_of_a_line(tmp_path):
    run = begun(tmp_path, "a", 2)
    tail = Tail(run)
    tail.look()
    assert (tail.round, tail.loss) == (2, pytest.approx(4.8))
    assert tail.curves["sport"] == pytest.approx({0: 5.0, 1: 4.9, 2: 4.8})
    path, place = run.folder / "records.jsonl", tail.place
    with open(path, "ab") as file:
        file.write(b'[3, "loss", "", -1, 4.')
    tail.look()
    assert (tail.round, tail.place) == (2, place)
    with open(path, "ab") as file:
        file.write(b'25]\n[3, "loss", "", -1, null]\n')
    tail.look()
    assert tail.round == 3 and math.isnan(tail.loss)  # of rows that say the same thing the last one counts


def test_a_run_that_was_rewound_is_read_again(tmp_path):
    run = begun(tmp_path, "a", 5)
    tail = Tail(run)
    tail.look()
    run.rewind(1)
    tail.look()
    assert (tail.round, sorted(tail.curves[""])) == (1, [0, 1])


def test_a_run_from_an_archive_is_its_parquet_file(tmp_path):
    run = begun(tmp_path, "a", ROUNDS)
    (run.folder / "records.jsonl").unlink()
    tail = Tail(run)
    tail.look()
    assert tail.round == ROUNDS and tail.loss == pytest.approx(4.4)


def test_the_gap_is_over_the_rounds_that_both_have(tmp_path):
    one, other = Tail(begun(tmp_path, "a", 5, start=5.2)), Tail(begun(tmp_path, "b", 3, severity=0.0))
    one.look()
    other.look()
    assert one.gap(other) == pytest.approx(0.2)
    assert math.isnan(one.gap(None))


def test_a_study_in_all_its_states_and_nothing_is_written(tmp_path):
    book = booked(tmp_path, tmp_path / "world")
    begun(tmp_path, "run0", ROUNDS, start=5.1)
    begun(tmp_path, "twin0", 3, severity=0.0)
    book.fail("run1", "MemoryError: no room\nat all")
    watcher = target(tmp_path, "tiny")
    before = listing(tmp_path)
    scene = watcher.look()
    assert listing(tmp_path) == before
    assert dict(scene.counts) == {"finished": 1, "failed": 1, "unfinished": 1, "missing": 1}
    arm, twin = scene.rows
    assert (arm.role, twin.role) == ("run", "twin")
    assert [run.state for run in arm.runs] == ["finished", "failed"]
    assert arm.runs[0].gap == pytest.approx(0.1)
    assert arm.runs[1].why.startswith("MemoryError")
    assert (scene.done, scene.over) == (ROUNDS + 3, False)
    assert scene.note == "nobody is at work: 2 runs are not finished; the command that began them goes on with them"


def test_a_run_that_another_process_writes_is_running_and_what_it_writes_is_seen(tmp_path):
    watcher = Watcher(tmp_path)
    run = begun(tmp_path, "a", 1)
    assert watcher.look().rows[0].runs[0].state == "unfinished"
    if child := os.fork():
        try:
            deadline = time.time() + 30
            while (scene := watcher.look()).rows[0].runs[0].state != "running" and time.time() < deadline:
                time.sleep(0.02)
            assert scene.rows[0].live and scene.note == "" and not scene.over
            run.append([Record(2, "loss", "", -1, 4.5)])
            assert watcher.look().rows[0].runs[0].round == 2
        finally:
            os.kill(child, 9)
            os.waitpid(child, 0)
        assert watcher.look().rows[0].runs[0].state == "unfinished"
    else:
        with run.lock():
            time.sleep(60)
        os._exit(0)


def test_a_worker_on_another_machine_is_known_by_its_claim(tmp_path):
    run = begun(tmp_path, "a", 1)
    (run.folder / "claim.0").write_text('{"where": "elsewhere", "process": 1, "born": 0}')
    assert Watcher(tmp_path).look().rows[0].live
    os.utime(run.folder / "claim.0", (1, 1))
    assert not Watcher(tmp_path).look().rows[0].live


def test_a_finished_and_an_empty_place_say_so(tmp_path):
    assert "no runs in" in Watcher(tmp_path).look().note
    assert "is not begun" in Watcher(tmp_path, Book(tmp_path, "tiny")).look().note
    begun(tmp_path, "a", ROUNDS)
    scene = Watcher(tmp_path).look()
    assert (scene.over, scene.note) == (True, "all is done: 1 finished")
    booked(tmp_path, tmp_path / "world", complete=False)
    assert target(tmp_path, "tiny").look().note.endswith("then with what tuning chooses")
    with pytest.raises(UserError, match="did you mean 'tiny'"):
        target(tmp_path, "tinny")


def test_time_left_is_what_remains_at_the_pace_since_the_watching_began(tmp_path):
    now = [0.0]
    run = begun(tmp_path, "a", 0)
    watcher = Watcher(tmp_path, clock=lambda: now[0])
    assert math.isnan(watcher.look().left)
    run.append(rows(2, first=1))
    now[0] = 10.0
    assert watcher.look().left == pytest.approx(10.0 / 2 * (ROUNDS - 2))


def test_runs_of_a_folder_are_rows_of_seeds_beside_their_twins_and_same_names_are_told_apart(tmp_path):
    for seed in (0, 1):
        begun(tmp_path, f"s{seed}", ROUNDS, start=5.3, seed=seed)
        begun(tmp_path, f"t{seed}", ROUNDS, severity=0.0, seed=seed)
    begun(tmp_path, "other", ROUNDS, plan={"rounds": ROUNDS, "steps": 4})
    scene = Watcher(tmp_path).look()
    by_arm = {row.arm: row for row in scene.rows}
    assert set(by_arm) == {"FedAvg · TopicMix 1, plan.steps=2", "FedAvg · TopicMix 0", "FedAvg · TopicMix 1, plan.steps=4"}
    assert [run.gap for run in by_arm["FedAvg · TopicMix 1, plan.steps=2"].runs] == pytest.approx([0.3, 0.3])
    assert by_arm["FedAvg · TopicMix 0"].role == "twin"


def test_the_page_is_given_curves_of_chosen_rows_and_no_number_that_json_lacks(tmp_path):
    book = booked(tmp_path, tmp_path / "world")
    run = begun(tmp_path, "run0", 3)
    begun(tmp_path, "run1", 5, start=5.2, seed=1)
    run.append([Record(4, "loss", "", -1, math.nan), Record(5, "loss", "", -1, 1e9)])
    watcher = Watcher(tmp_path, book)
    scene = watcher.look()
    said = state(scene, watcher.domains, 2.0)
    assert said["domains"] == ["sport", "tech"] and said["suggested"] == [short(scene.rows[0])]
    got = curves(watcher, scene, [short(scene.rows[0])])
    means = {point["round"]: point["value"] for point in got["points"] if point["kind"] == "mean"}
    assert means == pytest.approx({round: 5.1 - 0.1 * round for round in range(4)})
    assert got["lost"] == ["algorithm=FedAvg"] and all(math.isfinite(point["value"]) for point in got["points"])
    assert curves(watcher, scene, ["nothing"])["points"] == []
    assert averaged([]) == {}


def test_findings_appear_while_runs_go_on(tmp_path):
    book = booked(tmp_path, tmp_path / "world")
    for seed in (0, 1):
        run = begun(tmp_path, f"run{seed}", 3, seed=seed)
        begun(tmp_path, f"twin{seed}", ROUNDS, severity=0.0, seed=seed)
        run.append([Record(round, "loss", "", -1, 50.0 + round) for round in range(4, 7)])
        run.append([Record(round, "loss", domain, -1, 50.0 + round) for round in range(4, 7) for domain in ("sport", "tech")])
    watcher = Watcher(tmp_path, book)
    found = watcher.look().findings
    assert "divergence" in {each["failure"] for each in found}
    assert all(each["arm"] == "algorithm=FedAvg" for each in found)
    assert watcher.look().findings == found


def test_a_failure_is_told_once_the_skews_first():
    each = {"grade": "suspected", "failure": "swing", "cause": "skew", "sentence": ""}
    got = gathered([{**each, "arm": "a", "strength": 2.0}, {**each, "arm": "b", "strength": 3.0},
                    {**each, "arm": "c", "strength": 9.0, "cause": "shared"},
                    {**each, "arm": "d", "strength": 1.5, "grade": "confirmed"}])
    assert [(one["arm"], one["also"]) for one in got] == [("d", []), ("b", ["a"]), ("c", [])]


def test_sparklines_share_a_scale_and_mark_what_leaves_it():
    assert sparkline([1.0, 2.0, 3.0], 1.0, 3.0) == "▁▅█"
    assert sparkline([1.0, math.nan, 9.0], 1.0, 3.0) == "▁××"
    assert len(sparkline([float(k) for k in range(1000)], 0.0, 999.0)) <= 24
    assert sparkline([], math.nan, math.nan) == ""


def test_an_unreadable_run_does_not_stop_the_watching(tmp_path):
    run = begun(tmp_path, "a", 2)
    (Run(tmp_path, "b").folder).mkdir()
    run.fail(2, "it broke")
    scene = Watcher(tmp_path).look()
    assert [(seen.state, seen.why) for seen in scene.rows[0].runs] == [("failed", "it broke")]


def test_a_run_that_cannot_be_read_hides_no_other_while_one_looks_on(tmp_path):
    for name in ("a", "b", "c"):
        begun(tmp_path, name, 3, seed=ord(name))
    (tmp_path / "b" / "records.jsonl").write_text('[0, "loss", "", -1, 4.5]\n[["loss"\n')
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "experiment.json").write_text("{")
    watcher = Watcher(tmp_path)
    seen = {run.run: run for row in watcher.look().rows for run in row.runs}
    assert (seen["a"].round, seen["c"].round) == (3, 3)
    assert seen["b"].state == "failed" and "it cannot be read" in seen["b"].why
    assert "run d cannot be read: " in watcher.look().note
    (tmp_path / "b" / "records.jsonl").unlink()
    Run(tmp_path, "b").append(rows(2))
    watcher.look()
    assert {run.run: run.state for row in watcher.look().rows for run in row.runs}["b"] == "unfinished"


def test_a_broken_run_of_a_study_hides_no_other_while_one_looks_on(tmp_path):
    book = booked(tmp_path / "runs", tmp_path)
    begun(book.root, "run0", 3)
    begun(book.root, "twin0", 3, severity=0.0)
    (book.root / "twin0" / "experiment.json").write_text("[1]")
    seen = {run.run: run for row in Watcher(book.root, book).look().rows for run in row.runs}
    assert seen["run0"].round == 3 and seen["run0"].state == "unfinished"
