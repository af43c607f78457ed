"""Test the heterogeneity report: null bands, the numbers that each partition changes, and the data of figures."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.sparse import csr_array
from scipy.spatial.distance import cdist, pdist
from sklearn.naive_bayes import MultinomialNB

import fedrift.partition as room
from fedrift.core.random import numpy_stream
from fedrift.partition import (  # fmt: skip
    Dirichlet,
    Length,
    Partition,
    Quantity,
    StopwordDrop,
    Style,
    Substitute,
    TokenTilt,
    TopicMix,
    Truncate,
)
from fedrift.partition.heterogeneity import (
    frechet_distance,
    identification_accuracy,
    measure_heterogeneity,
    mmd2,
    predict_clients,
    project_principal,
    squared_distances,
)
from fedrift.partition.words import count_words, is_content_word

from .corpora import corpus, make_topic_corpus
from .test_rewriting import make_stories


def report(partitioner, documents, seed=0, **more):
    partition = partitioner(documents, numpy_stream(seed, "partition"))
    return measure_heterogeneity(documents, partition, numpy_stream(seed, "measure"), resplits=8, **more)


@pytest.mark.sample(5)
@pytest.mark.parametrize("name", room.__all__)
def test_severity_0_is_not_beyond_chance(name):
    documents = make_topic_corpus(500)
    vectors = np.eye(4)[documents.label] + numpy_stream(0).normal(0, 0.3, (500, 4))
    found = report(getattr(room, name)(5, 0.0), documents, vectors=vectors)
    assert not [m.name for m in found.measurements if m.value > m.null_mean + 5 * m.null_std and m.value - m.null_mean > 0.01]


@pytest.mark.parametrize(
    "partitioner, moved",
    [
        (TopicMix(4), ["token.jsd", "label.jsd", "label.distance", "vocabulary.coverage", "identification"]),
        (Dirichlet(4, 0.8), ["token.jsd", "label.jsd", "label.distance", "identification"]),
        (Length(4), ["length.jsd"]),
        (TokenTilt(4), ["token.jsd"]),
        (Style(3), ["token.jsd", "vocabulary.coverage", "identification"]),
        (StopwordDrop(4), ["token.jsd"]),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, list) else "",
)
def test_each_partition_changes_its_own_numbers(partitioner, moved):
    documents = make_stories(400) if isinstance(partitioner, (Style, StopwordDrop)) else make_topic_corpus(400)
    found = report(partitioner, documents)
    assert [name for name in moved if not found[name].is_beyond_chance] == []


def test_substitution_changes_no_word_frequencies_and_style_no_topics():
    assert not report(Substitute(4), make_topic_corpus(600))["token.jsd"].is_beyond_chance
    assert not report(Style(3), make_stories(400))["label.jsd"].is_beyond_chance


def test_quantity_skew_changes_the_budgets():
    found = report(Quantity(4, 1.0), make_topic_corpus(300))
    assert found["budget.variation"].value > 1 and np.isnan(found["budget.variation"].null_mean)
    assert not found["budget.variation"].is_beyond_chance


def test_the_null_band_uses_the_sizes_of_the_clients():
    found = report(Quantity(4, 1.0), make_topic_corpus(400))["token.jsd"]
    assert abs(found.value - found.null_mean) < 5 * found.null_std


def test_budgets_of_rewriting_clients_count_rewritten_words():
    documents = make_stories(400)
    found = report(Truncate(4), documents)
    assert found["budget.variation"].value < 0.1
    assert np.ptp(found.word_totals) < 0.15 * found.word_totals.mean()
    assert found.documents.max() > 2 * found.documents.min()


def test_tables_are_those_of_the_partition():
    documents = make_topic_corpus(200)
    partition = TopicMix(4)(documents, numpy_stream(0, "partition"))
    found = measure_heterogeneity(documents, partition, numpy_stream(0), resplits=2)
    assert np.array_equal(found.budgets, partition.budgets(documents))
    assert np.array_equal(found.tokens_by_domain, np.diag(found.budgets))
    assert found.documents.tolist() == [50] * 4
    assert np.allclose(found.word_jsd, found.word_jsd.T) and (np.diag(found.word_jsd) == 0).all()
    for client, words in enumerate(found.characteristic_words):
        assert len(words) == 10 and all(word.startswith(f"t{client}w") for word in words[:5])


def test_a_report_is_json():
    found = report(TopicMix(3), make_topic_corpus(60)).to_dict()
    assert json.loads(json.dumps(found, allow_nan=False))["clients"] == 3
    assert found["numbers"]["budget.variation"]["null_mean"] is None


def test_an_unknown_number_is_refused_with_the_existing_ones():
    with pytest.raises(KeyError, match=r"no number 'jsd'.*token.jsd"):
        report(TopicMix(3), make_topic_corpus(60))["jsd"]


def test_omitted_documents_do_not_count():
    documents = make_topic_corpus(120)
    half = Partition(tuple(np.arange(k, 60, 3) for k in range(3)))
    again = Partition(half.rows)
    one = measure_heterogeneity(documents, half, numpy_stream(0), resplits=3)
    two = measure_heterogeneity(documents.take(np.arange(60)), again, numpy_stream(0), resplits=3)
    assert [m.value for m in one.measurements] == [m.value for m in two.measurements]


@pytest.mark.parametrize("clients", [1, 2, 12])
def test_any_corpus_can_be_measured(clients):
    texts = ["", "😀", "日本語", "a", "the", "...", *(f"word {i}" for i in range(6))]
    documents = corpus(texts, np.full(12, -1))
    found = report(Length(clients, 1.0), documents, vectors=np.zeros((12, 3)))
    assert found.num_clients == clients


def test_identification_is_at_chance_for_iid_and_certain_for_disjoint_words():
    rng = np.random.default_rng(0)
    owner = np.repeat([0, 1, 2], [300, 200, 100])
    own = count_words([f"mine{k} common" for k in owner]).counts
    alike = count_words([" ".join(rng.choice(list("abcdefgh"), 5)) for _ in owner]).counts
    assert identification_accuracy(own, owner, 3, rng) == 1
    assert abs(identification_accuracy(alike, owner, 3, rng) - 1 / 3) < 0.08


def test_mmd_is_unbiased_and_finds_a_shift():
    rng = np.random.default_rng(0)
    alike = [mmd2(rng.normal(size=(30, 3)), rng.normal(size=(30, 3))) for _ in range(60)]
    assert abs(np.mean(alike)) < 3 * np.std(alike) / np.sqrt(60)
    one, two = rng.normal(size=(60, 3)), rng.normal(size=(60, 3)) + 1
    assert mmd2(one, two) > 0.05


def test_frechet_distance_of_gaussians_equals_the_formula():
    """Diagonal case: |m1 - m2|^2 + sum (s1 - s2)^2."""
    rng = np.random.default_rng(0)
    one = rng.normal(size=(200_000, 2)) * [1, 2] + [0, 1]
    two = rng.normal(size=(200_000, 2)) * [3, 2] + [1, 1]
    assert abs(frechet_distance(one, two) - (1 + 4)) < 0.1
    assert frechet_distance(one, one) < 1e-6


def test_fast_formulas_equal_those_of_the_libraries():
    """The matrix product, the symmetric root and the own naive Bayes give what SciPy and scikit-learn give."""
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(40, 5)) + 100, rng.normal(size=(30, 5)) * [1, 2, 3, 1, 0.5] + 100.5
    both = np.concatenate([one, two])
    assert np.allclose(squared_distances(both), cdist(both, both, "sqeuclidean"), atol=1e-10)
    width = 2 * np.median(pdist(both, "sqeuclidean"))
    within = [(np.exp(-cdist(x, x, "sqeuclidean") / width).sum() - len(x)) / (len(x) * (len(x) - 1)) for x in (one, two)]
    assert np.isclose(mmd2(one, two), sum(within) - 2 * np.exp(-cdist(one, two, "sqeuclidean") / width).mean(), rtol=1e-10, atol=0)
    covariances = [np.cov(sample, rowvar=False) for sample in (one, two)]
    cross = np.real(sqrtm(covariances[0] @ covariances[1]))
    expected = ((one.mean(axis=0) - two.mean(axis=0)) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * cross)
    assert np.isclose(frechet_distance(one, two), expected, rtol=1e-10, atol=0)
    counts, owner = csr_array(rng.poisson(0.7, size=(300, 20)).astype(float)), rng.choice([0, 2, 3], 300)
    own = predict_clients(counts[:150], owner[:150], counts[150:], 5)
    assert (own == MultinomialNB(fit_prior=False).fit(counts[:150], owner[:150]).predict(counts[150:])).all()


def test_principal_axes_are_ordered_by_variance_and_keep_distances():
    vectors = np.random.default_rng(0).normal(size=(50, 4)) * [1, 5, 2, 3]
    found = project_principal(vectors, 4)
    assert (np.diff(found.std(axis=0)) < 0).all()
    assert np.isclose(np.linalg.norm(found[0] - found[1]), np.linalg.norm(vectors[0] - vectors[1]))


def test_documents_without_a_vector_are_not_compared():
    documents = make_topic_corpus(400)
    vectors = np.eye(4)[documents.label] + numpy_stream(0).normal(0, 0.3, (400, 4))
    vectors[::2] = np.nan
    found = report(TopicMix(4), documents, vectors=vectors)
    assert found["embedding.mmd2"].is_beyond_chance and found["embedding.frechet"].is_beyond_chance
    alike = report(TopicMix(4, 0.0), documents, vectors=vectors)
    assert not alike["embedding.mmd2"].is_beyond_chance


def test_topic_and_style_are_distinguished():
    """Topics distinguish clients by content words only, and a style on equal documents by function words only."""
    documents = make_topic_corpus(400)
    letters = str.maketrans("0123456789", "abcdefghij")  # words with digits are not content words
    topic = report(TopicMix(4), corpus([text.translate(letters) for text in documents.text], documents.label))
    assert topic["identification.content"].is_beyond_chance
    documents = make_stories(400)
    style = report(Style(3), documents)
    assert style["identification.function_words"].is_beyond_chance and not style["identification.content"].is_beyond_chance
    found = identification_accuracy(count_words(documents.text).counts, np.arange(400) % 3, 3, np.random.default_rng(0))
    assert abs(found - 1 / 3) < 0.1


def test_content_words_exclude_function_words_and_masks():
    words = ["market", "the", "won't", "user", "http", "tv", "2004", "économie", "бюджет"]
    assert [word for word in words if is_content_word(word)] == ["market", "économie", "бюджет"]
