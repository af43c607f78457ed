"""Test continuations and their scores on texts with known scores and against the generation of transformers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU

from fedrift.models.stacked_model import NucleusSampler, StackedModel, generate_tokens
from fedrift.models.trainable import All, Lora
from fedrift.probes.text import bleu_signature, distinct_ngrams, repetition_rate, score_continuations
from tests.models.tiny import random_model
from tests.small_experiment import byte_tokenizer


def test_the_reference_text_has_the_highest_score_and_another_text_zero():
    text = "the coach praised every player after the late goal"
    same = score_continuations([(text, text)] * 3)
    assert same["text.bleu"] == pytest.approx(100)
    assert [same[f"text.{name}"] for name in ("rouge1", "rouge2", "rougeL")] == [1, 1, 1]
    other = score_continuations([("cook an onion with butter", text)])
    assert other["text.bleu"] == pytest.approx(0, abs=5)
    assert other["text.rouge1"] == 0


def test_rouge_reads_the_words_of_every_script():
    """rouge-score's own tokenizer reads a to z only: its score of equal Russian texts is 0."""
    for text in ("погода была очень хорошая", "天气很好", "मौसम अच्छा था", "Größe und Übung"):
        assert score_continuations([(text, text)])["text.rouge2"] == 1
    assert score_continuations([("погода была плохая", "погода была хорошая")])["text.rouge1"] == pytest.approx(2 / 3)
    assert score_continuations([("今天天气很好", "昨天天气不好")])["text.rouge1"] == pytest.approx(4 / 6)
    pairs = [("The players' goals, 2-1 late_goal!", "A player's goal: 2 of 1, lately"), ("running runs", "run")]
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    expected = np.mean([scorer.score(reference, text)["rougeL"].fmeasure for text, reference in pairs])
    assert score_continuations(pairs)["text.rougeL"] == expected  # English is scored as by rouge-score itself


def test_rouge_compares_stems():
    assert score_continuations([("players praising", "player praised")])["text.rouge2"] == 1


def test_bleu_is_computed_on_the_corpus():
    pairs = [("a b c d e f", "a b c d e f"), ("x y", "p q r s t u v w")]
    alone = [score_continuations([pair])["text.bleu"] for pair in pairs]
    assert score_continuations(pairs)["text.bleu"] != pytest.approx(sum(alone) / 2, abs=1)
    assert bleu_signature().startswith("BLEU nrefs:1|bs:1000|seed:12345|case:mixed|eff:no|tok:13a|smooth:exp|version:")


def test_intervals_are_over_prompts():
    """Half of 400 prompts match: the interval of a mean is 1.96 * .5 / 20 = .049; that of BLEU is compared with a bootstrap."""
    hit, missed = ("a b c d e f g", "a b c d e f g"), ("p q r s t u v", "a b c d e f g")
    mixed = [hit, missed] * 200
    found = score_continuations(mixed)
    assert found["text.rouge1.ci"] == found["text.rougeL.ci"] == pytest.approx(1.96 * 0.5 / 20, rel=0.1)
    draw, by_hand = np.random.default_rng(1), []
    for _ in range(100):
        ours, theirs = zip(*(mixed[row] for row in draw.integers(0, 400, 400)), strict=True)
        by_hand.append(BLEU().corpus_score(ours, [theirs]).score)
    low, high = np.quantile(by_hand, [0.025, 0.975])
    assert found["text.bleu.ci"] == pytest.approx((high - low) / 2, rel=0.3)
    assert score_continuations([hit] * 20)["text.bleu.ci"] == score_continuations([hit] * 20)["text.rouge2.ci"] == 0
    assert score_continuations(mixed) == found  # no random draw


def test_few_prompts_have_no_interval():
    few = score_continuations([("a b c d e", "a b c d f")] * 14)
    assert math.isnan(few["text.bleu.ci"]) and math.isnan(few["text.rouge1.ci"]) and few["text.bleu"] > 0


def test_distinct_pairs_and_repetition_are_counted():
    words = "a b a b a b".split()
    assert distinct_ngrams([words], 2) == pytest.approx(2 / 5)
    assert repetition_rate([words], 4) == pytest.approx(1 / 3)  # abab baba abab
    assert repetition_rate([words, "a b c d".split()], 4) == pytest.approx(1 / 4)
    assert math.isnan(repetition_rate([["a"]], 4))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_continuation_equals_that_of_transformers(kind):
    network = random_model(kind, byte_tokenizer()).network
    prompts = torch.arange(12).view(3, 4)
    theirs = network.generate(
        prompts,
        max_new_tokens=6,
        min_new_tokens=6,
        do_sample=False,
        use_cache=True,
        attention_mask=torch.ones_like(prompts),
        pad_token_id=0,
    )[:, 4:]
    model = StackedModel(network, Lora(r=2))
    assert generate_tokens(model, model.init_params(), prompts, 6).tolist() == theirs.tolist()
    assert not model.active_params.leaves


def test_the_nucleus_has_the_fewest_tokens_with_the_required_mass():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(4000, 4)
    drawn = NucleusSampler(torch.Generator().manual_seed(0), 0.7)(logits).flatten().bincount(minlength=4) / 4000
    assert drawn[2:].tolist() == [0, 0]
    assert float(drawn[0]) == pytest.approx(0.5 / 0.8, abs=3 * (0.625 * 0.375 / 4000) ** 0.5)


def test_a_sampled_continuation_equals_that_of_transformers_with_equal_draws():
    network = random_model("llama", byte_tokenizer()).network
    prompts = torch.arange(12).view(3, 4)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        theirs = network.generate(
            prompts,
            max_new_tokens=6,
            min_new_tokens=6,
            do_sample=True,
            top_p=0.9,
            top_k=0,
            attention_mask=torch.ones_like(prompts),
            pad_token_id=0,
            eos_token_id=None,
        )[:, 4:]
    model = StackedModel(network, Lora(r=2))
    draws = (NucleusSampler(torch.Generator().manual_seed(seed)) for seed in (5, 6))
    ours, others = (generate_tokens(model, model.init_params(), prompts, 6, draw) for draw in draws)
    assert ours.tolist() == theirs.tolist() != others.tolist()


@pytest.mark.parametrize("tune", [Lora(r=2), All()], ids=lambda tune: type(tune).__name__)
def test_continuations_depend_on_the_parameters_and_not_on_the_cache(tune):
    model = StackedModel(random_model("llama", byte_tokenizer()).network, tune)
    draw = torch.Generator().manual_seed(0)
    params = model.init_params().map(lambda leaf: leaf + 0.3 * torch.randn(leaf.shape, generator=draw))
    prompts = torch.arange(12).view(3, 4)
    found = generate_tokens(model, params, prompts, 5)
    assert found.tolist() != generate_tokens(model, model.init_params(), prompts, 5).tolist()
    seen = prompts
    for _ in range(5):  # without a cache, by the head of the loss
        hidden = model.hidden_states(params, seen[None])[0, :, -1]
        head = model.head.weight if model.head_leaf is None else params[model.head_leaf][0]
        seen = torch.cat([seen, (hidden @ head.T).argmax(1, keepdim=True)], 1)
    assert found.tolist() == seen[:, 4:].tolist()
