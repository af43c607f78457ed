"""Test which clients rewrite alike, and the texts as clients rewrite them."""

from __future__ import annotations

import numpy as np
import pytest

from fedrift.core.random import numpy_stream
from fedrift.partition import Quantity, StopwordDrop, Style, Substitute
from fedrift.partition.base import rewritten_texts
from fedrift.partition.rewriting import apply_rewrites, rewrite_corpus, rewrite_groups

from .corpora import corpus

DOCUMENTS = corpus([f"The cat number {i} is not on the mat, and I do not know why." for i in range(40)], np.arange(40) % 2)


def make_partition(partitioner):
    return partitioner(DOCUMENTS, numpy_stream(0, "partition"))


def test_clients_that_rewrite_alike_form_one_group_and_the_first_group_rewrites_nothing():
    found = rewrite_groups(make_partition(StopwordDrop(5, 1.0)))
    assert len(found) == 2 and found.rewrites[0] is None
    assert found.client_group.tolist() == [0, 1, 0, 1, 0]
    assert rewrite_groups(make_partition(Style(5, 1.0))).client_group.tolist() == [1, 2, 3, 1, 2]
    assert rewrite_groups(make_partition(StopwordDrop(5, 1.0, homogeneous=True))).client_group.tolist() == [1] * 5


@pytest.mark.parametrize("partitioner", [Quantity(5, 1.0), Style(5, 0.0)], ids=["no rewrites", "severity 0"])
def test_without_rewrites_there_is_one_group(partitioner):
    found = rewrite_groups(make_partition(partitioner))
    assert found.rewrites == (None,) and found.client_group.tolist() == [0] * 5


@pytest.mark.parametrize("kind", [Style, StopwordDrop, Substitute])
def test_every_document_is_as_its_client_rewrites_it(kind):
    partition = make_partition(kind(4, 1.0))
    told, known = apply_rewrites(DOCUMENTS, partition), rewrite_groups(partition)
    owner = partition.document_owners(len(DOCUMENTS))
    assert list(told.text) == rewritten_texts(DOCUMENTS, partition, owner)
    for hand, way in enumerate(known.rewrites):
        mine = known.client_group[owner] == hand
        assert (told.text[mine] == rewrite_corpus(DOCUMENTS.take(mine), way).text).all()
    assert (told.text != DOCUMENTS.text).any() and (told.label == DOCUMENTS.label).all()
