"""Test that reclustering moves models with their clients and keeps the server state consistent."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedrift.algorithms import AFL, FedAvg, FedDyn, Scaffold, ScaffoldWeighted
from fedrift.algorithms.fair import mixture_weight
from fedrift.clustering.base import Assignment, apply_hysteresis, match_clusters, transfer_state
from fedrift.core.optimizers import Adam, Sgd
from fedrift.engine.loop import init_state, run_rounds
from tests.laws.federation import same
from tests.quadratics import DOUBLE, clients, make_simulator, params

GROUPS = st.lists(st.integers(0, 3), min_size=4, max_size=12)


def recluster_at(at: dict[int, list[int]], models: int, algorithm):
    """Return a function that changes the clusters after the named rounds."""

    def regroup(done):
        group = at.get(done.after.round)
        return transfer_state(done.after, Assignment(np.array(group), models, {}, np.arange(models)), algorithm) if group else done.after

    return regroup


def test_a_model_follows_the_majority_of_its_clients():
    group, parents = match_clusters(np.array([0, 0, 0, 1, 1]), np.array([1, 1, 1, 0, 0]), 2, 2)
    assert group.tolist() == [0, 0, 0, 1, 1] and parents.tolist() == [0, 1]
    group, parents = match_clusters(np.array([0, 0, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 2, 2]), 2, 3)
    assert sorted(parents.tolist()) == [0, 0, 1]  # a model is copied if its clients are split
    assert [parents[one] for one in group] == [0, 0, 0, 0, 1, 1]
    group, parents = match_clusters(np.array([0, 0, 1, 2]), np.array([0, 0, 0, 0]), 3, 1)
    assert group.tolist() == [0] * 4 and parents.tolist() == [0]  # the model of most clients


@given(GROUPS, st.integers(0, 10**6))
def test_matching_only_renumbers_the_new_clusters(old, seed):
    old = np.unique(np.array(old), return_inverse=True)[1]
    new = np.unique(np.random.default_rng(seed).integers(0, 3, size=len(old)), return_inverse=True)[1]
    group, parents = match_clusters(old, new, old.max() + 1, new.max() + 1)
    assert len({*zip(new.tolist(), group.tolist(), strict=True)}) == new.max() + 1 == len(set(group.tolist()))
    assert ((parents >= 0) & (parents <= old.max())).all()
    assert match_clusters(old, old, old.max() + 1, old.max() + 1)[0].tolist() == old.tolist()


def test_a_client_changes_only_to_a_clearly_nearer_cluster():
    apart = np.array([[1.0, 0.95], [1.0, 0.85], [0.5, 2.0]])
    assert apply_hysteresis(apart, np.array([0, 0, 0]), 0.9).tolist() == [0, 1, 0]
    assert apply_hysteresis(apart, np.array([0, 0, 1]), 1.0).tolist() == [1, 1, 0]


def test_unchanged_clusters_leave_the_state_unchanged():
    algorithm, group = Scaffold(), clients((1, 4), (0, 1))
    state = init_state(algorithm, params(1.0), 2)
    plain = list(run_rounds(state, make_simulator(group), algorithm, num_rounds=3, cohort_size=2, seed=0))[-1].after
    still = list(
        run_rounds(
            state,
            make_simulator(group),
            algorithm,
            num_rounds=3,
            cohort_size=2,
            seed=0,
            recluster=recluster_at({1: [0, 0], 2: [0, 0]}, 1, algorithm),
        )
    )[-1].after
    assert same(plain, still)


@pytest.mark.parametrize("weighting", ["uniform", "tokens"])
@pytest.mark.parametrize("algorithm", [Scaffold(), ScaffoldWeighted(), FedDyn(alpha=1.0)], ids=lambda a: type(a).__name__)
def test_server_state_stays_the_mean_over_the_members_of_each_cluster(algorithm, weighting):
    """SCAFFOLD's c is the mean of the members' c_k, and FedDyn's h that of their g_k, in every round and cluster."""
    group = clients((1, 4, 2, 3, 1.5), (0, 1, -1, 2, 0.5), 3, weight=(1, 2, 1, 3, 1))
    regroup = recluster_at({1: [0, 1, 0, 1, 1], 3: [1, 1, 0, 0, 1], 4: [0, 0, 0, 0, 1]}, 2, algorithm)
    state = init_state(algorithm, params(1.0), 5)
    state = replace(state, server=algorithm.init_server(params(1.0).take(torch.zeros(2, dtype=torch.long))))
    for done in run_rounds(
        state, make_simulator(group, client_weighting=weighting), algorithm, num_rounds=7, cohort_size=3, seed=0, recluster=regroup
    ):
        after = done.after
        kept = after.server.opt_state if isinstance(algorithm, FedDyn) else after.server.broadcast
        assert kept
        for name, leaf in kept.items():
            for model in range(2):
                members = after.client_states.gather_all()[name][after.cluster_ids == model]
                expected = members.mean(0) if len(members) else torch.zeros_like(leaf[model])
                assert torch.allclose(leaf[model], expected, atol=1e-12), (done.after.round, name, model)


def test_scaffold_reaches_the_optimum_of_each_cluster_after_reclustering():
    """Clusters {0, 1} and {2, 3} have optima .8 and 2.5; c would stay wrong if its mean were not computed again."""
    group, algorithm = clients((1, 4, 1, 1), (0, 1, 2, 3)), Scaffold()
    state = init_state(algorithm, params(0.0), 4)
    regroup = recluster_at({5: [0, 0, 1, 1]}, 2, algorithm)
    state = replace(
        state, server=algorithm.init_server(params(0.0).take(torch.zeros(2, dtype=torch.long))), cluster_ids=torch.tensor([0, 1, 0, 1])
    )
    done = list(run_rounds(state, make_simulator(group), algorithm, num_rounds=120, cohort_size=4, seed=0, recluster=regroup))
    assert torch.allclose(done[-1].after.server.params["x"][:, 0], torch.tensor([0.8, 2.5], dtype=DOUBLE), atol=1e-6)


def test_afl_projects_onto_the_simplex_of_the_new_members():
    algorithm, group = AFL(lambda_lr=0.3), clients((1, 4, 2, 3), (0, 1, -1, 2), 2)
    state = init_state(algorithm, params(1.0), 4)
    done = list(
        run_rounds(
            state,
            make_simulator(group),
            algorithm,
            num_rounds=2,
            cohort_size=4,
            seed=0,
            recluster=lambda done: transfer_state(done.after, Assignment(np.array([0, 0, 1, 1]), 2, {}), algorithm),
        )
    )[-1].after
    share = mixture_weight(done.client_states.gather_all(), done.server.broadcast.take(done.cluster_ids))
    assert torch.allclose(share[:2].sum(), torch.tensor(2.0, dtype=DOUBLE))
    assert torch.allclose(share[2:].sum(), torch.tensor(2.0, dtype=DOUBLE))


@pytest.mark.parametrize("server", [Sgd(1.0, momentum=0.9), Adam(0.05)], ids=lambda s: type(s).__name__)
def test_optimizer_state_and_server_update_follow_the_models(server):
    algorithm, group = FedAvg(server_optimizer=server), clients((1, 4, 2), (0, 1, -1))
    state = init_state(algorithm, params(5.0), 3)
    before = list(run_rounds(state, make_simulator(group), algorithm, num_rounds=2, cohort_size=3, seed=0))[-1].after
    after = transfer_state(before, Assignment(np.array([0, 0, 1]), 2, {}), algorithm)
    assert after.server.num_models == 2
    for tree, other in (
        (after.server.params, before.server.params),
        (after.server.opt_state, before.server.opt_state),
        (after.server_delta, before.server_delta),
    ):
        assert tree and all(torch.equal(leaf[one], other[name][0]) for name, leaf in tree.items() for one in (0, 1))


def test_a_cluster_without_participants_is_unchanged():
    algorithm, group = FedAvg(server_optimizer=Sgd(1.0, momentum=0.9)), clients((1, 4, 2, 3), (0, 1, -1, 2))
    state = init_state(algorithm, params(5.0), 4)
    state = transfer_state(state, Assignment(np.array([0, 0, 1, 1]), 2, {}), algorithm)
    simulator = make_simulator(group)
    warm = list(run_rounds(state, simulator, algorithm, num_rounds=2, cohort_size=4, seed=0))[-1].after
    (done,) = run_rounds(
        warm, simulator, algorithm, num_rounds=3, cohort_size=2, seed=0, sample_clients=lambda state, count, seed: torch.tensor([0, 1])
    )
    for part in ("params", "opt_state"):
        one, two = getattr(warm.server, part)["x"], getattr(done.after.server, part)["x"]
        assert torch.equal(one[1], two[1]) and not torch.equal(one[0], two[0])
    assert done.after.server_delta["x"][1] == 0
