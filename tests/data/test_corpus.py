"""Test the views, sizes and content fingerprint of a corpus."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedrift.data import Corpus


def small_corpus() -> Corpus:
    return Corpus(
        name="small",
        text=np.array(["one", "two", "three", "four"], dtype=object),
        label=np.array([0, 1, -1, 1]),
        domains=("a", "b"),
        source=np.array(["x"] * 4, dtype=object),
        split=np.array([0, 0, 1, 2], dtype=np.int8),
        size=np.array([1, 1, 1, 1]),
    )


def test_the_views_of_the_three_splits_cover_the_corpus():
    corpus = small_corpus()
    assert [list(part.text) for part in (corpus.train, corpus.validation, corpus.test)] == [["one", "two"], ["three"], ["four"]]


def test_a_view_keeps_the_label_numbers():
    view = small_corpus().take(np.array([3]))
    assert view.domains == ("a", "b")
    assert view.domains[view.label[0]] == "b"


def test_content_does_not_depend_on_the_order():
    corpus = small_corpus()
    assert corpus.take(np.array([2, 0, 3, 1])).fingerprint == corpus.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"label": np.array([1, 1, -1, 1])},
        {"label": np.array([0, 1, 0, 1])},
        {"split": np.array([0, 0, 1, 0], dtype=np.int8)},
        {"text": np.array(["one", "two", "three", "for"], dtype=object)},
        {"domains": ("a", "c")},
    ],
)
def test_content_changes_with_text_label_and_split(change):
    assert replace(small_corpus(), **change).fingerprint != small_corpus().fingerprint


def test_content_does_not_change_with_sizes_and_sources():
    other = replace(small_corpus().with_sizes(np.array([5, 6, 7, 8])), source=np.array(["y"] * 4, dtype=object))
    assert other.fingerprint == small_corpus().fingerprint


def test_sizes_of_another_length_are_refused():
    with pytest.raises(ValueError, match="4 documents"):
        small_corpus().with_sizes(np.array([1, 2]))
