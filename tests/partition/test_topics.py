"""Test the three partitions by topic: their extremes, their severities, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from fedrift.core.errors import UserError
from fedrift.core.random import numpy_stream
from fedrift.partition import Dirichlet, KDomains, TopicMix
from fedrift.partition.topic_skew import alpha_from_severity, sample_dirichlet

from .corpora import corpora, corpus, make_topic_corpus


def table_of(partitioner, documents, seed=0):
    """Return tokens by client and topic, [N, T]."""
    partition = partitioner(documents, numpy_stream(seed, "partition"))
    count = len(documents.domains)
    return np.array([np.bincount(documents.label[r], documents.size[r], count) for r in partition.rows])


def divergence(table):
    """Return the generalized Jensen-Shannon divergence of the rows in bits, divided by log2 min(N, T)."""
    weight = table.sum(1) / table.sum()
    mixes = table / table.sum(1, keepdims=True)
    entropy = lambda p: -np.where(p > 0, p * np.log2(np.maximum(p, 1e-300)), 0).sum(-1)  # noqa: E731
    return (entropy(weight @ mixes) - weight @ entropy(mixes)) / np.log2(min(table.shape))


def make_unequal_topics(seed=0):
    """Return four topics of 300, 150, 100 and 50 documents."""
    rng = np.random.default_rng(seed)
    label = np.repeat(np.arange(4), [300, 150, 100, 50])
    return corpus([f"document {i}" for i in range(600)], label, size=rng.integers(5, 80, 600))


@pytest.mark.parametrize("kind", [TopicMix, Dirichlet, KDomains])
@pytest.mark.parametrize("documents", [make_topic_corpus(800), make_unequal_topics()], ids=["even", "lopsided"])
@pytest.mark.parametrize("clients", [4, 8, 10])
def test_measured_divergence_grows_with_severity(kind, documents, clients):
    found = [divergence(table_of(kind(clients, s), documents)) for s in np.linspace(0, 1, 9)]
    assert found[0] < 0.01 and found[-1] > 0.2
    assert np.diff(found).min() > -0.01


def test_at_severity_1_client_k_holds_only_topic_k_mod_t():
    for documents in (make_topic_corpus(400), make_unequal_topics()):
        for clients in (4, 5, 8, 11):
            table = table_of(TopicMix(clients, 1.0), documents)
            assert np.array_equal((table > 0).argmax(1), np.arange(clients) % 4)
            assert ((table > 0).sum(1) == 1).all()
            assert np.isclose(divergence(table) * 2, -(lambda p: p @ np.log2(p))(table.sum(0) / table.sum()))


def test_fewer_clients_than_topics_hold_several_topics():
    table = table_of(TopicMix(2, 1.0), make_topic_corpus(400, count=5))
    assert [np.flatnonzero(row).tolist() for row in table] == [[0, 2, 4], [1, 3]]


@pytest.mark.parametrize("severity, expected", [(0.25, 0.0599), (0.5, 0.2256), (0.75, 0.5033), (0.9, 0.7484), (1, 1)])
def test_topic_mix_has_the_reference_divergence(severity, expected):
    """N = 8, T = 4, topics of equal size."""
    assert abs(divergence(table_of(TopicMix(8, severity), make_topic_corpus(4000))) - expected) < 0.004


@pytest.mark.parametrize("budgets", ["domain", "equal", "trimmed"])
def test_budgets_and_pool_are_the_same_at_every_severity(budgets):
    documents = make_unequal_topics()
    found, pools = [], []
    for severity in (0.0, 0.3, 0.7, 1.0):
        partition = TopicMix(6, severity, budgets)(documents, numpy_stream(0, "partition"))
        found.append(partition.budgets(documents))
        pools.append(np.sort(np.concatenate(partition.rows)))
    assert np.abs(np.array(found) - found[0]).max() <= 2 * documents.size.max()
    assert all(np.array_equal(pool, pools[0]) for pool in pools)
    if budgets != "domain":
        assert np.ptp(found[0]) <= 2 * documents.size.max()


def test_trimmed_budgets_omit_documents_where_equal_budgets_mix_topics():
    documents = make_unequal_topics()
    trimmed, equal = (table_of(TopicMix(4, 1.0, "trimmed"), documents), table_of(TopicMix(4, 1.0, "equal"), documents))
    assert ((trimmed > 0).sum(1) == 1).all() and trimmed.sum() < documents.size.sum()
    assert ((equal > 0).sum(1) > 1).any() and equal.sum() == documents.size.sum()
    smallest = documents.size[documents.label == 3].sum()
    assert np.abs(trimmed.sum(1) - smallest).max() <= 80


@pytest.mark.parametrize("counts", [[300, 150, 100, 50], [103, 100, 100, 97]])
def test_equal_budgets_mix_topics_as_little_as_possible(counts):
    label = np.repeat(np.arange(4), counts)
    size = np.random.default_rng(0).integers(5, 80, len(label))
    documents = corpus([f"document {i}" for i in range(len(label))], label, size=size)
    equal = table_of(TopicMix(4, 1.0, "equal"), documents)
    columns, budget = equal.sum(0), equal.sum() / 4
    assert np.trace(equal) >= np.minimum(columns, budget).sum() - 4 * 80


@given(documents=corpora())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_trimming_never_assigns_a_document_twice(documents):
    partition = TopicMix(2, 1.0, "trimmed")(documents, numpy_stream(0, "partition"))
    rows = np.concatenate(partition.rows)
    assert len(np.unique(rows)) == len(rows)


def test_dirichlet_budgets_are_equal_for_extreme_draws():
    documents = make_unequal_topics()
    for severity in (0.0, 0.5, 1.0):
        assert np.ptp(table_of(Dirichlet(10, severity), documents).sum(1)) <= 2 * documents.size.max()


def test_dirichlet_alpha_is_defined_as_in_papers():
    assert [round(Dirichlet(3, s).concentration, 6) for s in (0.5, 0.75, 1.0)] == [1.0, 0.1, 0.01]
    assert np.isinf(alpha_from_severity(0.0)) and round(alpha_from_severity(1e-9), 3) == 100


def test_dirichlet_by_inversion_has_the_moments_of_the_distribution():
    concentration = np.array([0.2, 0.5, 3.0])
    drawn = sample_dirichlet(concentration, np.random.default_rng(0).random((40_000, 3)))
    mean = concentration / concentration.sum()
    assert np.allclose(drawn.sum(1), 1)
    assert np.allclose(drawn.mean(0), mean, atol=0.01)
    assert np.allclose(drawn.var(0), mean * (1 - mean) / (concentration.sum() + 1), atol=0.005)


def test_dirichlet_is_finite_where_gamma_variables_underflow():
    drawn = sample_dirichlet(np.full(4, 1e-3), np.random.default_rng(0).random((1000, 4)))
    assert np.isfinite(drawn).all() and np.allclose(drawn.sum(1), 1) and drawn.max(1).mean() > 0.99


@pytest.mark.parametrize("clients, severity, each", [(8, 0, 4), (8, 1 / 3, 3), (8, 2 / 3, 2), (8, 1, 1), (6, 2 / 3, 2)])
def test_every_client_has_k_domains_with_equally_many_clients_each(clients, severity, each):
    table = table_of(KDomains(clients, severity), make_topic_corpus(800))
    assert ((table > 0).sum(1) == each).all()
    assert ((table > 0).sum(0) == clients * each / 4).all()
    assert np.ptp(table.sum(1)) < 0.1 * table.sum() / clients


def test_at_severity_1_clients_have_as_few_domains_as_cover_all():
    assert ((table_of(KDomains(2, 1.0), make_topic_corpus(400, count=5)) > 0).sum(1) <= 3).all()
    assert ((table_of(KDomains(7, 1.0), make_topic_corpus(400, count=4)) > 0).sum(1) == 1).all()


def test_k_domains_budgets_are_equal_if_the_topics_divide_the_clients():
    documents = make_unequal_topics()
    found = np.array([table_of(KDomains(8, s), documents).sum(1) for s in (0, 1 / 3, 2 / 3, 1)])
    assert np.abs(found - found[0]).max() <= 2 * documents.size.max()


@pytest.mark.parametrize("kind", [TopicMix, Dirichlet, KDomains])
def test_a_corpus_without_labels_or_with_one_topic_is_refused(kind):
    texts = [f"t{i}" for i in range(20)]
    with pytest.raises(UserError, match=r"20 of the 20 documents .*dataset\.num_clusters"):
        kind(4)(corpus(texts, np.full(20, -1)), numpy_stream(0))
    with pytest.raises(UserError, match="at least 2 topics, but corpus 'small' has 1: topic0"):
        kind(4)(corpus(texts, np.zeros(20)), numpy_stream(0))


def test_a_domain_without_documents_is_not_a_topic():
    documents = corpus([f"t{i}" for i in range(20)], np.arange(20) % 2 * 2, domains=("a", "b", "c"))
    assert table_of(TopicMix(2, 1.0), documents).tolist() == [[10, 0, 0], [0, 0, 10]]


def test_alpha_is_the_concentration_and_its_baseline_has_severity_0():
    from fedrift.config.schema import parse_config
    from fedrift.core.errors import UserError

    documents = make_unequal_topics()
    assert np.array_equal(table_of(Dirichlet(4, alpha=0.1), documents), table_of(Dirichlet(4, 0.75), documents))
    assert (Dirichlet(alpha=0.3).concentration, Dirichlet(severity=0.0, alpha=0.3).concentration) == (0.3, np.inf)
    yaml = {"dataset": "bbc", "partition": {"type": "dirichlet", "alpha": 0.1}}
    one, other = parse_config(yaml), parse_config(yaml, ["partition.alpha=0.5"])
    assert one.id != other.id and one.iid_baseline().id == other.iid_baseline().id
    assert one.iid_baseline() == parse_config(yaml, ["partition.alpha=null"]).iid_baseline() and parse_config(one.to_dict()) == one
    for wrong, why in (
        ("{type: Dirichlet, alpha: 0.1, severity: 0.5}", "`severity` or `alpha`"),
        ("{type: Dirichlet, alpha: 0}", "alpha: expected"),
    ):
        with pytest.raises(UserError, match=why):
            parse_config({"dataset": "bbc"}, [f"partition={wrong}"])
