"""Test that topics are found in embeddings."""

from __future__ import annotations

import numpy as np
import pytest

from fedrift.core.errors import UserError
from fedrift.core.random import numpy_stream
from fedrift.data import DatasetConfig, load_corpus
from fedrift.data.encoders import embed_texts, label_by_cluster
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


def write_texts(folder, texts):
    """Write one text per row to a table."""
    (folder / "texts.csv").write_text("\n".join(["text", *texts]))
    return DatasetConfig(str(folder / "texts.csv"), num_clusters=2)


@pytest.mark.parametrize(
    "texts",
    [
        [f"hello {number}" for number in range(60)],
        [f"{number}" for number in range(60)],
        [f"the a of {number}" for number in range(60)],
        [f"unique{chr(97 + number % 26)}{chr(97 + number // 26)}" for number in range(60)],
    ],
    ids=["one word", "no word", "only function words", "no word twice"],
)
def test_texts_without_words_that_tell_them_apart_are_not_clustered(tmp_path, texts):
    """Raw errors of scikit-learn, or all documents in the first of two clusters, must not be the result."""
    with pytest.raises(UserError, match=r"2 clusters but into 1 at most, because .* different embeddings: remove dataset.num_clusters"):
        load_corpus(write_texts(tmp_path, texts))


def test_a_word_that_only_some_texts_have_makes_two_clusters(tmp_path):
    texts = [f"hello {number}" if number % 3 else f"{number}" for number in range(60)]
    found = load_corpus(write_texts(tmp_path, texts))
    assert np.bincount(found.label).tolist() == [40, 20]
    assert {"hello" in text for text in found.text[found.label == 0]} == {True}


def test_texts_that_share_one_word_have_one_direction():
    vectors = embed_texts([f"hello {number}" for number in range(60)] + ["7"])
    assert vectors.shape == (61, 1)
    assert vectors[:, 0].tolist() == [1.0] * 60 + [0.0]
