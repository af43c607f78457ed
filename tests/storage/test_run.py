"""Test the folder of a run: records are read back exactly, and errors of files are refused in one line."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedrift.core.errors import UserError
from fedrift.core.records import Record
from fedrift.engine.run import describe_finished_run
from fedrift.storage import Run, check_environment, collect_environment, files, jsonl


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "runs", "abc123")
    run.write_json("experiment", {"seed": 0})
    return run


def loss(round: int, value: float) -> Record:
    return Record(round, "loss", "", -1, value)


@given(st.floats(width=64))
def test_every_float_reads_back_as_the_same_bits(value):
    back = json.loads(jsonl.number_to_json(value))
    if math.isnan(value):
        assert back is None
    else:
        assert np.float64(back).tobytes() == np.float64(value).tobytes()


ANY_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


def missing_as_none(value):
    if isinstance(value, dict):
        return {key: missing_as_none(item) for key, item in value.items()}
    if isinstance(value, list):
        return [missing_as_none(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


@given(ANY_VALUE, st.sampled_from([0, 1, 2]))
def test_any_value_is_plain_json_and_reads_back_whole(value, indent):
    text = jsonl.to_json(value, indent)
    assert json.loads(text, parse_constant=pytest.fail) == missing_as_none(value)
    assert "\n" not in text or indent
    if indent and "e999" not in text:
        assert text == json.dumps(missing_as_none(value), indent=indent)


def test_tables_arrays_and_what_is_missing_in_them_are_json():
    table = pd.DataFrame({"a": [1.23456789012e-12, math.nan], "b": [2**53 + 1, 2], "c": pd.array([True, None], dtype="boolean")})
    said = {"table": table, "array": np.array([[0.1, -np.inf]]), "one": np.float32(0.1), "path": Path("x"), 3: pd.NaT}
    assert json.loads(jsonl.to_json(said)) == {
        "table": [{"a": 1.23456789012e-12, "b": 2**53 + 1, "c": True}, {"a": None, "b": 2, "c": None}],
        "array": [[0.1, -math.inf]],
        "one": float(np.float32(0.1)),
        "path": "x",
        "3": None,
    }


def test_records_read_back_as_they_were_written(run):
    records = [
        Record(3, "loss", "ärzte", -1, 0.1 + 0.2),
        Record(3, "loss.before", "", 7, float("nan")),
        Record(3, "loss", "", -1, float("inf")),
        Record(np.int64(4), "loss", "", -1, np.float32(0.1)),
    ]
    run.append_records(records)
    back = run.records()
    assert back[0] == records[0] and back[2] == records[2]
    assert math.isnan(back[1].value) and back[1][:4] == records[1][:4]
    assert back[3] == (4, "loss", "", -1, float(np.float32(0.1)))
    assert run.trajectory().rounds.tolist() == [3, 4]


def test_every_line_is_plain_json_for_other_readers(run):
    run.append_records([loss(0, float("nan")), loss(0, float("inf"))])
    run.log_timing(0, train=float("nan"))

    def refuse(token: str) -> None:
        raise AssertionError(token)

    for path in run.folder.glob("*.jsonl"):
        for line in path.read_text().splitlines():
            json.loads(line, parse_constant=refuse)


def test_an_incomplete_last_line_is_dropped_before_new_lines(run):
    run.append_records([loss(0, 5.0), loss(1, 4.0)])
    path = run.folder / "records.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    assert run.records() == [loss(0, 5.0)]
    run.append_records([loss(1, 4.5)])
    assert run.records() == [loss(0, 5.0), loss(1, 4.5)]


def test_a_file_with_only_an_incomplete_line_is_empty(run):
    (run.folder / "records.jsonl").write_bytes(b'[0, "lo')
    assert run.records() == []
    run.append_records([loss(0, 1.0)])
    assert run.records() == [loss(0, 1.0)]


def test_a_complete_line_that_is_not_a_record_is_refused_with_its_number(run):
    run.append_records([loss(0, 5.0)])
    path = run.folder / "records.jsonl"
    path.write_bytes(path.read_bytes() + b"garbage\n")
    with pytest.raises(UserError, match="line 2 is not JSON"):
        run.records()
    path.write_bytes(b"[1, 2]\n")
    with pytest.raises(UserError, match="is not a record"):
        run.records()


def test_truncation_drops_the_rows_after_a_round_and_keeps_the_others(run):
    run.append_records([loss(0, 5.0), loss(1, 4.1)])
    kept = (run.folder / "records.jsonl").read_bytes()
    run.append_records([loss(2, 4.0)])
    for round in (1, 2):
        run.log_timing(round, train=1.0)
        run.log_event(round, "nan", "client 3 gave no number", client=3)
    assert run.truncate_after(1) == 1
    assert (run.folder / "records.jsonl").read_bytes() == kept
    assert [row["round"] for row in run.timings() + run.events()] == [1, 1]
    assert run.truncate_after(1) == 0


def test_truncation_removes_an_incomplete_line_and_a_run_without_state_starts_again(run):
    run.append_records([loss(0, 5.0)])
    path = run.folder / "records.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b"[1,")
    run.truncate_after(0)
    assert path.read_bytes() == whole
    run.truncate_after(-1)
    assert path.read_bytes() == b"" and run.records() == []


def test_a_resumed_run_has_the_same_records_byte_for_byte(tmp_path):
    unbroken, broken = Run(tmp_path, "a"), Run(tmp_path, "b")
    for round in range(5):
        unbroken.append_records([loss(round, 5 - 0.1 * round)])
    for round in range(4):
        broken.append_records([loss(round, 5 - 0.1 * round)])
        broken.log_timing(round, train=0.123 * round)
    path = broken.folder / "records.jsonl"
    path.write_bytes(path.read_bytes()[:-2])
    broken.truncate_after(1)
    for round in range(2, 5):
        broken.append_records([loss(round, 5 - 0.1 * round)])
    assert path.read_bytes() == (unbroken.folder / "records.jsonl").read_bytes()


def test_a_timing_and_an_event_read_back(run):
    run.log_timing(3, train=4.25, evaluate=0.5, store=0.1250000004)  # microseconds are kept
    run.log_event(3, "not finite", "left out", client=2)
    assert run.timings() == [{"round": 3, "train": 4.25, "evaluate": 0.5, "store": 0.125}]
    assert run.events() == [{"round": 3, "kind": "not finite", "message": "left out", "client": 2}]


def test_the_status_follows_the_run(tmp_path):
    run = Run(tmp_path, "x")
    assert run.status == "missing" and not run.folder.exists()
    run.write_json("experiment", {})
    assert run.status == "unfinished"
    with run.lock():
        assert run.status == "running"
    run.mark_failed(3, "killed by the test")
    assert run.status == "failed"
    run.truncate_after(2)
    assert run.status == "unfinished"
    run.mark_finished({"loss": 4.2})
    assert run.is_finished and run.status == "finished" and run.summary()["loss"] == 4.2


def test_a_missing_or_broken_file_is_refused_with_its_name(run):
    with pytest.raises(UserError, match=r"has no finished\.json"):
        run.read_json("finished")
    (run.folder / "experiment.json").write_text("{")
    with pytest.raises(UserError, match=r"experiment.json is not JSON"):
        run.read_json("experiment")
    with pytest.raises(UserError, match="object"):
        run.write_json("experiment", {"model": object()})


def test_numbers_of_numpy_are_written_as_numbers(run):
    run.write_json("finished", {"loss": np.float32(0.5), "sizes": np.arange(3), "where": Path("a")})
    assert run.read_json("finished") == {"loss": 0.5, "sizes": [0, 1, 2], "where": "a"}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_keeps_every_row_and_the_error_states_the_required_space(run, monkeypatch, code):
    run.append_records([loss(0, 5.0)])
    before = (run.folder / "records.jsonl").read_bytes()
    write = os.write

    def half(handle: int, content: bytes) -> int:
        write(handle, content[: len(content) // 2])
        raise OSError(code, "no room")

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(UserError, match=r"disk is full: .*records\.jsonl needs \d+ bytes and .* are free in"):
        run.append_records([loss(1, 4.0)])
    monkeypatch.undo()
    assert (run.folder / "records.jsonl").read_bytes() == before
    run.append_records([loss(1, 4.0)])
    assert len(run.records()) == 2


def test_a_full_disk_keeps_the_file_to_be_replaced(run, monkeypatch):
    run.write_json("environment", {"python": "3"})

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(files, "fsync_path", full)
    with pytest.raises(UserError, match="disk is full"):
        run.write_json("environment", {"python": "4"})
    assert run.environment == {"python": "3"}
    assert sorted(path.name for path in run.folder.iterdir()) == ["environment.json", "experiment.json"]


def test_other_system_errors_are_not_reported_as_a_full_disk(run, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match=r"environment\.json cannot be written: no\. Make .* writable"):
        run.write_json("environment", {})


LOCK_HOLDER = """
import sys, time
from pathlib import Path
from fedrift.storage import Run
with Run(Path(sys.argv[1]), sys.argv[2]).lock():
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_processes_never_write_one_run_and_a_kill_releases_the_lock(run):
    other = subprocess.Popen([sys.executable, "-c", LOCK_HOLDER, str(run.root), run.id], stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        assert run.status == "running"
        with pytest.raises(UserError, match="another process"), run.lock():
            pass
    finally:
        other.kill()
        other.communicate()
    assert run.status == "unfinished"
    with run.lock():
        run.append_records([loss(0, 1.0)])


@pytest.mark.parametrize(
    "content", ["[]", "3", "null", '"text"', "[" * 100_000, "9" * 5000, "{", "\udce4", '{"training": []}', '{"seed": {}}']
)
def test_an_invalid_experiment_file_is_refused_in_one_line(run, content):
    (run.folder / "experiment.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"experiment\.json") as caught:
        run.config["training"]["num_rounds"]
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_missing_key_of_a_stored_file_is_refused_in_one_line(run):
    run.write_json("environment", {"engine": {}})
    for ask in (lambda: run.config["training"], lambda: run.environment["engine"]["clients_per_pass"], lambda: run.environment["threads"]):
        with pytest.raises(UserError, match="json has no '"):
            ask()


@pytest.mark.parametrize("line", ["[1, 2]", "3", "null", '{"train": 1.0}', '{"round": "1"}', '{"round": 1, "train": "x"}'])
def test_an_invalid_timing_is_refused_in_one_line(run, line):
    (run.folder / "timings.jsonl").write_text(line + "\n")
    for ask in (run.timings, lambda: run.truncate_after(3)):
        with pytest.raises(UserError, match="is not a valid row of a round"):
            ask()


@pytest.mark.parametrize("line", ["7", "{}", '["1", "loss", "", -1, 2.0]', "[1, 2, 3, 4, 5]", '[1, "loss", "", -1, "x"]', "[true, 1]"])
def test_an_invalid_record_is_refused_in_one_line(run, line):
    (run.folder / "records.jsonl").write_text(line + "\n")
    for ask in (run.records, lambda: run.truncate_after(3)):
        with pytest.raises(UserError, match="is not a record"):
            ask()


@pytest.mark.parametrize(
    "name, write",
    [
        ("lock", lambda run: run.lock().__enter__()),
        ("records.jsonl", lambda run: run.append_records([loss(0, 1.0)])),
        ("events.jsonl", lambda run: run.log_event(0, "a", "b")),
        ("finished.json", lambda run: run.mark_finished({})),
        (".failed.json.part", lambda run: run.mark_failed(1, "x")),
        ("experiment.json", lambda run: run.config),
        ("timings.jsonl", lambda run: run.timings()),
        ("clustering.json", lambda run: run.cluster_assignments()),
    ],
)
def test_a_folder_instead_of_a_file_is_refused_in_one_line(run, name, write):
    shutil.rmtree(run.folder / name, ignore_errors=True)
    (run.folder / name).unlink(missing_ok=True)
    (run.folder / name).mkdir()
    with pytest.raises(UserError, match=re.escape(name)) as caught:
        write(run)
    assert "\n" not in str(caught.value)


def test_a_read_only_folder_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    run = Run(tmp_path / "file", "abc")
    for write in (lambda: run.write_json("experiment", {}), lambda: run.append_records([loss(0, 1.0)]), lambda: run.lock().__enter__()):
        with pytest.raises(UserError, match="cannot be written"):
            write()


def test_reading_a_run_does_not_lock_it(run):
    with run.lock():
        assert run.status == "running"
    assert run.status == "unfinished"
    with run.lock():
        pass


def test_the_environment_of_the_first_start_stays_and_later_ones_are_compared(run):
    first = collect_environment("cpu", 2, {"stack": 4})
    assert check_environment(run, first) == []
    assert check_environment(run, collect_environment("cpu", 2, {"stack": 4})) == []
    assert check_environment(run, collect_environment("cpu", 1, {"stack": 4})) == ["threads was 2 and is 1"]
    assert run.environment["threads"] == 2 and run.environment["packages"]["numpy"] == np.__version__


def test_another_processor_is_reported_unless_none_was_stored(run):
    here = collect_environment("cpu", 2, {})
    assert {"name", "capability", "instructions", "limits"} == here["processor"].keys() and here["processor"]["capability"]
    amx = {"name": "Xeon", "capability": "AVX512", "instructions": "amx_tile avx2", "limits": {}}
    check_environment(run, {**here, "processor": amx})
    limited = {**amx, "capability": "AVX2", "instructions": "avx2 fma3", "limits": {"ONEDNN_MAX_CPU_ISA": "AVX2"}}
    assert check_environment(run, {**here, "processor": amx}) == []
    assert check_environment(run, {**here, "processor": limited}) == [
        "processor capability was 'AVX512' and is 'AVX2'",
        "processor limits was {} and is {'ONEDNN_MAX_CPU_ISA': 'AVX2'}",
        "the processor no longer has amx_tile",
        "the processor now has fma3",
    ]
    run.write_json("environment", {name: value for name, value in here.items() if name != "processor"})
    assert check_environment(run, here) == []  # a version that did not store it
    run.write_json("environment", {**here, "processor": {"capability": here["processor"]["capability"]}})
    assert check_environment(run, here) == []


def test_limits_of_the_processor_are_stored(monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    said = collect_environment("cpu", 1, {})["processor"]
    assert said["limits"]["ONEDNN_MAX_CPU_ISA"] == "SSE41" and said["capability"] == torch.backends.cpu.get_cpu_capability()


def test_other_engine_choices_refuse_to_resume(run):
    check_environment(run, collect_environment("cpu", 2, {"stack": 4, "dtype": "float32"}))
    with pytest.raises(UserError, match="stack was 4 and is 8"):
        check_environment(run, collect_environment("cpu", 2, {"stack": 8, "dtype": "float32"}))


def test_a_too_deeply_nested_line_is_refused_in_one_line(run):
    (run.folder / "events.jsonl").write_bytes(b"[" * 100_000 + b"\n")
    with pytest.raises(UserError, match="line 1 is not JSON"):
        run.events()


def write_finished(folder) -> Run:
    """Store a small finished run."""
    run = Run(folder, "x")
    run.write_json("experiment", {"training": {"num_rounds": 1, "client_optimizer": {"lr": 0.5}}, "seed": 3})
    run.append_records([Record(0, "loss", "", -1, 4.5), Record(1, "loss", "", -1, 4.25)])
    run.mark_finished({"rounds": 1, "loss": 4.25, "seconds": {"train": 1.5}})
    return run


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("experiment.json", "0.5", "0.4"),
        ("experiment.json", '"seed": 3', '"seed": 2'),
        ("finished.json", "4.25", "4.24"),
        ("finished.json", "1.5", "1.6"),
        ("records.jsonl", "4.25", "4.24"),
        ("records.jsonl", "[0, ", '[0, "loss", "", -1, 9.5]\n[0, '),
    ],
)
def test_a_changed_file_of_a_finished_run_is_refused(tmp_path, name, old, new):
    """Otherwise its other numbers or settings would be shown without a word."""
    run = write_finished(tmp_path)
    content = (run.folder / name).read_text()
    assert old in content
    (run.folder / name).write_text(content.replace(old, new, 1))
    with pytest.raises(UserError, match=f"{name} has changed since the run finished"):
        run.config, run.summary(), run.records()


def test_a_line_that_was_added_to_a_finished_run_is_refused(tmp_path):
    run = write_finished(tmp_path)
    with (run.folder / "records.jsonl").open("a") as file:
        file.write('[1, "loss", "", -1, 9.5]\n')
    for use in (run.records, lambda: run.append_records([Record(1, "own.metric", "", -1, 2.0)])):
        with pytest.raises(UserError, match=r"records\.jsonl has changed"):
            use()


def test_a_callback_at_the_end_of_a_run_can_add_records(tmp_path):
    run = write_finished(tmp_path)
    earlier = run.summary()
    run.append_records([Record(1, "own.metric", "", -1, 2.0)])
    assert run.trajectory().curve("own.metric")[-1] == run.records()[-1].value == 2.0
    assert {**run.summary(), "stored": {}} == {**earlier, "stored": {}}


def test_a_file_of_a_finished_run_that_is_a_folder_is_refused(tmp_path):
    run = write_finished(tmp_path)
    (run.folder / "records.jsonl").unlink()
    (run.folder / "records.jsonl").mkdir()
    with pytest.raises(UserError, match=r"records\.jsonl has changed"):
        run.records()


def test_another_form_of_the_same_values_is_no_change(tmp_path):
    run = write_finished(tmp_path)
    for name in ("experiment", "finished"):
        path = run.folder / f"{name}.json"
        path.write_text(json.dumps(dict(reversed(json.loads(path.read_text()).items()))).replace('"seed": 3', '"seed": 3.0'))
    assert (run.config["seed"], run.summary()["loss"], len(run.records())) == (3, 4.25, 2)


@pytest.mark.parametrize("content", ["null", "[]", "1e999", '{"rounds": null}', '{"rounds": "3"}'])
def test_an_odd_summary_is_described_or_refused(tmp_path, content):
    run = write_finished(tmp_path)
    (run.folder / "finished.json").write_text(content)
    if content == '{"rounds": null}':
        assert "finished on an unknown date" in describe_finished_run(run)
    else:
        with pytest.raises(UserError, match=r"finished\.json"):
            describe_finished_run(run)


def test_a_mark_of_failure_that_is_a_folder_is_refused_in_one_line(tmp_path):
    run = write_finished(tmp_path)
    (run.folder / "failed.json").mkdir()
    for change in (lambda: run.truncate_after(0), lambda: run.mark_finished({}), lambda: run.mark_failed(0, "killed")):
        with pytest.raises(UserError, match=r"failed\.json is a folder") as refusal:
            change()
        assert "\n" not in str(refusal.value)
