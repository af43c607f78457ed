"""Test the clustering strategy of docs/clustering.md: its code works as it stands on the page."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from fedrift import clustering
from fedrift.clustering import NoClustering
from fedrift.clustering.base import Assignment, ClientInfo
from fedrift.config.schema import parse_config
from fedrift.engine.build import build_run
from fedrift.engine.cache import resolve_fingerprints

from .small_runs import make_config, with_runs_dir

PAGE = Path(__file__).resolve().parents[2] / "docs" / "clustering.md"


@pytest.fixture
def strategy(monkeypatch):
    """The class of the page, registered under its name."""
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S) if "class ByLength" in block]
    names = {
        "dataclass": dataclass,
        "np": np,
        "NoClustering": NoClustering,
        "Assignment": Assignment,
        "ClientInfo": ClientInfo,
        "__name__": __name__,
    }
    exec(code, names)
    monkeypatch.setattr(clustering, "ByLength", names["ByLength"], raising=False)
    monkeypatch.setattr(clustering, "__all__", [*clustering.__all__, "ByLength"])
    return names["ByLength"]


def test_the_strategy_is_a_choice_in_yaml_and_clusters_a_run(strategy, cache, tmp_path):
    experiment = parse_config({"dataset": "bbc", "clustering": "ByLength"})
    assert experiment.clustering == strategy() and parse_config(experiment.to_dict()) == experiment
    setting = build_run(resolve_fingerprints(make_config(cache, strategy()), cache), with_runs_dir(cache, tmp_path))
    assert setting.initial_state.server.num_models == 2 and setting.initial_state.cluster_ids.bincount().tolist() == [3, 3]
    control = parse_config({"dataset": "bbc", "clustering": {"type": "RandomClustering", "sizes_from": "ByLength"}}).clustering
    ((_, decision),) = build_run(
        resolve_fingerprints(make_config(cache, control), cache), with_runs_dir(cache, tmp_path)
    ).clustering.pending_assignments
    assert sorted(np.bincount(decision.cluster_ids)) == [3, 3]
