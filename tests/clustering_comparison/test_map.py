"""Test the map of the partitions and severities at which clustering can help."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedrift.report.comparison import map_report_parts, render_markdown
from fedrift.studies.comparison_results import PARTITIONS, ClusteringMap, equal_sizes, summarize_map
from fedrift.studies.run import preview_study, run_study


def test_the_map_covers_every_partition_severity_and_seed(comparison, cache):
    plan, _ = preview_study(ClusteringMap(comparison).build_study(), cache)
    cells = [entry for entry in plan.entries if entry.stage == "map"]
    assert len(cells) == 4 * 3 * 3 * 2 and {entry.factors["partition"] for entry in cells} == set(PARTITIONS)
    kinds = {(said.partition.__class__.__name__, type(said.clustering).__name__) for said in plan.configs.values()}
    assert {
        (partition, condition) for partition in PARTITIONS.values() for condition in ("NoClustering", "TextClustering", "RandomClustering")
    } <= kinds
    assert {entry.factors["method"] for entry in plan.entries if entry.stage == "cluster_size"} == {
        "1 cluster",
        "2 clusters",
        "3 clusters",
        "5 clusters",
        "6 clusters",
    }
    assert equal_sizes(7, 3) == [3, 2, 2]


@pytest.mark.slow
def test_the_map_shows_the_gain_and_the_identification_rate(comparison, cache):
    little = ClusteringMap(
        replace(comparison, config=replace(comparison.config, num_clusters=3)), partitions=("topic",), severities=(0.0, 1.0)
    )
    gains, cluster_costs = summarize_map(run_study(little.build_study(), cache))
    gains = gains.set_index("severity")
    assert gains.loc[1.0, "p"] == 0.01 < gains.loc[0.0, "p"] and gains.loc[1.0, "estimated_k"] == 3
    assert gains.loc[1.0, "identification_rate"] > 0.35 > gains.loc[0.0, "identification_rate"] and gains.loc[
        1.0, "chance"
    ] == pytest.approx(1 / 6)
    assert gains.loc[1.0, "random.effect"] < gains.loc[0.0, "random.effect"] and gains.loc[1.0, "random.seeds"] == 2
    assert cluster_costs["k"].tolist() == [2, 3, 5, 6] and np.isfinite(cluster_costs["effect"]).all()
    assert "Cost of fewer clients per model" in render_markdown(map_report_parts(gains.reset_index(), cluster_costs))
