"""Test fairness on given losses, and traffic on trees of known size."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from fedrift.algorithms import Ditto, FedAvg, FedPer, FedSGD, Scaffold
from fedrift.algorithms.aggregators import FedEx, FFALoRA, RoLoRA
from fedrift.probes.base import MetricHistory
from fedrift.probes.federation import CommunicationCost, fairness_metrics, jain_index
from tests.laws.federation import data, train


@pytest.mark.parametrize(("utility", "index"), [((1, 0, 0, 0), 0.25), ((1, 2, 3, 4), 0.8333), ((3, 3, 3), 1.0)])
def test_jains_index_equals_the_values_of_the_paper(utility, index):
    assert jain_index(torch.tensor(utility, dtype=torch.float64)).item() == pytest.approx(index, abs=5e-5)


def test_fairness_is_of_the_clients_losses():
    loss = torch.tensor([1.0, 2.0, math.nan, 3.0, 6.0])
    reading = {name: float(value) for name, value in fairness_metrics({"loss": loss, ("loss", ""): 2.0}, MetricHistory()).items()}
    assert reading["fair.variance"] == pytest.approx(3.5)
    assert reading["fair.sd"] == pytest.approx(3.5**0.5)
    assert reading["fair.worst10"] == pytest.approx(6)
    assert reading["fair.gap"] == pytest.approx(5)
    use = [math.exp(-x) for x in (1, 2, 3, 6)]
    assert reading["fair.jain"] == pytest.approx(sum(use) ** 2 / 4 / sum(u * u for u in use))


def test_the_worst_tenth_of_twenty_clients_is_two():
    assert fairness_metrics({"loss": torch.arange(20.0)}, MetricHistory())["fair.worst10"] == pytest.approx(18.5)


def test_huge_losses_have_an_index_and_equal_ones_are_fair():
    assert fairness_metrics({"loss": torch.full((3,), 1e4)}, MetricHistory())["fair.jain"] == pytest.approx(1)
    assert fairness_metrics({("loss", ""): 2.0}, MetricHistory()) == {}


A, B, H, IDLE, BASE = 2 * 3 * 8, 4 * 2 * 8, 4 * 8, 2 * 2 * 8, 4 * 3 * 8  # bytes of the leaves of the federation in float64
ALL = A + B + H + IDLE


@pytest.mark.parametrize(
    ("algorithm", "down", "up"),
    [
        (FedAvg(), ALL, ALL),
        (Scaffold(), 2 * ALL, 2 * ALL),
        (Ditto(), ALL, ALL),  # its client state is not sent
        (FedSGD(), ALL, 2 * ALL),  # its server uses the gradient
        (FedPer(), ALL - B, ALL - B),  # B stays on the client
        (FedAvg(aggregator=FFALoRA()), ALL - A, ALL - A),
        (FedAvg(aggregator=FedEx()), ALL + BASE, ALL),
    ],
    ids=lambda value: type(getattr(value, "aggregator", value)).__name__ if not isinstance(value, int) else str(value),
)
def test_traffic_is_what_each_algorithm_must_send(algorithm, down, up):
    assert CommunicationCost(algorithm)(train(algorithm, data(), until=1)[0]) == {"cost.down": down, "cost.up": up}


def test_frozen_leaves_of_a_round_are_not_sent():
    algorithm = FedAvg(aggregator=RoLoRA())
    costs = [CommunicationCost(algorithm)(done)["cost.up"] for done in train(algorithm, data(), until=2)]
    assert sorted(costs) == sorted([ALL - A, ALL - B])


def test_measured_traffic_is_recorded_unchanged():
    done = train(FedAvg(), data(), until=1)[0]
    wire = torch.tensor([[100, 10], [200, 30]] + [[150, 20]] * 3)
    assert CommunicationCost(FedAvg())(replace(done, update=replace(done.update, bytes_on_wire=wire))) == {
        "cost.down": 150.0,
        "cost.up": 20.0,
    }
