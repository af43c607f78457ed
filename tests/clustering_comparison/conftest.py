"""Fixtures with one comparison of all conditions over two seeds, which is run once."""

from __future__ import annotations

import pytest

from fedrift.config.loader import apply_overrides
from fedrift.studies.comparison import CONDITIONS, build_comparison
from fedrift.studies.run import run_study
from tests.small_experiment import experiment, make_cache

SMALL = (
    "partition.num_clients=6",
    "training.participation_rate=0.67",
    "training.num_rounds=5",
    "training.local_steps=1",
    "evaluation.blocks_per_domain=2",
    "evaluation.blocks_per_client=1",
    "evaluation.final_blocks_per_domain=3",
    "evaluation.probes=[updates, fairness, cost]",
)


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return make_cache(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def comparison(cache):
    values = experiment(cache.runtime.cache_dir.parent, *SMALL).to_dict()
    return build_comparison(
        apply_overrides(values, ["clustering=NoClustering"]),
        conditions=list(CONDITIONS),
        seeds=(0, 1),
        encoder="hashing",
        ifca_restarts=2,
        random_repeats=2,
        cache=cache,
    )


@pytest.fixture(scope="session")
def manifest(comparison, cache):
    return run_study(comparison.build_study(), cache)
