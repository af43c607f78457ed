"""Test that several corpora are joined into one corpus in which each is a domain."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from fedrift.core.errors import UserError
from fedrift.data import TEST, TRAIN, VALIDATION, DatasetConfig, load_corpus
from fedrift.data.catalog import NAMED_DATASETS, POCKET_PRETRAINING_DATASETS, is_in_pretraining_half
from fedrift.data.dataset import list_datasets

STYLES = dict(NAMED_DATASETS["styles"].parts)


@pytest.fixture
def data(tmp_path):
    """Synthetic copies of the five corpora with different sizes; one has its own validation split."""
    for size, (domain, name) in enumerate(STYLES.items(), 2):
        for split, count in (("train", 40 * size), ("test", 10 * size), ("validation", 8 * (name == "tweets"))):
            if count:
                texts = [f"{domain} {split} text {i}" for i in range(count)] + ["the same in all"]
                (tmp_path / name).mkdir(exist_ok=True)
                pd.DataFrame({"text": texts, "label": "x", "source": name}).to_parquet(tmp_path / name / f"{split}.parquet")
    return tmp_path


def count(corpus) -> np.ndarray:
    """Return the number of documents of each split and domain, [3, T]."""
    return np.array(
        [np.bincount(corpus.label[corpus.split == split], minlength=len(corpus.domains)) for split in (TRAIN, VALIDATION, TEST)]
    )


def test_every_split_has_equally_many_documents_of_each_corpus(data):
    corpus = load_corpus(DatasetConfig("styles"), data_dir=data)
    assert corpus.domains == tuple(sorted(STYLES))
    own = corpus.take(corpus.text != "the same in all")
    assert all(text.split()[0] == corpus.domains[label] for text, label in zip(own.text, own.label, strict=True))
    assert (count(corpus).min(1) == count(corpus).max(1)).all() and (count(corpus).min(1) > 0).all()
    assert len(set(corpus.text)) == len(corpus)
    assert corpus.drop_counts["balancing"] > 0


def test_each_corpus_keeps_its_splits_and_a_shared_text_is_used_once(data):
    corpus = load_corpus(DatasetConfig("styles"), data_dir=data)
    for split, name in ((TRAIN, "train"), (TEST, "test")):
        own = {text.split()[1] for text in corpus.text[corpus.split == split] if text != "the same in all"}
        assert own <= {name, "train"} if split == TRAIN else own == {name}
    assert (corpus.text == "the same in all").sum() <= 1


def test_the_seed_selects_the_documents_and_a_limit_keeps_the_balance(data):
    one, two, other = (load_corpus(DatasetConfig("styles", split_seed=seed), data_dir=data) for seed in (0, 0, 1))
    assert one.fingerprint == two.fingerprint != other.fingerprint
    few = load_corpus(DatasetConfig("styles", limit=60), data_dir=data)
    assert len(few) == 60 and np.ptp(count(few), axis=1).max() <= 1


def test_documents_of_the_pretraining_of_pocket_are_omitted_from_each_corpus(data):
    corpus = load_corpus(DatasetConfig("styles"), data_dir=data, subset="unseen")
    for domain, name in STYLES.items():
        rows = (corpus.label == corpus.domains.index(domain)) & (corpus.split == TRAIN)
        read = sum(is_in_pretraining_half(text) for text in corpus.text[rows])
        assert (read == 0) == (name in POCKET_PRETRAINING_DATASETS) and rows.any()


def test_a_missing_corpus_is_refused_with_the_place_where_it_belongs(data):
    (data / "stackexchange" / "train.parquet").rename(data / "elsewhere")
    (data / "stackexchange" / "test.parquet").unlink()
    (data / "stackexchange").rmdir()
    with pytest.raises(UserError, match="'stackexchange' has no verified hub id"):
        load_corpus(DatasetConfig("styles"), data_dir=data)


def test_a_corpus_can_be_omitted_and_the_list_names_the_parts(data):
    corpus = load_corpus(DatasetConfig("styles", domains=("news", "tweets")), data_dir=data)
    assert corpus.domains == ("news", "tweets")
    listed = {one.name: one for one in list_datasets(data)}
    assert "ag_news" in listed["styles"].origin
    assert listed["styles"].num_documents == 5 * min(listed[name].num_documents for name in STYLES.values())


@pytest.mark.slow
def test_real_styles_are_equally_large(shared_data):
    corpus = load_corpus(DatasetConfig("styles"), data_dir=shared_data, subset="unseen")
    found = count(corpus)
    assert (found.min(1) == found.max(1)).all() and found[TRAIN, 0] > 2000 and found[TEST, 0] > 300
