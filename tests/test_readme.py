"""The README's examples run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from fedrift.config.schema import parse_config

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_the_python_examples_run_as_written(number, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDRIFT_CACHE", str(tmp_path / "cache"))
    exec(compile(blocks("python")[number], f"README example {number}", "exec"), {})
    assert capsys.readouterr().out


def test_the_yaml_example_is_a_valid_experiment():
    for block in blocks("yaml"):
        parse_config(yaml.safe_load(block))


def test_nothing_is_left_to_be_filled_in():
    assert "@" not in re.sub(r"```.*?```", "", README, flags=re.S)
    assert "@DEMO" not in README
