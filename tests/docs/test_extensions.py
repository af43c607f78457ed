"""Test that the examples of the pages on own parts run in a user folder with fedrift installed as a package."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOW_TO = ROOT / "docs" / "how-to"
NAMED_BLOCK = re.compile(r"Save this as `(\w+\.py)`.*?```python\n(.*?)```", re.DOTALL)

# Run every part of the pages once, on the dataset and the model of a page, and print the results as one line of JSON.
DRIVER = """
import json, sys
import fedrift
import my_detector

base = {
    "dataset": "my_source.py:numbers",
    "model": "my_source.py:small_llama",
    "partition": {"type": "TopicMix", "num_clients": 3, "severity": 1.0},
    "training": {"num_rounds": 1, "local_steps": 1, "batch_size": 2, "max_seq_length": 16},
    "evaluation": {"blocks_per_domain": 1, "final_blocks_per_domain": 0},
}

def run(*overrides):
    return fedrift.run(fedrift.load_config(base, overrides), runs_dir="runs", threads=1, device="cpu")

report = {"package": fedrift.__file__}
def describe(run):
    clustering = run.folder / "clustering.json"
    return {
        "id": run.id,
        "status": run.status,
        "loss": run.trajectory().curve("loss").tolist(),
        "metrics": sorted(set(run.metrics().metric)),
        "tokens": run.config["partition_table"]["tokens"],
        "clusters": json.loads(clustering.read_text()) if clustering.exists() else [],
    }

plain = run()
baseline = run("partition.severity=0")
report["findings"] = [[each.failure, each.grade] for each in fedrift.diagnose(plain, baseline=baseline)]
for name, overrides in json.loads(sys.argv[1]).items():
    done = run(*overrides)
    report[name] = describe(done)
report["plain"] = describe(plain)
print(json.dumps(report))
"""
PARTS = {
    "algorithm": ["algorithm={type: 'my_algorithm.py:ScaledGradient', factor: 0.25}"],
    "aggregator": ["algorithm.aggregator=my_aggregator.py:UniformMean"],
    "partition": ["partition={type: 'my_partition.py:ByLength', num_clients: 3, severity: 1.0}"],
    "clustering": ["clustering=my_clustering.py:ByDigits"],
    "probe": ["evaluation.probes=[language, 'my_probe.py:update_norms']"],
    "contributing algorithm": ["algorithm=contributing_0.py:Centered", "training.local_steps=2"],
    "contributing probe": ["evaluation.probes=[language, 'contributing_1.py:participation_probes']"],
}


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    """A user folder with the files of the pages, and an environment in which fedrift is installed as from a wheel."""
    root = tmp_path_factory.mktemp("user")
    site, folder = root / "site", root / "work"
    shutil.copytree(ROOT / "fedrift", site / "fedrift", ignore=shutil.ignore_patterns("__pycache__"))
    for kind in ("experiments", "studies"):  # as `force-include` in pyproject.toml
        shutil.copytree(ROOT / kind, site / "fedrift" / "ready" / kind, ignore=shutil.ignore_patterns("results"))
    folder.mkdir()
    for page in sorted(HOW_TO.glob("own-*.md")):
        for name, code in NAMED_BLOCK.findall(page.read_text(encoding="utf-8")):
            (folder / name).write_text(code)
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)):
        (folder / f"contributing_{number}.py").write_text(code)
    (folder / "driver.py").write_text(DRIVER)
    environment = {
        **os.environ,
        "PYTHONPATH": str(site),
        "HF_HUB_OFFLINE": "1",
        "FEDRIFT_CACHE": str(root / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    return folder, environment


@pytest.fixture(scope="module")
def report(user):
    folder, environment = user
    done = subprocess.run(
        [sys.executable, "driver.py", json.dumps(PARTS)], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_example_of_every_page_on_own_parts_is_run(user):
    folder, _ = user
    written = {name for page in HOW_TO.glob("own-*.md") for name, _ in NAMED_BLOCK.findall(page.read_text(encoding="utf-8"))}
    assert all(NAMED_BLOCK.search(page.read_text(encoding="utf-8")) for page in HOW_TO.glob("own-*.md"))
    used = {name for overrides in PARTS.values() for name in re.findall(r"my_\w+\.py", " ".join(overrides))}
    assert written - used == {"my_detector.py", "diagnose.py", "my_source.py"}  # the driver uses the first and the last
    assert not ROOT.is_relative_to(folder) and not folder.is_relative_to(ROOT)


def test_the_installed_fedrift_is_used(user, report):
    assert report["package"] == str(user[0].parent / "site" / "fedrift" / "__init__.py")


@pytest.mark.parametrize("name", PARTS)
def test_a_part_of_a_page_runs_and_changes_the_id(report, name):
    part = report[name]
    assert part["status"] == "finished" and len(part["loss"]) == 2
    assert part["id"] != report["plain"]["id"]


def test_the_parts_have_the_effects_that_their_pages_state(report):
    start, full = report["plain"]["loss"]
    assert report["algorithm"]["loss"][0] == start and report["algorithm"]["loss"][1] != full
    assert report["partition"]["tokens"] != report["plain"]["tokens"]
    assert report["clustering"]["clusters"][0]["signal"] == "ByDigits" and report["clustering"]["clusters"][0]["num_models"] == 2
    assert "my.largest_update" in report["probe"]["metrics"] and "participants" in report["contributing probe"]["metrics"]
    assert ["costly first round", "none"] in report["findings"]
