"""Test metrics of words, bytes, the worst client and forgetting, on known text and losses."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedrift.algorithms import LocalOnly
from fedrift.core.tree import Tree
from fedrift.data.tokenization import Blocks
from fedrift.models.stacked_model import StackedModel
from fedrift.models.trainable import Lora
from fedrift.probes.base import MetricHistory
from fedrift.probes.forgetting import WordKindLosses, domain_forgetting, worst_losses
from fedrift.probes.held_out import CONTENT_WORD, FUNCTION_WORD, NOT_A_WORD, HeldOut, bytes_per_token, classify_tokens, token_texts
from fedrift.probes.losses import HeldOutLosses
from tests.models.tiny import random_model
from tests.probes.test_loss import KnownLossModel, held_out, state_of
from tests.small_experiment import byte_tokenizer

TOKENIZER = byte_tokenizer()


def blocks_of(*texts: str, pad: int = 0) -> Blocks:
    ids = [TOKENIZER(text, add_special_tokens=False)["input_ids"] for text in texts]
    length = max(map(len, ids)) + pad
    tokens = np.array([[*row, *[TOKENIZER.pad_token_id] * (length - len(row))] for row in ids])
    return Blocks(tokens, np.array([[True] * len(row) + [False] * (length - len(row)) for row in ids]))


def tokens_of_kind(blocks: Blocks, kind: int) -> str:
    texts = token_texts(TOKENIZER, blocks.tokens)
    return "".join(
        texts[token] for token, own in zip(blocks.tokens[0].tolist(), classify_tokens(blocks, TOKENIZER)[0], strict=True) if own == kind
    ).replace(" ", "")


def test_every_token_has_the_kind_of_its_word():
    blocks = blocks_of("The coach, who doesn't sleep, won it: a 2nd goal for theory.", pad=3)
    assert tokens_of_kind(blocks, FUNCTION_WORD) == "Thewhodoesn'titafor"
    assert tokens_of_kind(blocks, CONTENT_WORD) == "coachsleepwon2ndgoaltheory"  # "the" within theory is not a word
    assert (classify_tokens(blocks, TOKENIZER)[0][-3:] == NOT_A_WORD).all()


def test_an_end_token_is_not_a_word():
    tokens = np.array([[TOKENIZER.eos_token_id, *TOKENIZER("the end")["input_ids"]]])
    assert classify_tokens(Blocks(tokens, np.ones_like(tokens, dtype=bool)), TOKENIZER)[0][0] == NOT_A_WORD


def test_bytes_are_those_of_the_text_after_the_first_token():
    blocks = blocks_of("aé the warm soup", "x")
    held = HeldOut(blocks, np.array([0, 0]), ("food",), np.ones((1, 1)))
    count = blocks.mask[:, 1:].sum()
    assert bytes_per_token(held, TOKENIZER)[0] == pytest.approx(len("é the warm soup".encode()) / count)


def test_bits_per_byte_are_nats_over_bytes_pooled_by_tokens():
    """4 bytes per token in one domain and 2 in the other; losses of 2 and 3 nats."""
    probe = HeldOutLosses(KnownLossModel(), held_out(((30, 10), (10, 30), (0, 0))), bytes_per_token=np.array([4.0, 2.0]))
    reading = probe.evaluate_state(state_of([2.0]))
    assert reading["bits", "sport"] == pytest.approx(2 / 4 / math.log(2))
    assert reading["bits", "tech"] == pytest.approx(3 / 2 / math.log(2))
    assert reading["bits", ""] == pytest.approx((40 * 2 + 40 * 3) / (40 * 4 + 40 * 2) / math.log(2))


def test_a_uniform_model_has_the_vocabulary_as_its_perplexity():
    language = random_model("llama", TOKENIZER)
    language.network.get_output_embeddings().weight.data.zero_()
    model = StackedModel(language.network, Lora(r=2))
    blocks = blocks_of("the team won a match", "cook")
    held = HeldOut(blocks, np.array([0, 0]), ("all",), np.ones((3, 1)))
    state = state_of([0.0])
    state = replace(state, server=replace(state.server, params=model.init_params()))
    size = language.network.get_output_embeddings().weight.shape[0]
    assert HeldOutLosses(model, held).evaluate_state(state)["perplexity", ""].item() == pytest.approx(size, rel=1e-5)


def make_token_kinds() -> np.ndarray:
    """Return kinds of tokens: domain 0 has function words only, domain 1 content words in the second half of each block."""
    kind = np.full((7, 5), FUNCTION_WORD)
    kind[3:, 3:] = CONTENT_WORD
    return kind


class TwoLevelModel(KnownLossModel):
    """A model whose loss is x at the first two positions and 5 x at the last two."""

    def position_losses(self, params, tokens, keep):
        price = params["x"].view(-1, 1, 1) * torch.tensor([1.0, 1.0, 5.0, 5.0]).double()
        return price * keep[:, :, 1:], keep[:, :, 1:]


def test_function_and_content_words_are_counted_apart():
    probe = WordKindLosses(HeldOutLosses(TwoLevelModel(), held_out(((30, 10), (10, 30), (0, 0)))), make_token_kinds())
    reading = probe.evaluate_state(state_of([2.0]))
    assert reading["loss.function", "sport"] == pytest.approx(6.0)
    assert reading["loss.function", "tech"] == pytest.approx(2.0)
    assert reading["loss.content", "tech"] == pytest.approx(10.0)
    assert reading["loss.content", ""] == pytest.approx(10.0)
    assert ("loss.content", "sport") not in reading or math.isnan(reading["loss.content", "sport"])
    assert reading["loss.function", ""] == pytest.approx(4.0)


def test_kinds_are_measured_with_the_models_of_the_clients():
    probe = WordKindLosses(HeldOutLosses(TwoLevelModel(), held_out(((30, 0), (0, 30), (0, 0)))), make_token_kinds())
    reading = probe.evaluate_state(state_of([1.0, 3.0, 7.0], LocalOnly()))
    assert reading["loss.function", "sport"] == pytest.approx(3.0)
    assert reading["loss.function", "tech"] == pytest.approx(3.0)
    assert reading["loss.content", "tech"] == pytest.approx(15.0)


def test_the_worst_client_and_the_worst_domain_are_recorded():
    reading = {"loss": torch.tensor([2.0, math.nan, 3.5]), ("loss", ""): 2.4, ("loss", "sport"): 2.1, ("loss", "tech"): 3.0}
    assert worst_losses(reading, MetricHistory()) == {"loss.worst": 3.5, "loss.worst.domain": 3.0}
    assert worst_losses({}, MetricHistory()) == {}


def test_forgetting_is_the_loss_above_its_lowest_so_far():
    past = MetricHistory(lowest={("loss", "sport"): 2.0, ("loss", "tech"): 5.0})
    reading = {("loss", ""): 9.0, ("loss", "sport"): 2.5, ("loss", "tech"): 4.0, "loss": torch.tensor([1.0])}
    assert domain_forgetting(reading, past) == {("forgetting", "sport"): 0.5, ("forgetting", "tech"): 0.0, "forgetting": 0.25}
    assert domain_forgetting({("loss", "tech"): 4.0}, MetricHistory()) == {("forgetting", "tech"): 0.0, "forgetting": 0.0}


def test_own_blocks_of_several_clients_can_share_a_pass():
    """Clients have different numbers of blocks, and a pass has several clients or one."""
    model = StackedModel(random_model("llama", TOKENIZER).network, Lora(r=2))
    blocks = blocks_of("the team won a match", "cook the onion", "the coach praised", "warm bread with soup")
    held = HeldOut(blocks, np.array([0, 1, 1, 1]), ("a", "b"), np.ones((3, 2)))
    draw = torch.Generator().manual_seed(0)
    params = (
        model.init_params().take(torch.zeros(3, dtype=torch.long)).map(lambda leaf: leaf + 0.1 * torch.randn(leaf.shape, generator=draw))
    )
    mine = [np.array([0]), np.array([1, 2, 3]), np.array([0, 2])]
    together, apart = (HeldOutLosses(model, held, tokens_per_pass=chunk).mean_losses(params, mine) for chunk in (8192, 1))
    plain = torch.stack(
        [
            HeldOutLosses(model, held).compute_position_losses(Tree(params.take(slice(row, row + 1))), own[None]).double().sum()
            / blocks.mask[own, 1:].sum()
            for row, own in enumerate(mine)
        ]
    )
    assert torch.allclose(together, plain, atol=1e-5)
    assert torch.allclose(apart, plain, atol=1e-5)
