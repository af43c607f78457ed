"""Test that rows become documents: stripped, without duplicates, and regardless of their order."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrift.core.errors import UserError
from fedrift.data.corpus import TEST, TRAIN, VALIDATION
from fedrift.data.documents import deduplicate, extract_documents, normalize_label, normalize_text
from fedrift.data.rows import Rows

rows = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", " a ", "c", "", "  ", "d\r\ne", "d\ne", "é", "字"]),
        st.sampled_from([None, "x", "y", "", float("nan")]),
        st.sampled_from(["s", "t"]),
        st.sampled_from([TRAIN, VALIDATION, TEST]),
    ),
    max_size=30,
)


def cleaned(cells):
    counts: Counter[str] = Counter()
    text, label, source, split = zip(*cells, strict=True) if cells else ((), (), (), ())
    return deduplicate(extract_documents(Rows(text, label, source, split), counts), counts), counts


@given(rows, st.randoms())
def test_the_order_of_rows_changes_nothing(cells, random):
    shuffled = cells.copy()
    random.shuffle(shuffled)
    assert cleaned(cells) == cleaned(shuffled)


@given(rows)
def test_a_document_is_never_in_two_splits(cells):
    found, _ = cleaned(cells)
    texts = [d.text for d in found]
    assert len(set(texts)) == len(texts)
    for d in found:
        assert d.split == max(split for text, _, _, split in cells if normalize_text(text) == d.text)


@given(rows)
def test_every_row_is_a_document_or_counted(cells):
    found, counts = cleaned(cells)
    assert len(found) + counts["empty"] + counts["duplicate"] + counts["not text"] == len(cells)
    assert {d.text for d in found} == {normalize_text(text) for text, *_ in cells} - {""}


def test_a_document_with_two_labels_gets_the_first_by_name_and_is_counted():
    found, counts = cleaned([("a", "y", "s", 0), ("a", "x", "s", 0), ("a", None, "s", 0), ("b", "x", "s", 0)])
    assert {d.text: d.label for d in found} == {"a": "x", "b": "x"}
    assert counts["conflicting label"] == 1
    assert counts["duplicate"] == 2


def test_equal_labels_are_not_a_conflict():
    assert cleaned([("a", "x", "s", 0), ("a", "x", "t", 2), ("a", None, "t", 2)])[1]["conflicting label"] == 0


@pytest.mark.parametrize(
    ("cell", "name"),
    [
        (None, None),
        (float("nan"), None),
        ("", None),
        ("  ", None),
        ("NaN", None),
        ("nan", None),
        (3, "3"),
        (3.0, "3"),
        (np.int64(3), "3"),
        (2.5, "2.5"),
        (float("inf"), "inf"),
        (True, "True"),
        (" Sports ", "Sports"),
        ("NA", "NA"),
        ("None", "None"),
    ],
)
def test_labels_are_normalized(cell, name):
    assert normalize_label(cell) == name


def test_line_ends_are_normalized_and_lone_surrogates_replaced():
    assert normalize_text(" a\r\nb\rc\n ") == "a\nb\nc"
    assert normalize_text("a\ud83d\ude00b") == "a😀b"
    assert normalize_text("a\ud83d") == "a\ufffd"


def test_cells_without_text_are_omitted_and_counted():
    found, counts = cleaned([("a", None, "s", 0), (None, None, "s", 0), (3, None, "s", 0), (float("nan"), "x", "s", 0)])
    assert [d.text for d in found] == ["a"]
    assert counts["not text"] == 3


def test_a_column_of_numbers_is_not_a_text_column():
    with pytest.raises(UserError, match="no text but values of type int"):
        cleaned([(3, None, "s", 0), (4, None, "s", 0)])
