"""Test stratified participation: the cohort size is kept, and each cluster and client participates in proportion."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedrift.engine.clustering import sample_stratified, stratum_sizes
from fedrift.engine.loop import sample_cohort

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=6)


@given(SIZES, st.integers(0, 10**6))
def test_the_shares_sum_to_the_cohort_and_are_proportions_rounded(sizes, pick):
    sizes = np.array(sizes)
    size = int(sizes.sum())
    count = 1 + pick % size
    every = np.array([stratum_sizes(sizes, count, offset) for offset in range(size)])
    assert (every.sum(axis=1) == count).all()
    exact = count * sizes / size
    assert (np.abs(every - exact) < 1).all() and (every <= sizes).all()
    assert np.allclose(every.mean(axis=0), exact)


@given(st.integers(1, 12), st.integers(0, 10**6), st.integers(0, 50))
def test_with_one_cluster_or_full_participation_the_cohort_is_that_without_clustering(size, seed, round):
    count = 1 + seed % size
    assert torch.equal(sample_stratified(torch.zeros(size, dtype=torch.long), count, seed, round), sample_cohort(size, count, seed, round))
    group = torch.arange(size) % 3
    assert torch.equal(sample_stratified(group, size, seed, round), torch.arange(size))


def test_every_client_participates_equally_often_for_every_cluster_size():
    group = torch.tensor([0] * 7 + [1] * 2 + [3])  # no client shares model 2
    cohorts = [sample_stratified(group, 4, 0, round) for round in range(1500)]
    assert all(len(cohort) == 4 and (cohort.diff() > 0).all() for cohort in cohorts)
    often = torch.cat(cohorts).bincount(minlength=10) / 1500
    assert (often - 0.4).abs().max() < 0.05
    assert torch.equal(sample_stratified(group, 4, 0, 7), sample_stratified(group, 4, 0, 7))


def test_more_clusters_than_cohort_places_leave_clusters_idle():
    group = torch.arange(6)
    drawn = [sample_stratified(group, 2, 0, round).tolist() for round in range(50)]
    assert all(len(cohort) == 2 for cohort in drawn) and {client for cohort in drawn for client in cohort} == set(range(6))
