"""Test the robust and private aggregators on clients of which some send wrong updates."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from fedrift.algorithms import FedAvg, FedProx, Scaffold
from fedrift.algorithms.aggregators import DPMean, Krum, Mean, Median, NormClippedMean, TrimmedMean
from fedrift.algorithms.aggregators.base import Aggregator
from fedrift.algorithms.aggregators.robust import pairwise_squared_distances, select_lowest_scores
from fedrift.core.optimizers import Adam, Sgd
from fedrift.core.tree import Tree
from fedrift.core.types import CohortUpdate, ServerState
from tests.quadratics import Q2, clients, path, train


def update(*values: float, weight=None, group=None) -> CohortUpdate:
    x = torch.tensor(values, dtype=torch.float64).view(len(values), -1)
    size = len(x)
    group = torch.zeros(size, dtype=torch.long) if group is None else torch.tensor(group)
    ones = torch.ones(size, dtype=torch.float64)
    weight = ones if weight is None else torch.tensor(weight, dtype=torch.float64)
    sound = torch.zeros(size, dtype=torch.bool)
    return CohortUpdate(
        Tree(x=x), Tree(), Tree(), Tree(x=x), weight, ones, torch.zeros(size, 2), ones, sound, group, group.bincount(), ones
    )


def aggregate_change(rule: Aggregator, *values, **options) -> list[float]:
    told = update(*values, **options)
    start = torch.zeros(len(told.cluster_sizes), told.delta["x"].shape[1], dtype=torch.float64)
    server = ServerState(Tree(x=start), Tree(), Tree())
    return rule.aggregate(server, told)["x"].flatten().tolist()


@pytest.mark.parametrize(
    ("rule", "values", "expected"),
    [
        (Median(), (1.0, 100.0, 2.0), 2.0),
        (Median(), (4.0, 1.0, 2.0, -50.0), 1.5),
        (Median(), (7.0,), 7.0),
        (TrimmedMean(0.2), (1.0, 2.0, 3.0, 100.0, -100.0), 2.0),
        (TrimmedMean(0.2), (1.0, 2.0, 30.0), 11.0),
        (TrimmedMean(0.0), (1.0, 2.0, 6.0), 3.0),
        (TrimmedMean(0.4), (1.0, 2.0, 3.0, 100.0, -100.0), 2.0),
    ],
)
def test_medians_and_trimmed_means_equal_the_expected_values(rule, values, expected):
    assert aggregate_change(rule, *values) == pytest.approx([expected])


def test_a_clipped_update_is_weighted_and_bounded_in_norm():
    assert aggregate_change(NormClippedMean(1.0), 0.5, -30.0, weight=(3.0, 1.0)) == pytest.approx([(3 * 0.5 - 1.0) / 4])
    assert aggregate_change(NormClippedMean(50.0), 0.5, -30.0, weight=(3.0, 1.0)) == aggregate_change(Mean(), 0.5, -30.0, weight=(3.0, 1.0))


@pytest.mark.parametrize("rule", [Median(), TrimmedMean(0.3), Krum(1), Krum(1, num_selected=3)])
def test_one_malicious_client_of_five_cannot_move_the_result_outside_the_honest_range(rule):
    for lie in (1e9, -1e9, 3.0):
        assert 1.0 <= aggregate_change(rule, 1.0, 1.5, lie, 2.0, 1.2)[0] <= 2.0 or lie == 3.0
    assert aggregate_change(Mean(), 1.0, 1.5, 1e9, 2.0, 1.2)[0] > 1e8


def test_krum_scores_the_nearest_neighbours():
    """Points 0, 1, 3, 7, 100 with one malicious client: the two nearest of each give scores 10, 5, 13, 52, and more."""
    x = Tree(x=torch.tensor([[0.0], [1.0], [3.0], [7.0], [100.0]]))
    square = pairwise_squared_distances(x)
    assert square[0].tolist() == [0, 1, 9, 49, 10000]
    assert select_lowest_scores(square, num_byzantine=1, num_selected=1).tolist() == [1]
    assert select_lowest_scores(square, num_byzantine=1, num_selected=3).tolist() == [1, 0, 2]
    assert aggregate_change(Krum(1, num_selected=2), 0.0, 1.0, 3.0, 7.0, 100.0) == pytest.approx([0.5])


def test_each_model_has_its_own_median():
    assert aggregate_change(Median(), 1.0, 9.0, 2.0, 3.0, 8.0, group=(0, 1, 0, 0, 1)) == pytest.approx([2.0, 8.5])


@pytest.mark.parametrize("rule", [Median(), TrimmedMean(), Krum(0)])
def test_a_client_with_weight_zero_is_ignored(rule):
    assert aggregate_change(rule, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, weight=(1, 1, 1, 0, 0, 0)) == pytest.approx([1.0])


def test_robust_aggregators_find_the_optimum_of_the_honest_clients():
    """Nine honest clients have their optimum at 1, and one malicious client has a constant slope."""
    group = clients((1,) * 10, (1,) * 10, 5, slope=(0,) * 9 + (-1000.0,))
    for rule in (Median(), TrimmedMean(0.1), Krum(1)):
        assert path(train(FedProx(mu=0.1, aggregator=rule), group, until=30))[-1] == pytest.approx(1, abs=1e-4)
    assert abs(path(train(FedAvg(), group, until=30))[-1] - 1) > 50


def test_robust_aggregators_work_with_corrections_and_server_optimizers():
    done = train(Scaffold(aggregator=Median(), server_optimizer=Adam(0.05)), Q2(), until=3)
    assert done[-1].after.server.params["x"].isfinite().all()


def test_clipping_is_per_client_and_the_denominator_is_fixed():
    assert aggregate_change(DPMean(clip_norm=1.0, noise_multiplier=0.0), 0.5, -0.25, 30.0) == pytest.approx([(0.5 - 0.25 + 1.0) / 3])
    assert aggregate_change(DPMean(clip_norm=1.0, noise_multiplier=0.0), 0.5, 9.0, weight=(5.0, 0.0)) == pytest.approx([0.25])


def test_the_noise_has_the_stated_scale_and_depends_on_the_round():
    told = replace(update(*[0.0] * 4000).__class__(**{**vars(update(0.0, 0.0, 0.0, 0.0)), "server_seed": 7}))
    told = replace(told, delta=Tree(x=torch.zeros(4, 20000, dtype=torch.float64)))
    server = ServerState(Tree(x=torch.zeros(1, 20000, dtype=torch.float64)), Tree(), Tree())
    rule = DPMean(clip_norm=2.0, noise_multiplier=3.0)
    first, again = rule.aggregate(server, told)["x"], rule.aggregate(server, told)["x"]
    assert first.std().item() == pytest.approx(2.0 * 3.0 / 4, rel=0.02)
    assert torch.equal(first, again)
    assert not torch.equal(first, rule.aggregate(server, replace(told, server_seed=8))["x"])


def test_two_rounds_and_two_seeds_have_different_noise():
    private = FedAvg(aggregator=DPMean(clip_norm=1.0, noise_multiplier=1.0))
    still = clients((0, 0), (0, 0), 1)
    one, two = path(train(private, still, until=2, x=0.0)), path(train(private, still, until=2, x=0.0, seed=1))
    assert one[0] != two[0]
    assert one[1] - one[0] != pytest.approx(one[0])


@dataclass(frozen=True)
class ClipsTheSum(DPMean):
    def aggregate(self, server, update):
        total = update.delta.map(lambda leaf: leaf.sum(0, keepdim=True))
        return total * (self.clip_norm / total.norm().clamp_min(self.clip_norm)) / len(update.weight)


@dataclass(frozen=True)
class CountsAbsentClients(Median):
    def aggregate(self, server, update):
        return super().aggregate(server, replace(update, weight=torch.ones_like(update.weight)))


def test_bugs_in_robust_aggregators_are_detected():
    assert aggregate_change(ClipsTheSum(1.0, 0.0), 0.5, -0.25, 30.0) != pytest.approx([1.25 / 3])
    assert aggregate_change(CountsAbsentClients(), 1.0, 1.0, 0.0, 0.0, 0.0, weight=(1, 1, 0, 0, 0)) != pytest.approx([1.0])
    assert path(train(FedAvg(), Q2(), until=1, optimizer=Sgd(0.1)))[0] == pytest.approx(1.3837893354)
