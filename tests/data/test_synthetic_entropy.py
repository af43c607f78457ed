"""Test the lowest losses of the synthetic corpus: exact for cases computed by hand, and equal to samples otherwise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedrift.core.errors import UserError
from fedrift.core.random import numpy_stream
from fedrift.data import DatasetConfig, load_corpus
from fedrift.data.synthetic import (
    SyntheticConfig,
    corpus_nats,
    document_nats,
    domain_floor,
    domain_information,
    generate_document,
    get_language,
    mixture_floor,
)
from fedrift.data.synthetic.language import START_SYMBOL, split_sentences

from .test_synthetic_grammar import count_derivations

STYLES = ("plain", "slang", "formal", "short")
MIXED = SyntheticConfig(num_domains=4, overlap=0.9, concept_shift=0.05, styles=STYLES, words_per_class=20, mean_sentences=2)
SHORT = SyntheticConfig(num_domains=3, overlap=0.95, concept_shift=0.1, styles=("plain", "slang"), words_per_class=20, mean_sentences=1)


def is_near(values: list[float], truth: float) -> bool:
    """Return whether the mean is within three standard errors of the truth."""
    return abs(np.mean(values) - truth) < 3 * np.std(values) / math.sqrt(len(values))


@pytest.mark.parametrize("domain", [0, 1, 3])
def test_the_entropy_of_a_domain_is_the_mean_loss_of_its_documents(domain):
    made = get_language(MIXED)
    texts = [generate_document(MIXED, domain, n) for n in range(1200)]
    floor = domain_floor(made, domain)
    assert is_near([document_nats(made, text, domain) for text in texts], floor.nats)
    assert is_near([sum(map(len, split_sentences(text))) for text in texts], floor.words)


@pytest.mark.sample(2)
@pytest.mark.parametrize("config", [SHORT, MIXED])
@pytest.mark.parametrize("weights", [None, (0.6, 0.3, 0.1, 0.0)])
def test_the_conflict_of_domains_is_the_mean_loss_of_not_knowing_the_domain(config, weights):
    made = get_language(config)
    weights = weights and weights[: config.num_domains]
    share = np.full(config.num_domains, 1 / config.num_domains) if weights is None else np.array(weights)
    domains = numpy_stream(0, "test", "domains").choice(config.num_domains, size=500, p=share)
    texts = [generate_document(config, int(d), n) for n, d in enumerate(domains)]
    cost = [document_nats(made, t, weights=weights) - document_nats(made, t, int(d)) for t, d in zip(texts, domains)]
    assert is_near(cost, domain_information(made, weights))
    known = float(share @ [domain_floor(made, d).nats for d in range(config.num_domains)])
    assert mixture_floor(made, weights).nats == pytest.approx(known + domain_information(made, weights))


def test_no_sentence_of_any_style_has_two_derivations():
    made = get_language(MIXED)
    for domain, grammar in enumerate(made.grammars):
        rng = numpy_stream(domain, "test", "derivations")
        for _ in range(300):
            assert count_derivations(grammar, START_SYMBOL, grammar.sample(START_SYMBOL, rng)) == 1


def test_equally_likely_words_add_the_logarithm_of_their_number():
    few, many = (get_language(SyntheticConfig(num_domains=1, words_per_class=n, zipf_exponent=0.0, overlap=1.0)) for n in (4, 12))
    words = few.grammars[0]
    counted = {"N": 0.0, "V": 0.0}
    rng = numpy_stream(0, "test", "slots")
    for _ in range(4000):
        for word in words.sample(START_SYMBOL, rng):
            if len(word) >= 6 and word[-1] in "ai" and word not in ("da",):
                counted["N"] += 1
            elif len(word) >= 6 and word[-2:] in ("es", "en"):
                counted["V"] += 1
    slots = sum(counted.values()) / 4000
    gained = (domain_floor(many, 0).nats - domain_floor(few, 0).nats) / many.config.mean_sentences
    assert gained == pytest.approx(slots * math.log(3), rel=0.03)


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"overlap": 1.0}, 0.0),
        ({"overlap": 1.0, "concept_shift": 1.0}, math.log(4)),
        ({"overlap": 1.0, "concept_shift": 1.0, "num_domains": 1}, 0.0),
    ],
)
def test_equal_domains_and_domains_recognizable_from_every_sentence_are_the_extremes(parameters, expected):
    assert domain_information(get_language(SyntheticConfig(**parameters))) == pytest.approx(expected, abs=1e-12)


def test_without_overlap_the_first_noun_identifies_the_domain():
    assert domain_information(get_language(SyntheticConfig(overlap=0.0))) == pytest.approx(math.log(4), abs=1e-12)


def test_conflict_grows_with_each_kind_of_difference():
    def of(**parameters):
        return domain_information(get_language(SyntheticConfig(mean_sentences=1.0, words_per_class=10, **parameters)))

    assert of(overlap=1.0) < of(overlap=0.95) < of(overlap=0.8) < of(overlap=0.0)
    assert of(overlap=1.0) < of(overlap=1.0, concept_shift=0.2) < of(overlap=1.0, concept_shift=0.6)
    assert of(overlap=1.0) < of(overlap=1.0, styles=("plain", "slang")) < math.log(2)


def test_the_lowest_loss_of_documents_is_the_sum_over_the_documents():
    corpus = load_corpus(DatasetConfig("synthetic", synthetic=SHORT))
    made = get_language(SHORT)
    lost = corpus_nats(made, corpus)
    assert lost.shape == (len(corpus),) and np.isfinite(lost).all() and (lost > 0).all()
    assert lost[0] == document_nats(made, corpus.text[0], int(corpus.label[0]))


def test_a_text_outside_the_language_is_infinitely_unlikely():
    made = get_language(SHORT)
    for text in ("", "hello world.", generate_document(SHORT, 0, 0)[:-1], generate_document(SHORT, 0, 0) + " the"):
        assert document_nats(made, text, 0) == math.inf and document_nats(made, text) == math.inf


def test_documents_of_another_corpus_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\nhello there,news\nand again,news\nonce more,news\n")
    with pytest.raises(UserError, match="no domain of the synthetic corpus 'news'"):
        corpus_nats(get_language(SHORT), load_corpus(DatasetConfig(str(tmp_path / "a.csv"))))
