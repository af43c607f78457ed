"""Test the minimal pairs and their scores with models of known preferences."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedrift.core.errors import UserError
from fedrift.core.tree import Tree
from fedrift.data.corpus import TRAIN, Corpus
from fedrift.data.synthetic import PHENOMENA as SANDBOX_PHENOMENA
from fedrift.data.synthetic import SyntheticConfig
from fedrift.models.load import load_model
from fedrift.models.stacked_model import StackedModel
from fedrift.models.trainable import Lora
from fedrift.probes.held_out import HeldOut
from fedrift.probes.syntax import MinimalPairProbe, build_lexicon, build_syntax_probe, generate_english_pairs, select_pairs, token_ids
from fedrift.probes.syntax_templates import (
    ENGLISH_LEXICON,
    ENGLISH_PHENOMENA,
    MIN_CLASS_WORDS,
    Lexicon,
    parse_nouns,
    parse_verbs,
    select_shared_lexicon,
    word_forms,
)
from tests.models.tiny import random_model
from tests.probes.rounds import make_round, stacked, with_clusters
from tests.small_experiment import byte_tokenizer

TOKENIZER = byte_tokenizer()


class WordCostModel:
    """A model with a given loss for each word; its parameters have no effect unless they are large."""

    def __init__(self, price) -> None:
        self.price = price

    def sequence_losses(self, params, tokens, keep):
        cost = torch.tensor([[self.price(int(token)) for token in line] for line in tokens[0]], dtype=torch.float64)
        cost = cost * next(iter(params.values())).view(-1)[0]
        return (cost * keep[0])[:, 1:].sum(1)[None], keep[:, :, 1:].sum(2)


def one(value: float = 1.0) -> Tree:
    return Tree(x=torch.full((1, 1), value, dtype=torch.float64))


def probe(price, pairs) -> MinimalPairProbe:
    return build_syntax_probe(WordCostModel(price), TOKENIZER, pairs)


def corpus(texts: dict[str, list[str]]) -> Corpus:
    flat = [(text, number) for number, domain in enumerate(texts) for text in texts[domain]]
    many = len(flat)
    return Corpus(
        "made up",
        np.array([text for text, _ in flat], dtype=object),
        np.array([label for _, label in flat]),
        tuple(texts),
        np.array([""] * many, dtype=object),
        np.full(many, TRAIN, dtype=np.int8),
        np.ones(many, dtype=np.int64),
    )


# The sentences


def test_all_documented_phenomena_exist():
    assert len(ENGLISH_PHENOMENA) >= 8
    assert {name for name in SANDBOX_PHENOMENA} - {"agreement in a relative clause"} <= ENGLISH_PHENOMENA.keys()


@pytest.mark.parametrize("phenomenon", ENGLISH_PHENOMENA)
def test_a_hundred_pairs_differ_in_one_place_or_in_an_order(phenomenon):
    pairs = generate_english_pairs(phenomenon, 100)
    assert len({(pair.good, pair.bad) for pair in pairs}) == 100
    for pair in pairs:
        good, bad = (text.rstrip(".").split() for text in (pair.good, pair.bad))
        assert len(good) == len(bad) and good != bad
        differ = [place for place, (g, b) in enumerate(zip(good, bad)) if g != b]
        if phenomenon == "word order":
            assert len(differ) == 2 and differ[1] == differ[0] + 1 and sorted(good) == sorted(bad)
        else:
            assert len(differ) == 1, pair


@pytest.mark.parametrize("phenomenon", ENGLISH_PHENOMENA)
def test_templates_are_used_equally_often(phenomenon):
    used = Counter(pair.template for pair in generate_english_pairs(phenomenon, 100))
    assert len(used) == 2 * len(ENGLISH_PHENOMENA[phenomenon]) >= 4
    assert max(used.values()) - min(used.values()) <= 1


def test_a_correct_sentence_is_never_wrong_in_another_pair():
    pairs = [pair for name in ENGLISH_PHENOMENA for pair in generate_english_pairs(name, 100)]
    assert not {pair.good for pair in pairs} & {pair.bad for pair in pairs}


def test_no_form_of_a_verb_is_a_form_of_another_verb():
    """Otherwise the wrong sentence could be correct: ``did not found the club``."""
    forms_of = [set(verb) for verb in ENGLISH_LEXICON.transitive + ENGLISH_LEXICON.intransitive]
    assert sum(map(len, forms_of)) == len(set().union(*forms_of))


@pytest.mark.parametrize("phenomenon", ENGLISH_PHENOMENA)
def test_with_a_tokenizer_both_sentences_have_equally_many_tokens(phenomenon):
    count = lambda text: len(token_ids(TOKENIZER, text))  # noqa: E731
    pairs = generate_english_pairs(phenomenon, 40, count_tokens=count)
    assert all(count(pair.good) == count(pair.bad) for pair in pairs)


def test_a_template_without_such_pairs_is_omitted():
    """If letters are tokens, only himself and herself have equal lengths."""
    assert {pair.template for pair in generate_english_pairs("anaphor", 30, count_tokens=len)} == {"anaphor_gender, sg"}
    assert generate_english_pairs("determiner and noun", 30, count_tokens=lambda text: sum(map(ord, text))) == []


def test_pairs_are_equal_for_equal_seeds_only():
    assert generate_english_pairs("agreement", 9) == generate_english_pairs("agreement", 9) == generate_english_pairs("agreement", 20)[:9]
    assert generate_english_pairs("agreement", 9) != generate_english_pairs("agreement", 9, seed=1)


def test_a_wrong_name_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match="did you mean 'anaphor'"):
        generate_english_pairs("anafor", 1)


# The words


def test_only_words_of_every_domain_are_used():
    everywhere = "The teacher made a report. The teachers made reports. " * 2
    texts = {"a": [everywhere, everywhere + "x", "guys and guy", "a guy, guys"], "b": [everywhere, everywhere + "y"]}
    lexicon = build_lexicon(corpus(texts))
    assert lexicon.people[0] == ("teacher", "teachers") and lexicon.things[0] == ("report", "reports")
    assert len(lexicon.people) == MIN_CLASS_WORDS and lexicon.people[1] == ("guy", "guys")  # filled up with words that most domains contain


def test_a_word_of_one_document_is_not_a_word_of_its_domain():
    said = ["the teacher and the teachers", "teachers", "teacher"]
    assert build_lexicon(corpus({"a": said, "b": said})).people[0] == ("teacher", "teachers")
    assert build_lexicon(corpus({"a": said[:1], "b": said[:1]})) == select_shared_lexicon(ENGLISH_LEXICON, {}, 2)


def test_a_corpus_with_all_words_does_not_change_the_lexicon():
    domain_counts = dict.fromkeys(word_forms(ENGLISH_LEXICON), 3)
    assert select_shared_lexicon(ENGLISH_LEXICON, domain_counts, 3) == ENGLISH_LEXICON


def test_forms_follow_english_spelling():
    assert parse_nouns("boy man/men") == (("boy", "boys"), ("man", "men"))
    assert parse_verbs("use take/took/taken keep/kept") == (
        ("use", "uses", "used", "used"),
        ("take", "takes", "took", "taken"),
        ("keep", "keeps", "kept", "kept"),
    )
    assert isinstance(ENGLISH_LEXICON, Lexicon) and {"children", "stories"} <= word_forms(ENGLISH_LEXICON)


@pytest.mark.slow
def test_the_synthetic_corpus_has_its_own_minimal_pairs():
    pairs = select_pairs(corpus({"a": ["x"]}), TOKENIZER, SyntheticConfig(num_documents=4), 0, pairs_per_phenomenon=8)
    assert {pair.phenomenon for pair in pairs} <= SANDBOX_PHENOMENA.keys() and len({pair.phenomenon for pair in pairs}) >= 8
    assert select_pairs(corpus({"a": ["x"]}), TOKENIZER, SyntheticConfig(num_documents=4, overlap=0.0), 0, pairs_per_phenomenon=8) == []


# The scores


def test_a_model_with_a_higher_loss_for_the_wrong_word_solves_every_pair():
    pairs = generate_english_pairs("determiner and noun", 12)
    found = build_syntax_probe(SentenceCostModel({pair.bad: 3.0 for pair in pairs}), TOKENIZER, pairs).score_phenomena(one())
    assert found.tolist() == [[1.0, 3.0]]
    found = build_syntax_probe(SentenceCostModel({pair.good: 3.0 for pair in pairs}), TOKENIZER, pairs).score_phenomena(one())
    assert found.tolist() == [[0.0, -3.0]]


class SentenceCostModel:
    """A model with a given loss for each sentence."""

    def __init__(self, price: dict[str, float]) -> None:
        self.price = {tuple(token_ids(TOKENIZER, text)): cost for text, cost in price.items()}

    def sequence_losses(self, params, tokens, keep):
        lines = [tuple(line[kept].tolist()) for line, kept in zip(tokens[0], keep[0], strict=True)]
        assert all(line[0] == TOKENIZER.eos_token_id for line in lines)
        return torch.tensor([[self.price.get(line[1:], 0.0) for line in lines]]), keep[:, :, 1:].sum(2)


def test_a_model_without_preference_is_at_chance():
    pairs = generate_english_pairs("agreement", 10) + generate_english_pairs("word order", 10)
    assert probe(lambda token: 1.5, pairs).score_phenomena(one())[1].tolist() == [0.5, 0.0]


def test_a_diverged_model_has_no_score():
    pairs = generate_english_pairs("agreement", 10)
    assert probe(lambda token: 1.0, pairs).score_phenomena(one(float("nan"))).isnan().all()


def test_phenomena_have_equal_weights_for_any_number_of_pairs():
    first, second = generate_english_pairs("agreement", 30), generate_english_pairs("filler and gap", 10)
    looking = build_syntax_probe(SentenceCostModel({pair.bad: 1.0 for pair in first}), TOKENIZER, first + second)
    model = stacked()
    reading = looking.evaluate_state(make_round(model, [0.0]).before)
    assert reading["syntax.accuracy", "agreement"] == 1 and reading["syntax.accuracy", "filler and gap"] == 0.5
    assert reading["syntax.accuracy"].item() == pytest.approx(0.75)
    assert reading["syntax.margin"].item() == pytest.approx(0.5)
    assert looking.log_prob_margins(one()).tolist() == [1.0] * 30 + [0.0] * 10


def test_several_models_are_weighted_by_their_clients():
    pairs = generate_english_pairs("agreement", 10, count_tokens=lambda text: len(token_ids(TOKENIZER, text)))
    looking = probe(lambda token: float(token), pairs)
    done = make_round(stacked(), [0.0] * 4)
    alone = looking.evaluate_state(with_clusters(done.after, [0, 0, 0, 0], one(1.0)))["syntax.margin"].item()
    two = Tree(x=torch.cat([one(1.0)["x"], one(3.0)["x"]]))
    assert looking.evaluate_state(with_clusters(done.after, [0, 0, 0, 1], two))["syntax.margin"].item() == pytest.approx(1.5 * alone)


def test_padding_and_other_sentences_change_no_score():
    language = random_model("llama", TOKENIZER)
    model = StackedModel(language.network.double(), Lora(r=2))
    pairs = generate_english_pairs("agreement", 12) + generate_english_pairs("agreement across a relative clause", 12)
    together = build_syntax_probe(model, TOKENIZER, pairs).log_prob_margins(model.init_params())
    in_parts = build_syntax_probe(model, TOKENIZER, pairs, tokens_per_pass=100).log_prob_margins(model.init_params())
    assert torch.allclose(together, in_parts, atol=1e-9)
    for row in (0, 13, 23):
        values = []
        for text in (pairs[row].good, pairs[row].bad):
            line = torch.tensor([[TOKENIZER.eos_token_id, *token_ids(TOKENIZER, text)]])
            logs = language.network(input_ids=line).logits[0, :-1].log_softmax(-1)
            values.append(logs.gather(1, line[0, 1:, None]).sum().item())
        assert together[row].item() == pytest.approx(values[0] - values[1], abs=1e-9)


@pytest.fixture(scope="module")
def pocket(tmp_path_factory):
    language = load_model("pocket", cache_dir=tmp_path_factory.mktemp("cache"))
    return StackedModel(language.network, Lora()), language.tokenizer


def test_pocket_solves_more_pairs_than_with_random_weights(pocket):
    model, tokenizer = pocket
    count = lambda text: len(token_ids(tokenizer, text))  # noqa: E731
    pairs = [pair for name in ENGLISH_PHENOMENA for pair in generate_english_pairs(name, 12, count_tokens=count)]
    assert len(pairs) == 12 * len(ENGLISH_PHENOMENA)
    looking = build_syntax_probe(model, tokenizer, pairs)
    start = model.init_params()
    margins = looking.log_prob_margins(start).numpy()
    of = np.array([pair.phenomenon for pair in pairs])
    for name in ("agreement", "verb form", "word order", "pronoun case"):
        assert (margins[of == name] > 0).mean() > 0.8 and margins[of == name].mean() > 1, name
    draw = torch.Generator().manual_seed(0)
    worse = start.map(lambda leaf: leaf + 0.3 * torch.randn(leaf.shape, generator=draw))
    assert looking.score_phenomena(worse)[:, 0].mean() < (margins > 0).mean() - 0.1
    attractor = np.array(["attractor" in pair.template for pair in pairs])
    across = np.array([pair.phenomenon.startswith("agreement across") for pair in pairs])
    assert margins[across & ~attractor].mean() > margins[across & attractor].mean()


def test_the_probe_is_made_from_its_context(pocket):
    from fedrift.probes.syntax import syntax_probes

    model, tokenizer = pocket
    bench = SimpleNamespace(
        loss_model=model,
        tokenizer=tokenizer,
        corpus=corpus({"a": ["the teacher"]}),
        synthetic=None,
        split_seed=0,
        tokens_per_pass=8192,
        held_out=HeldOut,
        pairs_per_phenomenon=100,
    )
    (look,) = syntax_probes(bench)
    assert look.name == "syntax" and look.schedule == "expensive" and len(look.probe.pairs) == 100 * len(ENGLISH_PHENOMENA)
    assert 15_000 < look.forward_tokens < 25_000
