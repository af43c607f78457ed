"""Test that wrong input of a command gives exit code 2 and one line before anything is loaded, and never a traceback."""

from __future__ import annotations

import pytest

from fedrift.cli.options import check_overrides
from tests.cli.test_cli import run_command

WRONG = {
    "training: {client_optimizer: {type: Sgd, lr: .inf}}": "training.client_optimizer.lr: expected a number from 1e-30 to 1e+30, got .inf",
    "partition: {num_clients: true}": "partition.num_clients: expected a whole number",
    "seed: 1\nseed: 2": "the key 'seed' is given twice",
    "model: " + "a" * 5000: "and 4,960 more characters",
    "trainable: " + "[" * 3000 + "]" * 3000: "nested lists or mappings",
    "training: {local_steps: 1:30}": "got '1:30'",
    "training: {num_rounds": "is not valid YAML: line 2",
    "algorithm: {type: [1, 2]}": "[1, 2]",
    "model: !!python/name:os.system": "tags are not supported",
    "training: {batch_size: 100000000000000000000000}": "from 1 to 16,384",
    "model: a\0b": "is not allowed",
}


@pytest.mark.sample(4)
@pytest.mark.parametrize("text", WRONG, ids=range(len(WRONG)))
def test_validate_and_run_refuse_an_experiment_in_the_same_line(text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "e.yaml").write_text(f"dataset: bbc\n{text}")
    (tmp_path / "s.yaml").write_text("name: a\nbase: e.yaml\n")
    said = [
        run_command(capsys, monkeypatch, *words)
        for words in (
            ("validate", "e.yaml"),
            ("run", "e.yaml"),
            ("compare-clustering", "e.yaml"),
            ("find-boundary", "e.yaml"),
            ("profile", "e.yaml"),
            ("deploy", "e.yaml"),
            ("study", "s.yaml", "--dry-run", "--no-measure"),
        )
    ]
    for code, out, err in said:
        assert (code, out) == (2, "")
        assert err.replace("main: all: ", "") == said[0][2]  # a study also names the runs concerned
        assert WRONG[text] in err and len(err.splitlines()) == 1


OPTIONS = [
    ("run", "e.yaml", "--threads", "0"),
    ("run", "e.yaml", "--threads", "1000000"),
    ("run", "e.yaml", "--threads", "true"),
    ("run", "e.yaml", "--threads", "1" * 5000),
    ("run", "e.yaml", "--clients-per-pass", "-1"),
    ("run", "e.yaml", "--clients-per-pass", "1.5"),
    ("run", "e.yaml", "--dtype", "float64"),
    ("monitor", "--port", "65536"),
    ("monitor", "--interval", "nan"),
    ("monitor", "--interval", "inf"),
    ("find-boundary", "e.yaml", "--tolerance", "nan"),
    ("find-boundary", "e.yaml", "--tolerance", "0"),
    ("find-boundary", "e.yaml", "--min", "nan"),
    ("find-boundary", "e.yaml", "--min", "inf"),
    ("find-boundary", "e.yaml", "--max", "nan"),
    ("find-boundary", "e.yaml", "--seeds", "1000000000"),
    ("find-boundary", "e.yaml", "--min", "2", "--max", "1"),
    ("find-boundary", "e.yaml", "--max", "0"),
    ("compare-clustering", "e.yaml", "--seeds", "0"),
    ("compare-clustering", "e.yaml", "--seeds", "10000000000"),
    ("compare-clustering", "e.yaml", "--workers", "99999"),
    ("compare-clustering", "e.yaml", "--seed-offset", "9" * 20),
    ("compare-clustering", "e.yaml", "--clusters", "0"),
    ("compare-clustering", "e.yaml", "--conditions", "x" * 5000),
    ("profile", "e.yaml", "--rounds", "0"),
    ("partition", "tables", "--draws", "9"),
    ("partition", "tables", "--seed", "-1"),
    ("partition", "show", "e.yaml", "--encoder", "x" * 5000),
    ("partition", "show", "e.yaml", "seed=true"),
    ("partition", "show", "e.yaml", "partition.severity=.nan"),
    ("partition", "show", "e.yaml", "model="),
    ("partition", "export", "e.yaml", "x" * 5000 + "=1"),
    ("study", "s.yaml", "executor=3"),
    ("study", "s.yaml", "executor={type: [1]}"),
    ("study", "s.yaml", "executor=processes", "executor.num_workers=true"),
    ("study", "s.yaml", "seeds=[1"),
    ("study", "s.yaml", "seeds=1e9"),
    ("study", "s.yaml", "base.training.num_rounds=.inf", "--dry-run"),
    ("study", "s.yaml", "name=" + "x" * 5000),
    ("deploy", "e.yaml", "--address", "h:0"),
    ("deploy", "e.yaml", "--client-data", "99=/a"),
    ("deploy", "e.yaml", "backend.round_timeout_s=.inf"),
    ("run", "e.yaml", "backend=flower", "backend.min_results=true"),
    ("run", "e.yaml", "seed"),
    ("run", "x" * 5000),
    ("validate", "."),
]


@pytest.mark.parametrize("words", OPTIONS, ids=range(len(OPTIONS)))
def test_an_option_or_an_override_outside_its_range_is_refused(words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "e.yaml").write_text("dataset: bbc\n")
    (tmp_path / "s.yaml").write_text("name: a\nbase: e.yaml\n")
    code, out, err = run_command(capsys, monkeypatch, *words)
    assert (code, out) == (2, "")
    assert err and "Traceback" not in err
    assert "Usage:" in err or (len(err.splitlines()) == 1 and len(err) < 700)


LOST = {
    ("seed=1", "seed=2"): "the override 'seed' is given twice: give each key once",
    ("algorithm.mu=0.1", "algorithm=FedProx"): "'algorithm=FedProx' replaces 'algorithm.mu', which is given before it",
    ("backend=flower", "backend=flower"): "the override 'backend' is given twice",
}


@pytest.mark.parametrize("overrides", LOST, ids=range(len(LOST)))
@pytest.mark.parametrize("words", ["run e.yaml", "validate e.yaml", "study s.yaml --dry-run", "fork 5c35 --from-round 1"])
def test_an_override_that_replaces_another_is_refused(words, overrides, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "e.yaml").write_text("dataset: bbc\n")
    (tmp_path / "s.yaml").write_text("name: a\nbase: e.yaml\n")
    code, out, err = run_command(capsys, monkeypatch, *words.split(), *overrides)
    assert (code, out) == (2, "")
    assert LOST[overrides] in err and len(err.splitlines()) == 1


def test_a_class_and_its_keys_are_given_in_this_order(tmp_path, capsys, monkeypatch):
    (tmp_path / "e.yaml").write_text("dataset: synthetic\n")
    code, out, _ = run_command(capsys, monkeypatch, "validate", str(tmp_path / "e.yaml"), "algorithm=FedProx", "algorithm.mu=0.1")
    assert code == 0 and "mu: 0.1" in out


def test_a_fork_excludes_the_clients_of_every_exclude_clients():
    overrides = ["exclude_clients=3", "exclude_clients=4"]
    assert check_overrides(overrides) == overrides
