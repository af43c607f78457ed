"""Who writes how, and texts as they are written."""

from __future__ import annotations

import numpy as np
import pytest

from fedrift.core.random import numpy_stream
from fedrift.partition import Quantity, StopwordDrop, Style, Substitute
from fedrift.partition.base import rewritten_texts
from fedrift.partition.rewriting import apply_rewrites, rewrite_corpus, rewrite_groups

from .corpora import corpus

DOCUMENTS = corpus([f"The cat number {i} is not on the mat, and I do not know why." for i in range(40)], np.arange(40) % 2)


def dealt(partitioner):
    return partitioner(DOCUMENTS, numpy_stream(0, "partition"))


def test_clients_that_rewrite_alike_have_one_hand_and_the_first_leaves_texts_alone():
    found = rewrite_groups(dealt(StopwordDrop(5, 1.0)))
    assert len(found) == 2 and found.rewrites[0] is None
    assert found.client_group.tolist() == [0, 1, 0, 1, 0]
    assert rewrite_groups(dealt(Style(5, 1.0))).client_group.tolist() == [1, 2, 3, 1, 2]
    assert rewrite_groups(dealt(StopwordDrop(5, 1.0, homogeneous=True))).client_group.tolist() == [1] * 5


@pytest.mark.parametrize("partitioner", [Quantity(5, 1.0), Style(5, 0.0)], ids=["no rewrites", "severity 0"])
def test_where_nobody_rewrites_there_is_one_hand(partitioner):
    found = rewrite_groups(dealt(partitioner))
    assert found.rewrites == (None,) and found.client_group.tolist() == [0] * 5


@pytest.mark.parametrize("kind", [Style, StopwordDrop, Substitute])
def test_every_document_is_as_its_owner_writes_it(kind):
    partition = dealt(kind(4, 1.0))
    told, known = apply_rewrites(DOCUMENTS, partition), rewrite_groups(partition)
    owner = partition.document_owners(len(DOCUMENTS))
    assert list(told.text) == rewritten_texts(DOCUMENTS, partition, owner)
    for hand, way in enumerate(known.rewrites):
        mine = known.client_group[owner] == hand
        assert (told.text[mine] == rewrite_corpus(DOCUMENTS.take(mine), way).text).all()
    assert (told.text != DOCUMENTS.text).any() and (told.label == DOCUMENTS.label).all()
