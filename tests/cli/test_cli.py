"""Test the command line from an experiment to a report, its errors, signals and JSON output."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time

import click
import pytest
import typer
import yaml

from fedrift.cli.app import app, main
from fedrift.core.records import Record
from fedrift.storage import Run
from tests.small_experiment import experiment, run_command


@pytest.fixture
def experiment_folder(tmp_path, monkeypatch):
    """The working directory, which contains an experiment."""
    said = experiment(tmp_path).to_dict()
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(said))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDRIFT_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_help_answers_without_torch():
    code = (
        "import sys; sys.argv = ['fedrift', '--help']\nfrom fedrift.cli import main\ntry: main()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'pandas', 'datasets', 'peft', 'altair'} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "demo" in done.stdout


@pytest.mark.parametrize(("words", "suggestion"), [(("rum",), "run"), (("partition", "shw"), "show"), (("dataset", "shwo"), "show")])
def test_an_unknown_command_gets_one_suggestion(capsys, monkeypatch, words, suggestion):
    code, _, err = run_command(capsys, monkeypatch, *words)
    assert code == 2 and err.count("Did you mean") == 1 and f"'{suggestion}'" in err


def test_every_command_has_a_help_text(capsys, monkeypatch):
    for command in ("run", "demo", "validate", "list", "show", "report", "fork", "conformance", "models", "datasets", "doctor"):
        code, out, _ = run_command(capsys, monkeypatch, command, "--help")
        assert code == 0
        assert len(out.splitlines()) > 5


def test_an_experiment_is_run_listed_shown_and_reported(experiment_folder, capsys, monkeypatch):
    code, out, _ = run_command(capsys, monkeypatch, "run", "e.yaml", "--iid-baseline", "--device", "cpu")
    assert code == 0
    assert "gap to IID baseline" in out
    code, out, _ = run_command(capsys, monkeypatch, "list", "--json")
    found = json.loads(out)
    assert [run["status"] for run in found] == ["finished", "finished"]
    skewed = next(run["id"] for run in found if run["experiment"]["partition"]["severity"] == 1)
    code, out, _ = run_command(capsys, monkeypatch, "show", skewed[:6])
    assert code == 0
    assert "sport" in out
    code, out, _ = run_command(capsys, monkeypatch, "show", skewed, "--json")
    assert {row["metric"] for row in json.loads(out)["records"]} >= {"loss", "update.norm"}
    code, out, _ = run_command(capsys, monkeypatch, "report", skewed, "--output", "page")
    page = (experiment_folder / "page" / "index.html").read_text()
    assert "IID baseline" in page
    assert "https://cdn" not in page


def test_a_mistake_is_one_message_and_exit_code_2(experiment_folder, capsys, monkeypatch):
    for words, told in [
        (("run", "e.yaml", "partition.severity=1.5"), "partition.severity"),
        (("run", "e.yaml", "training.participation_rate=0.1"), "rounds to no client"),
        (("run", "e.yaml", "dataset.name=nosuch"), "no dataset 'nosuch'"),
        (("run", "e.yaml", "model=pockt"), "did you mean 'pocket'"),
        (("run", "none.yaml"), "none.yaml"),
        (("run", "e.yaml", "--runs-dir", "e.yaml/inside"), "for runs cannot be created"),
        (("show", "abc"), "no run 'abc'"),
        (("run", "e.yaml", "partition.num_clients=500"), "500 clients"),
        (("run", "e.yaml", "training.max_seq_length=4000"), "takes 64 at most"),
        (("run", "e.yaml", "--device", "cuda:9"), "is not available"),
    ]:
        code, _, err = run_command(capsys, monkeypatch, *words)
        assert code == 2, words
        assert told in err, err
        assert "Traceback" not in err


def test_an_output_that_cannot_be_written_is_one_message_and_exit_code_2(experiment_folder, capsys, monkeypatch):
    for output, told in (("e.yaml/clients", "e.yaml/clients"), ("a" * 300, "File name too long")):
        code, _, err = run_command(capsys, monkeypatch, "partition", "export", "e.yaml", "--output", output)
        assert code == 2
        assert "fedrift: cannot read or write" in err
        assert told in err


def test_a_bad_corpus_is_refused_and_nothing_is_stored(experiment_folder, capsys, monkeypatch):
    bad = [("empty.csv", b"", "empty"), ("binary.csv", bytes(range(256)) * 9, ""), ("other.csv", b"a,b\n1,2\n", "text")]
    for name, content, told in bad:
        (experiment_folder / name).write_bytes(content)
        code, _, err = run_command(capsys, monkeypatch, "run", "e.yaml", f"dataset.name={name}", "dataset.fingerprint=''")
        assert code == 2
        assert told in err
    assert not list((experiment_folder / "runs").glob("*"))


def test_validate_prints_the_whole_experiment_and_runs_nothing(experiment_folder, capsys, monkeypatch):
    code, out, _ = run_command(capsys, monkeypatch, "validate", "e.yaml", "algorithm=Scaffold")
    assert code == 0
    assert yaml.safe_load(out)["algorithm"]["type"] == "Scaffold"
    assert not (experiment_folder / "runs").exists()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_stops_a_command_like_ctrl_c_and_a_second_one_has_no_effect(monkeypatch, name):
    number, told = getattr(signal, name), []
    inherited = signal.signal(number, signal.SIG_DFL)  # the tests themselves may run under nohup

    def command():
        try:
            os.kill(os.getpid(), number)
            time.sleep(10)
        except KeyboardInterrupt:
            os.kill(os.getpid(), signal.SIGTERM)
            told.append("stopped")
            raise

    monkeypatch.setattr("fedrift.cli.app.app", command)
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)]
    try:
        with pytest.raises(SystemExit) as ended:
            main()
        assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)] == before
    finally:
        signal.signal(number, inherited)
    assert ended.value.code == 128 + number and told == ["stopped"]


def test_a_signal_that_is_ignored_stays_ignored(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        monkeypatch.setattr("fedrift.cli.app.app", lambda: os.kill(os.getpid(), signal.SIGHUP))
        main()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_json_keeps_every_digit_and_infinities(tmp_path, capsys, monkeypatch):
    run = Run(tmp_path, "abc")
    run.write_json(
        "experiment",
        {
            "dataset": {"name": "bbc"},
            "model": "pocket",
            "seed": 0,
            "training": {"num_rounds": 1, "max_grad_norm": 0.1 + 0.2},
            "algorithm": {"type": "FedAvg"},
            "partition": {"type": "TopicMix", "severity": 1.0},
        },
    )
    values = [1.23456789012e-12, math.inf, 0.1 + 0.2]
    run.append_records(Record(round, "loss", "", -1, value) for round, value in enumerate(values))
    ask = ("query", "SELECT value FROM records ORDER BY round", "--json", "--runs-dir", str(tmp_path))
    assert [row["value"] for row in json.loads(command_output(capsys, monkeypatch, *ask))] == values
    shown = json.loads(command_output(capsys, monkeypatch, "show", "abc", "--json", "--runs-dir", str(tmp_path)))
    assert [row["value"] for row in shown["records"]] == values
    (listed,) = json.loads(command_output(capsys, monkeypatch, "list", "--json", "--runs-dir", str(tmp_path)))
    assert listed["experiment"]["training"]["max_grad_norm"] == 0.1 + 0.2


def command_output(capsys, monkeypatch, *words) -> str:
    code, out, _ = run_command(capsys, monkeypatch, *words)
    assert code == 0
    return out


def test_models_and_corpora_are_listed(capsys, monkeypatch):
    assert "pocket" in run_command(capsys, monkeypatch, "models")[1]
    assert "bbc" in run_command(capsys, monkeypatch, "datasets")[1]
    assert json.loads(run_command(capsys, monkeypatch, "models", "--json")[1])[0]["name"] == "pocket"


def test_conformance_tests_the_named_subject(capsys, monkeypatch, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n\n\n@dataclass(frozen=True)\nclass Mine:\n    name: str = 'mine'\n"
        "    version: str = '7'\n    algorithm: str = 'fedsgd'\n    off: float = 0.0\n\n    def run(self, p):\n"
        "        x, seen = p.x0, []\n        for cohort in p.cohorts:\n"
        "            total = sum(p.weight_of(k) for k in cohort)\n"
        "            x -= p.lr * sum(p.weight_of(k) * p.gradient(k, x) for k in cohort) / total + self.off\n"
        "            seen.append(x)\n        return seen\n\n\nRIGHT, BOTH = Mine(), [Mine(), Mine(off=1.0)]\n"
    )
    monkeypatch.chdir(tmp_path)
    code, out, _ = run_command(capsys, monkeypatch, "conformance", "mine.py:RIGHT")
    assert code == 0
    assert "2 of 2 verdicts are right" in out
    code, out, _ = run_command(capsys, monkeypatch, "conformance", "mine.py:BOTH", "--json")
    assert code == 1
    assert [v["holds"] for v in json.loads(out)["verdicts"]] == [True, True, False, False]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mine"], "MODULE:NAME|package.module:NAME"),
        (["no.such.module:X"], "cannot import"),
        (["tests.mutants:MUTANS"], "did you mean 'MUTANTS'"),
        (["fedrift.conformance.problems:PROBLEMS"], "is not a subject"),
        (["quick", "fedrift.conformance:FEDRIFT_SUBJECTS"], "leave it out"),
        (["quickly"], "quick"),
    ],
)
def test_a_wrong_subject_of_conformance_is_refused(capsys, monkeypatch, words, said):
    code, _, err = run_command(capsys, monkeypatch, "conformance", *words)
    assert code == 2
    assert any(part in err for part in said.split("|"))


@pytest.mark.slow
def test_conformance_prints_the_scoreboard(capsys, monkeypatch):
    code, out, _ = run_command(capsys, monkeypatch, "conformance", "--markdown")
    assert code == 0
    assert "**wrong**" not in out
    assert out.count("| scaffold |") == 5


@pytest.mark.sample(1)
@pytest.mark.parametrize("trained", ["Lora", "All"])
def test_a_run_prints_nothing_but_its_progress_on_stderr(experiment_folder, trained):
    command = [sys.executable, "-m", "fedrift", "run", "e.yaml", f"trainable={trained}", "training.num_rounds=1", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"})
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert lines and all("/1 " in line and ("seed 0" in line or "loading" in line) for line in lines), done.stderr


def test_every_argument_and_option_has_a_help_text():
    group = typer.main.get_command(app)
    context = click.Context(group)
    commands = [group.get_command(context, name) for name in group.list_commands(context)]
    commands += [inner for command in commands for inner in getattr(command, "commands", {}).values()]
    silent = [f"{command.name} {param.name}" for command in commands for param in command.params if not getattr(param, "help", None)]
    assert len(commands) > 25 and not silent
