"""Test losses on held-out text with a model whose loss on every token is known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedrift.algorithms import FedAvg, LocalOnly
from fedrift.core.tree import Tree
from fedrift.data.corpus import TEST
from fedrift.data.tokenization import Blocks, TokenizedCorpus
from fedrift.engine.loop import init_state
from fedrift.probes.held_out import BlockOptions, HeldOut, pack_first_blocks, read_first_blocks
from fedrift.probes.losses import HeldOutLosses
from tests.quadratics import clients, train


class KnownLossModel:
    """A model with loss x on a token of domain 0, x + 1 on one of domain 1, and so on; it counts its calls."""

    def __init__(self):
        self.calls = 0

    def position_losses(self, params, tokens, keep):
        self.calls += 1
        price = params["x"].view(-1, 1, 1) + tokens // 100
        counted = keep[:, :, 1:]
        return price[:, :, 1:] * counted, counted


def held_out(mix=((30, 10), (10, 30), (0, 0))) -> HeldOut:
    tokens = np.array([[0] * 5] * 3 + [[100] * 5] * 4)
    keep = np.ones_like(tokens, dtype=bool)
    keep[-1, 2:] = False  # a padded block
    return HeldOut(Blocks(tokens, keep), np.array([0] * 3 + [1] * 4), ("sport", "tech"), np.array(mix, dtype=float))


def held_out_with_rewrites() -> HeldOut:
    """Return ``held_out`` with the rewritten text of client 1, whose loss is 2 in sport and 3 in tech."""
    plain = held_out()
    tokens = np.concatenate([plain.blocks.tokens, [[200] * 5] * 2, [[300] * 5] * 3])
    keep = np.concatenate([plain.blocks.mask, np.ones((5, 5), dtype=bool)])
    mix = np.array([[30, 10, 0, 0], [0, 0, 10, 30], [0, 0, 0, 0]], dtype=float)
    names = ("sport", "tech", "sport, variant 1", "tech, variant 1")
    return HeldOut(Blocks(tokens, keep), np.concatenate([plain.domain_ids, [2, 2, 3, 3, 3]]), names, mix)


def state_of(x: list[float], algorithm=FedAvg()):
    group = clients([1] * 3, [0] * 3)
    state = init_state(algorithm, Tree(x=torch.tensor([[x[0]]], dtype=torch.float64)), group.size)
    params = Tree(x=torch.tensor(x, dtype=torch.float64)[:, None])
    return replace(state, server=replace(state.server, params=params))


def test_losses_are_means_over_tokens_by_domain_client_and_pool():
    reading = HeldOutLosses(KnownLossModel(), held_out()).evaluate_state(state_of([2.0]))
    assert reading["loss", "sport"] == pytest.approx(2.0)
    assert reading["loss", "tech"] == pytest.approx(3.0)
    assert reading["loss"][:2].tolist() == pytest.approx([2.25, 2.75])
    assert math.isnan(reading["loss"][2])  # a client without data
    assert reading["loss", ""] == pytest.approx(2.5)
    assert reading["perplexity", ""] == pytest.approx(math.exp(2.5))
    assert reading["loss.macro"] == pytest.approx(2.5)


def test_the_pool_counts_by_tokens_and_the_macro_mean_does_not():
    reading = HeldOutLosses(KnownLossModel(), held_out(((90, 0), (0, 10), (0, 0)))).evaluate_state(state_of([2.0]))
    assert reading["loss", ""] == pytest.approx(2.1)
    assert reading["loss.macro"] == pytest.approx(2.5)


def test_every_client_is_evaluated_with_the_model_of_its_cluster():
    reading = HeldOutLosses(KnownLossModel(), held_out(((10, 0), (10, 0), (0, 20)))).evaluate_state(state_of([1.0, 5.0, 7.0], LocalOnly()))
    assert reading["loss"].tolist() == pytest.approx([1.0, 5.0, 8.0])
    assert reading["loss", "sport"] == pytest.approx(3.0)


def test_a_domain_without_clients_has_no_value():
    reading = HeldOutLosses(KnownLossModel(), held_out(((10, 0), (10, 0), (5, 0)))).evaluate_state(state_of([1.0]))
    assert ("loss", "tech") not in reading
    assert reading["loss.macro"] == pytest.approx(1.0)


def test_rewriting_clients_are_evaluated_on_rewritten_text_and_all_else_on_original_text():
    plain, told = (
        HeldOutLosses(KnownLossModel(), held_out(), rewritten=own).evaluate_state(state_of([2.0]))
        for own in (None, held_out_with_rewrites())
    )
    assert told["loss"][:2].tolist() == pytest.approx([2.25, (10 * 4 + 30 * 5) / 40])
    assert told["perplexity"][:2].tolist() == pytest.approx(told["loss"][:2].exp().tolist())
    assert told["loss.original_text"][:2].tolist() == pytest.approx(plain["loss"][:2].tolist())
    assert told["loss.own", ""] == pytest.approx((2.25 + 4.75) / 2)
    for name in [key for key in plain if isinstance(key, tuple)] + ["loss.macro"]:
        assert told[name] == pytest.approx(plain[name])
    assert "loss.original_text" not in plain and ("loss.own", "") not in plain


def test_losses_before_and_after_use_the_rewritten_text():
    probe = HeldOutLosses(KnownLossModel(), held_out(), blocks_per_client=4, rewritten=held_out_with_rewrites())
    assert [set(probe.client_blocks(torch.tensor([client]))[0]) for client in (0, 1)] == [{0, 1, 2, 3}, {8, 9, 10, 11}]
    done = train(FedAvg(), clients((1, 4, 2), (0, 1, 3)), until=1)[0]
    local, after, reading = done.client_params["x"].flatten().tolist(), done.after.server.params["x"].item(), probe(done)
    assert reading["loss.before"][:2].tolist() == pytest.approx([local[0] + 0.25, local[1] + 2.75])
    assert reading["loss.after"][:2].tolist() == pytest.approx([after + 0.25, after + 2.75])


def test_shortened_texts_use_more_documents_for_equally_many_blocks():
    read = []

    def short(rows):
        read.append(len(rows))
        return TokenizedCorpus(np.repeat(rows.astype(np.uint16), 2), np.arange(len(rows) + 1) * 2, 0, 0)

    options = BlockOptions(TEST, block_length=8, max_blocks=20, seed=0)
    blocks = read_first_blocks(short, np.arange(100), options)
    assert read == [16, 32, 64, 100] and blocks.tokens.shape == (20, 8)
    assert blocks.tokens.reshape(-1).tolist() == np.repeat(np.arange(80), 2).tolist()
    assert read_first_blocks(short, np.arange(5), options).mask.sum() == 10


@pytest.mark.parametrize("limit", [1, 2])
def test_a_limit_of_blocks_per_document_takes_blocks_from_more_documents(limit):
    documents = [np.full(length, number + 1, np.uint16) for number, length in enumerate((40, 5, 40, 40, 40))]
    offsets = np.concatenate([[0], np.cumsum([len(each) for each in documents])])
    mask = np.arange(offsets[-1]) % 3 > 0
    tokens = TokenizedCorpus(np.concatenate(documents), offsets, 0, 0, mask)
    rows, options = np.array([4, 0, 1, 3, 2]), BlockOptions(TEST, block_length=8, max_blocks=4, seed=0)
    whole = pack_first_blocks(tokens, rows, options)
    assert set(whole.tokens.ravel().tolist()) == {5}  # four blocks of one document
    limited = pack_first_blocks(tokens, rows, options._replace(max_blocks_per_document=limit))
    expected = np.concatenate([documents[row][: 8 * limit] for row in rows])[:32]
    marks = np.concatenate([mask[offsets[row] : offsets[row + 1]][: 8 * limit] for row in rows])[:32]
    filled = limited.is_token.ravel()
    assert limited.tokens.shape == (4, 8) and limited.tokens.ravel()[filled].tolist() == expected.tolist()
    assert limited.mask.ravel()[filled].tolist() == marks.tolist()
    read = read_first_blocks(lambda some: replace(tokens, ids=tokens.ids), np.arange(5), options._replace(max_blocks_per_document=limit))
    assert set(read.tokens.ravel().tolist()) >= {1, 2, 3}


def test_enough_documents_are_read_where_only_their_beginning_counts():
    """Sixteen whole documents of 20 tokens would fill the thirty blocks; their first blocks do not."""

    def read(rows):
        return TokenizedCorpus(np.repeat(rows.astype(np.uint16), 20), np.arange(len(rows) + 1) * 20, 0, 0)

    blocks = read_first_blocks(read, np.arange(100), BlockOptions(TEST, block_length=8, max_blocks=30, seed=0, max_blocks_per_document=1))
    assert blocks.tokens[:, 0].tolist() == list(range(30))


def test_losses_before_and_after_use_the_same_blocks():
    group = clients((1, 4, 2), (0, 1, 3))
    probe = HeldOutLosses(KnownLossModel(), held_out(((10, 0), (0, 10), (5, 5))), blocks_per_client=2)
    done = train(FedAvg(), group, until=1)[0]
    reading = probe(done)
    local, after = done.client_params["x"].flatten().tolist(), done.after.server.params["x"].item()
    assert reading["loss.before"].tolist() == pytest.approx([local[0], local[1] + 1, local[2] + 0.5])
    assert reading["loss.after"].tolist() == pytest.approx([after, after + 1, after + 0.5])


def test_an_unchanged_model_is_not_evaluated_again():
    judge = KnownLossModel()
    probe = HeldOutLosses(judge, held_out(), blocks_per_client=0)
    probe.evaluate_state(state_of([1.0]))
    before = judge.calls
    probe.evaluate_state(state_of([1.0]))
    assert judge.calls == before
    assert probe.evaluate_state(state_of([1.5]))["loss", "sport"] == pytest.approx(1.5)


def test_only_due_rounds_and_the_last_round_are_evaluated():
    done = train(FedAvg(), clients((1, 4, 2), (0, 1, 3)), until=5)
    probe = HeldOutLosses(KnownLossModel(), held_out(), interval=3, last_round=5)
    assert [bool(probe(round)) for round in done] == [False, False, True, False, True]


def test_a_diverged_model_gives_nan_and_no_error():
    assert math.isnan(HeldOutLosses(KnownLossModel(), held_out()).evaluate_state(state_of([math.nan]))["loss", ""])


def test_chunks_change_nothing():
    whole, parts = HeldOutLosses(KnownLossModel(), held_out()), HeldOutLosses(KnownLossModel(), held_out(), tokens_per_pass=10)
    assert whole.evaluate_state(state_of([2.0]))["loss", ""] == parts.evaluate_state(state_of([2.0]))["loss", ""]


def test_own_blocks_have_the_mix_of_the_client_and_are_nested():
    held = held_out(((30, 10), (0, 1), (1, 1)))
    assert held.domain_ids[held.client_blocks(0, 4)].tolist() == [0, 0, 0, 1]
    assert set(held.domain_ids[held.client_blocks(1, 3)]) == {1}
    assert len(held.head(2).blocks) == 4
    assert held.head(2).client_blocks(1, 2).tolist() != []


def test_two_clients_of_one_domain_have_different_blocks():
    held = held_out(((10, 0), (10, 0), (0, 1)))
    assert held.client_blocks(0, 1).tolist() != held.client_blocks(1, 1).tolist()


def test_a_client_model_is_evaluated_with_the_base_it_was_trained_on():
    """The server may have changed the base since, which belongs to the model after aggregation."""

    class Lifted(KnownLossModel):
        def position_losses(self, params, tokens, keep):
            losses, counted = super().position_losses(params, tokens, keep)
            return losses + params["m.base"].view(-1, 1, 1) * counted, counted

    done = train(FedAvg(), clients((1, 4, 2), (0, 1, 3)), until=1)[0]
    bases = (Tree({"m.base": torch.full((1, 1, 1), lift).double()}) for lift in (100.0, 200.0))
    before, after = (
        replace(state, server=replace(state.server, merged_base=base)) for state, base in zip((done.before, done.after), bases, strict=True)
    )
    reading = HeldOutLosses(Lifted(), held_out(((10, 0), (10, 0), (10, 0))), blocks_per_client=2)(replace(done, before=before, after=after))
    assert reading["loss.before"].tolist() == pytest.approx((100 + done.client_params["x"].flatten()).tolist())
    assert reading["loss.after"].tolist() == pytest.approx([200 + done.after.server.params["x"].item()] * 3)
