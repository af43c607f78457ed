"""Test splits and limits: fractions are kept, no document is lost, and existing splits are respected."""

from __future__ import annotations

from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrift.data.corpus import TEST, TRAIN, VALIDATION
from fedrift.data.documents import Document, assign_splits, stratified_order, subsample

GOLDEN = [0, 2, 2, 1, 0, 1, 2, 0, 0, 0, 1, 0]  # the split that seed 0 gave when the first runs were stored


def make_documents(count, labels=("a",), split=TRAIN):
    texts = [f"document {split} {n}" for n in range(count)]
    return [Document(sha256(t.encode()).digest(), t, labels[n % len(labels)], "s", split) for n, t in enumerate(texts)]


@given(st.integers(1, 60), st.integers(0, 5), st.floats(0, 0.6), st.floats(0, 0.39))
def test_train_is_never_empty_and_requested_splits_have_a_document(count, seed, validation, test):
    split = assign_splits(make_documents(count), validation_fraction=validation, test_fraction=test, seed=seed)
    sizes = np.bincount(split, minlength=3)
    assert sizes.sum() == count
    assert sizes[TRAIN] >= 1
    if count > 2:
        assert (sizes[VALIDATION] > 0) == (validation > 0)
        assert (sizes[TEST] > 0) == (test > 0)


def test_fractions_are_kept_within_every_label():
    documents = make_documents(900, labels=("a", "b", "c"))
    split = assign_splits(documents, validation_fraction=0.1, test_fraction=0.2, seed=0)
    for label in "abc":
        sizes = np.bincount(split[[d.label == label for d in documents]], minlength=3)
        assert np.abs(sizes - [210, 30, 60]).max() <= 1


def test_existing_splits_stay_and_only_the_missing_one_is_taken_from_train():
    split = assign_splits(make_documents(100) + make_documents(30, split=TEST), validation_fraction=0.1, test_fraction=0.5, seed=0)
    assert np.bincount(split).tolist() == [90, 10, 30]
    assert (split[100:] == TEST).all()


def test_the_seed_decides_the_split():
    deals = [assign_splits(make_documents(100), validation_fraction=0.1, test_fraction=0.1, seed=seed).tolist() for seed in (0, 0, 1)]
    assert deals[0] == deals[1] != deals[2]


@given(st.lists(st.integers(20, 60), min_size=1, max_size=5), st.integers(0, 9))
def test_every_prefix_has_each_stratum_in_proportion(sizes, seed):
    strata = [str(s) for s, size in enumerate(sizes) for _ in range(size)]
    order = stratified_order(strata, np.random.default_rng(seed))
    assert sorted(order) == list(range(len(strata)))
    held = np.cumsum([[strata[row] == str(s) for s in range(len(sizes))] for row in order], axis=0)
    share = np.arange(1, len(strata) + 1)[:, None] * np.array(sizes) / len(strata)
    assert np.abs(held - share).max() <= 1 + len(sizes) / 2


def test_a_larger_limit_keeps_the_documents_of_a_smaller_one():
    documents = make_documents(200, labels=("a", "b")) + make_documents(100, split=TEST)
    few, more = subsample(documents, 30, 0), subsample(documents, 90, 0)
    assert len(few) == 30
    assert len(more) == 90
    assert set(few) < set(more)
    assert sum(d.split == TEST for d in more) == 30


@pytest.mark.parametrize(("count", "share"), [(3, 0.49), (4, 0.49), (7, 0.499)])
def test_large_fractions_of_few_documents_leave_one_for_training(count, share):
    assert (assign_splits(make_documents(count), validation_fraction=share, test_fraction=share, seed=0) == TRAIN).sum() >= 1


def test_the_split_is_pinned_and_independent_of_the_limit():
    documents = make_documents(12)
    assert assign_splits(documents, validation_fraction=0.25, test_fraction=0.25, seed=0).tolist() == GOLDEN
    first = [documents.index(d) for d in subsample(documents, 3, 0)]
    assert first != np.flatnonzero(np.array(GOLDEN) == TEST).tolist()


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_documents_are_all_for_training(count):
    assert assign_splits(make_documents(count), validation_fraction=0.1, test_fraction=0.1, seed=0).tolist() == [TRAIN] * count
