"""Test `experiments/reddit_communities.yaml` with natural clients, if its corpus exists."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedrift.config.schema import load_config
from fedrift.engine.run import run_experiment
from tests.small_experiment import make_cache

FILE = Path(__file__).resolve().parents[1] / "experiments" / "reddit_communities.yaml"
SMALLER = (
    "training.num_rounds=1",
    "training.participation_rate=0.008",
    "evaluation.interval=1",
    "evaluation.blocks_per_domain=1",
    "evaluation.final_blocks_per_domain=0",
)


@pytest.mark.slow
def test_two_communities_train_for_one_epoch_of_their_own_length(tmp_path, shared_data):
    """The file has ten clients per round; this test has two."""
    run = run_experiment(load_config(FILE, SMALLER), make_cache(tmp_path, data_dir=shared_data))
    assert len(run.config["partition_table"]["tokens"]) == 270
    steps = run.trajectory().client_table("train.steps")[1]
    took = steps[steps > 0]
    assert len(took) == 2 and took[0] != took[1]  # one epoch each, of communities with different sizes
    loss = run.trajectory().curve("loss")
    assert loss[-1] < loss[0]
