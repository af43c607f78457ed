"""Tokenize a corpus once into one flat array of token ids, and pack documents into blocks of equal length.

Token ids are cached under a hash of the texts and the tokenizer.
"""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from ..core.errors import UserError
from .corpus import Corpus

TOKENIZER_BATCH = 1000  # documents per call of the tokenizer


@dataclass(frozen=True, eq=False)
class TokenizedCorpus:
    """The token ids of all documents in one array; each document ends with the end-of-sequence token.

    ``pad_id`` may equal ``eos_id``, because padding is marked by `Blocks.mask` and never inferred from the ids.
    """

    ids: np.ndarray  # [sum of lengths] uint16 where the vocabulary allows, else int32
    offsets: np.ndarray  # [D + 1] int64: document d is ids[offsets[d]:offsets[d + 1]]
    eos_id: int
    pad_id: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def document_ids(self, row: int) -> np.ndarray:
        """Return the ids of one document, including its end-of-sequence token."""
        return self.ids[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Return the number of tokens of each document, [D] int64, including the end-of-sequence token."""
        return np.diff(self.offsets)


def tokenize_corpus(corpus: Corpus, tokenizer: Any, *, cache_dir: Path | None) -> TokenizedCorpus:
    """Tokenize all documents of a corpus.

    Only the end-of-sequence token is added. A special token that is spelled out in a text is tokenized as plain text. A
    damaged cache file is replaced. If the cache folder cannot be written, a warning is issued and nothing is cached.

    Args:
        corpus: The documents; the result has their order.
        tokenizer: A fast tokenizer of the library transformers.
        cache_dir: The folder of cached token ids, or None for no cache.

    Raises:
        UserError: The tokenizer is not a fast one, or it has no end-of-sequence token.
    """
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UserError(f"{type(tokenizer).__name__} is not a fast tokenizer: use a tokenizer that has a tokenizer.json")
    end = tokenizer.eos_token_id
    if end is None:
        raise UserError(f"the tokenizer {tokenizer.name_or_path!r} has no end-of-sequence token: set its eos_token")
    pad = end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    dtype = np.dtype(np.uint16 if max(len(tokenizer), end + 1, pad + 1) <= 2**16 else np.int32)
    file = cache_dir / f"tokens-{tokenization_fingerprint(corpus, tokenizer)[:32]}.npz" if cache_dir else None
    if file:
        cached = read_token_cache(file, num_documents=len(corpus), eos_id=end, expected_dtype=dtype)
        if cached:
            return TokenizedCorpus(*cached, end, pad)
    ids, offsets = tokenize_texts(corpus.text, tokenizer, end, dtype)
    if file:
        write_token_cache(file, ids, offsets)
    return TokenizedCorpus(ids, offsets, end, pad)


def tokenize_texts(texts: np.ndarray, tokenizer: Any, eos_id: int, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids of all texts in one array, and the offset of each text in it [D + 1]."""
    parts = [np.empty(0, dtype)]
    lengths: list[int] = []
    for start in range(0, len(texts), TOKENIZER_BATCH):
        rows = tokenizer(
            texts[start : start + TOKENIZER_BATCH].tolist(),
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            truncation=False,
            padding=False,
            verbose=False,
        )["input_ids"]
        for row in rows:
            row.append(eos_id)
        parts.append(np.fromiter(chain.from_iterable(rows), dtype=dtype))
        lengths.extend(map(len, rows))
    return np.concatenate(parts), np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def tokenization_fingerprint(corpus: Corpus, tokenizer: Any) -> str:
    """Return the sha256 of the texts in their order and of everything that determines their ids."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    for key in ("truncation", "padding"):  # state of the last call, which does not affect these ids
        backend.pop(key, None)
    digest = sha256(json.dumps(["tokens", 1, tokenizer.eos_token_id, backend], sort_keys=True).encode())
    for text in corpus.text:
        digest.update(sha256(text.encode()).digest())
    return digest.hexdigest()


def read_token_cache(file: Path, *, num_documents: int, eos_id: int, expected_dtype: np.dtype) -> tuple[np.ndarray, np.ndarray] | None:
    """Read cached token ids and offsets; return None if the file is missing or invalid.

    The file is valid if it has the expected dtype and number of documents, and every document ends with ``eos_id``.
    """
    try:
        with np.load(file, allow_pickle=False) as archive:
            ids, offsets = archive["flat"], archive["offset"]
    except Exception:  # damaged bytes can raise many types, such as BadZipFile, TokenError or MemoryError
        return None
    is_valid = (
        ids.dtype == expected_dtype
        and offsets.dtype == np.int64
        and ids.ndim == 1
        and offsets.shape == (num_documents + 1,)
        and offsets[0] == 0
        and offsets[-1] == len(ids)
        and bool((np.diff(offsets) > 0).all())
        and bool((ids[offsets[1:] - 1] == eos_id).all())
    )
    return (ids, offsets) if is_valid else None


def write_token_cache(file: Path, flat: np.ndarray, offset: np.ndarray) -> None:
    """Write the cache file atomically: write a temporary file, then rename it."""
    draft = file.with_name(f"{file.stem}.{os.getpid()}-{uuid4().hex[:8]}.draft")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as out:
            np.savez(out, flat=flat, offset=offset)
        draft.replace(file)
    except OSError as error:
        draft.unlink(missing_ok=True)
        warnings.warn(f"token ids cannot be cached in {file.parent}: {error}", stacklevel=2)


@dataclass(frozen=True, eq=False)
class Blocks:
    """K blocks of T tokens each, for training and evaluation."""

    tokens: np.ndarray  # [K, T] int64
    mask: np.ndarray  # [K, T] bool: False on padding only

    def __len__(self) -> int:
        return len(self.tokens)


def pack_blocks(tokens: TokenizedCorpus, rows: np.ndarray, block_length: int) -> Blocks:
    """Concatenate documents and cut them into blocks of equal length.

    Documents are separated by their end-of-sequence tokens, and only the last block is padded. A client's documents never
    share a block with those of another client if each client is packed in a separate call.

    Args:
        tokens: The token ids of the corpus.
        rows: Indices of documents, in the order in which they are packed, or a boolean mask [D].
        block_length: The number of tokens per block (T).

    Returns:
        The blocks [K, T]; K is 0 if ``rows`` is empty.

    Raises:
        ValueError: ``block_length`` is less than 1.
    """
    if block_length < 1:
        raise ValueError(f"block_length must be at least 1, got {block_length}")
    rows = np.asarray(rows)
    rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
    starts, ends = tokens.offsets[rows].tolist(), tokens.offsets[rows + 1].tolist()
    total = int(tokens.lengths[rows].sum())
    num_blocks = -(-total // block_length)
    packed = np.full(num_blocks * block_length, tokens.pad_id, dtype=np.int64)
    # Concatenating D slices is several times faster than indexing every token.
    np.concatenate([tokens.ids[:0], *(tokens.ids[start:stop] for start, stop in zip(starts, ends, strict=True))], out=packed[:total])
    mask = np.arange(num_blocks * block_length) < total
    return Blocks(packed.reshape(num_blocks, block_length), mask.reshape(num_blocks, block_length))
