"""Test the partitions by quantity and by document length."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from fedrift.core.random import numpy_stream
from fedrift.partition import Length, Quantity
from fedrift.partition.size_skew import sample_budget_shares

from .corpora import corpus, make_topic_corpus


def make_varied_corpus(documents=600, seed=0):
    rng = np.random.default_rng(seed)
    size = np.ceil(np.exp(rng.normal(4, 1, documents)))
    return corpus([f"document {i}" for i in range(documents)], np.full(documents, -1), size=size)


def partition_documents(partitioner, documents, seed=0):
    return partitioner(documents, numpy_stream(seed, "partition"))


def test_quantity_skew_grows_with_severity_up_to_one_dominant_client():
    documents = make_varied_corpus()
    largest = [
        partition_documents(Quantity(8, s), documents).budgets(documents).max() / documents.size.sum() for s in (0, 0.25, 0.5, 0.75, 1)
    ]
    assert abs(largest[0] - 1 / 8) < 0.02 and largest[-1] > 0.8
    assert np.diff(largest).min() > 0


def test_no_client_gets_less_than_the_minimum():
    documents = make_varied_corpus(3000)
    for severity in (0.5, 0.9, 1.0):
        least = partition_documents(Quantity(8, severity, min_share=0.2), documents).budgets(documents).min()
        assert least >= 0.2 * documents.size.sum() / 8 - documents.size.max()


def test_amounts_sum_to_one_and_are_equal_for_a_minimum_of_one():
    uniform = np.random.default_rng(0).random(9)
    assert np.isclose(sample_budget_shares(9, 0.8, 0.02, uniform).sum(), 1)
    assert np.allclose(sample_budget_shares(9, 0.8, 1.0, uniform), 1 / 9)


def test_quantity_skew_keeps_the_topic_mix_of_every_client():
    documents = make_topic_corpus(3000)
    for rows in partition_documents(Quantity(5, 0.5), documents).rows:
        if len(rows) > 200:
            share = np.bincount(documents.label[rows], documents.size[rows], 4) / documents.size[rows].sum()
            assert np.abs(share - 0.25).max() < 0.06


def test_length_skew_at_severity_1_assigns_quantiles_of_length_with_equal_tokens():
    documents = make_varied_corpus()
    rows = partition_documents(Length(5, 1.0), documents).rows
    for shorter, longer in pairwise(rows):
        assert documents.size[shorter].max() <= documents.size[longer].min()
    budgets = np.array([documents.size[held].sum() for held in rows])
    assert np.ptp(budgets) <= 2 * documents.size.max()


def test_length_skew_grows_with_severity_and_keeps_budgets():
    documents = make_varied_corpus(2000)
    gaps = []
    for severity in (0, 0.25, 0.5, 0.75, 1):
        partition = partition_documents(Length(5, severity), documents)
        means = [documents.size[rows].mean() for rows in partition.rows]
        gaps.append(max(means) / min(means))
        assert np.ptp(partition.budgets(documents)) <= 2 * documents.size.max()
    assert gaps[0] < 1.2 and gaps[-1] > 4
    assert np.diff(gaps).min() > 0


def test_documents_of_equal_length_are_assigned_randomly():
    documents = corpus([f"a b {i}" for i in range(100)], np.full(100, -1))
    partition = partition_documents(Length(4, 1.0), documents)
    assert [len(rows) for rows in partition.rows] == [25] * 4
    assert np.abs([rows.mean() - 49.5 for rows in partition.rows]).max() < 15
