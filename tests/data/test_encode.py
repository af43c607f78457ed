"""Test that documents become vectors in which topics are found."""

from __future__ import annotations

import builtins
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import normalized_mutual_info_score

from fedrift.config.schema import parse_config
from fedrift.core.errors import UserError
from fedrift.core.random import numpy_stream
from fedrift.data import DatasetConfig, encoders, load_corpus
from fedrift.data.encoders import embed_texts, load_cached_array, save_cached_array
from fedrift.partition import TopicMix
from tests import small_experiment

ODD = ["", "😀", "日本語の文章です", "the of and", "a", "word " * 5000, *(f"some words {i}" for i in range(6))]
ENCODERS = [
    "lsa",
    pytest.param(
        "wordllama",
        marks=pytest.mark.skipif(
            __import__("importlib.util").util.find_spec("wordllama") is None, reason="the extra 'encoder' is not installed"
        ),
    ),
]


@pytest.fixture
def source(tmp_path):
    return DatasetConfig(str(small_experiment.corpus_file(tmp_path / "c.csv")), label_column="", num_clusters=3)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_text_has_a_vector_of_length_one_or_zero(encoder):
    found = embed_texts(ODD, encoder)
    assert len(found) == len(ODD) and np.isfinite(found).all() and found.dtype == np.float32
    length = np.linalg.norm(found, axis=1)
    assert (np.isclose(length, 1, atol=1e-5) | (length == 0)).all()
    assert np.array_equal(found, embed_texts(ODD, encoder))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_topics_are_found_without_labels(tmp_path, encoder):
    texts = small_experiment.documents(60)
    corpus = load_corpus(
        DatasetConfig(str(small_experiment.corpus_file(tmp_path / "c.csv")), label_column="", num_clusters=3, encoder=encoder)
    )
    topic = dict(texts)
    truth = [topic[text] for text in corpus.text]
    assert normalized_mutual_info_score(truth, corpus.label) > 0.95


def test_train_and_test_documents_share_the_clusters(source, tmp_path):
    corpus, topic = load_corpus(source), dict(small_experiment.documents(60))
    for cluster in range(3):
        here = [{topic[text] for text in part.text[part.label == cluster]} for part in (corpus.train, corpus.test)]
        assert here[0] == here[1] and len(here[0]) == 1


def test_an_unlabeled_corpus_is_partitioned_by_its_topics_from_yaml(source, tmp_path):
    said = {"dataset": {"name": source.name, "label_column": "", "num_clusters": 3}, "partition": {"type": "TopicMix", "num_clients": 3}}
    experiment = parse_config(said)
    assert experiment.dataset == source and experiment.partition == TopicMix(3)
    corpus, topic = load_corpus(experiment.dataset).train, dict(small_experiment.documents(60))
    for rows in experiment.partition(corpus, numpy_stream(0)).rows:
        assert len({topic[text] for text in corpus.text[rows]}) == 1


def test_vectors_are_cached_by_their_texts_and_encoder(tmp_path, monkeypatch):
    texts, made = ["one text", "another one"], []
    monkeypatch.setitem(encoders.ENCODERS, "lsa", lambda texts: made.append(1) or np.ones((len(texts), 3)))
    for asked in (texts, texts, texts[::-1]):
        embed_texts(asked, cache_dir=tmp_path / "v")
    assert len(made) == 2
    monkeypatch.setitem(encoders.ENCODERS, "wordllama", lambda texts: np.eye(len(texts)))
    assert not np.array_equal(embed_texts(texts, "wordllama", cache_dir=tmp_path / "v"), embed_texts(texts, cache_dir=tmp_path / "v"))
    assert len(made) == 2
    for file in (tmp_path / "v").iterdir():
        file.write_bytes(b"damaged")
    assert embed_texts(texts, cache_dir=tmp_path / "v").shape == (2, 3) and len(made) == 3


def test_a_corpus_that_cannot_be_clustered_is_refused(source):
    with pytest.raises(UserError, match=r"cannot be divided into 500 clusters .*: set dataset\.num_clusters to a number from 2 to 144"):
        load_corpus(replace(source, num_clusters=500))
    with pytest.raises(UserError, match=r"dataset\.num_clusters=8"):
        load_corpus(replace(source, num_clusters=None, encoder="lsa"))
    with pytest.raises(UserError, match=r"dataset\.num_clusters: expected a whole number from 2 to 10,000"):
        parse_config({"dataset": {"name": "bbc", "num_clusters": 1}})
    with pytest.raises(UserError, match=r"dataset\.encoder: expected 'lsa' or 'wordllama'"):
        parse_config({"dataset": {"name": "bbc", "num_clusters": 4, "encoder": "bert"}})


def test_without_the_package_the_error_states_how_to_install_it(monkeypatch):
    real = builtins.__import__
    monkeypatch.setattr(
        builtins, "__import__", lambda name, *rest: (_ for _ in ()).throw(ImportError(name)) if name == "wordllama" else real(name, *rest)
    )
    with pytest.raises(UserError, match=r"pip install wordllama"):
        embed_texts(["a"], "wordllama")


def test_damaged_cached_vectors_are_never_read(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(6, 4))
    save_cached_array(tmp_path / "x.npy", vectors)
    content = (tmp_path / "x.npy").read_bytes()
    assert (load_cached_array(tmp_path / "x.npy", 6) == vectors).all()
    for place in range(len(content)):
        (tmp_path / "x.npy").write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        found = load_cached_array(tmp_path / "x.npy", 6)
        assert found is None or (found == vectors).all()
    np.save(tmp_path / "old.npy", vectors)
    assert load_cached_array(tmp_path / "old.npy", 6) is None  # without a checksum it is computed again
