"""Test that minimal pairs are correct by construction, differ in one place, and have equal lengths."""

from __future__ import annotations

import math

import pytest

from fedrift.core.errors import UserError
from fedrift.data.synthetic import PHENOMENA, SyntheticConfig, document_nats, get_language, make_minimal_pairs
from fedrift.data.synthetic.language import split_sentences

PHENOMENA_AND_DOMAINS = get_language(
    SyntheticConfig(num_domains=4, styles=("plain", "formal", "slang", "short"), concept_shift=0.1, words_per_class=30)
)


def test_all_documented_phenomena_exist():
    assert len(PHENOMENA) >= 8


@pytest.mark.parametrize("phenomenon", PHENOMENA)
@pytest.mark.parametrize("domain", [None, 2])
def test_the_good_sentence_is_in_the_language_and_the_bad_one_in_no_domain(phenomenon, domain):
    for pair in make_minimal_pairs(PHENOMENA_AND_DOMAINS, phenomenon, 24, domain=domain):
        speakers = range(4) if domain is None else [domain]
        assert all(document_nats(PHENOMENA_AND_DOMAINS, pair.good, d) < math.inf for d in speakers), pair
        assert all(document_nats(PHENOMENA_AND_DOMAINS, pair.bad, d) == math.inf for d in range(4)), pair


@pytest.mark.parametrize("phenomenon", PHENOMENA)
def test_the_sentences_of_a_pair_differ_in_one_place_and_have_equally_many_words(phenomenon):
    pairs = make_minimal_pairs(PHENOMENA_AND_DOMAINS, phenomenon, 100)
    assert len({(pair.good, pair.bad) for pair in pairs}) == 100
    for pair in pairs:
        (good,), (bad,) = split_sentences(pair.good), split_sentences(pair.bad)
        assert len(good) == len(bad)
        differ = [place for place, (g, b) in enumerate(zip(good, bad)) if g != b]
        if phenomenon == "word order":
            assert differ == [0, 1] and sorted(good) == sorted(bad)
        else:
            assert len(differ) == 1, pair


def test_attractors_disagree_in_half_of_the_templates():
    templates = {pair.template for pair in make_minimal_pairs(PHENOMENA_AND_DOMAINS, "agreement across a phrase", 100)}
    assert templates == {f"agreement across a phrase, {n} {m}" for n in ("sg", "pl") for m in ("sg", "pl")}


def test_inflected_pairs_have_equally_many_letters():
    for phenomenon in ("agreement", "agreement across a relative clause", "verb form", "filler and gap"):
        assert all(len(pair.good) == len(pair.bad) for pair in make_minimal_pairs(PHENOMENA_AND_DOMAINS, phenomenon, 50))


def pieces(text: str) -> int:
    """Return pieces of at most four letters, as a simple tokenizer."""
    return sum(-(-len(word) // 4) for (sentence,) in [split_sentences(text)] for word in sentence)


@pytest.mark.parametrize("phenomenon", sorted(set(PHENOMENA) - {"anaphor"}))
def test_the_sentences_of_a_pair_have_equally_many_tokens(phenomenon):
    pairs = make_minimal_pairs(PHENOMENA_AND_DOMAINS, phenomenon, 30, count_tokens=pieces)
    assert all(pieces(pair.good) == pieces(pair.bad) for pair in pairs)


def test_a_tokenizer_without_such_pairs_is_refused():
    assert any(pieces(pair.good) != pieces(pair.bad) for pair in make_minimal_pairs(PHENOMENA_AND_DOMAINS, "negative polarity", 30))
    with pytest.raises(UserError, match="only 0 of 3 pairs of 'anaphor' could be generated with equally many tokens"):
        make_minimal_pairs(PHENOMENA_AND_DOMAINS, "anaphor", 3, count_tokens=pieces)


def test_pairs_are_equal_for_equal_seeds_only():
    assert make_minimal_pairs(PHENOMENA_AND_DOMAINS, "anaphor", 9) == make_minimal_pairs(PHENOMENA_AND_DOMAINS, "anaphor", 9)
    assert make_minimal_pairs(PHENOMENA_AND_DOMAINS, "anaphor", 9) != make_minimal_pairs(PHENOMENA_AND_DOMAINS, "anaphor", 9, seed=1)
    assert make_minimal_pairs(PHENOMENA_AND_DOMAINS, "anaphor", 9) == make_minimal_pairs(PHENOMENA_AND_DOMAINS, "anaphor", 20)[:9]


@pytest.mark.parametrize(("overlap", "domain", "said"), [(0.0, None, "that all domains share"), (1.0, 0, "that belong to one domain only")])
def test_phenomena_without_words_are_refused(overlap, domain, said):
    with pytest.raises(UserError, match=said):
        make_minimal_pairs(get_language(SyntheticConfig(overlap=overlap, words_per_class=5)), "agreement", 2, domain=domain)


def test_more_pairs_than_exist_are_refused():
    with pytest.raises(UserError, match="only 6 of 20 pairs"):
        make_minimal_pairs(get_language(SyntheticConfig(words_per_class=1)), "agreement", 20)


def test_a_wrong_name_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match="did you mean 'anaphor'"):
        make_minimal_pairs(PHENOMENA_AND_DOMAINS, "anafor", 1)
