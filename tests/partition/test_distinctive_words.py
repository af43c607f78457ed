"""Test the log-odds of distinctive words against a case computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.sparse import csr_array

from fedrift.partition.words import distinctive_words, log_odds


def test_the_log_odds_equal_a_computation_by_hand():
    # y = 30 of n = 100; 10 of 300 for the others; a prior of 40 words, of which 40 * 40/400 = 4 are this one
    mine, theirs = 34, 14
    delta = math.log(mine / (140 - mine)) - math.log(theirs / (340 - theirs))
    z = delta / math.sqrt(1 / mine + 1 / theirs)
    assert log_odds(np.array([30.0]), np.array([40.0]), 100, 400, prior=40)[0] == pytest.approx(z, abs=1e-12)


def test_a_word_that_all_clients_use_alike_is_not_distinctive():
    assert log_odds(np.array([20.0]), np.array([60.0]), 200, 600)[0] == pytest.approx(0, abs=1e-12)


def test_frequent_differences_are_more_distinctive_than_rare_ones():
    once, often = (log_odds(np.array([n]), np.array([n]), 1000, 2000)[0] for n in (1.0, 50.0))
    assert 0 < once < often


def test_each_client_gets_its_most_distinctive_words_first():
    counts = csr_array(np.array([[50, 9, 0, 40], [0, 1, 60, 40.0]]))
    found = distinctive_words(counts, ("ball", "goal", "vote", "the"))
    assert [word for word, _ in found[0]] == ["ball", "goal", "the"]
    assert [word for word, _ in found[1]] == ["vote"]
    assert found[0][0][1] > found[0][1][1] > found[0][2][1] > 0
    assert distinctive_words(counts, ("ball", "goal", "vote", "the"), num_words=1)[0] == found[0][:1]


def test_a_single_client_has_no_distinctive_words():
    assert distinctive_words(csr_array(np.array([[3.0, 2.0]])), ("a", "b")) == [[]]
