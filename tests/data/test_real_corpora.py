"""Test the real corpora if their folder exists beside the project."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest

from fedrift.data import DatasetConfig, is_in_pretraining_half, list_datasets, load_corpus
from fedrift.data.catalog import POCKET_PRETRAINING_DATASETS

EXPECTED = {  # documents, domains
    "ag_news": (37_164, 4),
    "wikitext2": (8_698, 0),
    "stackexchange": (10_226, 8),
    "dbpedia": (13_935, 14),
    "medquad": (14_820, 15),
    "huffpost": (13_454, 29),
    "newsgroups20": (17_773, 20),
    "newsgroups_topics": (11_747, 4),
    "reddit_topics": (23_999, 4),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_real_corpus_is_loaded_completely(shared_data, name):
    corpus = load_corpus(DatasetConfig(name), data_dir=shared_data)
    assert (len(corpus), len(corpus.domains)) == EXPECTED[name]
    assert all(len(part) for part in (corpus.train, corpus.validation, corpus.test))
    assert len(set(corpus.text)) == len(corpus)
    assert (corpus.label >= 0).all() == (name != "wikitext2")


@pytest.mark.parametrize("name", sorted(POCKET_PRETRAINING_DATASETS))
def test_the_unseen_half_has_no_document_of_the_pretraining_of_pocket(shared_data, name):
    read = set()
    for file in (shared_data / name).glob("train*.parquet"):
        cells = pq.read_table(file, columns=["text"]).column("text").to_pylist()
        read |= {cell.strip() for cell in cells if is_in_pretraining_half(cell)}
    corpus = load_corpus(DatasetConfig(name), data_dir=shared_data, subset="unseen")
    dealt = set(corpus.train.text)
    if not (shared_data / name / "validation.parquet").exists():  # validation documents were then taken from train
        dealt |= set(corpus.validation.text)
    assert len(dealt) > 1000
    assert len(read) > 1000
    assert not read & dealt


def test_the_list_counts_documents(shared_data):
    listed = {item.name: item.num_documents for item in list_datasets(shared_data)}
    assert listed["wikitext2"] == 8_739
    assert listed["tweets"] == 153_191
    assert listed["reddit_topics"] == 23_999
