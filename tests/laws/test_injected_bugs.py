"""Test that each law can fail: an algorithm that breaks it is detected."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from fedrift.algorithms import FedAvg, Scaffold
from fedrift.algorithms.aggregators import Mean
from fedrift.core.optimizers import Sgd
from fedrift.core.tree import Tree

from . import test_algorithms as laws


@dataclass(frozen=True)
class RemembersOutsideTheState(FedAvg):
    rounds: list = field(default_factory=list)

    def server_update(self, server, update):
        self.rounds.append(1)
        return super().server_update(server, replace(update, delta=update.delta / len(self.rounds)))


@dataclass(frozen=True)
class TakesTheLast(Mean):
    def aggregate(self, server, update):
        return update.delta.map(lambda leaf: leaf[-1:])


@dataclass(frozen=True)
class NeverDivides(Mean):
    def aggregate(self, server, update):
        return update.delta.map(lambda leaf: leaf.sum(0, keepdim=True))


@dataclass(frozen=True)
class KeepsReferenceToUpdate(FedAvg):
    def init_broadcast(self, params):
        return params.zeros_like()

    def server_update(self, server, update):
        return replace(super().server_update(server, update), broadcast=update.mean_grad.map(lambda leaf: leaf[:1]))


@dataclass(frozen=True)
class ChangesUntrainedLeaves(FedAvg):
    def server_update(self, server, update):
        pseudo_gradient = -self.aggregator.aggregate(server, update)
        params, moments = self.server_optimizer.step(server.params, pseudo_gradient, server.opt_state)
        return replace(server, params=params, opt_state=moments)


@dataclass(frozen=True)
class MixesTheCohort(FedAvg):
    def transform_grad(self, grad: Tree, at) -> Tree:
        return grad.map(lambda leaf: leaf + 0.1 * leaf.mean(0, keepdim=True))


@dataclass(frozen=True)
class DecaysEverything(FedAvg):
    def after_step(self, params, at):
        return params * 0.9


@dataclass(frozen=True)
class RefusesEverybody(Scaffold):
    def incompatibilities(self, optimizer, weighting, leaves):
        return ["no"]


@pytest.mark.parametrize(
    ("law", "broken"),
    [
        (laws.test_a_resumed_run_equals_the_uninterrupted_run_bit_for_bit, RemembersOutsideTheState()),
        (lambda a: laws.test_stacked_clients_train_as_single_clients(a, 1), MixesTheCohort()),
        (laws.test_a_client_that_returns_nan_is_recorded_and_counts_as_absent, MixesTheCohort()),
        (lambda a: laws.test_the_order_of_the_clients_does_not_matter("", a), FedAvg(aggregator=TakesTheLast())),
        (laws.test_identical_clients_equal_one_client, FedAvg(aggregator=NeverDivides())),
        (laws.test_overwriting_an_update_does_not_change_the_stored_state, KeepsReferenceToUpdate()),
        (laws.test_a_round_without_survivors_changes_nothing, ChangesUntrainedLeaves(server_optimizer=Sgd(1.0, momentum=0.9))),
        (laws.test_a_model_whose_clients_are_absent_stays_unchanged, ChangesUntrainedLeaves(server_optimizer=Sgd(1.0, momentum=0.9))),
        (laws.test_a_leaf_that_no_client_changes_stays_unchanged, DecaysEverything()),
        (laws.test_every_algorithm_is_accepted_with_plain_clients, RefusesEverybody()),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_a_broken_algorithm_violates_its_law(law, broken):
    with pytest.raises(AssertionError):
        law(broken)
