"""Who writes how, and texts as they are written."""

from __future__ import annotations

import numpy as np
import pytest

from fedrift.partition import Quantity, StopwordDrop, Style, Substitute
from fedrift.partition.hands import as_written, hands, in_hand
from fedrift.partition.tallies import written
from fedrift.seeds import numpy_stream

from .corpora import corpus

DOCUMENTS = corpus([f"The cat number {i} is not on the mat, and I do not know why." for i in range(40)], np.arange(40) % 2)


def dealt(partitioner):
    return partitioner(DOCUMENTS, numpy_stream(0, "partition"))


def test_clients_that_rewrite_alike_have_one_hand_and_the_first_leaves_texts_alone():
    found = hands(dealt(StopwordDrop(5, 1.0)))
    assert len(found) == 2 and found.ways[0] is None
    assert found.client.tolist() == [0, 1, 0, 1, 0]
    assert hands(dealt(Style(5, 1.0))).client.tolist() == [1, 2, 3, 1, 2]
    assert hands(dealt(StopwordDrop(5, 1.0, everybody=True))).client.tolist() == [1] * 5


@pytest.mark.parametrize("partitioner", [Quantity(5, 1.0), Style(5, 0.0)], ids=["no rewrites", "severity 0"])
def test_where_nobody_rewrites_there_is_one_hand(partitioner):
    found = hands(dealt(partitioner))
    assert found.ways == (None,) and found.client.tolist() == [0] * 5


@pytest.mark.parametrize("kind", [Style, StopwordDrop, Substitute])
def test_every_document_is_as_its_owner_writes_it(kind):
    partition = dealt(kind(4, 1.0))
    told, known, owner = as_written(DOCUMENTS, partition), hands(partition), partition.owner(len(DOCUMENTS))
    assert list(told.text) == written(DOCUMENTS, partition, owner)
    for hand, way in enumerate(known.ways):
        mine = known.client[owner] == hand
        assert (told.text[mine] == in_hand(DOCUMENTS.take(mine), way).text).all()
    assert (told.text != DOCUMENTS.text).any() and (told.label == DOCUMENTS.label).all()
