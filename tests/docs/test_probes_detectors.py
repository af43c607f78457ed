"""Test docs/probes.md and docs/detectors.md: every recorded metric is documented, and the example probe and detector work."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from fedrift import diagnosis, load_config, probes
from fedrift import probes as registry
from fedrift.diagnosis.finding import THRESHOLDS, RunEvidence
from fedrift.engine.run import run_experiment
from tests import small_experiment
from tests.diagnosis.runs import run

ROOT = Path(__file__).resolve().parents[2]
PROBES_PAGE, DETECTORS_PAGE = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("probes.md", "detectors.md"))
FAILURE_EXPERIMENTS = ("isolation", "low_participation", "high_rate")


def load_example(page: str, package: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Execute the Python example of a page as the module ``name`` of a package."""
    module = ModuleType(f"{package.__name__}.{name}")
    module.__package__ = package.__name__
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], module.__dict__)
    return module


def test_all_probes_together_record_only_documented_metrics(tmp_path):
    experiment = small_experiment.experiment(
        tmp_path,
        "training.num_rounds=2",
        "training.client_weighting=uniform",
        "algorithm=Scaffold",
        "evaluation.minimal_pairs=3",
        "evaluation.final_blocks_per_domain=0",
        f"evaluation.probes={list(probes.PROBE_GROUPS)}",
    )
    trajectory = run_experiment(experiment, small_experiment.make_cache(tmp_path)).trajectory()
    documented = set(re.findall(r"`([\w.]+)`", PROBES_PAGE))
    assert len(trajectory.metrics) > 60 and set(trajectory.metrics) <= documented, sorted(set(trajectory.metrics) - documented)


def test_every_group_is_on_the_page():
    first_cells = {line.split("|")[1].strip() for line in PROBES_PAGE.splitlines() if line.startswith("|")}
    assert set(probes.PROBE_GROUPS) <= first_cells


def test_the_new_probe_of_the_page_works_and_is_one_file_and_one_entry(tmp_path, monkeypatch):
    module = load_example(PROBES_PAGE, probes, "participation", monkeypatch)
    factories = registry.group_factories([(module.PARTICIPATION_GROUP, module.participation_probes)])
    monkeypatch.setitem(probes.PROBE_GROUPS, "participation", factories["participation"])
    experiment = small_experiment.experiment(
        tmp_path, "training.num_rounds=1", "evaluation.probes=[participation]", "evaluation.final_blocks_per_domain=0"
    )
    assert run_experiment(experiment, small_experiment.make_cache(tmp_path)).trajectory().curve("participants")[-1] == 2


def test_the_new_detector_of_the_page_works(monkeypatch):
    module = load_example(DETECTORS_PAGE, diagnosis, "disagreement", monkeypatch)
    thresholds = {**THRESHOLDS, "disagreement": {"consensus": 0.1}}
    low, high = run(update_consensus=[0.4] * 6), run(update_consensus=[0.7] * 6)
    assert module.disagreement(RunEvidence(low, high, thresholds=thresholds))[0].is_positive
    assert not module.disagreement(RunEvidence(high, low, thresholds=thresholds))[0].is_positive
    assert module.disagreement(RunEvidence(low, thresholds=thresholds))[0].grade == "not measured"


@pytest.mark.parametrize("page", [PROBES_PAGE, DETECTORS_PAGE], ids=["probe", "detector"])
def test_the_example_of_a_page_is_about_ten_lines(page):
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len([line for line in example.splitlines() if line.strip()]) <= 11


@pytest.mark.parametrize("name", FAILURE_EXPERIMENTS)
def test_the_failure_experiments_state_the_expected_result(name):
    path = ROOT / "experiments" / f"{name}.yaml"
    assert load_config(path).partition.severity == 1.0
    assert "Expected" in path.read_text() and path.name in DETECTORS_PAGE
