"""Test clustering by the angles between client updates, in one step and by repeated bipartition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrift.algorithms import FedAvg
from fedrift.clustering import CFL, UpdateClustering
from fedrift.clustering.base import ClientInfo
from fedrift.clustering.iterative import agglomerate, cosine_similarity, inner_products
from fedrift.core.tree import Tree
from fedrift.engine.clustering import ClusteringRuntime
from fedrift.engine.loop import run_rounds
from tests.quadratics import DOUBLE, clients, make_simulator, params

TWO = clients((1,) * 6, (5, -4, 5.5, -5, 4.5, -5.5), 3)  # minima alternate around 5 and -5
WIDE = clients(((1, 1), (1, 1), (1, 1), (1, 1)), ((5, 1), (-5, 1), (5, -1), (-5, -1)), 3)


def train(strategy, group, *, until=4, cohort=None, x=0.0, seed=0):
    work = ClusteringRuntime(strategy, ClientInfo(group.size, seed), FedAvg())
    return work, list(
        run_rounds(
            work.init_state(params(x, group.a.shape[1])),
            make_simulator(group),
            FedAvg(),
            num_rounds=until,
            cohort_size=cohort or group.size,
            seed=seed,
            recluster=work.recluster,
            sample_clients=work.sample_cohort,
        )
    )


def same_partition(one, two) -> bool:
    return (np.equal.outer(np.asarray(one), np.asarray(one)) == np.equal.outer(np.asarray(two), np.asarray(two))).all()


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_products_of_adapters_are_compared_without_computing_them(seed, count):
    draw = torch.Generator().manual_seed(seed)

    def random_leaf(*shape):
        return torch.randn(count, *shape, generator=draw, dtype=DOUBLE)

    start = Tree({"m.A": random_leaf(2, 5), "m.B": random_leaf(4, 2), "bias": random_leaf(3)})
    delta = Tree({"m.B": random_leaf(4, 2), "m.A": random_leaf(2, 5), "bias": random_leaf(3)})
    dense = (start["m.B"] + delta["m.B"]) @ (start["m.A"] + delta["m.A"]) - start["m.B"] @ start["m.A"]
    flat = torch.cat([dense.flatten(1), delta["bias"]], 1)
    assert torch.allclose(inner_products(start, delta), flat @ flat.mT)
    cosines = torch.cosine_similarity(flat[:, None], flat[None], dim=2)
    assert torch.allclose(cosine_similarity(inner_products(start, delta)), cosines)


def test_the_basis_of_a_product_does_not_change_the_update():
    """(B Q, Q^T A) is the same map as (B, A), although its factors are other updates."""
    draw = torch.Generator().manual_seed(0)
    up, down = (torch.randn(1, *shape, generator=draw, dtype=DOUBLE) for shape in ((4, 2), (2, 5)))
    turn = torch.linalg.qr(torch.randn(2, 2, generator=draw, dtype=DOUBLE))[0]
    delta = Tree({"m.B": torch.cat([up, up @ turn]), "m.A": torch.cat([down, turn.mT @ down])})
    assert cosine_similarity(inner_products(delta.zeros_like(), delta))[0, 1] == pytest.approx(1)
    by_factor = Tree({"B": delta["m.B"], "A": delta["m.A"]})
    assert cosine_similarity(inner_products(by_factor.zeros_like(), by_factor))[0, 1] < 0.99


def test_an_update_of_zero_is_orthogonal_to_all():
    delta = Tree(x=torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=DOUBLE))
    assert cosine_similarity(inner_products(delta.zeros_like(), delta)).tolist() == [[1, 0], [0, 0]]


def test_clients_with_opposite_updates_get_separate_models_in_the_second_round():
    work, done = train(UpdateClustering(), TWO)
    assert done[0].before.server.num_models == 1 and done[0].after.server.num_models == 2
    assert same_partition(done[0].after.cluster_ids, [0, 1, 0, 1, 0, 1])
    # both models continue from the same parameters
    assert torch.equal(done[0].after.server.params["x"][0], done[0].after.server.params["x"][1])
    assert done[-1].after.server.params["x"].flatten().sort().values.sign().tolist() == [-1, 1]
    ((round, decision),) = work.pending_assignments
    assert round == 1 and decision.reason["k"] == 2


def test_clients_with_equal_updates_stay_in_one_cluster():
    work, done = train(UpdateClustering(), clients((1, 2, 1.5, 1, 1), (5, 5, 5, 5, 5)))
    assert done[-1].after.server.num_models == 1 and work.pending_assignments[0][1].reason["k"] == 1


def test_all_clients_participate_in_a_round_that_clusters():
    work, done = train(UpdateClustering(num_clusters=2, interval=3), TWO, cohort=2, until=5)
    assert [len(one.cohort) for one in done] == [6, 2, 2, 6, 2]
    assert [round for round, _ in work.pending_assignments] == [1, 4] and work.pending_assignments[0][1].reason["num_participants"] == 6


def test_reclustering_with_equal_directions_changes_no_cluster():
    work, done = train(UpdateClustering(num_clusters=2, interval=2), WIDE, x=0.5, until=5)
    first = done[0].after.cluster_ids
    assert all(torch.equal(one.after.cluster_ids, first) for one in done)
    assert [decision.reason["switched"] for _, decision in work.pending_assignments] == [0, 0, 0]


def test_complete_linkage_gives_compact_clusters_and_single_linkage_the_widest_gap():
    at = np.array([0.0, 1, 2, 3, 4.5, 5.5])
    apart = np.abs(at[:, None] - at[None])
    assert same_partition(agglomerate(apart, 2, "single"), [0, 0, 0, 0, 1, 1])
    assert same_partition(agglomerate(apart, 3, "complete"), [0, 0, 1, 1, 2, 2])


def test_bipartition_waits_until_only_the_mean_update_is_small():
    """The conditions are |sum p D| < eps1 and max |D| > eps2, as shares of the longest update in the first round. Far from all optima the
    updates agree; at the mean of the optima they cancel.
    """
    work, done = train(CFL(interval=1, min_cluster_size=2), TWO, x=60.0, until=60)
    assert done[0].after.server.num_models == 1
    scale = done[0].after.clustering_state["scale"]
    assert scale == done[0].update.delta.norm().max() and torch.equal(done[-1].after.clustering_state["scale"], scale)
    assert done[-1].after.server.num_models == 1  # the update towards 5 is not .6 of the update towards 65
    work, done = train(CFL(interval=1), TWO, x=2.0, until=40)
    split = next(one for one in done if one.after.server.num_models == 2)
    assert split.before.round > 0 or split.update.delta["x"].mean().abs() < 0.4 * scale
    assert same_partition(done[-1].after.cluster_ids, [0, 1, 0, 1, 0, 1]) and done[-1].after.server.num_models == 2
    check = next(decision.reason["split_checks"][0] for round, decision in work.pending_assignments if round == split.after.round)
    assert check["across"] < 0 and check["gap"] > 0.5
    assert done[-1].after.server.params["x"].flatten().sort().values.tolist() == pytest.approx([-29 / 6, 5], abs=1e-3)


def test_a_gap_that_is_too_small_is_not_split():
    """sqrt((1 - alpha) / 2) is 1 for opposite clients, which only a gamma of 1 refuses; for orthogonal ones it is .7071."""
    crossed = clients(((1, 1),) * 4, ((5, 0), (0, 5), (5, 0), (0, 5)), 3)
    strategy = {"eps1": 10.0, "eps2": 0.01, "interval": 1}
    assert train(CFL(gamma=0.70, **strategy), crossed, until=1)[1][0].after.server.num_models == 2
    assert train(CFL(gamma=0.71, **strategy), crossed, until=1)[1][0].after.server.num_models == 1
    assert train(CFL(gamma=0.0, min_cluster_size=3, **strategy), crossed, until=1)[1][0].after.server.num_models == 1


def test_the_split_minimizes_the_largest_cosine_between_the_parts():
    """For directions of 0, 10, 20, 30, 45 and 55 degrees the widest gap is before 45, not in the middle."""
    angle = torch.deg2rad(torch.tensor([0, 10, 20, 30, 45, 55], dtype=DOUBLE))
    strategy = CFL(eps1=10.0, eps2=0.1, gamma=0.0)
    half, said = strategy.find_split((angle[:, None] - angle[None]).cos(), torch.ones(6, dtype=DOUBLE), np.arange(6), 1.0)
    assert same_partition(half, [0, 0, 0, 0, 1, 1])
    assert said["across"] == pytest.approx(np.cos(np.deg2rad(15)))


def test_clusters_are_split_again_and_both_parts_start_from_the_parent():
    four = clients(((1, 1),) * 8, ((9, 2), (9, -2), (-9, 2), (-9, -2)) * 2, 3)
    _, done = train(CFL(eps1=0.5, eps2=0.15, interval=1), four, until=25)
    assert same_partition(done[-1].after.cluster_ids, [0, 1, 2, 3] * 2)
    for one in done:
        if one.after.server.num_models > one.before.server.num_models:
            x = one.after.server.params["x"]
            assert len(x.unique(dim=0)) < len(x)
