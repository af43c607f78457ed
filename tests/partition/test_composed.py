"""Test the partition with topic and quantity skew."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedrift.core.random import numpy_stream
from fedrift.partition import Composed, Quantity, TopicMix

from .corpora import make_topic_corpus


def label_table(partitioner, documents, seed=0):
    partition = partitioner(documents, numpy_stream(seed, "partition"))
    return np.array([np.bincount(documents.label[r], documents.size[r], 4) for r in partition.rows])


def purity(table):
    return (table.max(1) / table.sum(1)).mean()


@pytest.mark.parametrize("by", ["mix", "dirichlet"])
def test_both_skews_grow_with_severity(by):
    documents = make_topic_corpus(2000)
    tables = [label_table(Composed(8, s, quantity_severity=0.6, topic_method=by), documents) for s in (0, 0.3, 0.6, 1)]
    spread = [np.std(table.sum(1)) / table.sum(1).mean() for table in tables]
    pure = [purity(table) for table in tables]
    assert spread[0] < 0.02 and spread[-1] > 0.5 and np.diff(spread).min() > 0
    assert pure[0] < 0.3 and pure[-1] > 0.8 and np.diff(pure).min() > 0


def test_budgets_equal_those_of_quantity_skew():
    documents = make_topic_corpus(2000)
    composed = label_table(Composed(8, 1.0, quantity_severity=0.7), documents).sum(1)
    alone = label_table(Quantity(8, 0.7), documents).sum(1)
    assert np.abs(composed - alone).max() <= 3 * documents.size.max()


def test_without_quantity_skew_it_equals_topic_mix():
    documents = make_topic_corpus(2000)
    composed = label_table(Composed(8, 0.6, quantity_severity=0.0), documents)
    assert np.abs(composed - label_table(TopicMix(8, 0.6), documents)).max() <= 3 * documents.size.max()


def test_small_and_large_clients_have_equal_topic_skew():
    table = label_table(Composed(8, 0.6, quantity_severity=0.6), make_topic_corpus(4000))
    share = table[np.arange(8), np.arange(8) % 4] / table.sum(1)
    assert np.abs(share[:4] - share[4:]).max() < 0.03  # clients k and k + 4 have the same topic and different sizes


def test_without_topic_skew_every_client_has_the_mix_of_the_pool():
    table = label_table(Composed(6, 1.0, topic_severity=0.0, quantity_severity=0.4), make_topic_corpus(3000))
    large = table[table.sum(1) > 3000]
    assert np.abs(large / large.sum(1, keepdims=True) - 0.25).max() < 0.06


def test_a_client_larger_than_its_topic_also_gets_other_topics():
    table = label_table(Composed(4, 1.0, quantity_severity=1.0), make_topic_corpus(2000))
    giant = table.sum(1).argmax()
    assert table[giant].sum() > 0.5 * table.sum() and (table[giant] > 0).sum() == 4


def test_the_iid_baseline_has_neither_skew():
    documents = make_topic_corpus(2000)
    table = label_table(replace(Composed(5), severity=0.0), documents)
    assert np.ptp(table.sum(1)) <= 2 * documents.size.max() and purity(table) < 0.27
