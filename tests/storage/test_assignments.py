"""Cluster assignments: the file grows by one entry per decision and equals the file that is written as a whole."""

from __future__ import annotations

import errno
import json
import zlib

import numpy as np
import pytest

from fedrift.core.errors import UserError
from fedrift.storage import Run, jsonl
from fedrift.storage.jsonl import AssignmentLog

ENTRIES = [
    {"round": round, "cluster_ids": [round % 2, 1, 0], "reason": {"p": 0.1 * round, "note": "é } \n ]"}, "sizes": np.array([2, round])}
    for round in range(6)
]


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(tmp_path, "abc123")


def whole_file(run: Run, entries: list[dict]) -> bytes:
    """Return the file as the plain reference writes it: all entries at once."""
    other = Run(run.root, "reference")
    other.write_json("clustering", entries)
    return (other.folder / "clustering.json").read_bytes()


def test_the_file_equals_one_that_is_written_as_a_whole_after_each_decision(run):
    log = AssignmentLog(run)
    for number, entry in enumerate(ENTRIES, 1):
        log.add(entry)
        assert log.path.read_bytes() == whole_file(run, ENTRIES[:number])
        assert [stored["round"] for stored in run.cluster_assignments()] == log.rounds == list(range(number))
    later = AssignmentLog(run)  # another process
    later.add({**ENTRIES[5], "round": 6})
    assert later.path.read_bytes() == whole_file(run, [*ENTRIES, {**ENTRIES[5], "round": 6}])


def test_a_repeated_round_replaces_its_assignment_and_later_ones(run):
    log = AssignmentLog(run)
    for entry in [*ENTRIES, {**ENTRIES[2], "cluster_ids": [0, 0, 0]}]:
        log.add(entry)
    expected = [*ENTRIES[:2], {**ENTRIES[2], "cluster_ids": [0, 0, 0]}]
    assert log.path.read_bytes() == whole_file(run, expected)
    assert log.checksum(9) == AssignmentLog(run).checksum(9)


def test_checksums_equal_those_of_the_stored_list(run):
    log = AssignmentLog(run)
    assert log.checksum(3) == [0, zlib.crc32(b"[]")]
    for entry in ENTRIES:
        log.add(entry)
        for last_round in range(-1, 7):
            rows = [row for row in run.cluster_assignments() if row["round"] <= last_round]
            expected = [len(rows), zlib.crc32(jsonl.to_json(rows).encode())]
            assert log.checksum(last_round) == AssignmentLog(run).checksum(last_round) == expected
    run.write_json("clustering", ENTRIES[::-1])  # in another order than a run writes
    rows = [row for row in run.cluster_assignments() if row["round"] <= 2]
    assert AssignmentLog(run).checksum(2) == [3, zlib.crc32(jsonl.to_json(rows).encode())]


def test_earlier_assignments_are_neither_read_nor_written_again(run, monkeypatch):
    log, reads, writes = AssignmentLog(run), [], []
    read, write = Run.cluster_assignments, jsonl.write_atomically
    monkeypatch.setattr(Run, "cluster_assignments", lambda self: reads.append(1) or read(self))
    monkeypatch.setattr(jsonl, "write_atomically", lambda path, content: writes.append(len(content)) or write(path, content))
    for entry in ENTRIES:
        log.add(entry)
        log.checksum(entry["round"])
    assert len(reads) <= 2 and len(writes) == 1  # once to find nothing, and once with the first entry


def test_a_kill_at_any_byte_of_a_decision_keeps_the_earlier_ones_and_the_run_goes_on(run):
    log = AssignmentLog(run)
    for entry in ENTRIES[:3]:
        log.add(entry)
    before = log.path.read_bytes()
    log.add(ENTRIES[3])
    after, kept = log.path.read_bytes(), before[: -len(jsonl.LIST_END)]
    assert after.startswith(kept)
    for size in range(len(kept), len(after) + 1):
        log.path.write_bytes(after[:size])
        found = len(run.cluster_assignments())
        assert found == 3 or (found == 4 and size >= len(after) - len(jsonl.LIST_END))
        resumed = AssignmentLog(run)
        resumed.add(ENTRIES[3])
        assert log.path.read_bytes() == after
    (run.folder / "finished.json").write_text("{}")
    log.path.write_bytes(after[:-5])  # a finished run has no decision under way
    with pytest.raises(UserError, match="is not JSON"):
        run.cluster_assignments()


def test_a_full_disk_leaves_the_file_as_it_was(run, monkeypatch):
    log = AssignmentLog(run)
    log.add(ENTRIES[0])
    before, write = log.path.read_bytes(), jsonl.write_all

    def fail_after_some_bytes(handle, content):
        if len(content) > len(jsonl.LIST_END):
            write(handle, content[:7])
            raise OSError(errno.ENOSPC, "full")
        write(handle, content)

    monkeypatch.setattr(jsonl, "write_all", fail_after_some_bytes)
    with pytest.raises(UserError, match="the disk is full"):
        log.add(ENTRIES[1])
    assert log.path.read_bytes() == before and json.loads(before)
