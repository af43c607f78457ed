"""Test that a stored run is reused only for its own experiment, and that errors of a run are stored."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from dataclasses import replace

import pytest
import yaml

import fedrift.engine.run
from fedrift.config.schema import edit_config
from fedrift.core.errors import UserError
from fedrift.engine.cache import ResourceCache, resolve_fingerprints
from fedrift.engine.run import archive_stored_run, check_stored_run, describe_finished_run, run_experiment
from fedrift.storage import list_runs, list_unreadable
from tests.small_experiment import SHORT, experiment, make_cache, run_command


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """A folder with a finished run and its experiment."""
    folder = tmp_path_factory.mktemp("made")
    asked = experiment(folder, *SHORT)
    (folder / "e.yaml").write_text(yaml.safe_dump(asked.to_dict()))
    run_experiment(asked, make_cache(folder))
    return folder


@pytest.fixture
def runs_copy(finished_run, tmp_path, monkeypatch):
    """A copy of the runs as the working directory, which a test may change; model and corpus stay in their place."""
    shutil.copytree(finished_run / "runs", tmp_path / "runs")
    shutil.copy(finished_run / "e.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDRIFT_CACHE", str(finished_run / "cache"))
    return tmp_path


def make_config(finished_run, folder, *overrides, **runtime):
    there = make_cache(finished_run, **runtime)
    return experiment(finished_run, *SHORT, *overrides), ResourceCache(replace(there.runtime, runs_dir=folder / "runs"))


def get_only_run(runs_copy):
    (path,) = (runs_copy / "runs").glob("*/experiment.json")
    return path.parent


def test_a_finished_run_is_shown_with_date_precision_and_version(finished_run, runs_copy, capsys, monkeypatch):
    before = {path.name: path.read_bytes() for path in get_only_run(runs_copy).iterdir() if path.is_file()}
    code, _, err = run_command(capsys, monkeypatch, "run", "e.yaml", "--device", "cpu")
    assert code == 0
    date = json.loads(before["finished.json"])["date"][:10]
    version = json.loads(before["environment.json"])["packages"]["fedrift"]
    lines = [line for line in err.splitlines() if "not computed again" in line]
    assert len(lines) == 1 and len(date) == 10
    assert lines[0].endswith(f"finished on {date}, float32 on cpu, fedrift {version}; it is not computed again; --fresh repeats it")
    assert {path.name: path.read_bytes() for path in get_only_run(runs_copy).iterdir() if path.is_file()} == before


@pytest.mark.parametrize("words", [("--dtype", "bfloat16"), ("--tf32",), ("--compile",), ("--no-deterministic",)])
def test_a_stored_run_is_not_reused_for_other_engine_options(finished_run, runs_copy, words, capsys, monkeypatch):
    code, out, err = run_command(capsys, monkeypatch, "run", "e.yaml", "--device", "cpu", *words)
    assert code == 2 and "worst domain" not in out
    assert "float32" in err and "Use --fresh to run it again" in err
    code, *_ = run_command(capsys, monkeypatch, "run", "e.yaml", "--device", "cpu", "--dtype", "float32")
    assert code == 0


def test_fresh_runs_again_and_keeps_the_old_folder(finished_run, runs_copy, capsys, monkeypatch):
    folder = get_only_run(runs_copy)
    (folder / "mark").write_text("old")
    code, _, err = run_command(capsys, monkeypatch, "run", "e.yaml", "--device", "cpu", "--fresh", "--dtype", "bfloat16")
    assert code == 0, err
    kept = runs_copy / "runs" / "replaced" / f"{folder.name}.1"
    assert (kept / "mark").read_text() == "old" and (kept / "finished.json").exists()
    assert str(kept.relative_to(runs_copy)) in err
    assert not (folder / "mark").exists()
    assert json.loads((folder / "environment.json").read_bytes())["engine"]["dtype"] == "bfloat16"
    _, out, _ = run_command(capsys, monkeypatch, "list", "--json")
    assert [run["id"] for run in json.loads(out)] == [folder.name]


def test_fresh_with_an_invalid_experiment_moves_nothing(finished_run, runs_copy):
    asked, there = make_config(finished_run, runs_copy, "training.max_seq_length=8192")  # longer than the context of the model
    folder = runs_copy / "runs" / resolve_fingerprints(asked, there).id
    folder.mkdir()
    (folder / "finished.json").write_text("{}")
    with pytest.raises(UserError, match=r"training\.max_seq_length"):
        archive_stored_run(asked, there)
    assert (folder / "finished.json").exists() and not (runs_copy / "runs" / "replaced").exists()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("training.local_steps", 7),
        ("training.batch_size", "2"),
        ("algorithm.type", "FedProx"),
        ("schema", None),
        ("seed", 1),
        ("trainable.target_modules", ["q_proj"]),
        ("evaluation.more", 3),
        ("model_fingerprint", "0" * 64),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_a_stored_run_of_another_experiment_is_refused_with_the_field(finished_run, runs_copy, path, value, finished):
    folder = get_only_run(runs_copy)
    stored = json.loads((folder / "experiment.json").read_bytes())
    *parts, last = path.split(".")
    place = stored
    for part in parts:
        place = place[part]
    place[last] = value
    (folder / "experiment.json").write_text(json.dumps(stored))
    if not finished:
        (folder / "finished.json").unlink()
    asked, there = make_config(finished_run, runs_copy)
    with pytest.raises(UserError) as raised:
        run_experiment(asked, there)
    assert f"contains another experiment than its name indicates: {path} is " in str(raised.value)
    assert "\n" not in str(raised.value)
    assert json.loads((folder / "experiment.json").read_bytes()) == stored


def test_equal_numbers_of_another_type_are_the_same_experiment(finished_run, runs_copy):
    folder = get_only_run(runs_copy)
    stored = json.loads((folder / "experiment.json").read_bytes())
    stored["partition"]["severity"], stored["training"]["num_rounds"] = 1, 1.0
    (folder / "experiment.json").write_text(json.dumps(stored))
    asked, there = make_config(finished_run, runs_copy)
    assert run_experiment(edit_config(asked, {"partition__severity": 1}), there).id == folder.name


def test_an_unexpected_error_is_one_line_and_its_traceback_is_stored(finished_run, runs_copy, capsys, monkeypatch):
    def fail(*_):
        raise KeyError("update.norm")

    monkeypatch.setattr(fedrift.engine.run, "evaluate_round", fail)
    code, _, err = run_command(capsys, monkeypatch, "run", "e.yaml", "seed=1", "--device", "cpu")
    assert code == 1
    assert "fedrift: KeyError: 'update.norm'" in err and "--verbose" in err and "Traceback" not in err
    (path,) = (runs_copy / "runs").glob("*/failed.json")
    said = json.loads(path.read_bytes())
    assert said["message"] == "KeyError: 'update.norm'" and said["round"] == 0
    assert "Traceback" in said["traceback"] and "in fail" in said["traceback"]
    assert str(path.relative_to(runs_copy)) in err
    for words in (("run", "e.yaml", "seed=1", "--device", "cpu", "--verbose"), ("--verbose", "run", "e.yaml", "seed=1")):
        code, _, err = run_command(capsys, monkeypatch, *words)
        assert code == 1 and "Traceback" in err and "in fail" in err
    code, out, _ = run_command(capsys, monkeypatch, "show", path.parent.name)
    assert "failed after round 0: KeyError: 'update.norm'" in out and "Traceback" not in out
    code, out, _ = run_command(capsys, monkeypatch, "show", path.parent.name, "--verbose")
    assert "in fail" in out
    code, _, err = run_command(capsys, monkeypatch, "show", "nothing")
    assert code == 2 and "Traceback" not in err
    code, _, err = run_command(capsys, monkeypatch, "show", "nothing", "--verbose")
    assert code == 2 and "Traceback" in err


@pytest.mark.parametrize("error", [OSError(30, "Read-only file system"), UserError("the disk is full")])
def test_an_error_that_cannot_be_stored_is_still_reported(finished_run, runs_copy, monkeypatch, error):
    def fail(*_):
        raise KeyError("update.norm")

    def refuse(self, *_):
        raise error

    monkeypatch.setattr(fedrift.engine.run, "evaluate_round", fail)
    monkeypatch.setattr(fedrift.engine.run.Run, "mark_failed", refuse)
    asked, there = make_config(finished_run, runs_copy, "seed=2")
    with pytest.raises(KeyError, match=r"update\.norm") as raised:
        run_experiment(asked, there)
    assert "failed.json" in raised.value.__notes__[0] and str(error) in raised.value.__notes__[0]


def test_an_error_is_stored_although_the_rows_are_invalid(finished_run, runs_copy, monkeypatch):
    asked, there = make_config(finished_run, runs_copy, "seed=2")

    def fail(*_):
        (run.folder / "records.jsonl").write_text("no rows\n")
        raise KeyError("update.norm")

    monkeypatch.setattr(fedrift.engine.run, "evaluate_round", fail)
    run = fedrift.engine.run.Run(runs_copy / "runs", resolve_fingerprints(asked, there).id)
    with pytest.raises(KeyError):
        run_experiment(asked, there)
    assert run.read_json("failed")["message"] == "KeyError: 'update.norm'"


def test_the_engine_options_of_a_finished_run_are_shown_although_not_stored(finished_run, runs_copy):
    folder = get_only_run(runs_copy)
    (folder / "environment.json").unlink()
    (folder / "finished.json").write_text("{}")
    asked, there = make_config(finished_run, runs_copy)
    asked = resolve_fingerprints(asked, there)
    run = fedrift.engine.run.Run(runs_copy / "runs", folder.name)
    check_stored_run(asked, run, there.runtime)
    assert describe_finished_run(run) == "finished on an unknown date, float32 on an unknown device, fedrift of an unknown version"


def test_a_user_algorithm_is_run_listed_and_reused(finished_run, runs_copy, capsys, monkeypatch, tmp_path):
    source = "from fedrift.algorithms import FedAvg\n\nclass Halved(FedAvg):\n    pass\n"
    (tmp_path / "own_rules.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    asked, there = make_config(finished_run, runs_copy)
    run = run_experiment(replace(asked, algorithm=importlib.import_module("own_rules").Halved()), there)
    assert run.id != get_other_run(runs_copy, run).id
    assert run_experiment(replace(asked, algorithm=importlib.import_module("own_rules").Halved()), there) == run
    for words in (
        ("list",),
        ("show", run.id),
        ("query", "SELECT run, algorithm FROM runs"),
        ("compare", run.id, get_other_run(runs_copy, run).id),
        ("diagnose", run.id),
    ):
        code, out, err = run_command(capsys, monkeypatch, *words)
        assert code == 0 and "own_rules:Halved" in out, (words, err)
    code, _, err = run_command(capsys, monkeypatch, "fork", run.id, "--from-round", "1")
    assert code == 2 and "has no stored updates" in err and len(err.splitlines()) == 1
    sys.modules.pop("own_rules")
    (tmp_path / "own_rules.py").write_text(source.replace("pass", "rescales_updates = True"))
    importlib.invalidate_caches()
    edited = run_experiment(replace(asked, algorithm=importlib.import_module("own_rules").Halved()), there)
    assert edited.id != run.id
    sys.modules.pop("own_rules")


def get_other_run(runs_copy, other):
    """Return the run of the folder that is not the other one."""
    return next(run for run in list_runs(runs_copy / "runs") if run.id != other.id)


def test_an_unreadable_run_hides_no_other_run_from_any_command(finished_run, runs_copy, capsys, monkeypatch):
    good = get_only_run(runs_copy).name
    for number, content in enumerate((b"{", b"[]", b"{}", b'{"algorithm": {"server_optimizer": {}}}')):
        (runs_copy / "runs" / f"bad{number}").mkdir()
        (runs_copy / "runs" / f"bad{number}" / "experiment.json").write_bytes(content)
    shutil.copytree(runs_copy / "runs" / good, runs_copy / "runs" / "badrows")
    (runs_copy / "runs" / "badrows" / "records.jsonl").write_text('["no round"]\n')
    assert len(list_unreadable(runs_copy / "runs")) == 4
    shown = []
    monkeypatch.setattr("fedrift.report.write_report", lambda exhibits, out: shown.extend(exhibits) or out)
    code, out, err = run_command(capsys, monkeypatch, "list")
    assert code == 0 and good[:6] in out
    code, out, _ = run_command(capsys, monkeypatch, "list", "--json")
    rows = {row["id"]: row for row in json.loads(out)}
    assert code == 0 and rows[good]["status"] == "finished"
    assert all(rows[f"bad{number}"]["reason"] for number in range(4))
    for words in (("list",), ("query", "SELECT run FROM runs"), ("report", good, "badrows", "bad1"), ("diagnose", good, "bad2", "badrows")):
        code, out, err = run_command(capsys, monkeypatch, *words)
        assert code == 0, (words, err)
        for number in range(4):
            assert sum(line.startswith(f"run bad{number} cannot be read: ") for line in err.splitlines()) == 1, (words, err)
    assert len(shown) == 1 and shown[0].status == "finished"
    for words in (("show", "bad0"), ("compare", good, "bad1"), ("report", "bad2"), ("diagnose", "bad3"), ("compare", good, "badrows")):
        code, _, err = run_command(capsys, monkeypatch, *words)
        assert code == 2 and "Traceback" not in err, (words, err)
