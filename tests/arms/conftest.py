"""One contest of the tests' small world, run once: every arm that there is, two seeds."""

from __future__ import annotations

import pytest

from fedrift.arms import ARMS, contest
from fedrift.study.conduct import conduct
from tests.worlds import experiment, stock

SMALL = ("partition.clients=6", "plan.participation=0.67", "plan.rounds=5", "plan.steps=1", "evaluate.blocks=2", "evaluate.own=1",
         "evaluate.final=3", "evaluate.panel=[updates, fairness, cost]")


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    return stock(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def asked(world):
    said = experiment(world.runtime.cache.parent, *SMALL).written()
    return contest(said, ["mitigation=Vanilla"], arms=list(ARMS), seeds=(0, 1), encoder="hashing", restarts=2, draws=2,
                   stock=world)


@pytest.fixture(scope="session")
def book(asked, world):
    return conduct(asked.study(), world)
