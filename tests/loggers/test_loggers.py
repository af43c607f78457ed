"""Test that each logging backend receives every number once, even if the run is stopped; installed backends are tested offline."""

from __future__ import annotations

import math
import os
import sqlite3
import subprocess
import sys

import pytest

from fedrift.core.errors import UserError
from fedrift.core.records import Record
from fedrift.storage import jsonl
from fedrift.storage.loggers import (
    LOGGING_BACKENDS,
    Logger,
    LoggingBackend,
    create_backends,
    flatten_records,
    log_finished_runs,
    open_loggers,
)
from tests.cli.test_cli import experiment_folder, run_command  # noqa: F401
from tests.monitor.stored_runs import ROUNDS, make_rows, start_run


class RecordingBackend(LoggingBackend):
    """A backend that stores its calls."""

    package = "json"

    def __init__(self, folder):
        super().__init__(folder)
        self.said = []

    def start_run(self, run, name, asked, again):
        self.said.append(("begin", run, asked["algorithm"], again))

    def log_metrics(self, round, numbers):
        self.said.append((round, numbers["loss"]))

    def finish_run(self, summary):
        self.said.append(("end", summary.get("rounds")))


def received_losses(sink) -> dict[int, float]:
    return dict(said for said in sink.said if isinstance(said[0], int))


def test_every_round_is_logged_once_and_only_when_complete(tmp_path):
    run, ear = start_run(tmp_path, "a", 1), RecordingBackend(tmp_path)
    feed = Logger("ear", ear, run)
    feed.push()
    assert received_losses(ear) == {0: 5.0}
    run.append_records(make_rows(3, first=2))
    feed.push()
    feed.push()
    assert sorted(received_losses(ear)) == [0, 1, 2] and len(ear.said) == 4
    run.append_records(make_rows(ROUNDS, first=4))
    run.mark_finished({"rounds": ROUNDS})
    feed.close()
    assert received_losses(ear) == pytest.approx({round: 5.0 - 0.1 * round for round in range(ROUNDS + 1)})
    assert ear.said[-1] == ("end", ROUNDS)


def test_only_new_rows_are_read_in_each_round(tmp_path, monkeypatch):
    run, ear, lines = start_run(tmp_path, "a", 1), RecordingBackend(tmp_path), []
    parse = jsonl.parse_lines
    monkeypatch.setattr(jsonl, "parse_lines", lambda added, *more: lines.extend(added) or parse(added, *more))
    feed = Logger("ear", ear, run)
    for round in range(2, ROUNDS + 1):
        feed.push()
        run.append_records(make_rows(round, first=round))
    feed.close()
    assert lines == jsonl.read_complete_lines(run.folder / "records.jsonl")
    assert received_losses(ear) == pytest.approx({round: 5.0 - 0.1 * round for round in range(ROUNDS + 1)})


def test_a_killed_run_logs_nothing_twice(tmp_path):
    run, first, second = start_run(tmp_path, "a", 4), RecordingBackend(tmp_path), RecordingBackend(tmp_path)
    Logger("ear", first, run).push()  # the process is killed here
    run.truncate_after(2)
    feed = Logger("ear", second, run)
    feed.push()
    run.append_records(make_rows(ROUNDS, first=3))
    feed.close()
    assert second.said[0] == ("begin", "a", "FedAvg", True)
    assert sorted(received_losses(first)) == [0, 1, 2, 3] and sorted(received_losses(second)) == [4, 5, 6]
    assert second.said[-1] == ("end", None)


def test_names_of_numbers_contain_metric_domain_and_client():
    got = flatten_records(
        [
            Record(1, "loss", "", -1, 4.0),
            Record(1, "loss", "sport", -1, 5.0),
            Record(1, "update.norm", "", 0, 1.0),
            Record(1, "update.norm", "", 1, 3.0),
            Record(1, "update.norm", "", 2, math.nan),
        ]
    )
    assert got == {
        "loss": 4.0,
        "loss/sport": 5.0,
        "update.norm/clients.mean": 2.0,
        "update.norm/clients.min": 1.0,
        "update.norm/clients.max": 3.0,
    }


def test_missing_packages_and_unknown_backends_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(LOGGING_BACKENDS["wandb"], "package", "no_such_package")
    with pytest.raises(UserError, match="pip install 'wandb'"):
        create_backends(["wandb"], tmp_path)
    with pytest.raises(UserError, match="did you mean 'tensorboard'"):
        create_backends(["tensorbord"], tmp_path)
    assert create_backends([], tmp_path) == {}


def skip_unless_installed(name: str, tmp_path):
    pytest.importorskip(LOGGING_BACKENDS[name].pip_name.removesuffix("-skinny"), reason=f"{name} is not installed")
    run = start_run(tmp_path, "abc", ROUNDS)
    with open_loggers([name], tmp_path) as feeds:
        feeds.push(run)
    return tmp_path / "logs" / name


def test_tensorboard_has_the_curve(tmp_path):
    folder = skip_unless_installed("tensorboard", tmp_path)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "abc"))
    found.Reload()
    assert [(event.step, event.value) for event in found.Scalars("loss/sport")] == [
        (round, pytest.approx(5.0 - 0.1 * round)) for round in range(ROUNDS + 1)
    ]


def test_mlflow_has_the_curve_and_the_experiment(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = skip_unless_installed("mlflow", tmp_path)
    import mlflow

    client = mlflow.MlflowClient(folder.resolve().as_uri())
    found = client.search_runs([client.get_experiment_by_name("fedrift").experiment_id], "tags.fedrift = 'abc'")
    assert len(found) == 1 and found[0].data.params["algorithm"] == "FedAvg" and found[0].info.status == "FINISHED"
    assert [each.step for each in client.get_metric_history(found[0].info.run_id, "loss")] == list(range(ROUNDS + 1))
    assert found[0].data.metrics["loss clients.mean"] == pytest.approx(4.4)


def test_numbers_that_mlflow_would_change_are_not_logged(tmp_path, monkeypatch):
    from fedrift.storage.loggers import LOGGING_BACKENDS

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    pytest.importorskip("mlflow")
    backend = LOGGING_BACKENDS["mlflow"](tmp_path)
    backend.start_run("abc", "FedAvg", {}, False)
    backend.log_metrics(1, {"loss": math.inf, "gap": math.nan, "norm": 2.0})
    found = backend.client.get_run(backend.id)
    assert found.data.metrics == {"norm": 2.0} and found.data.tags["fedrift.not_finite"] == "round 1: gap, loss"


@pytest.mark.slow  # starts its own process
def test_wandb_stores_the_run_locally_when_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = skip_unless_installed("wandb", tmp_path)
    assert list(folder.rglob("run-abc.wandb"))


@pytest.mark.slow  # starts its own process
def test_trackio_has_the_curve(tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    place = os.environ | {"TRACKIO_DIR": str(tmp_path / "kept"), "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    start_run(tmp_path, "abc", ROUNDS)
    said = (
        f"from pathlib import Path; from fedrift.storage.loggers import open_loggers; from fedrift.storage import Run\n"
        f"root = Path({str(tmp_path)!r})\n"
        "with open_loggers(['trackio'], root) as feeds: feeds.push(Run(root, 'abc'))"
    )
    subprocess.run([sys.executable, "-c", said], env=place, check=True, capture_output=True, timeout=300)
    database = next((tmp_path / "kept").rglob("fedrift*.db"))
    with sqlite3.connect(database) as connection:
        assert connection.execute("SELECT count(*) FROM metrics WHERE run_name = 'abc'").fetchone()[0] == ROUNDS + 1


def test_a_run_of_the_command_line_logs_to_a_backend(experiment_folder, capsys, monkeypatch):  # noqa: F811
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    code, _, err = run_command(capsys, monkeypatch, "run", "e.yaml", "--device", "cpu", "--log-to", "tensorboard")
    assert code == 0, err
    assert list((experiment_folder / "runs" / "logs" / "tensorboard").glob("*/events*"))
    code, _, err = run_command(capsys, monkeypatch, "run", "e.yaml", "--log-to", "tensorbord")
    assert code == 2 and "did you mean 'tensorboard'" in err


def test_the_runs_of_a_study_are_logged_once_when_finished(tmp_path, monkeypatch):
    made = []
    monkeypatch.setitem(LOGGING_BACKENDS, "ear", lambda folder: made.append(RecordingBackend(folder)) or made[-1])
    over, late = start_run(tmp_path, "a", ROUNDS), start_run(tmp_path, "b", 1)
    over.mark_finished({"rounds": ROUNDS})
    heard = []
    for _ in range(2):  # repeating the study logs nothing again
        tell = log_finished_runs(lambda what, runs: lambda run, round: heard.append(run), ["ear"], tmp_path)("runs", [over, late])
        assert [ear.said[0][1] for ear in made if ear.said] == ["a"]
        tell("b", ROUNDS)
    late.append_records(make_rows(ROUNDS, first=2))
    late.mark_finished({"rounds": ROUNDS})
    tell("b", ROUNDS)
    tell("b", ROUNDS)
    assert heard == ["b"] * 4
    assert [ear.said[0][1] for ear in made if ear.said] == ["a", "b"]
    assert all(len(received_losses(ear)) == ROUNDS + 1 and ear.said[-1] == ("end", ROUNDS) for ear in made if ear.said)
    assert log_finished_runs(made.append, [], tmp_path) == made.append
