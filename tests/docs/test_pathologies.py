"""Test docs/pathologies.md: every YAML snippet is a valid experiment, and every partition has a snippet and a table row."""

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
def test_every_snippet_is_a_valid_experiment(snippet):
    raw = yaml.safe_load(snippet)
    experiment = parse_config(raw)
    assert type(experiment.partition).__name__ == raw["partition"]["type"]
    if isinstance(raw["dataset"], dict):
        assert experiment.dataset.synthetic != SyntheticConfig() or experiment.dataset.num_clusters


def test_snippets_and_table_rows_cover_exactly_the_partitions():
    assert {yaml.safe_load(snippet)["partition"]["type"] for snippet in PATHOLOGIES_SNIPPETS} == set(partition.__all__)
    rows = re.findall(r"^\| (\w+) \| \d", PATHOLOGIES_PAGE, re.MULTILINE)
    assert sorted(rows) == sorted(partition.__all__)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(fedrift(?:\.\w+)+)`", PATHOLOGIES_PAGE))))
def test_every_module_that_the_page_names_exists(name):
    module, _, last = name.rpartition(".")
    assert hasattr(import_module(module), last) or import_module(name)


def test_a_misspelled_key_in_a_snippet_is_detected():
    with pytest.raises(Exception, match="did you mean 'severity'"):
        parse_config(yaml.safe_load(PATHOLOGIES_SNIPPETS[0].replace("severity", "severty")))
