"""The page on pathologies: every snippet is an experiment, and no regime is missing."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from fedrift import partition
from fedrift.config.schema import parse_config
from fedrift.data.synthetic import SyntheticConfig

PATHOLOGIES_PAGE = (Path(__file__).resolve().parents[2] / "docs" / "pathologies.md").read_text(encoding="utf-8")
PATHOLOGIES_SNIPPETS = re.findall(r"```yaml\n(.*?)```", PATHOLOGIES_PAGE, re.DOTALL)


@pytest.mark.parametrize("snippet", PATHOLOGIES_SNIPPETS, ids=lambda snippet: re.search(r"type: (\w+)", snippet)[1])
def test_a_pathology_snippet_is_an_experiment(snippet):
    said = yaml.safe_load(snippet)
    experiment = parse_config(said)
    assert type(experiment.partition).__name__ == said["partition"]["type"]
    if isinstance(said["dataset"], dict):
        assert experiment.dataset.synthetic != SyntheticConfig() or experiment.dataset.num_clusters


def test_every_regime_has_its_snippet_and_its_row_and_only_those():
    assert {yaml.safe_load(snippet)["partition"]["type"] for snippet in PATHOLOGIES_SNIPPETS} == set(partition.__all__)
    rows = re.findall(r"^\| (\w+) \| \d", PATHOLOGIES_PAGE, re.MULTILINE)
    assert sorted(rows) == sorted(partition.__all__)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(fedrift(?:\.\w+)+)`", PATHOLOGIES_PAGE))))
def test_what_the_page_names_is_there(name):
    module, _, last = name.rpartition(".")
    assert hasattr(import_module(module), last) or import_module(name)


def test_a_wrong_key_in_a_snippet_would_be_seen():
    with pytest.raises(Exception, match="did you mean 'severity'"):
        parse_config(yaml.safe_load(PATHOLOGIES_SNIPPETS[0].replace("severity", "severty")))
