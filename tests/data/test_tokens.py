"""Test token ids: one end token per document, equal from the cache, and never from a damaged cache."""

from __future__ import annotations

import warnings
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from fedrift.core.errors import UserError
from fedrift.data import Corpus, pack_blocks, tokenize_corpus


def corpus_of(*texts: str) -> Corpus:
    count = len(texts)
    return Corpus(
        "c",
        np.array([*texts, None], dtype=object)[:-1],
        np.full(count, -1),
        (),
        np.full(count, "s", dtype=object),
        np.zeros(count, np.int8),
        np.ones(count, np.int64),
    )


TEXTS = ("the cat sat", "東京 🎉", "on the mat <|end|> the <|pad|>", "a", "the " * 3000)


def same(one, other) -> bool:
    return one.ids.tobytes() == other.ids.tobytes() and (one.offsets == other.offsets).all()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30), max_size=8))
def test_every_document_can_be_read_back_and_ends_once(tokenizer, texts):
    tokens = tokenize_corpus(corpus_of(*texts), tokenizer, cache_dir=None)
    assert len(tokens) == len(texts)
    assert tokens.lengths.sum() == len(tokens.ids)
    for row, text in enumerate(texts):
        ids = tokens.document_ids(row)
        assert ids[-1] == tokens.eos_id
        assert (ids == tokens.eos_id).sum() == 1
        assert tokenizer.decode(ids[:-1], clean_up_tokenization_spaces=False) == text


def test_text_that_spells_a_special_token_is_text(tokenizer):
    tokens = tokenize_corpus(corpus_of(*TEXTS), tokenizer, cache_dir=None)
    assert (tokens.ids == tokens.eos_id).sum() == len(TEXTS)
    assert tokens.pad_id not in tokens.ids


def test_documents_are_not_truncated_after_a_truncating_call(tokenizer):
    plain = tokenize_corpus(corpus_of(*TEXTS), tokenizer, cache_dir=None)
    tokenizer(["the cat"], truncation=True, max_length=2, padding="max_length")
    assert same(tokenize_corpus(corpus_of(*TEXTS), tokenizer, cache_dir=None), plain)


def test_more_documents_than_a_batch_keep_their_order(tokenizer):
    texts = [f"number {n}" for n in range(2345)]
    tokens = tokenize_corpus(corpus_of(*texts), tokenizer, cache_dir=None)
    assert [tokenizer.decode(tokens.document_ids(row)[:-1]) for row in (0, 999, 1000, 2344)] == [texts[row] for row in (0, 999, 1000, 2344)]


def test_a_cached_corpus_is_not_tokenized_again(tokenizer, tmp_path, monkeypatch):
    first = tokenize_corpus(corpus_of(*TEXTS), tokenizer, cache_dir=tmp_path / "new" / "folder")
    monkeypatch.setattr("fedrift.data.tokenization.tokenize_texts", lambda *_: pytest.fail("the corpus was tokenized again"))
    again = tokenize_corpus(corpus_of(*TEXTS), tokenizer, cache_dir=tmp_path / "new" / "folder")
    assert same(first, again)
    assert again.ids.dtype == np.uint16
    assert again.eos_id == first.eos_id
    tokenizer(["the cat"], truncation=True, max_length=2)
    assert same(tokenize_corpus(corpus_of(*TEXTS), tokenizer, cache_dir=tmp_path / "new" / "folder"), first)
    assert [file.suffix for file in (tmp_path / "new" / "folder").iterdir()] == [".npz"]


def test_other_texts_another_order_and_another_tokenizer_are_other_files(tokenizer, tmp_path):
    other = deepcopy(tokenizer)
    other.add_tokens(["the cat"])
    for corpus, by in (
        (corpus_of("the cat", "b"), tokenizer),
        (corpus_of("b", "the cat"), tokenizer),
        (corpus_of("the catb"), tokenizer),
        (corpus_of("the cat", "b"), other),
    ):
        assert same(tokenize_corpus(corpus, by, cache_dir=tmp_path), tokenize_corpus(corpus, by, cache_dir=None))
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: b"PK nonsense", lambda data: data[:-30], lambda data: data[:100] + b"\xff" * 20 + data[120:]]
)
def test_a_damaged_cache_file_is_replaced(tokenizer, tmp_path, damage):
    first = tokenize_corpus(corpus_of(*TEXTS), tokenizer, cache_dir=tmp_path)
    (file,) = tmp_path.iterdir()
    sound = file.read_bytes()
    file.write_bytes(damage(sound))
    assert same(tokenize_corpus(corpus_of(*TEXTS), tokenizer, cache_dir=tmp_path), first)
    assert len(file.read_bytes()) == len(sound)


@pytest.mark.parametrize(
    "arrays",
    [
        {"flat": np.zeros(3, np.uint16)},
        {"flat": np.zeros(3, np.uint16), "offset": np.array([0, 3])},
        {"flat": np.zeros(9, np.float64), "offset": np.array([0, 1, 2, 3, 4, 9])},
        {"flat": np.ones(9, np.uint16), "offset": np.array([0, 1, 2, 3, 4, 9])},
        {"flat": np.array([None] * 9, dtype=object), "offset": np.array([0, 1, 2, 3, 4, 9])},
    ],
)
def test_a_cache_file_with_other_content_is_replaced(tokenizer, tmp_path, arrays):
    first = tokenize_corpus(corpus_of(*TEXTS), tokenizer, cache_dir=tmp_path)
    (file,) = tmp_path.iterdir()
    np.savez(file, **arrays)
    assert same(tokenize_corpus(corpus_of(*TEXTS), tokenizer, cache_dir=tmp_path), first)


def test_on_a_full_disk_only_the_cache_is_missing(tokenizer, tmp_path, monkeypatch):
    def full(out, **arrays):
        out.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.warns(UserWarning, match="No space left"):
        tokens = tokenize_corpus(corpus_of(*TEXTS), tokenizer, cache_dir=tmp_path)
    assert len(tokens) == len(TEXTS)
    assert not list(tmp_path.iterdir())


def test_without_a_cache_nothing_is_written(tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenize_corpus(corpus_of(*TEXTS), tokenizer, cache_dir=None)
    assert not list(Path().iterdir())


def test_documents_start_with_the_begin_token_that_the_tokenizer_adds(tokenizer, tmp_path):
    adding = deepcopy(tokenizer)
    adding.backend_tokenizer.post_processor = TemplateProcessing(single="<|end|> $A", special_tokens=[("<|end|>", tokenizer.eos_token_id)])
    assert adding("a")["input_ids"][0] == adding.bos_token_id
    corpus = corpus_of("a", "the cat")
    with_bos, without = (tokenize_corpus(corpus, each, cache_dir=tmp_path) for each in (adding, tokenizer))
    assert without.mask is None and with_bos.mask.tolist() == [False, True, True, False] + [True] * (len(with_bos.ids) - 4)
    assert [with_bos.document_ids(row)[1:].tolist() for row in range(2)] == [without.document_ids(row).tolist() for row in range(2)]
    assert (with_bos.trained_lengths == without.lengths).all() and (without.trained_lengths == without.lengths).all()
    cached = tokenize_corpus(corpus, adding, cache_dir=tmp_path)
    assert same(cached, with_bos) and (cached.mask == with_bos.mask).all()
    blocks = pack_blocks(with_bos, np.arange(2), 4)
    assert blocks.is_token.sum() == with_bos.lengths.sum() and blocks.mask.sum() == with_bos.trained_lengths.sum()
    assert (blocks.tokens[~blocks.mask & blocks.is_token] == adding.bos_token_id).all()


def test_ids_above_two_bytes_do_not_overflow(tmp_path):
    words = Tokenizer(WordLevel({f"w{n}": n for n in range(70_000)}, unk_token="w0"))
    words.pre_tokenizer = Whitespace()
    large = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w1")
    for _ in range(2):
        tokens = tokenize_corpus(corpus_of("w65535 w65536", "w69999"), large, cache_dir=tmp_path)
        assert tokens.ids.tolist() == [65_535, 65_536, 1, 69_999, 1]
        assert tokens.ids.dtype == np.int32


def test_without_a_pad_token_the_end_token_is_used(tokenizer):
    bare = deepcopy(tokenizer)
    bare.pad_token = None
    tokens = tokenize_corpus(corpus_of("a"), bare, cache_dir=None)
    assert tokens.pad_id == tokens.eos_id


def test_a_tokenizer_that_is_slow_or_has_no_end_token_is_refused(tokenizer):
    bare = deepcopy(tokenizer)
    bare.eos_token = None
    with pytest.raises(UserError, match="no end-of-sequence token"):
        tokenize_corpus(corpus_of("a"), bare, cache_dir=None)
    with pytest.raises(UserError, match="not a fast tokenizer"):
        tokenize_corpus(corpus_of("a"), object(), cache_dir=None)
