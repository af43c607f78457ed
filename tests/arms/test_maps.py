"""The map of where clustering can help."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedrift.clustering.comparison_report import map_report_parts, render_markdown
from fedrift.clustering.comparison_results import REGIMES, ClusteringMap, equal_sizes, summarize_map
from fedrift.studies.run import preview_study, run_study


def test_the_map_has_every_regime_severity_and_seed_and_forces_the_clusters(asked, world):
    plan, _ = preview_study(ClusteringMap(asked).build_study(), world)
    cells = [entry for entry in plan.entries if entry.stage == "map"]
    assert len(cells) == 4 * 3 * 3 * 2 and {entry.factors["regime"] for entry in cells} == set(REGIMES)
    kinds = {(said.partition.__class__.__name__, type(said.clustering).__name__) for said in plan.configs.values()}
    assert {(regime, arm) for regime in REGIMES.values() for arm in ("NoClustering", "TextClustering", "RandomClustering")} <= kinds
    assert {entry.factors["method"] for entry in plan.entries if entry.stage == "starved"} == {
        "1 cluster",
        "2 clusters",
        "3 clusters",
        "5 clusters",
        "6 clusters",
    }
    assert equal_sizes(7, 3) == [3, 2, 2]


def test_a_map_tells_the_gain_beside_what_the_descriptors_know(asked, world):
    little = ClusteringMap(replace(asked, config=replace(asked.config, num_clusters=3)), regimes=("topic",), severities=(0.0, 1.0))
    gains, starved = summarize_map(run_study(little.build_study(), world))
    gains = gains.set_index("severity")
    assert gains.loc[1.0, "p"] == 0.01 < gains.loc[0.0, "p"] and gains.loc[1.0, "counted"] == 3
    assert gains.loc[1.0, "identified"] > 0.35 > gains.loc[0.0, "identified"] and gains.loc[1.0, "chance"] == pytest.approx(1 / 6)
    assert gains.loc[1.0, "random.effect"] < gains.loc[0.0, "random.effect"] and gains.loc[1.0, "random.seeds"] == 2
    assert starved["k"].tolist() == [2, 3, 5, 6] and np.isfinite(starved["effect"]).all()
    assert "Cost of fewer clients per model" in render_markdown(map_report_parts(gains.reset_index(), starved))
