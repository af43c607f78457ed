"""Whole studies in the small world: run once, resumed, shared, and the same whoever runs them."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
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

import fedrift.studies.plan
import fedrift.studies.worker
from fedrift.config.schema import parse_config
from fedrift.core.errors import UserError
from fedrift.core.records import Record, Trajectory
from fedrift.engine.build import resolve_fingerprints
from fedrift.engine.cache import ResourceCache
from fedrift.storage.leases import acquire_lease
from fedrift.studies import StudyManifest, build_study_table, evaluate_study_hypotheses, export_study, find_study, import_study
from fedrift.studies.executors import Processes, Ray, Slurm
from fedrift.studies.plan import count_tokens, estimate_cost
from fedrift.studies.run import preview_study, run_study
from fedrift.studies.worker import run_one, run_worker
from tests.small_experiment import make_cache
from tests.studies.small import TUNED, study


def frame(book: StudyManifest) -> pd.DataFrame:
    return build_study_table(book)


def text(book: StudyManifest) -> str:
    """Every number of a study's table, to the bit."""
    return build_study_table(book, roles=("run", "iid_baseline", "trial")).to_csv(index=False)


def shelf(folder: Path) -> ResourceCache:
    return make_cache(folder, threads=1)


def elsewhere(folder: Path, root: Path) -> ResourceCache:
    """The same world, the runs in another place."""
    return ResourceCache(replace(shelf(folder).runtime, runs_dir=root))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished study."""
    folder = tmp_path_factory.mktemp("study")
    return folder, run_study(study(folder, **TUNED), shelf(folder))


def test_every_cell_and_seed_has_a_run_and_arms_with_the_same_twin_share_it(done):
    _, book = done
    got = frame(book)
    assert (got.status == "finished").all()
    assert len(got[got.role == "run"]) == 8
    assert len(got[got.iid]) == 4  # algorithms x seeds: both severities share theirs
    assert set(got[got.iid]["partition.severity"]) == {0.0}
    assert set(got[got.role == "run"].iid_baseline) == set(got[got.iid].run)
    ends = got.set_index("run").loss
    for row in got[got.role == "run"].itertuples():
        assert row.gap == pytest.approx(ends[row.run] - ends[row.iid_baseline])
    assert got[["loss", "final.loss", "movement"]].notna().all().all()


def test_hypotheses_are_judged_on_the_frame_and_two_seeds_never_call_anything(done):
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


def test_tuning_is_in_the_book_and_in_the_runs(done):
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


def test_a_finished_study_computes_nothing_and_plans_the_same_runs(done, monkeypatch):
    folder, book = done
    monkeypatch.setattr(fedrift.studies.worker, "run_experiment", lambda *a: pytest.fail("a finished run was begun again"))
    assert text(run_study(study(folder, **TUNED), shelf(folder))) == text(book)
    plan, known = preview_study(study(folder, **TUNED), shelf(folder))
    assert known
    assert {entry.run for entry in plan.entries} == {entry.run for entry in book.read()["runs"]}


def test_a_run_that_fails_is_noted_and_the_study_goes_on(tmp_path, monkeypatch):
    real = fedrift.studies.worker.run_experiment

    def sometimes(experiment, *rest):
        if experiment.seed == 1 and experiment.partition.severity == 1.0:
            raise MemoryError("no room")
        return real(experiment, *rest)

    monkeypatch.setattr(fedrift.studies.worker, "run_experiment", sometimes)
    small = {"factors": {"partition.severity": [0.5, 1.0]}}
    book = run_study(study(tmp_path, **small), shelf(tmp_path))
    got = frame(book)
    assert (got.status == "failed").sum() == 1
    row = got[got.status == "failed"].iloc[0]
    assert (row.seed, row["partition.severity"], row.failure) == (1, 1.0, "MemoryError: no room")
    assert pd.isna(row.loss)
    assert not row.diverged
    monkeypatch.setattr(fedrift.studies.worker, "run_experiment", real)  # asked again, it is tried again
    assert (frame(run_study(study(tmp_path, **small), shelf(tmp_path))).status == "finished").all()


def test_a_level_of_severity_0_is_a_row_of_its_own_and_its_own_twin(tmp_path):
    book = run_study(study(tmp_path, seeds=1, factors={"partition.severity": [0.0, 1.0]}), shelf(tmp_path))
    got = frame(book)
    assert len(got) == 2
    assert not got.iid.any()
    assert got.gap[0] == 0
    assert got.iid_baseline.tolist() == [got.run[0]] * 2


def test_a_run_that_another_worker_has_is_left_to_it_and_taken_over_when_it_dies(tmp_path):
    here = shelf(tmp_path)
    book = StudyManifest(here.runtime.runs_dir, "tiny")
    one = resolve_fingerprints(parse_config(study(tmp_path).base), here)
    theirs = acquire_lease(book.get_run(one.id).folder)
    assert not run_one(one, here, book)
    theirs.path.write_text('{"host": "elsewhere", "pid": 1, "started_at": 0}')
    os.utime(theirs.path, (1, 1))
    run_worker([one], here, book, poll_interval_s=0.01)
    assert book.get_run(one.id).is_finished


def test_a_run_that_costs_its_workers_their_lives_is_given_up(tmp_path):
    here = shelf(tmp_path)
    book = StudyManifest(here.runtime.runs_dir, "tiny")
    one = resolve_fingerprints(parse_config(study(tmp_path).base), here)
    folder = book.get_run(one.id).folder
    folder.mkdir(parents=True)
    (folder / "lease.2").write_text('{"host": "elsewhere", "pid": 1, "started_at": 0}')
    os.utime(folder / "lease.2", (1, 1))
    assert run_one(one, here, book)
    assert "3 workers ended" in book.get_failure(one.id)


def test_an_archive_gives_the_same_table_elsewhere_and_the_same_bytes_again(done, tmp_path):
    _, book = done
    first = export_study(book, tmp_path / "a.zip")
    assert export_study(book, tmp_path / "b.zip").read_bytes() == first.read_bytes()
    there = import_study(first, tmp_path / "there")
    assert text(there) == text(book)
    assert export_study(there, tmp_path / "c.zip").read_bytes() == first.read_bytes()
    assert text(find_study(tmp_path / "there", "tiny")) == text(book)
    with pytest.raises(UserError, match="cannot be read"):
        import_study(Path(__file__), tmp_path / "there")
    with pytest.raises(UserError, match="did you mean 'tiny'"):
        find_study(tmp_path / "there", "tinny").read()


def test_what_is_left_is_priced(tmp_path, done):
    folder, _ = done
    plan, _ = preview_study(study(folder, **TUNED), shelf(folder))
    assert estimate_cost(plan.configs.values(), shelf(folder)).tokens == 0
    plan, known = preview_study(study(tmp_path, **TUNED), shelf(tmp_path))
    assert not known
    price = estimate_cost(plan.configs.values(), shelf(tmp_path))
    assert price.tokens == sum(count_tokens(each) for each in plan.configs.values())
    assert count_tokens(next(iter(plan.configs.values()))) == 1 * 2 * 2 * 2 * 16  # rounds, cohort, steps, batch, tokens
    assert price.seconds > 0
    assert not list((tmp_path / "runs").glob("*/experiment.json"))  # the probe leaves nothing


@pytest.mark.slow
def test_processes_give_the_same_table_as_one_after_another(done, tmp_path):
    folder, _ = done
    small = study(folder, seeds=1, factors={"partition.severity": [0.5, 1.0]})
    one, other = (
        run_study(small, elsewhere(folder, tmp_path / name), executor) for name, executor in (("one", None), ("other", Processes(2)))
    )
    assert text(one) == text(other)


@pytest.mark.slow
@pytest.mark.parametrize("executor", [Ray(num_workers=2), Slurm(num_jobs=2, cluster="local")], ids=["ray", "slurm"])
def test_clusters_give_the_same_table_as_one_after_another(done, tmp_path, executor):
    folder, book = done
    assert text(run_study(study(folder, **TUNED), elsewhere(folder, tmp_path), executor)) == text(book)


@pytest.mark.slow
def test_a_worker_of_rays_that_is_killed_is_replaced_and_its_run_goes_on(done, tmp_path):
    folder, _ = done
    small = study(folder, seeds=1)
    here, there = (elsewhere(folder, tmp_path / name) for name in ("here", "there"))
    killed: list[int] = []

    def kill() -> None:
        """The worker that has a run, once rows of it are written."""
        end = time.monotonic() + 600
        while time.monotonic() < end and not killed:
            for claimed in (tmp_path / "there").glob("*/lease.0"):
                with suppress(OSError, ValueError, psutil.NoSuchProcess):
                    if (claimed.parent / "records.jsonl").exists():
                        worker = psutil.Process(json.loads(claimed.read_text())["process"])
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
    assert text(book) == text(run_study(small, here))
    for entry in book.read()["runs"]:  # each round was counted once
        counted = [row["round"] for row in book.get_run(entry).timings() if "train" in row]
        assert counted == sorted(set(counted))


def test_a_study_that_is_killed_ends_with_the_same_table(done, tmp_path):
    """`-m slow` kills a study of sixty runs three times."""
    folder, book = done
    killed_study(study(folder, **TUNED), folder, tmp_path, kills=1)
    assert text(StudyManifest(tmp_path, "tiny")) == text(book)


@pytest.mark.slow
def test_a_study_of_sixty_runs_killed_three_times_ends_with_the_same_table(tmp_path):
    large = study(tmp_path, seeds=10, factors={"algorithm": ["FedAvg", "FedProx", "Scaffold"], "partition.severity": [1.0]})
    book = run_study(large, elsewhere(tmp_path, tmp_path / "unbroken"))
    assert len(frame(book)) == 60
    killed_study(large, tmp_path, tmp_path / "broken", kills=3)
    assert text(StudyManifest(tmp_path / "broken", "tiny")) == text(book)


def killed_study(wanted, folder: Path, root: Path, kills: int) -> None:
    """Run a study in processes that are killed at random moments, and once more to its end."""
    draw, context = np.random.default_rng(11), multiprocessing.get_context("fork")  # the imports are done
    for attempt in range(kills + 1):
        worker = context.Process(target=run_study, args=(wanted, elsewhere(folder, root)))
        before = len(list(root.glob("*/records.jsonl")))
        worker.start()
        while attempt < kills and len(list(root.glob("*/records.jsonl"))) <= before and worker.is_alive():
            time.sleep(0.005)
        if attempt < kills:
            time.sleep(draw.uniform(0, 0.5))
            assert worker.is_alive(), "it was too fast to be killed"
            worker.kill()
        worker.join()
    assert worker.exitcode == 0


def test_tuning_does_not_choose_a_rate_that_left_a_dead_model_behind(tmp_path, monkeypatch):
    """A dead model's loss, ln V, may be the lowest of all trials."""
    wanted = study(tmp_path, tuning={"trials": 2, "seeds": [100], "space": {"training.client_optimizer.lr": [0.1, 1e30]}})
    trials, level = fedrift.studies.plan.plan_tuning(wanted, make_cache(tmp_path)), math.log(320)

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
    chosen = fedrift.studies.plan.select_settings(wanted, trials, manifest)
    assert [choice.settings for choice in chosen] == [{"training.client_optimizer.lr": 0.1}] * len(chosen) and chosen
