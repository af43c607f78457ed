"""Test that every partition with a severity above 0 whose result is IID is refused."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

import fedrift.partition as room
from fedrift.core.errors import UserError
from fedrift.core.random import numpy_stream
from fedrift.partition import (
    Composed,
    Dirichlet,
    KDomains,
    Length,
    Quantity,
    StopwordDrop,
    Style,
    Substitute,
    TokenTilt,
    TopicMix,
    Truncate,
)
from fedrift.partition.base import partition_corpus, partition_notes

from .corpora import corpus, make_topic_corpus

STREAM = partial(numpy_stream, 0, "partition")
CHINESE = corpus([f"文章{n} 内容" for n in range(60)], np.arange(60) % 3)
EQUAL_TEXTS = make_topic_corpus(documents=60, count=3)


@pytest.mark.parametrize(
    ("partitioner", "documents", "words"),
    [
        (Quantity(4, 1.0, min_share=1.0), EQUAL_TEXTS, "identical to the partition of severity 0"),
        (KDomains(6, 0.1), EQUAL_TEXTS, "identical to the partition of severity 0"),
        (Composed(4, 1.0, topic_severity=0.0, quantity_severity=0.0), EQUAL_TEXTS, "identical to the partition of severity 0"),
        (Length(4), corpus([f"one two {n}" for n in range(60)], np.arange(60) % 3), "all documents have the same length"),
        (TokenTilt(4), corpus([f"of the and {n}" for n in range(60)], np.arange(60) % 3), "no content word"),
        (TokenTilt(4), CHINESE, "no content word that occurs at least 5 times"),
        (StopwordDrop(4), CHINESE, "the texts contain nothing that can be rewritten"),
        (StopwordDrop(4, homogeneous=True), CHINESE, "the texts contain nothing that can be rewritten"),
        (Substitute(4), CHINESE, "the texts contain nothing that can be rewritten"),
        (Truncate(4, min_words=10_000), EQUAL_TEXTS, "the texts contain nothing that can be rewritten"),
        (Style(4, styles=("short",)), CHINESE, "rewrites its texts in the same way"),
        (Style(4, styles=("formal", "formal")), EQUAL_TEXTS, "rewrites its texts in the same way"),
        (Style(4, styles=("plain",)), EQUAL_TEXTS, "identical to the partition of severity 0"),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "severity") else "",
)
def test_a_partition_that_is_iid_is_refused(partitioner, documents, words):
    with pytest.raises(UserError, match=words) as caught:
        partition_corpus(partitioner, documents, STREAM)
    assert len(str(caught.value).splitlines()) == 1
    assert "severity" in str(caught.value)


@pytest.mark.parametrize("kind", [TopicMix, Dirichlet, KDomains, Composed])
@pytest.mark.parametrize("severity", [0.0, 1.0])
def test_a_partition_by_topic_needs_two_topics_at_every_severity(kind, severity):
    with pytest.raises(UserError, match="at least 2 topics"):
        partition_corpus(kind(4, severity), corpus([f"text {n}" for n in range(60)], np.zeros(60)), STREAM)
    unlabelled = replace(corpus([f"text {n}" for n in range(60)], np.full(60, -1)), columns=("text", "topic"))
    with pytest.raises(UserError, match=r"its columns: 'text', 'topic'\)\. Name the column of labels with dataset\.label_column"):
        partition_corpus(kind(4, severity), unlabelled, STREAM)


@pytest.mark.parametrize("kind", [getattr(room, name) for name in room.__all__], ids=lambda kind: kind.__name__)
def test_non_iid_partitions_and_severity_0_are_accepted_unchanged(kind):
    documents = corpus(
        [
            f"it is the {'big ' * (n % 5)}house of {word} and we went to see {word} and the {word} {n}"
            for n, word in enumerate(["garden", "market", "teacher", "engine"] * 20)
        ],
        np.arange(80) % 4,
    )
    for severity in (0.0, 1.0):
        partitioner = kind(4, severity)
        if kind is room.Calibrated:
            partitioner = kind(4, severity * 0.5, if_unreachable="nearest")
        dealt, plain = partition_corpus(partitioner, documents, STREAM), partitioner(documents, STREAM())
        assert all(np.array_equal(one, other) for one, other in zip(dealt.rows, plain.rows, strict=True))
        assert partition_notes(partitioner) == []


def test_a_single_client_has_a_warning():
    assert len(partition_corpus(TopicMix(1), EQUAL_TEXTS, STREAM).rows[0]) == 60
    assert "one client" in partition_notes(TopicMix(1))[0]
    assert partition_notes(TopicMix(1, 0.0)) == []
