"""Test that odd values, damaged model folders and damaged runs give exit code 2 and one line, never a traceback or an empty answer."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fedrift.models import presets
from fedrift.storage import Run
from tests.cli.test_cli import run_command
from tests.cli.test_tables import store

POCKET = Path(presets.__file__).with_name("pocket")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Return the current folder, which contains a small dataset and an experiment."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text("text,label\n" + "".join(f"the word {n},{'ab'[n % 2]}\n" for n in range(30)))
    (tmp_path / "e.yaml").write_text("dataset: t.csv\npartition: {type: TopicMix, num_clients: 2, severity: 1.0}\n")
    return tmp_path


def refused_line(capsys, monkeypatch, *words: str) -> str:
    code, out, err = run_command(capsys, monkeypatch, *words)
    assert (code, out) == (2, "") and len(err.splitlines()) == 1
    return err


@pytest.mark.parametrize("value", ["abc", "null", "-5", "0", ".inf", "1e30", "[1]"])
def test_dataset_show_refuses_a_length_that_a_run_refuses(folder, capsys, monkeypatch, value):
    told = refused_line(capsys, monkeypatch, "dataset", "show", "e.yaml", f"training.max_seq_length={value}")
    assert "training.max_seq_length: expected a whole number from 8 to 8,192" in told


@pytest.mark.parametrize("override", ["training=5", "training.rounds=3"])
def test_dataset_show_refuses_wrong_training_keys(folder, capsys, monkeypatch, override):
    assert "training" in refused_line(capsys, monkeypatch, "dataset", "show", "e.yaml", override)


@pytest.mark.parametrize("content", ["{", "", "[]", "{}"])
@pytest.mark.parametrize("command", ["validate", "partition show"])
def test_a_damaged_tokenizer_is_refused(folder, capsys, monkeypatch, command, content):
    shutil.copytree(POCKET, folder / "model")
    (folder / "model" / "tokenizer.json").write_text(content)
    told = refused_line(capsys, monkeypatch, *command.split(), "e.yaml", "model=model")
    assert "tokenizer.json" in told and "again" in told


@pytest.mark.parametrize("content", ["{", "[]", None])
def test_validate_refuses_a_model_without_a_readable_configuration(folder, capsys, monkeypatch, content):
    shutil.copytree(POCKET, folder / "model")
    (folder / "model" / "config.json").unlink() if content is None else (folder / "model" / "config.json").write_text(content)
    assert "config.json" in refused_line(capsys, monkeypatch, "validate", "e.yaml", "model=model")


def test_an_iid_partition_is_named_by_its_severity(folder, capsys, monkeypatch):
    assert "give partition.severity=0" in refused_line(capsys, monkeypatch, "validate", "e.yaml", "partition=IID")


@pytest.mark.parametrize("words", ["list", "show x", "query 'SELECT 1'", "delete x --yes", "monitor --once"])
def test_a_file_in_place_of_the_folder_of_runs_is_refused(folder, capsys, monkeypatch, words):
    command = [word.strip("'") for word in words.replace("SELECT 1", "SELECT_1").split()]
    told = refused_line(capsys, monkeypatch, *(word.replace("_", " ") for word in command), "--runs-dir", "t.csv")
    assert "t.csv is a file, not a folder of runs" in told


@pytest.mark.parametrize("name", ["failed", "finished"])
def test_a_damaged_summary_of_a_run_is_refused(folder, capsys, monkeypatch, name):
    run: Run = store(folder / "runs", finished=name == "finished")
    (run.folder / f"{name}.json").write_text("[]")
    code, _, err = run_command(capsys, monkeypatch, "show", run.id)
    assert code == 2 and f"{name}.json must contain an object" in err and len(err.splitlines()) == 1
    assert run_command(capsys, monkeypatch, "monitor", "--once")[0] == 0


def test_a_finished_run_without_its_models_is_told_as_such(folder, capsys, monkeypatch):
    run: Run = store(folder / "runs")
    assert "is missing: restore it" in refused_line(capsys, monkeypatch, "export", run.id, "--hf")
