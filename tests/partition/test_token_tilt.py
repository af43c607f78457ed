"""Test the partitions that skew word frequencies."""

from __future__ import annotations

import numpy as np
import pytest

from fedrift.core.random import numpy_stream
from fedrift.partition import TokenTilt
from fedrift.partition.token_skew import assign_sides, document_tilts, word_normals
from fedrift.partition.words import count_words

from .corpora import corpus, make_topic_corpus


def make_partition(partitioner, documents, seed=0):
    return partitioner(documents, numpy_stream(seed, "partition"))


def make_corpus_without_topics(documents=600, seed=0):
    """Return documents without topics, with words of one Zipf distribution."""
    rng = np.random.default_rng(seed)
    words = [" ".join(f"w{r}" for r in np.minimum(rng.zipf(1.3, 40), 300)) for _ in range(documents)]
    return corpus([f"{i} {text}" for i, text in enumerate(words)], np.full(documents, -1))


def mean_difference(documents, severity, seed=0, directions=1):
    """Return the mean phi of the even clients minus that of the odd ones, in standard deviations."""
    key = numpy_stream(seed, "partition").bytes(16)
    phi = document_tilts(count_words(documents.text), directions, key)[:, 0]
    sides = [phi[rows].mean() for rows in make_partition(TokenTilt(4, severity, directions), documents, seed).rows]
    return (sides[0] - sides[1] + sides[2 * directions % 4] - sides[(2 * directions + 1) % 4]) / 2


def test_the_skew_grows_with_severity():
    documents = make_corpus_without_topics()
    found = [mean_difference(documents, s) for s in (0, 0.2, 0.4, 0.6, 0.8, 1.0)]
    assert abs(found[0]) < 0.2 and found[-1] > 1.4
    assert np.diff(found).min() > -1e-9


def test_at_severity_1_the_sides_do_not_overlap():
    documents = make_corpus_without_topics()
    phi = document_tilts(count_words(documents.text), 1, numpy_stream(0, "partition").bytes(16))[:, 0]
    rows = make_partition(TokenTilt(2, 1.0), documents).rows
    assert phi[rows[0]].min() >= phi[rows[1]].max()


@pytest.mark.parametrize("clients, directions", [(2, 1), (5, 1), (7, 2), (3, 4), (8, 4)])
@pytest.mark.parametrize("severity", [0.0, 0.5, 1.0])
def test_budgets_are_equal_for_every_skew(clients, directions, severity):
    documents = make_topic_corpus(400)
    budgets = make_partition(TokenTilt(clients, severity, directions), documents).budgets(documents)
    assert np.abs(budgets - budgets.mean()).max() <= 2 * documents.size.max()


def test_documents_change_sides_at_most_once_with_growing_severity():
    documents = make_corpus_without_topics()
    sides = np.array([make_partition(TokenTilt(2, s), documents).document_owners(600) for s in np.linspace(0, 1, 21)])
    assert (np.abs(np.diff(sides, axis=0)).sum(axis=0) > 1).mean() < 0.02


def test_a_word_has_the_same_score_in_train_and_test():
    key = b"k" * 16
    train, test = make_corpus_without_topics(seed=1), make_corpus_without_topics(seed=2)
    assert np.array_equal(word_normals("w3", 3, key), word_normals("w3", 3, key))
    phi = {name: document_tilts(count_words(docs.text), 1, key) for name, docs in (("a", train), ("b", test))}
    presence = {name: np.array(["w3 " in text for text in docs.text]) for name, docs in (("a", train), ("b", test))}
    pull = [phi[name][presence[name]].mean() - phi[name][~presence[name]].mean() for name in "ab"]
    assert np.sign(pull[0]) == np.sign(pull[1])


def test_word_scores_are_standard_normal():
    drawn = np.array([word_normals(f"word{i}", 2, b"key") for i in range(5000)])
    assert np.abs(drawn.mean(0)).max() < 0.05 and np.abs(drawn.std(0) - 1).max() < 0.03
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.05


def test_function_words_and_rare_words_have_score_zero():
    key = b"k" * 16
    texts = ["cat the"] * 5 + ["cat of the rare"] + ["dog"] * 5
    phi = document_tilts(count_words(texts), 1, key)[:, 0]
    raw = {word: word_normals(word, 1, key)[0] for word in ("cat", "dog")}
    values = np.array([raw["cat"] / 2] * 5 + [raw["cat"] / 4] + [raw["dog"]] * 5)
    assert np.allclose(phi, (values - values.mean()) / values.std())


@pytest.mark.parametrize("clients, directions", [(5, 1), (3, 2), (8, 3)])
def test_the_assignment_fills_every_side_and_no_swap_improves_it(clients, directions):
    rng = np.random.default_rng(clients)
    score, size = rng.normal(size=(400, 2 * directions)), rng.integers(1, 20, 400).astype(float)
    capacity = rng.dirichlet(np.full(2 * directions, 5.0)) * size.sum()
    side = assign_sides(score, size, capacity)
    assert np.abs(np.bincount(side, size, 2 * directions) - capacity).max() <= 40
    got = score[np.arange(400), side]
    gain = score[:, side].T  # [other, document]: the score of a document on another side
    assert (gain + gain.T <= got[:, None] + got[None, :] + 1e-9).all()


def test_sides_with_more_clients_have_more_capacity():
    documents = make_corpus_without_topics()
    phi = document_tilts(count_words(documents.text), 1, numpy_stream(0, "partition").bytes(16))[:, 0]
    rows = make_partition(TokenTilt(5, 1.0), documents).rows
    assert min(phi[rows[k]].min() for k in (0, 2, 4)) >= max(phi[rows[k]].max() for k in (1, 3))


@pytest.mark.parametrize("text", ["", "...", "🎉🎉", "日本語の文章です", "a a a"])
def test_every_text_can_be_partitioned(text):
    documents = corpus([f"{text} {i}" for i in range(12)], np.full(12, -1))
    assert sum(len(rows) for rows in make_partition(TokenTilt(3, 0.7), documents).rows) == 12


def test_every_client_gets_a_document_even_on_a_side_that_no_document_prefers():
    """Documents without content words have equal scores and go to one side, and clients of the other side get some of them."""
    rows = TokenTilt(2, 1.0)(corpus(["a 1", ""], [1, 0], size=[1, 1]), numpy_stream(0, "partition")).rows
    assert sorted(map(len, rows)) == [1, 1]
