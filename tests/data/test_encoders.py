"""Test the other encoders: hashed words without weights, MiniLM as an extra, and any object with the protocol."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import normalized_mutual_info_score

from fedrift.core.errors import UserError
from fedrift.data.encoders import MINILM_ID, embed_texts
from tests import small_experiment


def test_hashed_words_need_no_package_and_encode_each_text_independently():
    texts = ["the team won a match", "serve warm bread with soup", "", "the of and"]
    whole = embed_texts(texts, "hashing")
    assert whole.shape == (4, 64) and np.allclose(np.linalg.norm(whole, axis=1), [1, 1, 0, 0])
    assert all(np.array_equal(embed_texts([text], "hashing")[0], row) for text, row in zip(texts, whole, strict=True))


def test_hashed_words_separate_topics():
    from sklearn.cluster import KMeans

    texts, truth = zip(*small_experiment.documents(30), strict=True)
    found = KMeans(3, n_init=5, random_state=0).fit_predict(embed_texts(texts, "hashing"))
    assert normalized_mutual_info_score(truth, found) > 0.9


def test_a_missing_minilm_is_refused_with_alternatives(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(UserError, match=r"pip install sentence-transformers.*'wordllama' or 'hashing'"):
        embed_texts(["a"], "minilm")


def test_minilm_is_called_with_the_arguments_of_sentence_transformers(monkeypatch):
    asked = {}

    class Model:
        def __init__(self, place, device):
            asked["place"], asked["device"] = place, device

        def encode(self, texts, convert_to_numpy, show_progress_bar):
            assert convert_to_numpy and not show_progress_bar and isinstance(texts, list)
            return np.arange(len(texts) * 4, dtype=np.float32).reshape(-1, 4) + 1

    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=Model))
    found = embed_texts(["a", "b"], "minilm")
    assert found.shape == (2, 4) and np.allclose(np.linalg.norm(found, axis=1), 1)
    assert asked == {"place": MINILM_ID, "device": "cpu"}
    monkeypatch.setenv("FEDRIFT_MINILM", "/a/folder")
    embed_texts(["a"], "minilm")
    assert asked["place"] == "/a/folder"

    def nowhere(place, device):
        raise OSError("no such thing")

    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=nowhere))
    with pytest.raises(UserError, match="FEDRIFT_MINILM"):
        embed_texts(["a"], "minilm")


def test_any_frozen_encoder_works_and_is_cached_under_its_name(tmp_path):
    @dataclass
    class LengthEncoder:
        name: str
        made: list

        def __call__(self, texts):
            self.made.append(len(texts))
            return np.array([[len(text), 1.0] for text in texts])

    one, two = LengthEncoder("length", []), LengthEncoder("another", [])
    for encoder in (one, one, two):
        found = embed_texts(["a", "bcd"], encoder, cache_dir=tmp_path)
    assert np.allclose(found, [[1, 1] / np.sqrt(2), [3, 1] / np.sqrt(10)])
    assert one.made == [2] and two.made == [2]
    with pytest.raises(UserError, match="no encoder 'minilmm': did you mean 'minilm'"):
        embed_texts(["a"], "minilmm")
