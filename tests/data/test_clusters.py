"""Test that topics are found in embeddings."""

from __future__ import annotations

import numpy as np
import pytest

from fedrift.core.errors import UserError
from fedrift.core.random import numpy_stream
from fedrift.data.encoders import label_by_cluster
from fedrift.partition import TopicMix
from tests.partition.corpora import corpus


def distant_groups():
    """Return 90 unlabeled documents in three distant groups of 50, 30 and 10, and the group of each."""
    documents = corpus([f"t{i}" for i in range(90)], np.full(90, -1))
    blob = np.repeat([0, 1, 2], [50, 30, 10])[numpy_stream(0).permutation(90)]
    return documents, blob, np.eye(3)[blob] + numpy_stream(1).normal(0, 0.05, (90, 3))


def test_clusters_find_the_groups_and_are_named_by_size():
    documents, blob, vectors = distant_groups()
    found = label_by_cluster(documents, vectors, 3, numpy_stream(2))
    assert found.domains == ("cluster0", "cluster1", "cluster2")
    assert np.array_equal(found.label, blob)
    assert (documents.label == -1).all()


def test_an_unlabeled_corpus_can_be_partitioned_by_its_clusters():
    documents, blob, vectors = distant_groups()
    found = label_by_cluster(documents, vectors, 3, numpy_stream(2))
    for client, rows in enumerate(TopicMix(3, 1.0)(found, numpy_stream(3)).rows):
        assert set(blob[rows]) == {client}


def test_more_clusters_than_documents_are_refused():
    documents, _, vectors = distant_groups()
    with pytest.raises(UserError, match="2 to 90"):
        label_by_cluster(documents, vectors, 91, numpy_stream(0))
