"""Test that the examples of README.md run as they are written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from fedrift.config.schema import parse_config
from fedrift.studies import load_study
from fedrift.studies.spec import expand_cells

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """Return the code blocks of the README in one language."""
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_the_python_examples_run_as_written(number, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDRIFT_CACHE", str(tmp_path / "cache"))
    exec(compile(blocks("python")[number], f"README example {number}", "exec"), {})
    assert capsys.readouterr().out


def test_the_yaml_examples_are_a_valid_experiment_and_a_study_of_it(tmp_path):
    experiment, study = blocks("yaml")
    parse_config(yaml.safe_load(experiment))
    (tmp_path / "my.yaml").write_text(experiment)
    (tmp_path / "study.yaml").write_text(study)
    cells = expand_cells(load_study(tmp_path / "study.yaml"))
    assert len(cells) == 4  # two severities and two seeds


def test_no_placeholder_is_left():
    # An @ outside code marks a place that is still to be filled in.
    assert "@" not in re.sub(r"```.*?```", "", README, flags=re.S)
    assert "@DEMO" not in README
