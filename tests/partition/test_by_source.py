"""Test natural clients: each has one source and its size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from fedrift.core.errors import UserError
from fedrift.core.random import numpy_stream
from fedrift.data import DatasetConfig, load_corpus
from fedrift.partition import BySource

from .corpora import make_topic_corpus


def make_source_corpus(sources=6, documents=300):
    """Return documents of three topics; source k has about twice as many as source k + 1, and its own topics."""
    found = make_topic_corpus(documents, count=3)
    place = np.minimum((-np.log2(1 - (np.arange(documents) + 0.5) / documents)).astype(int), sources - 1)
    return replace(found, source=np.array([f"r/{k}" for k in place], dtype=object))


def table_of(corpus, clients, severity=1.0, seed=0):
    """Return tokens by client and source, [N, S]."""
    names, source = np.unique(corpus.source.astype(str), return_inverse=True)
    rows = BySource(clients, severity)(corpus, numpy_stream(seed, "partition")).rows
    return np.array([np.bincount(source[held], corpus.size[held], len(names)) for held in rows])


def test_at_severity_1_every_client_has_one_source_and_its_size():
    corpus = make_source_corpus()
    table = table_of(corpus, 6)
    assert (table > 0).sum(axis=1).tolist() == [1] * 6
    assert np.array_equal(table.sum(axis=1), np.diag(table)) and table.sum() == corpus.size.sum()
    assert (np.diff(table.sum(axis=1)[:5]) < 0).all()


def test_the_iid_baseline_has_the_same_sizes_and_the_mix_of_the_pool():
    corpus = make_source_corpus()
    here, baseline = table_of(corpus, 6), table_of(corpus, 6, 0.0)
    assert np.abs(here.sum(axis=1) - baseline.sum(axis=1)).max() <= 2 * corpus.size.max()
    large = baseline[:3] / baseline[:3].sum(axis=1, keepdims=True)
    assert np.abs(large - corpus_share(here)).max() < 0.05


def corpus_share(table):
    return table.sum(axis=0) / table.sum()


@pytest.mark.parametrize("clients", [2, 4, 12])
def test_fewer_clients_merge_sources_and_more_clients_share_them(clients):
    table = table_of(make_source_corpus(), clients)
    assert np.array_equal((table > 0).sum(axis=0), [max(1, clients // 6)] * 6)
    assert ((table > 0).sum(axis=1) <= -(-6 // clients)).all()


def test_the_share_of_the_own_source_grows_with_severity():
    own = [np.diag(table_of(make_source_corpus(documents=1200), 6, s))[:3].sum() for s in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert (np.diff(own) > 0).all()


def test_sources_with_one_document_each_are_refused():
    alone = make_source_corpus()
    with pytest.raises(UserError, match=r"300 sources for 300 documents.*reddit_posts"):
        table_of(replace(alone, source=np.array([f"file{i}" for i in range(300)], dtype=object)), 3)


def refused(found) -> str:
    with pytest.raises(UserError) as caught:
        table_of(replace(found, columns=("text", "label", "author")), 3, severity=0.0)
    assert len(str(caught.value).splitlines()) == 1
    assert "its columns: 'text', 'label', 'author'" in str(caught.value) and "dataset.source_column" in str(caught.value)
    return str(caught.value)


def test_a_corpus_without_sources_is_refused_with_its_columns():
    found = make_source_corpus()
    assert "no column 'source'" in refused(replace(found, has_source=False))
    assert "at least 2 sources" in refused(replace(found, source=np.full(300, "news", dtype=object)))
    assert "3 of the 300 documents" in refused(replace(found, source=np.array(["", "", "", *found.source[3:]], dtype=object)))
    assert "fewer than two documents per source" in refused(replace(found, source=np.arange(300).astype(str).astype(object)))


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_the_source_column_can_be_configured(tmp_path, kind):
    frame = pd.DataFrame({"text": [f"text {n}" for n in range(40)], "author": [0, 1, 2, 3] * 10})
    path = tmp_path / f"t.{kind}"
    {
        "csv": lambda: frame.to_csv(path, index=False),
        "parquet": lambda: frame.to_parquet(path),
        "jsonl": lambda: frame.to_json(path, orient="records", lines=True),
    }[kind]()
    with pytest.raises(UserError, match=r"no column 'source' \(its columns: 'text', 'author'\)"):
        BySource(4)(load_corpus(DatasetConfig(str(path))), numpy_stream(0, "partition"))
    with pytest.raises(UserError, match="no column 'writer'"):
        load_corpus(DatasetConfig(str(path), source_column="writer"))
    corpus = load_corpus(DatasetConfig(str(path), source_column="author"))
    assert [sorted(set(corpus.source[rows])) for rows in BySource(4)(corpus, numpy_stream(0, "partition")).rows] == [
        ["0"],
        ["1"],
        ["2"],
        ["3"],
    ]
