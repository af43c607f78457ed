"""`experiments/reddit_communities.yaml`, natural clients, where its corpus is at hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedrift.experiment import load_experiment
from fedrift.run import carry_out
from tests.worlds import stock

FILE = Path(__file__).resolve().parents[1] / "experiments" / "reddit_communities.yaml"
LESS = ("plan.rounds=1", "plan.participation=0.008", "evaluate.every=1", "evaluate.blocks=1", "evaluate.final=0")


@pytest.mark.slow
def test_two_communities_train_for_an_epoch_as_long_as_they_are(tmp_path, shared_data):
    """Ten a round in the file, two here."""
    run = carry_out(load_experiment(FILE, LESS), stock(tmp_path, data=shared_data))
    assert len(run.experiment["partition_table"]["tokens"]) == 270
    steps = run.trajectory().table("train.steps")[1]
    took = steps[steps > 0]
    assert len(took) == 2 and took[0] != took[1]  # an epoch each, and communities differ in size
    loss = run.trajectory().curve("loss")
    assert loss[-1] < loss[0]
