"""What runs share, and which documents a model may be studied on."""

from __future__ import annotations

import pandas as pd
import pytest

from fedrift.corpus import TRAIN, Source, pretraining_half
from tests.worlds import stock


@pytest.fixture
def data(tmp_path):
    """A local copy of one of the corpora that `pocket` was pretrained on."""
    folder = tmp_path / "data" / "dbpedia"
    folder.mkdir(parents=True)
    texts = [f"Document number {number} is about something of its own." for number in range(80)]
    pd.DataFrame({"text": texts, "label": "Village", "source": ""}).to_parquet(folder / "train.parquet")
    return tmp_path


def test_pocket_is_studied_on_documents_that_it_has_not_read(data):
    there = stock(data, data=data / "data")
    source = Source("dbpedia")
    seen = there.corpus(source, "pocket")
    assert len(seen) > 0
    assert not any(pretraining_half(text) for text in seen.text)
    other = there.corpus(source, "smollm2-135m")
    assert len(other) == 80
    assert any(pretraining_half(text) for text in other.text[other.split == TRAIN])


def test_a_corpus_is_loaded_once(data):
    there = stock(data, data=data / "data")
    assert there.corpus(Source("dbpedia"), "pocket") is there.corpus(Source("dbpedia"), "pocket")
