"""Test the commands for studies, queries and comparisons of runs."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import yaml

from fedrift.cli import console
from tests.cli.test_cli import run_command
from tests.studies.small import TUNED, study_values


@pytest.fixture(scope="module")
def study_folder(tmp_path_factory):
    """A folder with a study."""
    folder = tmp_path_factory.mktemp("studying")
    whole = study_values(
        folder,
        seeds=1,
        hypotheses=[{"type": "Greater", "name": "H1", "metric": "loss", "contrast": "iid_baseline", "group": {"partition.severity": 1.0}}],
        **TUNED,
    )
    (folder / "e.yaml").write_text(yaml.safe_dump(whole["base"]))
    (folder / "s.yaml").write_text(yaml.safe_dump({**whole, "base": "e.yaml"}))
    return folder


@pytest.fixture
def in_study_folder(study_folder, monkeypatch):
    monkeypatch.chdir(study_folder)
    monkeypatch.setenv("FEDRIFT_CACHE", str(study_folder / "cache"))
    return study_folder


def test_a_dry_run_lists_designs_and_cost_and_runs_nothing(in_study_folder, capsys, monkeypatch):
    code, out, _ = run_command(capsys, monkeypatch, "study", "s.yaml", "--dry-run", "--no-measure", "design={type: OneFactorAtATime}")
    assert code == 0
    assert "main: 3 conditions" in out
    assert "tuning is not done" in out
    assert "training tokens" in out
    code, out, _ = run_command(capsys, monkeypatch, "study", "s.yaml", "--dry-run", "--no-measure", "--json")
    got = json.loads(out)
    assert not got["ids_final"]
    assert got["cost"]["num_runs"] == 4 + 4 + 2
    assert not any("one client per round" in each["warning"] for each in got["warnings"])
    alone = ("study", "s.yaml", "--dry-run", "--no-measure", "base.training.participation_rate=0.34")
    code, out, _ = run_command(capsys, monkeypatch, *alone)
    assert "warning, 10 of 10 runs: one client per round: nothing is averaged, so update.divergence" in out
    code, out, _ = run_command(capsys, monkeypatch, *alone, "--json")
    assert [each["runs"] for each in json.loads(out)["warnings"] if "one client per round" in each["warning"]] == [10]
    assert not list((in_study_folder / "runs").glob("*/experiment.json"))


def test_a_study_is_run_queried_compared_and_exported(in_study_folder, capsys, monkeypatch):
    code, out, err = run_command(capsys, monkeypatch, "study", "s.yaml", "--device", "cpu", "--threads", "1", "executor=local")
    assert code == 0, err
    assert "6 finished, 0 failed" in out
    assert "tuned algorithm=FedAvg" in out
    code, out, _ = run_command(capsys, monkeypatch, "query", "SELECT algorithm, count(*) n FROM runs GROUP BY 1 ORDER BY 1", "--json")
    assert json.loads(out) == [{"algorithm": "FedAvg", "n": 5}, {"algorithm": "FedProx", "n": 5}]
    query = 'SELECT run FROM runs WHERE "partition.severity" = 1 ORDER BY run'
    code, out, _ = run_command(capsys, monkeypatch, "query", query, "--json")
    one, other = (row["run"] for row in json.loads(out)[:2])
    code, out, _ = run_command(capsys, monkeypatch, "compare", one, other, "--json")
    got = json.loads(out)
    assert "algorithm" in got["config"] or "training.client_optimizer.lr" in got["config"] or "seed" in got["config"]
    assert "loss" in {each["metric"] for each in got["metrics"]}
    code, out, _ = run_command(capsys, monkeypatch, "compare", one, one)
    assert "configuration: identical" in out
    code, out, _ = run_command(capsys, monkeypatch, "export", "tiny", "--output", "t.zip")
    assert code == 0
    code, out, _ = run_command(capsys, monkeypatch, "import", "t.zip", "--runs-dir", "there")
    assert "study tiny" in out


def test_mistakes_are_refused(in_study_folder, capsys, monkeypatch):
    for words, message in [
        (("study", "s.yaml", "executor=locl"), "did you mean 'Local'"),
        (("study", "s.yaml", "executor=processes", "executor.num_workers=-1"), "executor.num_workers"),
        (("study", "s.yaml", "seeds=0"), "seeds"),
        (("study", "s.yaml", "factors.algorithm=[FedAvgg, FedProx]"), "did you mean 'FedAvg'"),
        (("query", "SELEC 1"), "records, runs and findings"),
        (("export", "nothing"), "nothing"),
    ]:
        code, _, err = run_command(capsys, monkeypatch, *words)
        assert code == 2, words
        assert message in err, (words, err)


def test_progress_of_a_continued_study_counts_finished_runs_and_goes_to_a_log_file_line_by_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(console, "LOG_INTERVAL_S", 0.0)
    experiments = [SimpleNamespace(id=f"{number:012d}", training=SimpleNamespace(num_rounds=4)) for number in range(4)]
    for experiment in experiments[:2]:
        (tmp_path / experiment.id).mkdir()
        (tmp_path / experiment.id / "finished.json").write_text("{}")
    with console.StudyProgressBar(tmp_path) as progress:
        on_round = progress.start("runs", experiments)
        on_round(experiments[2].id, 1)
        on_round(experiments[2].id, 1)  # nothing new, no line
        on_round(experiments[2].id, 4)
        on_round(experiments[0].id, 4)  # finished before
    lines = [line.strip() for line in capsys.readouterr().err.splitlines() if "rounds" in line]
    assert lines[0].startswith("runs 2/4: 9/16 rounds") and lines[1].startswith("runs 3/4: 12/16 rounds")
    assert len(lines) == 2
