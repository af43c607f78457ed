"""Test the synthetic corpus: it is reproducible, and its parameters have the documented effects."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from fedrift.config.schema import parse_config
from fedrift.core.errors import UserError
from fedrift.core.random import numpy_stream
from fedrift.data import DatasetConfig, load_corpus
from fedrift.data.synthetic import SyntheticConfig, generate_document, get_language
from fedrift.data.synthetic.language import START_SYMBOL, join_words, split_sentences

SMALL = SyntheticConfig(num_domains=3, num_documents=90, words_per_class=20)


def corpus(**said):
    return load_corpus(DatasetConfig("synthetic", synthetic=replace(SMALL, **said)))


def words_of(corpus, domain: str) -> set[str]:
    rows = corpus.label == corpus.domains.index(domain)
    return {word for text in corpus.text[rows] for word in re.findall(r"[a-z]+", text)}


def test_the_synthetic_corpus_has_all_fields_of_a_corpus():
    made = corpus()
    assert made.domains == ("domain0", "domain1", "domain2")
    assert len(made) + sum(made.drop_counts.values()) == 90
    assert (np.bincount(made.label) >= 28).all()
    assert len(made.train) and len(made.validation) and len(made.test)


def test_equal_parameters_give_equal_corpora_and_another_seed_another_corpus():
    assert corpus().fingerprint == corpus().fingerprint
    assert corpus().fingerprint != corpus(seed=1).fingerprint
    # the text that a seed gives must never change
    assert generate_document(SMALL, 0, 0) == GOLDEN


GOLDEN = "every ligota beside a zikata zopales. these vipeki will disaken."


def test_more_documents_keep_the_first_ones():
    assert set(corpus(num_documents=60).text) < set(corpus(num_documents=90).text)


def test_parameters_are_written_with_the_synthetic_corpus_only():
    assert "synthetic" not in DatasetConfig("bbc").to_dict()
    assert DatasetConfig("synthetic", synthetic=SMALL).to_dict()["synthetic"] == {
        "num_domains": 3,
        "num_documents": 90,
        "overlap": 0.5,
        "concept_shift": 0.0,
        "styles": ["plain"],
        "words_per_class": 20,
        "zipf_exponent": 1.0,
        "modifier_rate": 0.2,
        "mean_sentences": 6.0,
        "seed": 0,
    }


def test_parameters_are_set_in_yaml_and_by_overrides_and_are_validated():
    said = {"dataset": "synthetic"}
    assert parse_config(said, ["dataset.synthetic.overlap=0.25"]).dataset.synthetic == SyntheticConfig(overlap=0.25)
    for wrong, message in (("overlp=1", "did you mean 'overlap'"), ("overlap=2", "from 0 to 1"), ("styles=[posh]", "posh")):
        with pytest.raises(UserError, match=message):
            parse_config(said, [f"dataset.synthetic.{wrong}"])


def test_parameters_for_another_corpus_are_refused():
    with pytest.raises(UserError, match=r"dataset\.name is 'bbc'"):
        load_corpus(DatasetConfig("bbc", synthetic=SMALL))


def test_without_overlap_no_noun_or_verb_is_shared_and_with_full_overlap_all_are():
    made = corpus(overlap=0.0, num_documents=300)
    vocabulary = get_language(replace(SMALL, overlap=0.0, num_documents=300)).vocabulary
    closed = {"the", "that", "near", "itself"}
    shared = words_of(made, "domain0") & words_of(made, "domain1")
    assert closed < shared and all(len(word) < 6 or word in CLOSED for word in shared)
    own = {form for word in vocabulary.own[0].nouns for form in word}
    assert own & words_of(made, "domain0") and not own & words_of(made, "domain1")
    alike = corpus(overlap=1.0, num_documents=300)
    assert not {w for d in alike.domains for w in words_of(alike, d)} & own


CLOSED = {"itself", "themselves", "behind", "beside"}


@pytest.mark.parametrize(
    ("style", "has", "not_"), [("plain", "the", "da"), ("formal", "said", "da"), ("slang", "da", "the"), ("short", "some", "the")]
)
def test_a_style_has_its_own_closed_class_words(style, has, not_):
    words = words_of(corpus(styles=(style,)), "domain0")
    assert has in words and not_ not in words


def test_concept_shift_does_not_change_word_frequencies():
    made = get_language(SyntheticConfig(num_domains=3, concept_shift=1.0, overlap=1.0, words_per_class=5))
    rng = numpy_stream(0, "test", "concept")
    seen = []
    for grammar in made.grammars[:2]:
        sentences = [grammar.sample(START_SYMBOL, rng) for _ in range(4000)]
        seen.append(
            [
                {w: n / 4000 for w, n in zip(*np.unique(col, return_counts=True))}
                for col in ([s[-3] for s in sentences], [s[-2] for s in sentences])
            ]
            + [{tuple(s[-3:-1]) for s in sentences}]
        )
    for place in (0, 1):  # nouns and verbs: the same words, equally often
        assert seen[0][place].keys() == seen[1][place].keys()
        assert max(abs(seen[0][place][w] - seen[1][place][w]) for w in seen[0][place]) < 0.02
    assert not seen[0][2] & seen[1][2]  # the domains share no pair


def test_text_and_words_are_equivalent():
    grammar = get_language(SMALL).grammars[0]
    rng = numpy_stream(1, "test", "spelling")
    sentences = [grammar.sample(START_SYMBOL, rng) for _ in range(50)]
    assert split_sentences(" ".join(map(join_words, sentences))) == sentences


def test_documents_have_the_configured_length():
    count = [len(split_sentences(generate_document(SMALL, 0, n))) for n in range(800)]
    assert np.mean(count) == pytest.approx(SMALL.mean_sentences, abs=3 * np.std(count) / np.sqrt(800))
    assert {len(split_sentences(generate_document(replace(SMALL, mean_sentences=1.0), 0, n))) for n in range(20)} == {1}
