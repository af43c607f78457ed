"""Test that packing uses every token once and in order, and that only the last block has padding."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrift.data import TokenizedCorpus, pack_blocks

END = 0


def tokens_of(lengths, pad=END) -> TokenizedCorpus:
    """Return documents whose tokens all differ, except the end token of each."""
    offset = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    flat = np.arange(1, offset[-1] + 1).astype(np.int32)
    flat[offset[1:] - 1] = END
    return TokenizedCorpus(flat, offset, END, pad)


lengths = st.lists(st.integers(1, 20), min_size=1, max_size=15)


@given(lengths, st.integers(1, 17), st.randoms())
def test_packing_loses_and_duplicates_no_token_and_keeps_every_end(sizes, length, random):
    tokens = tokens_of(sizes)
    rows = np.array(random.sample(range(len(sizes)), random.randint(0, len(sizes))), dtype=np.int64)
    blocks = pack_blocks(tokens, rows, length)
    expected = [token for row in rows for token in tokens.document_ids(row)]
    assert blocks.tokens[blocks.mask].tolist() == expected
    assert (blocks.tokens[blocks.mask] == END).sum() == len(rows)
    assert blocks.tokens.shape == blocks.mask.shape == (-(-len(expected) // length), length)


@given(lengths, st.integers(1, 17), st.sampled_from([END, 99_999]))
def test_the_mask_is_false_on_padding_only_and_padding_only_ends_the_last_block(sizes, length, pad):
    blocks = pack_blocks(tokens_of(sizes, pad), np.arange(len(sizes)), length)
    padding = blocks.mask.size - sum(sizes)
    assert 0 <= padding < length
    assert blocks.mask.ravel().tolist() == [True] * sum(sizes) + [False] * padding
    assert (blocks.tokens[~blocks.mask] == pad).all()


@given(lengths, st.integers(1, 17), st.integers(0, 2**31))
def test_no_block_mixes_clients(sizes, length, seed):
    tokens = tokens_of(sizes)
    owner = np.random.default_rng(seed).integers(0, 3, len(sizes))
    for client in range(3):
        blocks = pack_blocks(tokens, np.flatnonzero(owner == client), length)
        own = {token for row in np.flatnonzero(owner == client) for token in tokens.document_ids(row).tolist()}
        assert set(blocks.tokens[blocks.mask].tolist()) == own


@pytest.mark.parametrize("rows", [[], np.array([], dtype=np.int64), np.zeros(3, bool)])
def test_no_rows_give_no_blocks(rows):
    blocks = pack_blocks(tokens_of([3, 4, 5]), rows, 8)
    assert blocks.tokens.shape == (0, 8)
    assert blocks.mask.shape == (0, 8)
    assert len(blocks) == 0


def test_a_loss_mask_is_packed_with_its_tokens():
    tokens = tokens_of([3, 4, 5])
    mask = np.array([True, False, True])
    assert (pack_blocks(tokens, mask, 4).tokens == pack_blocks(tokens, np.array([0, 2]), 4).tokens).all()


def test_small_ids_do_not_overflow():
    tokens = TokenizedCorpus(np.array([65_535, 0], np.uint16), np.array([0, 2]), 0, 0)
    assert pack_blocks(tokens, np.array([0]), 2).tokens.tolist() == [[65_535, 0]]


def test_a_length_below_one_is_refused():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        pack_blocks(tokens_of([3]), np.array([0]), 0)


def test_a_hundred_thousand_documents_pack_in_well_under_a_second():
    sizes = np.random.default_rng(0).integers(10, 100, 100_000)
    tokens = tokens_of(sizes)
    before = time.process_time()
    blocks = pack_blocks(tokens, np.arange(len(sizes)), 128)
    assert time.process_time() - before < 0.8
    assert int(blocks.mask.sum()) == int(sizes.sum())
