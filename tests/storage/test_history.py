"""Test that a run with missing rows or files is not resumed, and that what a kill leaves is not treated as missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fedrift.core.errors import UserError
from fedrift.core.records import Record
from fedrift.storage import Run, jsonl
from fedrift.storage.checkpoint import check_history, summarize_history
from fedrift.storage.tensors import read_metadata, save_tensors


def advance(run: Run, round: int, kept: bool = True, timed: bool = True, recording: bool = True) -> None:
    """Write what one round of a run writes, in the same order."""
    run.log_event(round, "client", "it was slow", 2)
    run.append_records(Record(round, "loss", domain, -1, 4 - 0.1 * round) for domain in ("", "sport", "food"))
    earlier = [said for said in run.cluster_assignments() if said["round"] < round]
    run.write_json("clustering", [*earlier, {"round": round, "cluster_ids": [0, round % 2]}])
    if recording:
        (run.folder / "updates").mkdir(exist_ok=True)
        (run.folder / "updates" / f"{round:05}.parquet").touch()
    if kept:
        save_tensors(run.state_path, {"a": torch.ones(2)}, {"round": round, "history": summarize_history(run, round)})
    if timed:
        run.log_timing(round, train=1.0)


@pytest.fixture
def run(tmp_path) -> Run:
    run = Run(tmp_path, "abc123")
    for round in range(5):
        advance(run, round)
    return run


def truncate_file(path, share=0.6):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


def drop_line(path, place=3):
    rows = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(rows[:place] + rows[place + 1 :]))


def change(path, old=b"3.8", new=b"3.9"):
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


def repeat_content(path: Path) -> None:
    path.write_bytes(path.read_bytes() * 2)


LOST = {
    "records cut": (lambda run: truncate_file(run.folder / "records.jsonl"), r"records\.jsonl has [\d,]+ of the [\d,]+ bytes"),
    "records deleted": (lambda run: (run.folder / "records.jsonl").unlink(), r"records\.jsonl is missing"),
    "records emptied": (lambda run: truncate_file(run.folder / "records.jsonl", 0), r"records\.jsonl is empty"),
    "record missing": (lambda run: drop_line(run.folder / "records.jsonl"), r"records\.jsonl has"),
    "record changed": (lambda run: change(run.folder / "records.jsonl"), r"records\.jsonl was changed"),
    "record garbled": (lambda run: change(run.folder / "records.jsonl", b'"loss"', b"\x00\xff-~ ;"), r"was changed"),
    "last line torn": (lambda run: truncate_file(run.folder / "records.jsonl", 0.999), r"records\.jsonl has"),
    "records doubled": (lambda run: repeat_content(run.folder / "records.jsonl"), r"records of round 4 or earlier were repeated"),
    "record added": (lambda run: run.append_records([Record(4, "loss", "", -1, 9.5)]), r"records of round 4 or earlier were repeated"),
    "events cut": (lambda run: truncate_file(run.folder / "events.jsonl"), r"events\.jsonl has"),
    "events deleted": (lambda run: (run.folder / "events.jsonl").unlink(), r"events\.jsonl is missing"),
    "timings cut": (lambda run: truncate_file(run.folder / "timings.jsonl"), r"timings\.jsonl has no line for round 3$|for round 3\."),
    "timings deleted": (lambda run: (run.folder / "timings.jsonl").unlink(), r"no line for rounds 0, 1, 2, 3\."),
    "decisions deleted": (lambda run: (run.folder / "clustering.json").unlink(), "lacks some of the 5 assignments"),
    "decision missing": (lambda run: run.write_json("clustering", run.cluster_assignments()[1:]), "lacks some of the 5 assignments"),
    "update deleted": (lambda run: (run.folder / "updates" / "00002.parquet").unlink(), "the updates of round 2 are missing"),
}


@pytest.mark.parametrize("lost", LOST)
def test_a_run_with_missing_parts_is_refused(run, lost):
    spoil, told = LOST[lost]
    check_history(run)
    spoil(run)
    with pytest.raises(UserError, match=told) as refusal:
        check_history(run)
    assert "from round 4 because stored data is missing or changed" in str(refusal.value) and "--fresh" in str(refusal.value)
    assert "\n" not in str(refusal.value)


LEFT = {
    "nothing": lambda run: None,
    "a round without its state": lambda run: advance(run, 5, kept=False, timed=False),
    "two of them": lambda run: (advance(run, 5, kept=False), advance(run, 6, kept=False, timed=False)),
    "no timing": lambda run: drop_line(run.folder / "timings.jsonl", 4),
    "events after the state": lambda run: run.log_event(4, "environment changed", "threads was 2 and is 1"),
    "rows of the end": lambda run: run.append_records([Record(4, "final.loss", "", -1, 3.0)]),
    "a record of a callback": lambda run: run.append_records([Record(4, "own.metric", "", -1, 3.0)]),
}


@pytest.mark.parametrize("torn", [False, True], ids=["whole lines", "torn lines"])
@pytest.mark.parametrize("left", LEFT)
def test_a_killed_run_is_complete_and_can_be_resumed(run, left, torn):
    LEFT[left](run)
    for name in ("records", "events", "timings") if torn else ():
        with open(run.folder / f"{name}.jsonl", "ab") as file:
            file.write(b'[5, "lo')
    for _ in range(2):  # and killed again immediately
        check_history(run)
        run.truncate_after(4)
    for round in (5, 6):
        advance(run, round)
        check_history(run)
    assert [row["round"] for row in run.timings()] == list(range(7))
    assert {row.round for row in run.records()} == set(range(7))


def test_the_digest_of_a_file_depends_on_its_bytes_only(run):
    noted = read_metadata(run.state_path)[0]["history"]
    for name in ("records.jsonl", "events.jsonl"):
        assert noted[name] == jsonl.compute_checksum(run.folder / name) and noted[name][0] == (run.folder / name).stat().st_size
    assert noted["updates"] == 0


def test_a_state_of_an_older_version_is_resumed_with_a_note(run):
    save_tensors(run.state_path, {"a": torch.ones(2)}, {"round": 4})
    truncate_file(run.folder / "records.jsonl")
    check_history(run)  # without stored digests nothing can be missing
    from safetensors.torch import load_file, save_file

    save_file(load_file(run.state_path), run.state_path, metadata={"meta": json.dumps({"round": 4})})
    check_history(run)
    assert run.events()[-1]["kind"] == "state without digest"


def test_a_state_without_its_round_is_refused(run):
    save_tensors(run.state_path, {"a": torch.ones(2)}, {"tensor_names": ["a"]})
    with pytest.raises(UserError, match="does not contain its round number"):
        check_history(run)
