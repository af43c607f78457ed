"""Test the grammar engine against cases computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedrift.core.random import numpy_stream
from fedrift.data.synthetic.grammar import Grammar, sentence_probability


def count_derivations(grammar: Grammar, start: str, words: list[str]) -> int:
    """Count the derivations of the words: their probability if every choice has the probability 1."""
    counting = Grammar({})
    counting.rules = {symbol: [(1.0, parts) for _, parts in choices] for symbol, choices in grammar.rules.items()}
    return round(sentence_probability(counting, start, words))


def test_one_of_v_equally_likely_words_has_ln_v_nats():
    grammar = Grammar({"S": [(1 / 7, (word,)) for word in "abcdefg"]})
    assert grammar.entropy("S") == pytest.approx(math.log(7), abs=1e-14)
    assert grammar.mean_words("S") == pytest.approx(1.0, abs=1e-14)


def test_a_fixed_sentence_has_no_entropy():
    grammar = Grammar({"S": [(1.0, ("a", "B"))], "B": [(1.0, ("b", "c")), (0.0, ("never",))]})
    assert grammar.entropy("S") == 0.0
    assert grammar.mean_words("S") == 3.0
    assert sentence_probability(grammar, "S", ["a", "never"]) == 0.0


def test_the_entropy_of_recursion_is_exact():
    # S -> a S (1/3) | b: geometric; h = h2(1/3) * E[steps] = h2 * 3/2, words = 3/2
    grammar = Grammar({"S": [(1 / 3, ("a", "S")), (2 / 3, ("b",))]})
    h = -(math.log(1 / 3) / 3 + 2 * math.log(2 / 3) / 3)
    assert grammar.entropy("S") == pytest.approx(1.5 * h, abs=1e-12)
    assert grammar.mean_words("S") == pytest.approx(1.5, abs=1e-12)
    assert sentence_probability(grammar, "S", ["a", "a", "b"]) == pytest.approx(2 / 27)


def test_probabilities_that_do_not_sum_to_one_are_refused():
    with pytest.raises(ValueError, match="'S' must sum to 1"):
        Grammar({"S": [(0.5, ("a",)), (0.4, ("b",))]})


def test_the_probability_of_a_text_without_a_word_class_is_exact():
    # x = 1/3 x P(not n) + 2/3: if N is empty half of the time, x = 2/3 / (1 - 1/6)
    grammar = Grammar({"S": [(1 / 3, ("N", "S")), (2 / 3, ("b",))], "N": [(0.5, ("own",)), (0.5, ("common",))]})
    assert grammar.probability_without("S", {"own"}) == pytest.approx(0.8, abs=1e-12)
    assert grammar.probability_without("S", {"N"}) == pytest.approx(2 / 3, abs=1e-12)
    assert grammar.probability_without("S", ()) == pytest.approx(1.0, abs=1e-12)


def test_ambiguous_sentences_are_counted():
    grammar = Grammar({"S": [(0.5, ("A", "b")), (0.5, ("a", "b"))], "A": [(1.0, ("a",))]})
    assert count_derivations(grammar, "S", ["a", "b"]) == 2
    assert sentence_probability(grammar, "S", ["a", "b"]) == pytest.approx(1.0)


def test_the_perplexity_of_a_known_markov_source_is_the_exponential_of_its_entropy_rate():
    # A Markov chain that ends: state a or b emits itself and continues by its row, or ends. Texts have many words.
    rows = {"a": {"a": 0.6, "b": 0.3, "": 0.1}, "b": {"a": 0.2, "b": 0.7, "": 0.1}}
    rules = {f"from {s}": [(p, (t, f"from {t}") if t else (".",)) for t, p in row.items()] for s, row in rows.items()}
    grammar = Grammar({"S": [(1.0, ("a", "from a"))], **rules})
    # visits v = e_a + v P of the transient chain, computed by hand
    visits = np.linalg.solve(np.eye(2) - np.array([[0.6, 0.3], [0.2, 0.7]]).T, np.array([1.0, 0.0]))
    h = [-sum(p * math.log(p) for p in row.values()) for row in rows.values()]
    assert grammar.entropy("S") == pytest.approx(visits @ h, abs=1e-12)
    assert grammar.mean_words("S") == pytest.approx(visits.sum() + 1, abs=1e-12)
    rng = numpy_stream(0, "test", "markov")
    texts = [grammar.sample("S", rng) for _ in range(2000)]
    lost = np.array([-math.log(sentence_probability(grammar, "S", text)) for text in texts])
    words = np.array([len(text) for text in texts])
    rate = visits @ h / (visits.sum() + 1)
    error = (lost - rate * words).std() / words.mean() / math.sqrt(len(texts))  # standard error of a ratio of means
    assert abs(lost.sum() / words.sum() - rate) < 3 * error
    assert math.exp(lost.sum() / words.sum()) == pytest.approx(math.exp(rate), rel=3 * error)
