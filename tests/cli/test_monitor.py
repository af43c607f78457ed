"""Test the command `fedrift monitor`."""

from __future__ import annotations

import json

from tests.cli.test_cli import run_command
from tests.monitor.stored_runs import ROUNDS, make_manifest, start_run


def test_a_study_is_shown_on_the_terminal(tmp_path, capsys, monkeypatch):
    manifest = make_manifest(tmp_path, tmp_path / "world")
    start_run(tmp_path, "run0", ROUNDS, start=5.1)
    start_run(tmp_path, "twin0", 3, severity=0.0)
    manifest.record_failure("run1", "MemoryError: no room")
    code, out, _ = run_command(capsys, monkeypatch, "monitor", "tiny", "--runs-dir", str(tmp_path), "--once")
    assert code == 0
    for words in (
        "study tiny",
        "Does it run?",
        "56 % of 16 rounds",
        "●✕",
        "+0.100",
        "IID baseline: algorithm=FedAvg",
        "▂▁",
        "failed run1",
        "MemoryError: no room",
        "no process is running",
    ):
        assert words in out, words
    code, out, _ = run_command(capsys, monkeypatch, "monitor", "tiny", "--runs-dir", str(tmp_path), "--json")
    assert json.loads(out)["counts"] == {"finished": 1, "failed": 1, "unfinished": 1, "missing": 1}


def test_monitoring_ends_with_the_last_run_and_reports_an_empty_folder(tmp_path, capsys, monkeypatch):
    start_run(tmp_path / "runs", "a", ROUNDS)
    monkeypatch.chdir(tmp_path)
    code, out, _ = run_command(capsys, monkeypatch, "monitor")
    assert code == 0 and "all runs have ended: 1 finished" in out
    code, out, _ = run_command(capsys, monkeypatch, "monitor", "--runs-dir", "nowhere", "--once")
    assert code == 0 and "no runs in nowhere yet" in out
    assert not (tmp_path / "nowhere").exists()
    code, _, err = run_command(capsys, monkeypatch, "monitor", "nosuch")
    assert code == 2 and "no study 'nosuch'" in err
