"""The sandbox as a corpus: the same everywhere, and its dials do what they say."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from fedrift.config import canonical
from fedrift.corpus import Source, load_corpus
from fedrift.corpus.sandbox import Sandbox, document, language
from fedrift.corpus.sandbox.language import START
from fedrift.corpus.sandbox.text import parsed, spelled
from fedrift.errors import UserError
from fedrift.experiment import parse
from fedrift.seeds import numpy_stream

SMALL = Sandbox(domains=3, documents=90, words=20)


def corpus(**said):
    return load_corpus(Source("sandbox", sandbox=replace(SMALL, **said)))


def words_of(corpus, domain: str) -> set[str]:
    rows = corpus.label == corpus.domains.index(domain)
    return {word for text in corpus.text[rows] for word in re.findall(r"[a-z]+", text)}


def test_it_is_a_corpus_like_any_other():
    made = corpus()
    assert made.domains == ("domain0", "domain1", "domain2")
    assert len(made) + sum(made.cleaned.values()) == 90
    assert (np.bincount(made.label) >= 28).all()
    assert len(made.train) and len(made.validation) and len(made.test)


def test_the_same_dials_make_the_same_corpus_and_another_seed_another():
    assert corpus().content == corpus().content
    assert corpus().content != corpus(seed=1).content
    # a golden text: what a seed means must not change
    assert document(SMALL, 0, 0) == GOLDEN


GOLDEN = "every ligota beside a zikata zopales. these vipeki will disaken."


def test_more_documents_keep_the_earlier_ones():
    assert set(corpus(documents=60).text) < set(corpus(documents=90).text)


def test_a_source_without_dials_keeps_the_id_it_had():
    assert canonical(Source("bbc")) == {"is": "Source", "name": "bbc"}
    assert canonical(Source("sandbox", sandbox=Sandbox())) == {"is": "Source", "name": "sandbox"}
    assert canonical(Source("sandbox", sandbox=SMALL))["sandbox"] == {
        "is": "Sandbox", "domains": 3, "documents": 90, "words": 20}


def test_its_dials_are_turned_in_yaml_and_on_the_command_line_and_checked_at_the_door():
    said = {"corpus": "sandbox"}
    assert parse(said, ["corpus.sandbox.overlap=0.25"]).corpus.sandbox == Sandbox(overlap=0.25)
    for wrong, told in (("overlp=1", "did you mean 'overlap'"), ("overlap=2", "from 0 to 1"),
                        ("styles=[posh]", "posh")):
        with pytest.raises(UserError, match=told):
            parse(said, [f"corpus.sandbox.{wrong}"])


def test_dials_on_another_corpus_are_refused():
    with pytest.raises(UserError, match="not of 'bbc'"):
        load_corpus(Source("bbc", sandbox=SMALL))


def test_without_overlap_no_noun_or_verb_is_shared_and_with_full_overlap_all_are():
    made = corpus(overlap=0.0, documents=300)
    vocabulary = language(replace(SMALL, overlap=0.0, documents=300)).vocabulary
    closed = {"the", "that", "near", "itself"}
    shared = words_of(made, "domain0") & words_of(made, "domain1")
    assert closed < shared and all(len(word) < 6 or word in CLOSED for word in shared)
    own = {form for word in vocabulary.own[0].nouns for form in word}
    assert own & words_of(made, "domain0") and not own & words_of(made, "domain1")
    alike = corpus(overlap=1.0, documents=300)
    assert not {w for d in alike.domains for w in words_of(alike, d)} & own


CLOSED = {"itself", "themselves", "behind", "beside"}


@pytest.mark.parametrize(("style", "has", "not_"), [
    ("plain", "the", "da"), ("formal", "said", "da"), ("slang", "da", "the"), ("short", "some", "the")])
def test_a_style_is_its_own_closed_class_words(style, has, not_):
    words = words_of(corpus(styles=(style,)), "domain0")
    assert has in words and not_ not in words


def test_concept_shift_leaves_the_frequency_of_words_alone():
    made = language(Sandbox(domains=3, concept=1.0, overlap=1.0, words=5))
    rng = numpy_stream(0, "test", "concept")
    seen = []
    for grammar in made.grammars[:2]:
        sentences = [grammar.draw(START, rng) for _ in range(4000)]
        seen.append([{w: n / 4000 for w, n in zip(*np.unique(col, return_counts=True))}
                     for col in ([s[-3] for s in sentences], [s[-2] for s in sentences])]
                    + [{tuple(s[-3:-1]) for s in sentences}])
    for place in (0, 1):  # noun, verb: the same words, as often
        assert seen[0][place].keys() == seen[1][place].keys()
        assert max(abs(seen[0][place][w] - seen[1][place][w]) for w in seen[0][place]) < 0.02
    assert not seen[0][2] & seen[1][2]  # and no pair of them in both


def test_text_and_words_are_two_spellings_of_one_thing():
    grammar = language(SMALL).grammars[0]
    rng = numpy_stream(1, "test", "spelling")
    sentences = [grammar.draw(START, rng) for _ in range(50)]
    assert parsed(" ".join(map(spelled, sentences))) == sentences


def test_documents_are_as_long_as_was_said():
    count = [len(parsed(document(SMALL, 0, n))) for n in range(800)]
    assert np.mean(count) == pytest.approx(SMALL.sentences, abs=3 * np.std(count) / np.sqrt(800))
    assert {len(parsed(document(replace(SMALL, sentences=1.0), 0, n))) for n in range(20)} == {1}
