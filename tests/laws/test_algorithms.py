"""Test the laws that every exported algorithm must obey."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedrift.algorithms import FedAvg, aggregators
from fedrift.core.optimizers import AdamW, Sgd
from fedrift.core.tree import Tree
from fedrift.core.types import RoundResult
from fedrift.engine.loop import init_state

from .federation import SIZE, SUBJECTS, data, max_difference, params, same, save_and_load, tensors, train

RAGGED = (3, 1, 2, 3, 2)


@pytest.fixture(params=list(SUBJECTS))
def name(request) -> str:
    return request.param


@pytest.fixture
def algorithm(name) -> FedAvg:
    return SUBJECTS[name]


def without_noise(algorithm: FedAvg) -> FedAvg:
    """Return the algorithm without deliberate noise."""
    if isinstance(algorithm.aggregator, aggregators.DPMean):
        return replace(algorithm, aggregator=replace(algorithm.aggregator, noise_multiplier=0.0))
    return algorithm


def client_models(done: RoundResult, algorithm: FedAvg) -> Tree:
    """Return each client's model after the round, ``[N, ...]``, and its merged base."""
    state = done.after
    mine = algorithm.personalized_params(state.server.params.take(state.cluster_ids), state.client_states.gather_all())
    under = state.server.merged_base.take(state.cluster_ids)
    return Tree({**mine, **under})


def test_a_resumed_run_equals_the_uninterrupted_run_bit_for_bit(algorithm):
    unbroken = train(algorithm, data(), until=4, cohort=3, optimizer=AdamW(0.01))
    again = train(algorithm, data(), until=4, cohort=3, optimizer=AdamW(0.01), state=save_and_load(unbroken[1].after))
    assert same(unbroken[-1].after, again[-1].after)


@pytest.mark.parametrize("micro", [1, 2])
def test_stacked_clients_train_as_single_clients(algorithm, micro):
    whole = train(algorithm, data(RAGGED), until=2, max_grad_norm=1.0)
    parts = train(algorithm, data(RAGGED), until=2, max_grad_norm=1.0, clients_per_pass=micro)
    assert max_difference(whole[-1].after, parts[-1].after) < 1e-10


def test_a_run_in_single_precision_is_equal_up_to_rounding(algorithm):
    double = train(algorithm, data(RAGGED), until=2)[-1].after
    single = train(algorithm, data(RAGGED, dtype=torch.float32), until=2, clients_per_pass=2)[-1].after
    assert all(leaf.dtype == torch.float32 for leaf in single.server.params.values())
    assert max_difference(double, single) < 2e-3 * (1 + max(leaf.abs().max().item() for leaf in tensors(double).values()))


@pytest.mark.parametrize(
    ("steps", "weight"),
    [((3,) * 5, (4.0, 0.0, 2.0, 3.0, 2.0)), ((3, 0, 3, 3, 3), (4.0, 1.0, 2.0, 3.0, 2.0))],
    ids=["trains on nothing that counts", "has no data"],
)
def test_a_client_without_weight_changes_nothing_and_stays_unchanged(algorithm, steps, weight):
    plain = train(algorithm, data(steps, weight), until=2)
    wild = train(algorithm, data(steps, weight).edit(1, 50.0), until=2)
    assert same(plain[-1].after, wild[-1].after)
    assert not plain[-1].update.failed.any()
    first = plain[0].before.client_states.gather_all()
    assert all(torch.equal(leaf[1], first[name][1]) for name, leaf in plain[-1].after.client_states.gather_all().items())


def test_a_client_that_returns_nan_is_recorded_and_counts_as_absent(algorithm):
    broken = train(algorithm, data().edit(1, torch.nan), until=2)
    absent = train(algorithm, data((3, 0, 3, 3, 3)), until=2)
    for done in broken:
        assert done.update.failed.tolist() == [False, True, False, False, False]
        assert done.update.weight[1] == 0
        assert done.update.delta.is_finite().all()
        assert done.update.mean_grad.is_finite().all()
    # The exponentials of a contrastive loss are computed for five clients here and four there, and vector and scalar instructions may round
    # differently. With such a loss the two runs are equal up to rounding only.
    ends = broken[-1].after, absent[-1].after
    assert same(*ends) or (algorithm.local_regularizer() and max_difference(*ends) < 1e-12)


def test_a_round_without_survivors_changes_nothing(algorithm):
    lost = data()
    for client in range(SIZE):
        lost = lost.edit(client, torch.inf)
    before = train(algorithm, data(), until=1)[-1].after
    done = train(algorithm, lost, until=2, state=before)[-1]
    assert done.update.failed.all()
    assert same(replace(before, round=2, server_delta=done.after.server_delta), done.after)
    assert not any(leaf.any() for leaf in done.after.server_delta.values())


def test_the_order_of_the_clients_does_not_matter(name, algorithm):
    order = [3, 0, 4, 2, 1]
    here = client_models(train(algorithm, data(RAGGED), until=2)[-1], algorithm)
    there = client_models(train(algorithm, data(RAGGED).of(order), until=2)[-1], algorithm)
    assert all(torch.allclose(leaf[order], there[leaf_name], atol=1e-9) for leaf_name, leaf in here.items())


def test_a_leaf_that_no_client_changes_stays_unchanged(algorithm):
    assert torch.equal(train(without_noise(algorithm), data(), until=2)[-1].after.server.params["idle"][:1], params()["idle"])


def test_identical_clients_equal_one_client(algorithm):
    algorithm = without_noise(algorithm)
    many = client_models(train(algorithm, data(same=True, weight=(1.0,) * SIZE), until=2)[-1], algorithm)
    one = client_models(train(algorithm, data((3,), (1.0,), same=True), until=2)[-1], algorithm)
    for name, leaf in one.items():
        assert torch.allclose(many[name], leaf.expand_as(many[name]), atol=1e-9), name


def test_overwriting_an_update_does_not_change_the_stored_state(algorithm):
    done = train(algorithm, data(), until=1)[0]
    kept = {name: leaf.clone() for name, leaf in tensors(done.after).items()}
    for tree in (done.update.delta, done.update.client_state, done.update.state_delta, done.update.mean_grad):
        for leaf in tree.values():
            leaf.fill_(torch.nan)
    for vector in (done.update.weight, done.update.steps, done.update.loss):
        vector.fill_(torch.nan)
    assert all(torch.equal(leaf, kept[name]) for name, leaf in tensors(done.after).items())


def test_a_model_whose_clients_are_absent_stays_unchanged(algorithm):
    """There are two models, and only the clients of the first one participate in the second round."""
    group = torch.tensor([0, 0, 1, 1, 1])
    state = init_state(algorithm, params(), SIZE)
    state = replace(state, cluster_ids=group, server=algorithm.init_server(params().take(torch.tensor([0, 0]))))
    state = train(algorithm, data(), until=1, state=state)[-1].after
    done = train(algorithm, data((3, 3, 0, 0, 0)), until=2, state=state)[-1]
    for kind in ("params", "opt_state", "broadcast", "merged_base"):
        for name, leaf in getattr(done.after.server, kind).items():
            assert torch.equal(leaf[1], getattr(state.server, kind)[name][1]), (kind, name)


def test_every_algorithm_is_accepted_with_plain_clients(algorithm):
    assert algorithm.incompatibilities(Sgd(0.05), "uniform", params().keys()) == []
