"""Test the counting of words."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrift.partition.words import FUNCTION_WORDS, WORD, count_words

from .corpora import split_into_words


def test_words_are_letters_and_digits_with_apostrophes_inside():
    assert split_into_words("Don't stop: 3 'quoted' e-mails, o’clock_x!") == [
        "don't", "stop", "3", "quoted", "e", "mails", "o’clock", "x"
    ]  # fmt: skip
    assert split_into_words("Привет, мир! 😀") == ["привет", "мир"]
    assert split_into_words("") == split_into_words("...😀") == []


def test_counts_are_those_of_each_document():
    words = count_words(["a b a", "", "b c"])
    assert words.vocabulary == ("a", "b", "c")
    assert words.counts.toarray().tolist() == [[2, 1, 0], [0, 0, 0], [0, 1, 1]]
    assert words.totals.tolist() == [2, 2, 1]


def test_an_empty_list_of_texts_has_no_words():
    assert count_words([]).counts.shape == (0, 0)
    assert count_words([""]).totals.tolist() == []


def test_function_words_are_closed_classes_only():
    assert {"the", "of", "they", "would", "don't"} <= FUNCTION_WORDS
    assert not {"house", "good", "go", "market"} & FUNCTION_WORDS
    assert 150 < len(FUNCTION_WORDS) < 300
    assert all(split_into_words(word) == [word] for word in FUNCTION_WORDS)
    assert np.all([word == word.lower() for word in FUNCTION_WORDS])


@given(st.text(alphabet=st.sampled_from("aZ09'_ .-\n\t’é"), max_size=30))
@settings(max_examples=2000, deadline=None, derandomize=True)
def test_the_fast_tokenizer_equals_the_pattern(text):
    assert split_into_words(text) == WORD.findall(text.lower())


@given(st.text(alphabet=st.characters(max_codepoint=127), max_size=40))
@settings(max_examples=1000, deadline=None, derandomize=True)
def test_the_fast_tokenizer_equals_the_pattern_for_ascii(text):
    assert split_into_words(text) == WORD.findall(text.lower())


@given(st.lists(st.text(alphabet=st.sampled_from("aZ09'_ .-\n\t’éß\x00\x1c\u2028İ"), max_size=30), max_size=8))
@settings(max_examples=500, deadline=None, derandomize=True)
def test_counts_equal_those_of_single_texts_in_order_of_first_occurrence(texts):
    found = count_words(texts)
    each = [WORD.findall(text.lower()) for text in texts]
    assert found.vocabulary == tuple(dict.fromkeys(word for words in each for word in words))
    assert found.counts.shape == (len(texts), len(found.vocabulary))
    for row, words in zip(found.counts.toarray(), each, strict=True):
        assert {word: n for word, n in zip(found.vocabulary, row, strict=True) if n} == {w: words.count(w) for w in words}
