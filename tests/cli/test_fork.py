"""Test the command `fedrift fork`."""

from __future__ import annotations

import json

import pytest

from fedrift.storage import list_runs
from tests.cli.test_cli import experiment_folder, run_command
from tests.diagnosis.test_fork import scale_client_update

__all__ = ["experiment_folder"]
WORDS = (
    "training.num_rounds=8",
    "training.participation_rate=1",
    "evaluation.probes=[]",
    "evaluation.final_blocks_per_domain=0",
    "--device",
    "cpu",
)


def test_a_fork_is_computed_in_the_data_type_of_its_origin(experiment_folder, capsys, monkeypatch):
    words = ("training.num_rounds=2", "evaluation.probes=[]", "--device", "cpu", "--dtype", "bfloat16", "--save-updates")
    code, _, err = run_command(capsys, monkeypatch, "run", "e.yaml", *words)
    assert code == 0, err
    (origin,) = list_runs(experiment_folder / "runs")
    code, out, err = run_command(capsys, monkeypatch, "fork", origin.id, "--from-round", "2", "--device", "cpu", "--json")
    assert code == 0, err
    (fork,) = (run for run in list_runs(experiment_folder / "runs") if run.id != origin.id)
    assert fork.environment["engine"] == origin.environment["engine"] and fork.environment["engine"]["dtype"] == "bfloat16"
    assert all(row["difference"] == 0 for row in json.loads(out)["rounds"])


@pytest.mark.slow
def test_a_fork_shows_the_effect_of_a_malicious_client(experiment_folder, capsys, monkeypatch):
    assert run_command(capsys, monkeypatch, "run", "e.yaml", *WORDS, "partition.severity=0")[0] == 0
    scale_client_update(monkeypatch, 1, -40.0)
    code, out, _ = run_command(capsys, monkeypatch, "run", "e.yaml", *WORDS, "--save-updates")
    assert code == 0
    twin, run = list_runs(experiment_folder / "runs")
    assert f"stored updates of 8 rounds (0.5 MB): `fedrift fork {run.id[:6]} --from-round" in out
    code, out, err = run_command(capsys, monkeypatch, "fork", run.id[:5], "--from-round", "2", "exclude_clients=1", "--device", "cpu")
    assert code == 0, err
    assert f"Run {run.id[:6]} from round 2 on, without client 1" in out and "food" in out
    assert "Without client 1 from round 2 on, the loss after round 2 is" in out
    assert "Round 2 used the clients' recorded updates." in out
    assert f"compared with the IID baseline {twin.id[:6]}:" in out
    assert "loss gap: only in the origin. Suspected" in out

    again = run_command(capsys, monkeypatch, "fork", run.id, "--from-round", "2", "exclude_clients=1", "--device", "cpu", "--json")[1]
    said = json.loads(again)
    assert said["origin"] == run.id and said["baseline"] == twin.id and said["has_reused_updates"] and len(said["rounds"]) == 8
    assert said["rounds"][-1]["difference"] < -0.3 and said["rounds"][-1]["distance"] > 0.5
    gap = next(each for each in said["findings"] if each["failure"] == "loss gap")
    assert (gap["origin"]["grade"], gap["fork"]["grade"]) == ("suspected", "none")
    forked = next(each for each in list_runs(experiment_folder / "runs") if each.id == said["fork"])
    assert forked.read_json("fork") == said

    code, out, _ = run_command(capsys, monkeypatch, "report", run.id, forked.id, "--output", "page")
    assert code == 0 and (experiment_folder / "page" / "index.html").exists()
    assert f"fork of {run.id[:6]} at round 2" in run_command(capsys, monkeypatch, "list")[1]
    out = run_command(capsys, monkeypatch, "diagnose", forked.id)[1]
    assert "1 of 1 with an IID baseline" in out
    for words, message in [
        ((run.id, "--from-round", "9"), "must be 1 to 8"),
        ((twin.id, "--from-round", "2"), "--save-updates"),
        ((run.id, "--from-round", "2", "model=pocket"), "cannot change model"),
        ((run.id,), "--from-round"),
    ]:
        code, _, err = run_command(capsys, monkeypatch, "fork", *words)
        assert code == 2 and message in err and "Traceback" not in err


def test_the_help_contains_an_example(capsys, monkeypatch):
    code, out, _ = run_command(capsys, monkeypatch, "fork", "--help")
    assert code == 0 and "exclude_clients=3" in out and "--from-round 7" in out
