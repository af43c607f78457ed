"""Minimal pairs and their scores: under models whose likings are known."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedrift.corpus.corpus import TRAIN, Corpus
from fedrift.corpus.sandbox import PHENOMENA as SANDBOX_PHENOMENA
from fedrift.corpus.sandbox import Sandbox
from fedrift.errors import UserError
from fedrift.models.load import load_model
from fedrift.models.stacked import StackedModel
from fedrift.models.tune import Lora
from fedrift.probes.held_out import HeldOut
from fedrift.probes.syntax import Syntax, ids, lexicon_of, pairs_for, syntax
from fedrift.probes.syntax_pairs import english_pairs
from fedrift.probes.syntax_patterns import PHENOMENA
from fedrift.probes.syntax_words import ENGLISH, LEAST, Lexicon, forms, nouns, shared_lexicon, verbs
from fedrift.tree import Tree
from tests.models.tiny import random_model
from tests.probes.rounds import a_round, regrouped, stacked
from tests.worlds import byte_tokenizer

TOKENIZER = byte_tokenizer()


class Liking:
    """A model that charges each word by its own price; params do not matter unless they are large."""

    def __init__(self, price) -> None:
        self.price = price

    def sums(self, params, tokens, keep):
        cost = torch.tensor([[self.price(int(token)) for token in line] for line in tokens[0]], dtype=torch.float64)
        cost = cost * next(iter(params.values())).view(-1)[0]
        return (cost * keep[0])[:, 1:].sum(1)[None], keep[:, :, 1:].sum(2)


def one(value: float = 1.0) -> Tree:
    return Tree(x=torch.full((1, 1), value, dtype=torch.float64))


def probe(price, pairs) -> Syntax:
    return syntax(Liking(price), TOKENIZER, pairs)


def corpus(texts: dict[str, list[str]]) -> Corpus:
    flat = [(text, number) for number, domain in enumerate(texts) for text in texts[domain]]
    many = len(flat)
    return Corpus("made up", np.array([text for text, _ in flat], dtype=object), np.array([label for _, label in flat]),
                  tuple(texts), np.array([""] * many, dtype=object), np.full(many, TRAIN, dtype=np.int8),
                  np.ones(many, dtype=np.int64))


# The sentences.

def test_there_are_the_phenomena_that_were_promised():
    assert len(PHENOMENA) >= 8
    assert {name for name in SANDBOX_PHENOMENA} - {"agreement in a relative clause"} <= PHENOMENA.keys()


@pytest.mark.parametrize("phenomenon", PHENOMENA)
def test_a_hundred_pairs_differ_in_one_place_or_in_an_order(phenomenon):
    pairs = english_pairs(phenomenon, 100)
    assert len({(pair.good, pair.bad) for pair in pairs}) == 100
    for pair in pairs:
        good, bad = (text.rstrip(".").split() for text in (pair.good, pair.bad))
        assert len(good) == len(bad) and good != bad
        differ = [place for place, (g, b) in enumerate(zip(good, bad)) if g != b]
        if phenomenon == "word order":
            assert len(differ) == 2 and differ[1] == differ[0] + 1 and sorted(good) == sorted(bad)
        else:
            assert len(differ) == 1, pair


@pytest.mark.parametrize("phenomenon", PHENOMENA)
def test_templates_are_used_alike(phenomenon):
    used = Counter(pair.template for pair in english_pairs(phenomenon, 100))
    assert len(used) == 2 * len(PHENOMENA[phenomenon]) >= 4
    assert max(used.values()) - min(used.values()) <= 1


def test_a_right_sentence_is_never_another_pairs_wrong_one():
    pairs = [pair for name in PHENOMENA for pair in english_pairs(name, 100)]
    assert not {pair.good for pair in pairs} & {pair.bad for pair in pairs}


def test_no_form_of_a_verb_is_another_verbs():
    """Otherwise the wrong sentence may be right: ``did not found the club``."""
    forms_of = [set(verb) for verb in ENGLISH.transitive + ENGLISH.intransitive]
    assert sum(map(len, forms_of)) == len(set().union(*forms_of))


@pytest.mark.parametrize("phenomenon", PHENOMENA)
def test_with_a_tokenizer_both_sentences_have_equally_many_tokens(phenomenon):
    count = lambda text: len(ids(TOKENIZER, text))  # noqa: E731
    pairs = english_pairs(phenomenon, 40, tokens=count)
    assert all(count(pair.good) == count(pair.bad) for pair in pairs)


def test_a_template_without_such_pairs_is_left_out():
    """Counted by letters, only himself and herself are alike."""
    assert {pair.template for pair in english_pairs("anaphor", 30, tokens=len)} == {"anaphor_gender, sg"}
    assert english_pairs("determiner and noun", 30, tokens=lambda text: sum(map(ord, text))) == []


def test_pairs_are_the_same_for_the_same_seed_only():
    assert english_pairs("agreement", 9) == english_pairs("agreement", 9) == english_pairs("agreement", 20)[:9]
    assert english_pairs("agreement", 9) != english_pairs("agreement", 9, seed=1)


def test_a_wrong_name_gets_the_nearest_right_one():
    with pytest.raises(UserError, match="did you mean 'anaphor'"):
        english_pairs("anafor", 1)


# The words.

def test_only_words_that_every_domain_uses_are_asked():
    everywhere = "The teacher made a report. The teachers made reports. " * 2
    texts = {"a": [everywhere, everywhere + "x", "guys and guy", "a guy, guys"], "b": [everywhere, everywhere + "y"]}
    lexicon = lexicon_of(corpus(texts))
    assert lexicon.people[0] == ("teacher", "teachers") and lexicon.things[0] == ("report", "reports")
    assert len(lexicon.people) == LEAST and lexicon.people[1] == ("guy", "guys")  # filled up with what most domains hold


def test_a_word_of_one_document_is_not_a_domains_word():
    said = ["the teacher and the teachers", "teachers", "teacher"]
    assert lexicon_of(corpus({"a": said, "b": said})).people[0] == ("teacher", "teachers")
    assert lexicon_of(corpus({"a": said[:1], "b": said[:1]})) == shared_lexicon(ENGLISH, {}, 2)


def test_a_corpus_that_has_them_all_leaves_the_lexicon_as_it_is():
    holders = dict.fromkeys(forms(ENGLISH), 3)
    assert shared_lexicon(ENGLISH, holders, 3) == ENGLISH


def test_forms_are_spelled_as_english_does():
    assert nouns("boy man/men") == (("boy", "boys"), ("man", "men"))
    assert verbs("use take/took/taken keep/kept") == (("use", "uses", "used", "used"), ("take", "takes", "took", "taken"),
                                                      ("keep", "keeps", "kept", "kept"))
    assert isinstance(ENGLISH, Lexicon) and {"children", "stories"} <= forms(ENGLISH)


def test_the_sandbox_is_asked_in_its_own_language():
    pairs = pairs_for(corpus({"a": ["x"]}), TOKENIZER, Sandbox(documents=4), 0, count=8)
    assert {pair.phenomenon for pair in pairs} <= SANDBOX_PHENOMENA.keys() and len({pair.phenomenon for pair in pairs}) >= 8
    assert pairs_for(corpus({"a": ["x"]}), TOKENIZER, Sandbox(documents=4, overlap=0.0), 0, count=8) == []


# The scores.

def test_a_model_that_dislikes_the_wrong_word_gets_every_pair():
    pairs = english_pairs("determiner and noun", 12)
    found = syntax(Sentences({pair.bad: 3.0 for pair in pairs}), TOKENIZER, pairs).scores(one())
    assert found.tolist() == [[1.0, 3.0]]
    found = syntax(Sentences({pair.good: 3.0 for pair in pairs}), TOKENIZER, pairs).scores(one())
    assert found.tolist() == [[0.0, -3.0]]


class Sentences:
    """A model that charges whole sentences."""

    def __init__(self, price: dict[str, float]) -> None:
        self.price = {tuple(ids(TOKENIZER, text)): cost for text, cost in price.items()}

    def sums(self, params, tokens, keep):
        lines = [tuple(line[kept].tolist()) for line, kept in zip(tokens[0], keep[0], strict=True)]
        assert all(line[0] == TOKENIZER.eos_token_id for line in lines)
        return torch.tensor([[self.price.get(line[1:], 0.0) for line in lines]]), keep[:, :, 1:].sum(2)


def test_a_model_that_cannot_tell_is_at_chance():
    pairs = english_pairs("agreement", 10) + english_pairs("word order", 10)
    assert probe(lambda token: 1.5, pairs).scores(one())[1].tolist() == [0.5, 0.0]


def test_a_model_that_blew_up_has_no_score():
    pairs = english_pairs("agreement", 10)
    assert probe(lambda token: 1.0, pairs).scores(one(float("nan"))).isnan().all()


def test_phenomena_count_the_same_whatever_their_number_of_pairs():
    first, second = english_pairs("agreement", 30), english_pairs("filler and gap", 10)
    looking = syntax(Sentences({pair.bad: 1.0 for pair in first}), TOKENIZER, first + second)
    model = stacked()
    reading = looking.of(a_round(model, [0.0]).before)
    assert reading["syntax.accuracy", "agreement"] == 1 and reading["syntax.accuracy", "filler and gap"] == 0.5
    assert reading["syntax.accuracy"].item() == pytest.approx(0.75)
    assert reading["syntax.margin"].item() == pytest.approx(0.5)
    assert looking.margins(one()).tolist() == [1.0] * 30 + [0.0] * 10


def test_several_models_are_weighed_by_whom_they_serve():
    pairs = english_pairs("agreement", 10, tokens=lambda text: len(ids(TOKENIZER, text)))
    looking = probe(lambda token: float(token), pairs)
    done = a_round(stacked(), [0.0] * 4)
    alone = looking.of(regrouped(done.after, [0, 0, 0, 0], one(1.0)))["syntax.margin"].item()
    two = Tree(x=torch.cat([one(1.0)["x"], one(3.0)["x"]]))
    assert looking.of(regrouped(done.after, [0, 0, 0, 1], two))["syntax.margin"].item() == pytest.approx(1.5 * alone)


def test_padding_and_company_change_no_score():
    language = random_model("llama", TOKENIZER)
    model = StackedModel(language.network.double(), Lora(rank=2))
    pairs = english_pairs("agreement", 12) + english_pairs("agreement across a relative clause", 12)
    together = syntax(model, TOKENIZER, pairs).margins(model.template())
    in_parts = syntax(model, TOKENIZER, pairs, chunk=100).margins(model.template())
    assert torch.allclose(together, in_parts, atol=1e-9)
    for row in (0, 13, 23):
        values = []
        for text in (pairs[row].good, pairs[row].bad):
            line = torch.tensor([[TOKENIZER.eos_token_id, *ids(TOKENIZER, text)]])
            logs = language.network(input_ids=line).logits[0, :-1].log_softmax(-1)
            values.append(logs.gather(1, line[0, 1:, None]).sum().item())
        assert together[row].item() == pytest.approx(values[0] - values[1], abs=1e-9)


@pytest.fixture(scope="module")
def pocket(tmp_path_factory):
    language = load_model("pocket", cache=tmp_path_factory.mktemp("cache"))
    return StackedModel(language.network, Lora()), language.tokenizer


def test_pocket_knows_grammar_and_less_when_its_weights_are_noise(pocket):
    model, tokenizer = pocket
    count = lambda text: len(ids(tokenizer, text))  # noqa: E731
    pairs = [pair for name in PHENOMENA for pair in english_pairs(name, 12, tokens=count)]
    assert len(pairs) == 12 * len(PHENOMENA)
    looking = syntax(model, tokenizer, pairs)
    start = model.template()
    margins = looking.margins(start).numpy()
    of = np.array([pair.phenomenon for pair in pairs])
    for name in ("agreement", "verb form", "word order", "pronoun case"):
        assert (margins[of == name] > 0).mean() > 0.8 and margins[of == name].mean() > 1, name
    draw = torch.Generator().manual_seed(0)
    worse = start.map(lambda leaf: leaf + 0.3 * torch.randn(leaf.shape, generator=draw))
    assert looking.scores(worse)[:, 0].mean() < (margins > 0).mean() - 0.1
    attractor = np.array(["attractor" in pair.template for pair in pairs])
    across = np.array([pair.phenomenon.startswith("agreement across") for pair in pairs])
    assert margins[across & ~attractor].mean() > margins[across & attractor].mean()


def test_a_bench_makes_a_look(pocket):
    from fedrift.probes.syntax import looks
    model, tokenizer = pocket
    bench = SimpleNamespace(judge=model, tokenizer=tokenizer, corpus=corpus({"a": ["the teacher"]}), sandbox=None, seed=0,
                            chunk=8192, held_out=HeldOut, pairs=100)
    (look,) = looks(bench)
    assert look.name == "syntax" and look.when == "deep" and len(look.probe.pairs) == 100 * len(PHENOMENA)
    assert 15_000 < look.tokens < 25_000
