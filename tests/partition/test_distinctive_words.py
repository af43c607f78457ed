"""The log-odds of words against a case worked by hand, and what they should find."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.sparse import csr_array

from fedrift.partition.words import distinctive_words, log_odds


def test_the_formula_by_hand():
    # y = 30 of n = 100; the others 10 of 300; prior 40 words, of which 40 * 40/400 = 4 of this one
    mine, theirs = 34, 14
    delta = math.log(mine / (140 - mine)) - math.log(theirs / (340 - theirs))
    z = delta / math.sqrt(1 / mine + 1 / theirs)
    assert log_odds(np.array([30.0]), np.array([40.0]), 100, 400, prior=40)[0] == pytest.approx(z, abs=1e-12)


def test_a_word_used_alike_by_all_tells_nothing():
    assert log_odds(np.array([20.0]), np.array([60.0]), 200, 600)[0] == pytest.approx(0, abs=1e-12)


def test_frequent_differences_tell_more_than_rare_ones():
    once, often = (log_odds(np.array([n]), np.array([n]), 1000, 2000)[0] for n in (1.0, 50.0))
    assert 0 < once < often


def test_each_client_gets_its_own_words_the_strongest_first():
    counts = csr_array(np.array([[50, 9, 0, 40], [0, 1, 60, 40.0]]))
    found = distinctive_words(counts, ("ball", "goal", "vote", "the"))
    assert [word for word, _ in found[0]] == ["ball", "goal", "the"]
    assert [word for word, _ in found[1]] == ["vote"]
    assert found[0][0][1] > found[0][1][1] > found[0][2][1] > 0
    assert distinctive_words(counts, ("ball", "goal", "vote", "the"), num_words=1)[0] == found[0][:1]


def test_a_client_without_others_has_no_words_of_its_own():
    assert distinctive_words(csr_array(np.array([[3.0, 2.0]])), ("a", "b")) == [[]]
