"""Test the laws that every exported partitioner must obey."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedrift.partition as room
from fedrift.core.errors import UserError
from fedrift.core.random import numpy_stream
from fedrift.partition.rewriting import apply_rewrites

from .corpora import corpora, corpus, make_topic_corpus

EVERY = [getattr(room, name) for name in room.__all__]
every = pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
SEVERITIES = (0.0, 0.25, 0.5, 0.75, 1.0)


def make_partitioner(kind, clients, severity=1.0):
    """Return a partitioner that accepts every corpus; a calibrated one takes the nearest reachable value."""
    return kind(clients, severity, **({"if_unreachable": "nearest"} if kind is room.Calibrated else {}))


def make_partition(partitioner, documents, seed=0):
    return partitioner(documents, numpy_stream(seed, "partition"))


def joined(partition):
    return np.sort(np.concatenate(partition.rows))


@every
def test_a_partitioner_is_a_frozen_value_with_a_severity(kind):
    assert is_dataclass(kind) and kind.__dataclass_params__.frozen
    assert {"num_clients", "severity"} <= {f.name for f in fields(kind)}
    assert kind() == kind(num_clients=10, severity=1.0) and hash(kind()) == hash(kind())


@every
@pytest.mark.parametrize("corpora_tried", [60, pytest.param(400, marks=pytest.mark.slow)])
def test_every_document_goes_to_one_client_and_every_client_has_one(kind, corpora_tried):
    least = 4 if kind is room.BySource else 2  # two sources of two documents each

    @given(documents=corpora(least=least), severity=st.floats(0, 1), share=st.floats(0.01, 1), seed=st.integers(0, 99))
    @settings(max_examples=corpora_tried, deadline=None, derandomize=True)
    def holds(documents, severity, share, seed):
        clients = max(1, int(share * len(documents)))
        partition = make_partition(make_partitioner(kind, clients, severity), documents, seed)
        assert len(partition) == clients and len(partition.rewrites) in (0, clients)
        assert np.array_equal(joined(partition), np.arange(len(documents)))
        assert min(len(rows) for rows in partition.rows) >= 1
        assert all(np.all(np.diff(rows) > 0) for rows in partition.rows)
        texts = apply_rewrites(documents, partition).text
        assert (apply_rewrites(documents, partition).text == texts).all() and all(isinstance(text, str) for text in texts)
        assert all(bool(text) == bool(found) for text, found in zip(texts, documents.text, strict=True))

    holds()


@every
def test_the_same_documents_are_used_at_every_severity(kind):
    documents = make_topic_corpus(count=3)
    pools = [joined(make_partition(make_partitioner(kind, 7, severity), documents)) for severity in SEVERITIES]
    assert all(np.array_equal(pool, pools[0]) for pool in pools)


@every
def test_equal_random_streams_give_equal_partitions(kind):
    documents = make_topic_corpus(documents=100)
    one, two, other = (make_partition(make_partitioner(kind, 5, 0.5), documents, seed).document_owners(100) for seed in (3, 3, 4))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


@every
def test_the_order_of_the_file_does_not_matter(kind):
    documents = make_topic_corpus(documents=80)
    order = np.random.default_rng(1).permutation(80)
    again = corpus(list(documents.text[order]), documents.label[order])
    one, two = make_partition(make_partitioner(kind, 4, 0.7), documents), make_partition(make_partitioner(kind, 4, 0.7), again)
    assert all(set(documents.text[a]) == set(again.text[b]) for a, b in zip(one.rows, two.rows, strict=True))


@every
def test_the_position_in_the_corpus_has_no_effect(kind):
    documents = make_topic_corpus(documents=600)
    places = [rows.mean() / 600 for rows in make_partition(make_partitioner(kind, 2, 0.0), documents).rows]
    assert np.abs(np.array(places) - 0.5).max() < 0.06


@every
def test_more_clients_than_documents_are_refused(kind):
    with pytest.raises(UserError, match=r"9 clients .* 8 documents .* at most 8"):
        make_partition(make_partitioner(kind, 9), make_topic_corpus(documents=8))


@every
def test_as_many_clients_as_documents_get_one_each(kind):
    assert [len(rows) for rows in make_partition(make_partitioner(kind, 8), make_topic_corpus(documents=8)).rows] == [1] * 8


@every
def test_a_single_client_holds_all_documents(kind):
    assert len(make_partition(make_partitioner(kind, 1), make_topic_corpus(documents=50)).rows[0]) == 50


@every
def test_at_severity_0_every_client_has_the_mix_of_the_corpus(kind):
    """Budgets and topics of the clients differ from those of the pool by no more than random assignment gives."""
    documents = make_topic_corpus(documents=800, count=4)
    partition = make_partition(make_partitioner(kind, 8, 0.0), documents)
    budgets = partition.budgets(documents)
    assert np.abs(budgets - budgets.mean()).max() <= 1.5 * documents.size.max()
    counts = np.array([np.bincount(documents.label[rows], minlength=4) for rows in partition.rows])
    expected = counts.sum(1, keepdims=True) * counts.sum(0) / counts.sum()
    assert ((counts - expected) ** 2 / expected).sum() < 38.9  # chi-square, 21 degrees of freedom, p = 0.01


@pytest.mark.sample(5)
@every
def test_the_same_stream_gives_a_client_the_same_mix_of_another_split(kind):
    """Partitions of training and test documents by equal random streams: the test mix of a client equals its training mix."""
    train, test = make_topic_corpus(documents=3000, seed=1), make_topic_corpus(documents=3000, seed=2)
    mixes = []
    for documents in (train, test):
        partition = make_partition(make_partitioner(kind, 6, 0.8), documents)
        table = [np.bincount(documents.label[rows], documents.size[rows], 4) for rows in partition.rows]
        mixes.append(np.array(table) / documents.size.sum())
    assert np.abs(mixes[0] - mixes[1]).sum() < 0.1


@every
def test_the_iid_baseline_equals_the_partitioner_at_severity_0(kind):
    assert replace(kind(3), severity=0.0) == kind(3, 0.0)
