"""Test the commands `fedrift diagnose` and `fedrift find-boundary`."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from fedrift.cli.app import app
from fedrift.config.schema import edit_config, iid_baseline
from fedrift.core import registry
from fedrift.core.errors import UserError
from fedrift.core.records import Record
from fedrift.diagnosis.cases import group_readable_runs
from fedrift.engine.run import run_experiment
from fedrift.storage import Run, list_runs
from tests import small_experiment


def store_run(root, identity, losses, **changes):
    """Store a run that contains only losses."""
    made = Run(root, identity)
    asked = {
        "dataset": {"name": "c"},
        "model": "m",
        "partition": {"type": "TopicMix", "num_clients": 2, "severity": 1.0},
        "algorithm": {"type": "FedAvg"},
        "seed": 0,
        "training": {"num_rounds": 9, "local_steps": 5, "local_epochs": None, "client_optimizer": {"type": "Sgd", "lr": 0.1}},
        "evaluation": {"split": "test", "probes": ["language"]},
    }
    for path, value in changes.items():
        *parts, last = path.split("__")
        place = asked
        for part in parts:
            place = place[part]
        place[last] = value
    made.write_json("experiment", {**asked, "id": identity, "partition_table": {"domains": ["a"], "tokens": [[1], [1]]}})
    made.append_records(Record(k, "loss", "", -1, value) for k, value in enumerate(losses))
    return made


@pytest.fixture
def runs_dir(tmp_path):
    down = [5.0, 4.5, 4.2, 4.1, 4.05, 4.0, 4.0, 4.0, 4.0, 4.0]
    for seed in range(3):
        store_run(tmp_path, f"a{seed}", [value + 0.2 + seed / 100 for value in down], seed=seed)
        store_run(tmp_path, f"t{seed}", down, seed=seed, partition__severity=0.0, evaluation={"split": "test", "probes": []})
        store_run(tmp_path, f"c{seed}", down, seed=seed, partition__severity=0.0, algorithm={"type": "Centralized"})
        store_run(tmp_path, f"k{seed}", down, seed=seed, training__local_steps=50)
        store_run(tmp_path, f"b{seed}", [value - 0.1 for value in down], seed=seed, training__client_optimizer={"type": "Sgd", "lr": 0.3})
    return tmp_path


def run_command(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_a_dead_model_never_has_the_best_learning_rate(runs_dir):
    dead = store_run(runs_dir, "d1", [5.0] + [3.0] * 9, seed=1, training__client_optimizer={"type": "Sgd", "lr": 1e30})
    dead.append_records([Record(0, "loss.uniform", "", -1, 3.0)])
    (run,) = [run for run in list_runs(runs_dir) if run.id == "a1"]
    (group,) = group_readable_runs([run], list_runs(runs_dir))[0]
    assert group.cases[0].best_lr.curve("loss")[-1] == pytest.approx(3.9)


def test_runs_that_differ_in_the_seed_are_grouped_with_their_baselines_and_anchors(runs_dir):
    runs = [run for run in list_runs(runs_dir) if run.id.startswith("a")]
    (group,) = group_readable_runs(runs, list_runs(runs_dir))[0]
    assert [run.id for run in group.runs] == ["a0", "a1", "a2"] and [run.id for run in group.baselines] == ["t0", "t1", "t2"]
    case = group.cases[1]
    assert case.centralized is not None and case.best_lr is not None and list(case.local_steps_sweep) == [50] and case.local_only is None
    assert case.info.domains == ("a",) and case.info.local_steps == 5


def test_an_iid_run_is_not_grouped_with_non_iid_runs(runs_dir):
    (group,) = group_readable_runs([run for run in list_runs(runs_dir) if run.id == "t0"], list_runs(runs_dir))[0]
    assert group.baselines == (None,)


def test_diagnose_confirms_over_three_seeds_and_stores_its_findings(runs_dir):
    done = run_command("diagnose", "a0", "a1", "a2", "--runs-dir", runs_dir)
    assert done.exit_code == 0 and "loss gap" in done.output and "confirmed" in done.output
    assert "Not measured" in done.output and "Tested and not found" in done.output
    kept = json.loads((runs_dir / "a1" / "findings.json").read_text())
    assert kept["runs"] == ["a0", "a1", "a2"] and kept["findings"][0]["grade"] == "confirmed" and kept["thresholds"]["version"]


def test_one_seed_is_suspected_and_fail_on_sets_the_exit_code(runs_dir):
    assert run_command("diagnose", "a0", "--runs-dir", runs_dir, "--fail-on", "suspected").exit_code == 1
    assert run_command("diagnose", "a0", "--runs-dir", runs_dir, "--fail-on", "confirmed").exit_code == 0
    assert run_command("diagnose", "a0", "a1", "a2", "--runs-dir", runs_dir, "--fail-on", "confirmed").exit_code == 1


def test_json_has_one_line_per_group(runs_dir):
    done = run_command("diagnose", "a0", "k0", "--runs-dir", runs_dir, "--json")
    every = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["runs"] for each in every] == [["a0"], ["k0"]]
    assert {each["grade"] for each in every[0]["findings"]} >= {"suspected", "none", "not measured"}


OWN = """
import fedrift
from fedrift.diagnosis.finding import Finding

def low(evidence):
    return [Finding("low loss", "suspected", "it is low", 1.0, 0.5, 0.1, "nats per token", is_positive=True)]

fedrift.register("detector", "also registered")(low)
nothing = lambda evidence: None
number = 3
"""


def test_a_detector_of_a_file_of_the_user_is_run_once_and_stored(runs_dir):
    (runs_dir / "mine.py").write_text(OWN)
    try:
        done = run_command("diagnose", "a0", "--runs-dir", runs_dir, "--json", "--detector", f"{runs_dir / 'mine.py'}:low")
        findings = json.loads(done.output)["findings"]
        assert [len(each["findings"]) for each in findings if each["failure"] == "low loss"] == [1]
        assert "low loss" in {each["failure"] for each in Run(runs_dir, "a0").findings()}
    finally:
        registry._registered["detector"].pop("also registered", None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("low", "no detector 'low': give an import path such as my_detector.py:my_function"),
        ("absent.py:low", "there is no such Python file"),
        ("own.py:number", "'own.py:number' is not a detector"),
        ("own.py:Finding", "'own.py:Finding' is not a detector"),
        ("own.py:nothing", "the detector own.py:nothing returned null; it must return a list"),
    ],
)
def test_what_is_not_a_detector_is_refused_in_one_line(runs_dir, monkeypatch, name, message):
    monkeypatch.chdir(runs_dir)
    (runs_dir / "own.py").write_text(OWN.replace("fedrift.register", "# "))
    done = run_command("diagnose", "a0", "--runs-dir", runs_dir, "--detector", name)
    assert isinstance(done.exception, UserError)
    assert message in str(done.exception) and "\n" not in str(done.exception)


def test_no_finding_is_a_valid_result(runs_dir):
    done = run_command("diagnose", "t0", "--runs-dir", runs_dir)
    assert done.exit_code == 0 and "Nothing found" in done.output and "--iid-baseline" in done.output


def test_a_real_run_is_diagnosed_with_its_baseline_and_recorded_metrics(tmp_path):
    cache = small_experiment.make_cache(tmp_path)
    experiment = edit_config(small_experiment.experiment(tmp_path), {"training__num_rounds": 6})
    run, other = run_experiment(experiment, cache), run_experiment(iid_baseline(experiment), cache)
    (group,) = group_readable_runs([run], list_runs(tmp_path / "runs"))[0]
    assert group.baselines[0].id == other.id
    done = run_command("diagnose", run.id, "--runs-dir", tmp_path / "runs", "--json")
    said = {each["failure"]: each["grade"] for each in json.loads(done.stdout)["findings"]}
    assert said["divergence"] == "none" and said["client drift"] != "not measured" and said["loss gap"] != "not measured"


@pytest.mark.slow
def test_a_boundary_search_reports_its_progress_and_resumes(tmp_path, monkeypatch):
    asked = small_experiment.experiment(
        tmp_path,
        "training.num_rounds=8",
        "training.max_grad_norm=null",
        "training.participation_rate=1",
        "training.client_optimizer.lr=100",
        "evaluation.final_blocks_per_domain=0",
        "evaluation.blocks_per_client=0",
    )
    (tmp_path / "runaway.yaml").write_text(json.dumps(asked.to_dict()))
    said = ["find-boundary", tmp_path / "runaway.yaml", "--runs-dir", tmp_path / "runs", "--seeds", 2, "--tolerance", 0.5, "--json"]
    fresh: list[str] = []

    def make_stopping_run(most):
        def run_and_stop(experiment, cache, watch):
            if len(fresh) == most:
                raise KeyboardInterrupt
            there = len(list_runs(tmp_path / "runs"))
            run = run_experiment(experiment, cache, watch)
            fresh.extend([run.id] * (len(list_runs(tmp_path / "runs")) - there))
            return run

        return run_and_stop

    monkeypatch.setattr("fedrift.engine.run.run_experiment", make_stopping_run(5))
    first = run_command(*said)
    assert first.exit_code != 0 and "repeat the same command to resume" in first.stderr and len(fresh) == 5
    monkeypatch.setattr("fedrift.engine.run.run_experiment", make_stopping_run(None))
    done = run_command(*said)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    made = sum(map(sum, found["runs"].values()))
    assert len(fresh) == len(set(fresh)) == made and found["ratio"]["estimate"] > 0
    lines = done.stderr.splitlines()
    assert sum(line.endswith((": breaks", ": stable")) for line in lines) == made
    assert [line.split(":")[0] for line in lines if "after" in line] == [f"boundary {number} of 4" for number in (1, 2, 3, 4)]


def test_a_ruined_run_counts_as_broken_although_it_does_not_diverge(tmp_path, monkeypatch):
    """The losses are those of `pocket` at rates of 1 and 2 without clipping: they are never 1.5 times the start three times in a row."""
    fine, ruined = [4.58, 4.57, 4.55, 4.54, 4.54, 4.55], [4.58, 7.33, 5.32, 6.76, 6.64, 5.4]

    def make_short_run(experiment, cache, watch):
        high = experiment.training.client_optimizer.lr > (2 if experiment.partition.severity else 3)
        return store_run(tmp_path / "runs", experiment.id, ruined if high else fine)

    monkeypatch.setattr("fedrift.engine.run.run_experiment", make_short_run)
    (tmp_path / "e.yaml").write_text(
        "dataset: synthetic\nmodel: pocket\npartition: {type: TopicMix, num_clients: 2, severity: 1.0}\n"
        "training: {client_optimizer: {type: Sgd, lr: 1.0}}\n"
    )
    found = json.loads(run_command("find-boundary", tmp_path / "e.yaml", "--seeds", 2, "--json").stdout)["boundary"]
    assert found == {"IID": [pytest.approx(3, rel=0.025)] * 2, "skewed": [pytest.approx(2, rel=0.025)] * 2}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["training.num_rounds=3"], "4 times, and divergence can be detected from 5 evaluations on"),
        (["training.num_rounds=8", "evaluation.interval=4"], "3 times"),
        (["--param", "training.client_optimizer.kind"], "must name a number above 0"),
    ],
)
def test_a_boundary_that_no_run_can_reach_is_refused(tmp_path, words, message):
    (tmp_path / "e.yaml").write_text("dataset: synthetic\nmodel: pocket\npartition: {type: TopicMix, num_clients: 2, severity: 1.0}\n")
    refused = run_command("find-boundary", tmp_path / "e.yaml", *words, "--runs-dir", tmp_path / "runs")
    assert isinstance(refused.exception, UserError) and message in str(refused.exception)


def test_the_help_contains_an_example():
    assert "--fail-on confirmed" in run_command("diagnose", "--help").output
    assert "experiments/high_rate.yaml" in run_command("find-boundary", "--help").output
