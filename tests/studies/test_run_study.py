"""Test whole studies of the small experiment: run once, resumed, shared between workers, and equal for every executor."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import shutil
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import psutil
import pytest

import fedrift.engine.build
import fedrift.studies.executors
import fedrift.studies.plan
from fedrift.config.schema import parse_config
from fedrift.core.errors import UserError
from fedrift.core.records import Record, Trajectory
from fedrift.engine.cache import ResourceCache, resolve_fingerprints
from fedrift.models.arithmetic import ArithmeticChoice
from fedrift.storage.leases import acquire_lease
from fedrift.studies import StudyManifest, build_study_table, evaluate_study_hypotheses, export_study, find_study, import_study
from fedrift.studies.executors import Processes, Ray, Slurm, run_one, run_worker
from fedrift.studies.plan import count_tokens, estimate_cost
from fedrift.studies.run import preview_study, run_study
from tests.small_experiment import make_cache
from tests.studies.small import TUNED, study


def frame(book: StudyManifest) -> pd.DataFrame:
    return build_study_table(book)


def exact_table(book: StudyManifest) -> str:
    """Return every number of a study's table, exactly."""
    return build_study_table(book, roles=("run", "iid_baseline", "trial")).to_csv(index=False)


def cache_of(folder: Path) -> ResourceCache:
    return make_cache(folder, threads=1)


def cache_in(folder: Path, root: Path) -> ResourceCache:
    """Return the same resources with another folder of runs."""
    return ResourceCache(replace(cache_of(folder).runtime, runs_dir=root))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished study."""
    folder = tmp_path_factory.mktemp("study")
    return folder, run_study(study(folder, **TUNED), cache_of(folder))


def test_every_cell_and_seed_has_a_run_and_baselines_are_shared(done):
    _, book = done
    got = frame(book)
    assert (got.status == "finished").all()
    assert len(got[got.role == "run"]) == 8
    assert len(got[got.iid]) == 4  # algorithms x seeds: both severities share their baselines
    assert set(got[got.iid]["partition.severity"]) == {0.0}
    assert set(got[got.role == "run"].iid_baseline) == set(got[got.iid].run)
    ends = got.set_index("run").loss
    for row in got[got.role == "run"].itertuples():
        assert row.gap == pytest.approx(ends[row.run] - ends[row.iid_baseline])
    assert got[["loss", "final.loss", "movement"]].notna().all().all()


def test_hypotheses_are_evaluated_and_inconclusive_for_two_seeds(done):
    folder, book = done
    said = [
        {"type": "Greater", "name": "H1", "metric": "loss", "contrast": "iid_baseline", "group": {"partition.severity": 1.0}},
        {"type": "Less", "name": "H2", "metric": "loss:max", "group": {"algorithm": "FedProx"}, "reference": {"algorithm": "FedAvg"}},
    ]
    other = StudyManifest(book.root, "judged")
    other.write({**book.read(), "study": study(folder, name="judged", hypotheses=said, **TUNED).to_dict()})
    got, verdicts = evaluate_study_hypotheses(other)
    assert [verdict.verdict for verdict in verdicts] == ["inconclusive"] * 2
    assert [verdict.seeds for verdict in verdicts] == [2, 2]
    skewed = got[(got.role == "run") & (got["partition.severity"] == 1.0)]
    assert verdicts[0].effect == pytest.approx(skewed.gap.mean())
    assert got["loss:max"].notna().all()


def test_tuning_results_are_in_the_manifest_and_in_the_runs(done):
    _, book = done
    said = book.read()
    assert said["complete"]
    assert [choice["group"] for choice in said["tuning_results"]] == ["algorithm=FedAvg", "algorithm=FedProx"]
    assert all(len(choice["trials"]) == 2 for choice in said["tuning_results"])
    trial = build_study_table(book, roles=("trial",))
    assert len(trial) == 4
    for choice in said["tuning_results"]:
        lr = choice["settings"]["training.client_optimizer.lr"]
        runs = [entry for entry in said["runs"] if entry.role == "run" and entry.condition.startswith(choice["group"])]
        assert {book.get_run(entry).config["training"]["client_optimizer"]["lr"] for entry in runs} == {lr}


def test_a_finished_study_runs_nothing_and_has_the_same_plan(done, monkeypatch):
    folder, book = done
    monkeypatch.setattr(fedrift.studies.executors, "run_experiment", lambda *a: pytest.fail("a finished run was started again"))
    assert exact_table(run_study(study(folder, **TUNED), cache_of(folder))) == exact_table(book)
    plan, known = preview_study(study(folder, **TUNED), cache_of(folder))
    assert known
    assert {entry.run for entry in plan.entries} == {entry.run for entry in book.read()["runs"]}


def test_a_failed_run_is_recorded_and_the_study_continues(tmp_path, monkeypatch):
    real = fedrift.studies.executors.run_experiment

    def sometimes(experiment, *rest):
        if experiment.seed == 1 and experiment.partition.severity == 1.0:
            raise MemoryError("no room")
        return real(experiment, *rest)

    monkeypatch.setattr(fedrift.studies.executors, "run_experiment", sometimes)
    small = {"factors": {"partition.severity": [0.5, 1.0]}}
    book = run_study(study(tmp_path, **small), cache_of(tmp_path))
    got = frame(book)
    assert (got.status == "failed").sum() == 1
    row = got[got.status == "failed"].iloc[0]
    assert (row.seed, row["partition.severity"], row.failure) == (1, 1.0, "MemoryError: no room")
    assert pd.isna(row.loss)
    assert not row.diverged
    monkeypatch.setattr(fedrift.studies.executors, "run_experiment", real)  # a repeated call tries the run again
    assert (frame(run_study(study(tmp_path, **small), cache_of(tmp_path))).status == "finished").all()


def test_a_run_of_severity_0_has_its_own_row_and_is_its_own_baseline(tmp_path):
    book = run_study(study(tmp_path, seeds=1, factors={"partition.severity": [0.0, 1.0]}), cache_of(tmp_path))
    got = frame(book)
    assert len(got) == 2
    assert not got.iid.any()
    assert got.gap[0] == 0
    assert got.iid_baseline.tolist() == [got.run[0]] * 2


def test_a_run_of_another_worker_is_taken_over_only_after_its_death(tmp_path):
    here = cache_of(tmp_path)
    book = StudyManifest(here.runtime.runs_dir, "tiny")
    one = resolve_fingerprints(parse_config(study(tmp_path).base), here)
    theirs = acquire_lease(book.get_run(one.id).folder)
    assert not run_one(one, here, book)
    theirs.path.write_text('{"host": "elsewhere", "pid": 1, "started_at": 0}')
    os.utime(theirs.path, (1, 1))
    run_worker([one], here, book, poll_interval_s=0.01)
    assert book.get_run(one.id).is_finished


def test_a_run_that_kills_its_workers_is_abandoned(tmp_path):
    here = cache_of(tmp_path)
    book = StudyManifest(here.runtime.runs_dir, "tiny")
    one = resolve_fingerprints(parse_config(study(tmp_path).base), here)
    folder = book.get_run(one.id).folder
    folder.mkdir(parents=True)
    (folder / "lease.2").write_text('{"host": "elsewhere", "pid": 1, "started_at": 0}')
    os.utime(folder / "lease.2", (1, 1))
    assert run_one(one, here, book)
    assert "3 workers ended" in book.get_failure(one.id)


def test_an_archive_gives_the_same_table_in_another_folder_and_the_same_bytes(done, tmp_path):
    _, book = done
    first = export_study(book, tmp_path / "a.zip")
    assert export_study(book, tmp_path / "b.zip").read_bytes() == first.read_bytes()
    there = import_study(first, tmp_path / "there")
    assert exact_table(there) == exact_table(book)
    assert export_study(there, tmp_path / "c.zip").read_bytes() == first.read_bytes()
    assert exact_table(find_study(tmp_path / "there", "tiny")) == exact_table(book)
    with pytest.raises(UserError, match="cannot be read"):
        import_study(Path(__file__), tmp_path / "there")
    with pytest.raises(UserError, match="did you mean 'tiny'"):
        find_study(tmp_path / "there", "tinny").read()


def test_the_cost_of_remaining_runs_is_estimated(tmp_path, done):
    folder, _ = done
    plan, _ = preview_study(study(folder, **TUNED), cache_of(folder))
    assert estimate_cost(plan.configs.values(), cache_of(folder)).tokens == 0
    plan, known = preview_study(study(tmp_path, **TUNED), cache_of(tmp_path))
    assert not known
    price = estimate_cost(plan.configs.values(), cache_of(tmp_path))
    assert price.tokens == sum(count_tokens(each) for each in plan.configs.values())
    assert count_tokens(next(iter(plan.configs.values()))) == 1 * 2 * 2 * 2 * 16  # rounds, cohort, steps, batch, tokens
    assert price.seconds > 0
    assert not list((tmp_path / "runs").glob("*/experiment.json"))  # the probe stores nothing


@pytest.mark.slow
def test_processes_give_the_same_table_as_local_execution(done, tmp_path):
    folder, _ = done
    small = study(folder, seeds=1, factors={"partition.severity": [0.5, 1.0]})
    one, other = (
        run_study(small, cache_in(folder, tmp_path / name), executor) for name, executor in (("one", None), ("other", Processes(2)))
    )
    assert exact_table(one) == exact_table(other)


@pytest.mark.slow
@pytest.mark.parametrize("executor", [Ray(num_workers=2), Slurm(num_jobs=2, cluster="local")], ids=["ray", "slurm"])
def test_ray_and_slurm_give_the_same_table_as_local_execution(done, tmp_path, executor):
    folder, book = done
    assert exact_table(run_study(study(folder, **TUNED), cache_in(folder, tmp_path), executor)) == exact_table(book)


@pytest.mark.slow
def test_a_killed_ray_worker_is_replaced_and_its_run_resumes(done, tmp_path):
    folder, _ = done
    small = study(folder, seeds=1)
    here, there = (cache_in(folder, tmp_path / name) for name in ("here", "there"))
    killed: list[int] = []

    def kill() -> None:
        """Kill the worker of a run after the run has written rows."""
        end = time.monotonic() + 600
        while time.monotonic() < end and not killed:
            for claimed in (tmp_path / "there").glob("*/lease.0"):
                with suppress(OSError, ValueError, psutil.NoSuchProcess):
                    if (claimed.parent / "records.jsonl").exists():
                        worker = psutil.Process(json.loads(claimed.read_text())["pid"])
                        worker.kill()
                        killed.append(worker.pid)
                        break
            time.sleep(0.002)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    book = run_study(small, there, Ray(num_workers=2))
    killer.join(1)
    assert killed and killed[0] != os.getpid()
    assert (frame(book).status == "finished").all()
    assert exact_table(book) == exact_table(run_study(small, here))
    for entry in book.read()["runs"]:  # each round was recorded once
        counted = [row["round"] for row in book.get_run(entry).timings() if "train" in row]
        assert counted == sorted(set(counted))


def test_a_killed_study_resumes_to_the_same_table(done, tmp_path):
    """`-m slow` kills a study of sixty runs three times."""
    folder, book = done
    killed_study(study(folder, **TUNED), folder, tmp_path, kills=1)
    assert exact_table(StudyManifest(tmp_path, "tiny")) == exact_table(book)


@pytest.mark.slow
def test_a_study_of_sixty_runs_killed_three_times_resumes_to_the_same_table(tmp_path):
    large = study(tmp_path, seeds=10, factors={"algorithm": ["FedAvg", "FedProx", "Scaffold"], "partition.severity": [1.0]})
    book = run_study(large, cache_in(tmp_path, tmp_path / "unbroken"))
    assert len(frame(book)) == 60
    killed_study(large, tmp_path, tmp_path / "broken", kills=3)
    assert exact_table(StudyManifest(tmp_path / "broken", "tiny")) == exact_table(book)


def killed_study(expected, folder: Path, root: Path, kills: int) -> None:
    """Run a study in processes that are killed at random times, and then once more to its end."""
    draw, context = np.random.default_rng(11), multiprocessing.get_context("fork")  # imports are complete before the fork
    for attempt in range(kills + 1):
        worker = context.Process(target=run_study, args=(expected, cache_in(folder, root)))
        before = len(list(root.glob("*/records.jsonl")))
        worker.start()
        while attempt < kills and len(list(root.glob("*/records.jsonl"))) <= before and worker.is_alive():
            time.sleep(0.005)
        if attempt < kills:
            time.sleep(draw.uniform(0, 0.5))
            assert worker.is_alive(), "the study ended before the test could kill it"
            worker.kill()
        worker.join()
    assert worker.exitcode == 0


def test_tuning_never_selects_a_rate_that_gives_a_dead_model(tmp_path, monkeypatch):
    """The loss of a dead model, ln V, can be the lowest of all trials."""
    expected = study(tmp_path, tuning={"trials": 2, "seeds": [100], "space": {"training.client_optimizer.lr": [0.1, 1e30]}})
    trials, level = fedrift.studies.plan.plan_tuning(expected, make_cache(tmp_path)), math.log(320)

    def curves(book, entries, metrics):
        ends = {entry.run: level if "1e+30" in str(entry.settings) else 5.8 for entry in entries}
        return {
            run: Trajectory(
                [
                    *(Record(round, "loss", "", -1, value) for round, value in enumerate([5.9, end, end])),
                    Record(0, "loss.uniform", "", -1, level),
                ]
            )
            for run, end in ends.items()
        }

    monkeypatch.setattr(fedrift.studies.plan, "load_trajectories", curves)
    manifest = SimpleNamespace(get_run=lambda entry: SimpleNamespace(is_finished=True))
    chosen = fedrift.studies.plan.select_settings(expected, trials, manifest)
    assert [choice.settings for choice in chosen] == [{"training.client_optimizer.lr": 0.1}] * len(chosen) and chosen


def test_tuning_by_a_metric_that_no_trial_recorded_stops_the_study(tmp_path, monkeypatch):
    """Otherwise all trials would rank last, and the study would run with settings that nobody tuned."""
    tuned = study(tmp_path, tuning={"trials": 1, "seeds": [100], "metric": "loss.medium", "space": {"training.client_optimizer.lr": [0.1]}})
    trials = fedrift.studies.plan.plan_tuning(tuned, make_cache(tmp_path))
    curve = Trajectory([Record(round, "loss", "", -1, 5.9 - round) for round in range(3)])
    monkeypatch.setattr(fedrift.studies.plan, "load_trajectories", lambda book, entries, metrics: {entry.run: curve for entry in entries})
    finished, failed = (
        SimpleNamespace(get_run=lambda entry, is_finished=state: SimpleNamespace(is_finished=is_finished)) for state in (True, False)
    )
    with pytest.raises(UserError, match=r"tuning.metric: no finished trial has a value of 'loss\.medium'"):
        fedrift.studies.plan.select_settings(tuned, trials, finished)
    assert fedrift.studies.plan.select_settings(tuned, trials, failed)[0].settings == {}


@pytest.fixture
def trials(monkeypatch):
    """Let the first trial choose bfloat16 and later ones float32, and count them."""
    made = list[int]()

    def choose(step, max_sequences):
        made.append(max_sequences)
        return ArithmeticChoice("bfloat16" if len(made) == 1 else "float32", 2.0)

    monkeypatch.setattr(fedrift.engine.build, "choose_arithmetic", choose)
    return made


def fastest_cache(folder: Path, messages: list[str] | None = None) -> ResourceCache:
    cache = make_cache(folder, threads=1, dtype="fastest")
    return replace(cache, runtime=replace(cache.runtime, on_message=(messages if messages is not None else []).append))


def dtypes_of(book: StudyManifest) -> list[str]:
    engines = [book.get_run(entry.run).environment["engine"] for entry in book.read()["runs"]]
    return [engine.get("dtype", "float32") for engine in engines]


def test_all_runs_of_a_study_share_the_arithmetic_that_one_trial_chose(tmp_path, trials):
    book = run_study(study(tmp_path, factors={}, seeds=2), fastest_cache(tmp_path), Processes(2))
    assert dtypes_of(book) == ["bfloat16"] * 4 and len(trials) == 1
    for entry in book.read()["runs"]:
        run = book.get_run(entry.run)
        assert run.environment["engine"]["bf16_speedup"] == 2.0
        assert [event["kind"] for event in run.events()].count("arithmetic") == 1
    # A later command keeps the arithmetic of the stored runs.
    book = run_study(study(tmp_path, factors={}, seeds=3), fastest_cache(tmp_path))
    assert dtypes_of(book) == ["bfloat16"] * 6 and len(trials) == 1


def test_an_experiment_that_cannot_run_does_not_stop_the_trial_or_the_study(tmp_path, trials):
    factors = {"trainable.target_modules": [["nothing"], ["q_proj"]]}
    book = run_study(study(tmp_path, factors=factors, seeds=1), fastest_cache(tmp_path))
    failed = [book.get_run(entry.run).id for entry in book.read()["runs"] if book.get_failure(entry.run)]
    finished = [run for entry in book.read()["runs"] if (run := book.get_run(entry.run)).is_finished]
    assert failed and finished and len(trials) == 1
    assert {run.environment["engine"]["dtype"] for run in finished} == {"bfloat16"}


def test_a_stored_run_decides_for_the_missing_ones(tmp_path, trials):
    first = study(tmp_path, factors={}, seeds=2)
    book = run_study(first, cache_of(tmp_path))
    for entry in book.read()["runs"][1:]:
        shutil.rmtree(book.get_run(entry.run).folder)
    book = run_study(first, fastest_cache(tmp_path))
    assert dtypes_of(book) == ["float32"] * 4 and not trials  # the stored run decides


@pytest.mark.parametrize("executor", [Slurm(), Ray(address="auto")])
def test_fastest_is_refused_where_other_machines_compute(tmp_path, executor, trials):
    with pytest.raises(UserError, match="use --dtype float32 or --dtype bfloat16 with this executor"):
        run_study(study(tmp_path, factors={}, seeds=1), fastest_cache(tmp_path), executor)
    assert not trials


def test_runs_that_differ_in_their_arithmetic_are_reported(tmp_path):
    messages = list[str]()
    run_study(study(tmp_path, factors={}, seeds=1), make_cache(tmp_path, threads=1, dtype="bfloat16"))
    cache = cache_of(tmp_path)
    cache = replace(cache, runtime=replace(cache.runtime, on_message=messages.append))
    run_study(study(tmp_path, factors={}, seeds=2), cache)
    assert any("2 in bfloat16 and 2 in float32" in message for message in messages)
