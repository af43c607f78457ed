"""The real corpora, where they are at hand."""

from __future__ import annotations

import time

import pyarrow.parquet as pq
import pytest

from fedrift.corpus import Source, corpora, load_corpus, pretraining_half
from fedrift.corpus.halves import READ_BY_POCKET

WANTED = {  # documents, domains
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


@pytest.mark.parametrize("name", WANTED)
def test_a_real_corpus_loads_whole(shared_data, name):
    corpus = load_corpus(Source(name), data=shared_data)
    assert (len(corpus), len(corpus.domains)) == WANTED[name]
    assert all(len(part) for part in (corpus.train, corpus.validation, corpus.test))
    assert len(set(corpus.text)) == len(corpus)
    assert (corpus.label >= 0).all() == (name != "wikitext2")


@pytest.mark.parametrize("name", sorted(READ_BY_POCKET))
def test_nothing_pocket_was_pretrained_on_is_left_in_the_unseen_half(shared_data, name):
    read = set()
    for file in (shared_data / name).glob("train*.parquet"):
        cells = pq.read_table(file, columns=["text"]).column("text").to_pylist()
        read |= {cell.strip() for cell in cells if pretraining_half(cell)}
    corpus = load_corpus(Source(name), data=shared_data, half="unseen")
    dealt = set(corpus.train.text)
    if not (shared_data / name / "validation.parquet").exists():  # then it was carved out of train
        dealt |= set(corpus.validation.text)
    assert len(dealt) > 1000
    assert len(read) > 1000
    assert not read & dealt


def test_ag_news_loads_in_two_seconds(shared_data):
    before = time.process_time()
    load_corpus(Source("ag_news"), data=shared_data)
    assert time.process_time() - before < 2.0


def test_the_list_is_quick(shared_data):
    before = time.process_time()
    listed = {item.name: item.documents for item in corpora(shared_data)}
    assert time.process_time() - before < 2.0
    assert listed["wikitext2"] == 8_739
    assert listed["tweets"] == 153_191
    assert listed["reddit_topics"] == 23_999
