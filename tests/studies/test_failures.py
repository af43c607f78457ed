"""Test that failures in a study are reported, that no run is lost, and that no failed run hides another."""

from __future__ import annotations

import json
import queue
import shutil
import sys
import types
from contextlib import nullcontext
from dataclasses import replace

import pytest
import yaml

import fedrift.engine.run
import fedrift.studies.executors
from fedrift.cli.app import main
from fedrift.core.errors import UserError
from fedrift.engine.cache import ResourceCache, resolve_fingerprints
from fedrift.storage import Run
from fedrift.studies import StudyManifest, build_study_table, executors
from fedrift.studies.executors import Executor, Local, Processes, Ray, Slurm, Stacked
from fedrift.studies.run import run_phase, run_study
from tests.small_experiment import SHORT, experiment, make_cache
from tests.studies.small import study


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("failures")


def make_configs(folder, there, count=3):
    return [resolve_fingerprints(experiment(folder, *SHORT, f"seed={seed}"), there) for seed in range(count)]


def cache_in(folder, root, **runtime) -> ResourceCache:
    return ResourceCache(replace(make_cache(folder, threads=1, **runtime).runtime, runs_dir=root))


@pytest.mark.parametrize("executor", [Local(), Stacked(num_concurrent_runs=3)], ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("place", ["claim", "tell", "note"])
def test_an_error_outside_a_run_ends_the_study(folder, tmp_path, monkeypatch, executor, place):
    there, told = cache_in(folder, tmp_path / "runs"), []
    manifest, every = StudyManifest(there.runtime.runs_dir, "s"), make_configs(folder, there)

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    def on_progress(run, round):
        told.append(run)
        if place == "tell" and len(told) == 2:
            fail()

    if place == "claim":
        real = fedrift.studies.executors.acquire_lease
        monkeypatch.setattr(
            fedrift.studies.executors, "acquire_lease", lambda path, *rest: fail() if path.name == every[1].id else real(path, *rest)
        )
    if place == "note":
        monkeypatch.setattr(fedrift.studies.executors, "run_experiment", lambda *_: {}["update.norm"])
        monkeypatch.setattr(StudyManifest, "record_failure", fail)
    error = KeyError if place == "note" else OSError  # the error of the run itself is raised
    with pytest.raises(error) as raised:
        run_phase(every, there, manifest, executor, lambda what, experiments: on_progress, "runs")
    if place == "note":
        assert "No space left" in raised.value.__notes__[0]
    assert not any(list((there.runtime.runs_dir / each.id).glob("lease.*")) for each in every)  # no lease remains
    monkeypatch.undo()
    run_phase(every, there, manifest, executor, lambda what, experiments: lambda run, round: None, "runs")
    assert all(manifest.get_run(each.id).is_finished for each in every)


def test_an_executor_that_omits_runs_is_an_error(folder, tmp_path):
    class IdleExecutor(Executor):
        def __call__(self, experiments, cache, manifest, on_progress):
            Local()(experiments[:1], cache, manifest, on_progress)

    there = cache_in(folder, tmp_path / "runs")
    every = make_configs(folder, there)
    with pytest.raises(UserError, match=f"2 of 3 runs are neither finished nor failed, the first is {every[1].id}"):
        run_phase(
            every,
            there,
            StudyManifest(there.runtime.runs_dir, "s"),
            IdleExecutor(),
            lambda what, experiments: lambda run, round: None,
            "runs",
        )


class SameProcessContext:
    """A multiprocessing context that runs its processes in this process."""

    def __init__(self, **said):
        self.said = said
        self.sentinel, self.exitcode = None, 0

    SimpleQueue = queue.SimpleQueue

    def start(self):
        self.said["target"](*self.said["args"])

    def is_alive(self):
        return False

    terminate = join = is_alive


SameProcessContext.Process = SameProcessContext


def test_a_worker_process_reports_an_error_outside_a_run(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(executors, "create_worker_context", lambda: SameProcessContext)
    monkeypatch.setattr(executors, "wait", lambda sentinels, timeout: sentinels)
    there = cache_in(folder, tmp_path / "runs")
    every = make_configs(folder, there, 1)
    there.runtime.runs_dir.mkdir()
    (there.runtime.runs_dir / every[0].id).write_text("a file in the place of a run's folder")
    with pytest.raises(RuntimeError, match=r"FileExistsError|NotADirectoryError") as raised:
        Processes(1)(every, there, StudyManifest(there.runtime.runs_dir, "s"), lambda run, round: None)
    assert "Traceback" in raised.value.__notes__[0]


def test_a_ray_task_raises_its_original_error(folder, tmp_path, monkeypatch):
    class RayError(Exception):
        pass

    class RayTaskError(RayError):
        cause = OSError(28, "No space left on device")

    def raising(*_):
        raise RayTaskError("a whole traceback")

    fake = types.SimpleNamespace(
        is_initialized=lambda: True,
        remote=lambda **_: lambda function: types.SimpleNamespace(remote=lambda *_: 0),
        wait=lambda waiting, timeout: (waiting, []),
        get=raising,
        exceptions=types.SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError),
    )
    monkeypatch.setitem(sys.modules, "ray", fake)
    there = cache_in(folder, tmp_path / "runs")
    with pytest.raises(OSError, match="No space left"):
        Ray()(make_configs(folder, there, 1), there, StudyManifest(there.runtime.runs_dir, "s"), lambda run, round: None)


def test_finished_jobs_are_reported_with_their_errors(folder, tmp_path, monkeypatch):
    def job(error):
        return types.SimpleNamespace(done=lambda: True, exception=lambda: error, cancel=lambda check: None)

    jobs = iter([job(None), job(RuntimeError("first\nOSError: No space left on device"))])

    class Submitter:
        def __init__(self, **_): ...
        def update_parameters(self, **_): ...
        def batch(self):
            return nullcontext()

        def submit(self, *_):
            return next(jobs)

    monkeypatch.setitem(sys.modules, "submitit", types.SimpleNamespace(AutoExecutor=Submitter))
    there = cache_in(folder, tmp_path / "runs")
    with pytest.raises(UserError, match="No space left on device"):
        Slurm(num_jobs=2, cluster="local")(
            make_configs(folder, there, 2), there, StudyManifest(there.runtime.runs_dir, "s"), lambda run, round: None
        )


BASE = {"factors": {"partition.severity": [1.0]}, "seeds": 2}


@pytest.fixture(scope="module")
def finished_study(folder):
    """A finished study and its progress messages."""
    told = []
    there = cache_in(folder, folder / "done", on_message=told.append)
    expected = study(folder, **BASE)
    return expected, run_study(expected, there), told


def copy_study(folder, tmp_path, finished_study, **runtime):
    shutil.copytree(folder / "done", tmp_path / "runs")
    told = []
    there = cache_in(folder, tmp_path / "runs", on_message=told.append, **runtime)
    return StudyManifest(tmp_path / "runs", finished_study[0].name), there, told


def test_reused_runs_are_counted_and_fresh_runs_them_again(folder, tmp_path, finished_study):
    expected, before, told = finished_study
    assert not any("not computed again" in line for line in told)
    manifest, there, told = copy_study(folder, tmp_path, finished_study)
    ids = {entry.run for entry in before.read()["runs"]}
    run_study(expected, there)
    (line,) = [line for line in told if "not computed again" in line]
    assert line.startswith(f"runs: {len(ids)} of {len(ids)} were finished on ") and "float32 on cpu" in line
    told.clear()
    for id in ids:
        (tmp_path / "runs" / id / "mark").touch()
    run_study(expected, there, fresh=True)
    assert not any("not computed again" in line for line in told) and f"{len(ids)} stored runs are now in" in told[0]
    assert {path.name for path in (tmp_path / "runs" / "replaced").iterdir()} == {f"{id}.1" for id in ids}
    assert all(manifest.get_run(id).is_finished and not (manifest.get_run(id).folder / "mark").exists() for id in ids)
    pairs = build_study_table(manifest), build_study_table(before)
    assert pairs[0].equals(pairs[1])


def test_finished_runs_that_no_longer_belong_to_a_study_are_reported(folder, tmp_path, finished_study):
    _, there, told = copy_study(folder, tmp_path, finished_study)
    run_study(study(folder, **{**BASE, "seeds": 1}), there)
    assert sum("2 finished runs are no longer part of study tiny" in line for line in told) == 1


def test_finished_runs_with_other_engine_options_are_refused(folder, tmp_path, finished_study):
    _, there, _ = copy_study(folder, tmp_path, finished_study, dtype="bfloat16")
    with pytest.raises(UserError, match="dtype=float32, but dtype=bfloat16 is requested"):
        run_study(finished_study[0], there)


def test_a_broken_run_counts_as_failed_and_hides_no_other_run(folder, tmp_path, finished_study, monkeypatch, capsys):
    manifest, *_ = copy_study(folder, tmp_path, finished_study)
    entries = manifest.read()["runs"]
    first, second = (Run(manifest.root, id) for id in dict.fromkeys(entry.run for entry in entries if entry.role == "run"))
    (first.folder / "experiment.json").write_text("[")
    got = build_study_table(manifest).set_index("run")
    assert got.status[first.id] == "failed" and "it cannot be read: " in got.failure[first.id]
    assert (
        got.status[second.id] == "finished" and got.loss[second.id] == build_study_table(finished_study[1]).set_index("run").loss[second.id]
    )
    monkeypatch.setattr(
        sys, "argv", ["fedrift", "report", manifest.name, "--latex", "--runs-dir", str(manifest.root), "--output", str(tmp_path / "page")]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code, capsys.readouterr().err


def test_a_study_with_a_failed_run_exits_with_1_and_stores_the_traceback(folder, tmp_path, finished_study, monkeypatch, capsys):
    copy_study(folder, tmp_path, finished_study)
    expected = study(folder, **{**BASE, "name": "more", "seeds": 3})
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(expected.to_dict()))

    def fail(*_):
        raise KeyError("update.norm")

    monkeypatch.setattr(fedrift.engine.run, "evaluate_round", fail)
    for more in ((), ("--verbose",)):
        monkeypatch.setattr(
            sys, "argv", ["fedrift", "study", str(tmp_path / "s.yaml"), "--runs-dir", str(tmp_path / "runs"), "--device", "cpu", *more]
        )
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert ended.value.code == 1 and "KeyError: 'update.norm'" in out
        assert ("Traceback" in err) == bool(more)
    failed = [json.loads(path.read_bytes()) for path in (tmp_path / "runs").glob("*/failed.json")]
    assert failed and all("in fail" in each["traceback"] for each in failed)
