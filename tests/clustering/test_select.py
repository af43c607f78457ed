"""Test the selection of the number of clusters on clients whose clusters are known, regardless of the order of the clients."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from fedrift.clustering import selection
from fedrift.clustering.selection import (
    ClientEmbeddings,
    add_privacy_noise,
    best_silhouette_k,
    bootstrap_stability,
    cluster_clients,
    mean_adjusted_rand_index,
    permutation_test,
)
from fedrift.core.cache import BoundedCache

from .synthetic_clients import client_embeddings, documents


@pytest.fixture
def no_bootstrap(monkeypatch):
    """Skip the 30 bootstrap samples, which take most of the time and do not affect the selection."""
    monkeypatch.setattr(selection, "bootstrap_stability", lambda *said: 1.0)
    monkeypatch.setattr(selection, "CLUSTERINGS", BoundedCache(0))  # so that other tests do not find the result


def test_equal_embeddings_are_clustered_once_and_the_result_is_that_of_the_plain_reference(monkeypatch):
    monkeypatch.setattr(selection, "CLUSTERINGS", BoundedCache(10**6))
    embeddings, equal, other = (client_embeddings(8, 1.0, seed)[0] for seed in (0, 0, 1))
    expected, computed = selection.compute_clusters(embeddings, 3), []
    compute = selection.compute_clusters
    monkeypatch.setattr(selection, "compute_clusters", lambda *said: computed.append(said) or compute(*said))
    for one in (embeddings, equal):
        found = cluster_clients(one, 3)
        assert (found.cluster_ids == expected.cluster_ids).all() and (found.centroids == expected.centroids).all()
        assert (found.p_value, found.silhouettes, found.stability, found.estimated_k) == (
            expected.p_value,
            expected.silhouettes,
            expected.stability,
            expected.estimated_k,
        )
        found.cluster_ids[:], found.centroids[:] = 0, 0  # a change of the result does not reach later ones
    assert len(computed) == 1
    cluster_clients(embeddings, 4)
    cluster_clients(embeddings, 3, k=2)
    cluster_clients(other, 3)
    assert len(computed) == 4


@pytest.mark.parametrize("size", [8, 12])
def test_random_partitions_give_one_cluster_in_19_of_20_seeds(size, no_bootstrap):
    found = [cluster_clients(client_embeddings(size, 0.0, seed)[0], seed) for seed in range(20)]
    assert sum(one.k == 1 for one in found) >= 19
    assert all(one.verdict == "one cluster" for one in found if one.k == 1)


@pytest.mark.parametrize("size", [8, 20])
@pytest.mark.parametrize("severity", [0.5, 1.0])
def test_clients_of_four_domains_give_four_clusters_in_every_seed(size, severity, no_bootstrap):
    for seed in range(2):
        made, truth = client_embeddings(size, severity, seed)
        found = cluster_clients(made, seed)
        assert found.k == 4 and adjusted_rand_score(truth, found.cluster_ids) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("severity", "size", "right", "agreement"),
    [  # 20 seeds for each row
        (0.0, 8, (19, 1), 0),
        (0.0, 12, (19, 1), 0),
        (0.0, 20, (19, 1), 0),
        (0.1, 8, (19, 1), 0),
        (0.1, 12, (19, 1), 0),
        (0.25, 8, (13, 4), 0.80),
        (0.25, 12, (17, 4), 0.87),
        (0.25, 20, (19, 4), 0.93),
        (0.5, 8, (20, 4), 1),
        (0.5, 12, (20, 4), 1),
        (0.5, 20, (20, 4), 1),
        (1.0, 8, (20, 4), 1),
        (1.0, 12, (20, 4), 1),
        (1.0, 20, (20, 4), 1),
    ],
)
def test_known_clusters_are_found_as_often_as_in_the_table(severity, size, right, agreement, no_bootstrap):
    made = [client_embeddings(size, severity, seed) for seed in range(20)]
    found = [cluster_clients(one, seed) for seed, (one, _) in enumerate(made)]
    assert sum(one.k == right[1] for one in found) >= right[0]
    assert np.mean([adjusted_rand_score(truth, one.cluster_ids) for one, (_, truth) in zip(found, made, strict=True)]) >= agreement


@settings(deadline=None, max_examples=5)
@given(st.permutations(range(8)), st.sampled_from([0.0, 0.25, 1.0]))
def test_the_order_of_the_clients_has_no_effect(order, severity):
    made, _ = client_embeddings(8, severity, 3, each=30)
    turned = ClientEmbeddings(tuple(made.document_embeddings[k] for k in order), made.noise_std[list(order)], made.noise[list(order)])
    one, two = cluster_clients(made, 0), cluster_clients(turned, 0)
    assert (one.k, one.p_value) == (two.k, two.p_value)
    assert one.silhouettes == pytest.approx(two.silhouettes)
    assert two.cluster_ids.tolist() == one.cluster_ids[list(order)].tolist()
    assert one.stability == pytest.approx(two.stability, nan_ok=True)


def test_p_values_are_uniform_under_the_null_and_minimal_if_clients_differ():
    found = []
    for seed in range(40):
        made, _ = client_embeddings(6, 0.0, seed, each=20, width=8)
        found.append(permutation_test(made.document_embeddings, made.means, made.noise_std, seed))
    assert 0.35 < np.mean(found) < 0.65 and sum(p <= 0.1 for p in found) <= 10
    made, _ = client_embeddings(6, 1.0, 0, each=20, width=8)
    assert permutation_test(made.document_embeddings, made.means, made.noise_std, 0) == 0.01


def test_the_permutation_test_includes_the_privacy_noise():
    vectors, _ = documents(8, 0.0, 0, each=30)
    found = [cluster_clients(add_privacy_noise(vectors, seed, epsilon=0.5), seed) for seed in range(10)]
    assert all(one.k == 1 for one in found) and np.mean([one.p_value for one in found]) > 0.2
    vectors, truth = documents(8, 1.0, 0, each=200, noise=0.05)
    assert adjusted_rand_score(truth, cluster_clients(add_privacy_noise(vectors, 0, epsilon=50.0), 0).cluster_ids) == 1
    assert cluster_clients(add_privacy_noise(vectors, 0, epsilon=0.01), 0).k == 1  # the noise hides the clusters


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.integers(0, 2), min_size=6, max_size=6), min_size=2, max_size=4))
def test_the_mean_adjusted_rand_index_is_that_of_all_pairs(labels):
    pairs = [adjusted_rand_score(one, two) for one, two in combinations(labels, 2)]
    assert mean_adjusted_rand_index(np.array(labels)) == pytest.approx(np.mean(pairs))


def test_clusters_that_depend_on_few_documents_are_unstable():
    clear, _ = client_embeddings(8, 1.0, 0)
    assert bootstrap_stability(clear.document_embeddings, clear.noise_std, 4, 0) == 1
    blurred, _ = client_embeddings(8, 0.05, 0, each=10)
    assert bootstrap_stability(blurred.document_embeddings, blurred.noise_std, 3, 0) < 0.6
    assert cluster_clients(blurred, 0, k=3).verdict == "unstable" and cluster_clients(clear, 0).verdict == "stable"


def test_solutions_with_a_single_client_are_rejected_and_unclear_clusters_merged():
    apart = np.array([[0, 1, 9, 9, 50], [1, 0, 9, 9, 50], [9, 9, 0, 1, 50], [9, 9, 1, 0, 50], [50, 50, 50, 50, 0]], float)
    solutions = {2: np.array([0, 0, 0, 0, 1]), 3: np.array([0, 0, 1, 1, 2])}
    assert best_silhouette_k(solutions, apart) == (1, {})
    two = {2: np.array([0, 0, 1, 1])}
    k, found = best_silhouette_k(two, apart[:4, :4])
    assert k == 2 and found[2] == pytest.approx(8 / 9)
    assert best_silhouette_k(two, np.full((4, 4), 1.0) - np.eye(4))[0] == 1


def test_a_client_without_documents_gets_a_cluster():
    vectors, _ = documents(5, 1.0, 0, domains=2)
    found = cluster_clients(add_privacy_noise((*vectors, np.empty((0, 32))), 0, None), 0)
    assert len(found.cluster_ids) == 6 and np.isfinite(found.centroids).all()
