"""The pages on probes and detectors: every metric is there, and the new probe and detector of the pages work."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from fedrift import diagnosis, probes
from fedrift.config.schema import load_config
from fedrift.diagnosis.finding import THRESHOLDS, RunEvidence
from fedrift.engine.run import run_experiment
from fedrift.probes import registry
from tests import worlds
from tests.detectors.runs import run

ROOT = Path(__file__).resolve().parents[2]
PROBES, DETECTORS = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("probes.md", "detectors.md"))
INDUCED = ("isolation", "low_participation", "high_rate")


def written(page: str, package: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The page's Python, as the file that it says it is."""
    module = ModuleType(f"{package.__name__}.{name}")
    module.__package__ = package.__name__
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], module.__dict__)
    return module


def test_a_whole_panel_records_nothing_that_the_page_does_not_name(tmp_path):
    asked = worlds.experiment(
        tmp_path,
        "training.num_rounds=2",
        "training.client_weighting=uniform",
        "algorithm=Scaffold",
        "evaluation.minimal_pairs=3",
        "evaluation.final_blocks_per_domain=0",
        f"evaluation.probes={list(probes.PROBE_GROUPS)}",
    )
    made = run_experiment(asked, worlds.make_cache(tmp_path)).trajectory()
    named = set(re.findall(r"`([\w.]+)`", PROBES)) | {"train.loss.start"}
    assert len(made.metrics) > 60 and set(made.metrics) <= named, sorted(set(made.metrics) - named)


def test_every_group_is_on_the_page():
    rows = {line.split("|")[1].split(",")[0].strip() for line in PROBES.splitlines() if line.startswith("|")}
    assert set(probes.PROBE_GROUPS) <= rows


def test_the_new_probe_of_the_page_works_and_is_one_file_and_one_entry(tmp_path, monkeypatch):
    module = written(PROBES, probes, "participation", monkeypatch)
    found = registry.group_factories([(module.PARTICIPATION_GROUP, module.participation_probes)])
    monkeypatch.setitem(probes.PROBE_GROUPS, "participation", found["participation"])
    asked = worlds.experiment(
        tmp_path, "training.num_rounds=1", "evaluation.probes=[participation]", "evaluation.final_blocks_per_domain=0"
    )
    assert run_experiment(asked, worlds.make_cache(tmp_path)).trajectory().curve("participants")[-1] == 2


def test_the_new_detector_of_the_page_works(monkeypatch):
    module = written(DETECTORS, diagnosis, "disagreement", monkeypatch)
    limits = {**THRESHOLDS, "disagreement": {"consensus": 0.1}}
    less, more = run(update_consensus=[0.4] * 6), run(update_consensus=[0.7] * 6)
    assert module.disagreement(RunEvidence(less, more, thresholds=limits))[0].is_positive
    assert not module.disagreement(RunEvidence(more, less, thresholds=limits))[0].is_positive
    assert module.disagreement(RunEvidence(less, thresholds=limits))[0].grade == "not measured"


@pytest.mark.parametrize("page", [PROBES, DETECTORS], ids=["probe", "detector"])
def test_the_example_of_a_page_is_about_ten_lines(page):
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len([line for line in example.splitlines() if line.strip()]) <= 11


@pytest.mark.parametrize("name", INDUCED)
def test_the_induced_failures_are_experiments_and_say_what_they_expect(name):
    path = ROOT / "experiments" / f"{name}.yaml"
    assert load_config(path).partition.severity == 1.0
    assert "Expected" in path.read_text() and path.name in DETECTORS
