"""Test docs/clustering.md: every YAML snippet is a valid experiment, every strategy has one, and the example strategy works."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

from fedrift import clustering
from fedrift.algorithms import FedAvg
from fedrift.clustering import NoClustering
from fedrift.clustering.base import Assignment, ClientInfo
from fedrift.config.schema import parse_config
from fedrift.engine.clustering import ClusteringRuntime
from fedrift.engine.loop import run_rounds
from tests.quadratics import clients, make_simulator, params

CLUSTERING_PAGE = (Path(__file__).resolve().parents[2] / "docs" / "clustering.md").read_text(encoding="utf-8")
CLUSTERING_SNIPPETS = re.findall(r"```yaml\n(.*?)```", CLUSTERING_PAGE, re.DOTALL)


@pytest.mark.parametrize("snippet", CLUSTERING_SNIPPETS)
def test_a_clustering_snippet_is_an_experiment(snippet):
    raw_config = yaml.safe_load(snippet)
    assert type(parse_config(raw_config).clustering).__name__ == raw_config["clustering"]["type"]


def test_every_strategy_has_a_snippet():
    assert {yaml.safe_load(snippet)["clustering"]["type"] for snippet in CLUSTERING_SNIPPETS} == set(clustering.__all__) - {"NoClustering"}


def test_the_example_strategy_works():
    namespace = {"dataclass": dataclass, "NoClustering": NoClustering, "Assignment": Assignment, "ClientInfo": ClientInfo, "np": np}
    exec(re.search(r"```python\n(.*?)```", CLUSTERING_PAGE, re.DOTALL)[1], namespace)
    texts = [["a long text"], ["short"], ["another long text"], ["no"]]
    client_pool, algorithm = make_simulator(clients((1,) * 4, (5, -5, 4, -4))), FedAvg()
    runtime = ClusteringRuntime(namespace["ByLength"](), ClientInfo(4, 0, texts.__getitem__), algorithm)
    results = list(
        run_rounds(
            runtime.init_state(params(0.0)),
            runtime.wrap_client_pool(client_pool),
            algorithm,
            num_rounds=30,
            cohort_size=2,
            seed=0,
            recluster=runtime.recluster,
            sample_clients=runtime.sample_cohort,
        )
    )
    assert results[-1].after.cluster_ids.tolist() == [1, 0, 1, 0] and all(len(result.cohort) == 2 for result in results)
    assert results[-1].after.server.params["x"].flatten().sign().tolist() == [-1, 1]
