"""Fixtures that all tests of corpora share: a small tokenizer, and no data directory of the user."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from .chats import train_bpe

END, PAD = "<|end|>", "<|pad|>"


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch):
    monkeypatch.delenv("FEDRIFT_DATA", raising=False)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of 300 entries."""
    return PreTrainedTokenizerFast(tokenizer_object=train_bpe([END, PAD]), bos_token=END, eos_token=END, pad_token=PAD)
