"""The page on pathologies: every snippet is an experiment, and no regime is missing."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from fedrift import partition
from fedrift.corpus.sandbox import Sandbox
from fedrift.experiment import parse

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "pathologies.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: re.search(r"is: (\w+)", snippet)[1])
def test_a_snippet_is_an_experiment(snippet):
    said = yaml.safe_load(snippet)
    experiment = parse(said)
    assert type(experiment.partition).__name__ == said["partition"]["is"]
    if isinstance(said["corpus"], dict):
        assert experiment.corpus.sandbox != Sandbox() or experiment.corpus.clusters


def test_every_regime_has_its_snippet_and_its_row_and_only_those():
    assert {yaml.safe_load(snippet)["partition"]["is"] for snippet in SNIPPETS} == set(partition.__all__)
    rows = re.findall(r"^\| (\w+) \| \d", PAGE, re.MULTILINE)
    assert sorted(rows) == sorted(partition.__all__)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(fedrift(?:\.\w+)+)`", PAGE))))
def test_what_the_page_names_is_there(name):
    module, _, last = name.rpartition(".")
    assert hasattr(import_module(module), last) or import_module(name)


def test_a_wrong_key_in_a_snippet_would_be_seen():
    with pytest.raises(Exception, match="did you mean 'severity'"):
        parse(yaml.safe_load(SNIPPETS[0].replace("severity", "severty")))
