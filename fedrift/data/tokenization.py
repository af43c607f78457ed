"""A corpus as token ids: made once, kept flat, cached by what it was made of."""

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

TOKENIZER_BATCH = 1000  # documents handed to the tokenizer at a time


@dataclass(frozen=True, eq=False)
class TokenizedCorpus:
    """A tokenised corpus: the ids of all documents in a row, each closed by one end token.

    ``pad`` may equal ``end``: what is padding is never read off the ids (see `Blocks.keep`).
    """

    ids: np.ndarray  # [sum of lengths] uint16 where the vocabulary allows, else int32
    offsets: np.ndarray  # [D + 1] int64: document d is flat[offset[d]:offset[d + 1]]
    eos_id: int
    pad_id: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def document_ids(self, row: int) -> np.ndarray:
        """The ids of one document, its end token last."""
        return self.ids[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each document, [D] int64, the end token included."""
        return np.diff(self.offsets)


def tokenize_corpus(corpus: Corpus, tokenizer: Any, *, cache_dir: Path | None) -> TokenizedCorpus:
    """All documents of ``corpus``, in its order, as ids of a fast ``tokenizer`` of the transformers library.

    No special tokens but the end token are added, and text that spells one is read as text. ``cache_dir`` is a
    folder; a cache file that is damaged is made again, and one that cannot be written is warned of and
    done without.
    """
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UserError(f"{type(tokenizer).__name__} is not a fast tokenizer; wanted one with a tokenizer.json")
    end = tokenizer.eos_token_id
    if end is None:
        raise UserError(f"the tokenizer {tokenizer.name_or_path!r} has no end token; set its eos_token")
    pad = end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    kind = np.dtype(np.uint16 if max(len(tokenizer), end + 1, pad + 1) <= 2**16 else np.int32)
    file = cache_dir / f"tokens-{tokenization_fingerprint(corpus, tokenizer)[:32]}.npz" if cache_dir else None
    if file:
        kept = read_token_cache(file, num_documents=len(corpus), eos_id=end, expected_dtype=kind)
        if kept:
            return TokenizedCorpus(*kept, end, pad)
    flat, offset = tokenize_texts(corpus.text, tokenizer, end, kind)
    if file:
        write_token_cache(file, flat, offset)
    return TokenizedCorpus(flat, offset, end, pad)


def tokenize_texts(texts: np.ndarray, tokenizer: Any, eos_id: int, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Ids of all texts, flat, and where each begins."""
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
    """sha256 of the texts in their order and of all that decides their ids."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    for passing in ("truncation", "padding"):  # left there by whoever called the tokenizer last
        backend.pop(passing, None)
    said = sha256(json.dumps(["tokens", 1, tokenizer.eos_token_id, backend], sort_keys=True).encode())
    for text in corpus.text:
        said.update(sha256(text.encode()).digest())
    return said.hexdigest()


def read_token_cache(file: Path, *, num_documents: int, eos_id: int, expected_dtype: np.dtype) -> tuple[np.ndarray, np.ndarray] | None:
    """What an earlier call kept; None if there is nothing, or nothing sound."""
    try:
        with np.load(file, allow_pickle=False) as kept:
            flat, offset = kept["flat"], kept["offset"]
    except Exception:  # damaged bytes raise anything: BadZipFile, TokenError, MemoryError ...
        return None
    sound = (
        flat.dtype == expected_dtype
        and offset.dtype == np.int64
        and flat.ndim == 1
        and offset.shape == (num_documents + 1,)
        and offset[0] == 0
        and offset[-1] == len(flat)
        and bool((np.diff(offset) > 0).all())
        and bool((flat[offset[1:] - 1] == eos_id).all())
    )
    return (flat, offset) if sound else None


def write_token_cache(file: Path, flat: np.ndarray, offset: np.ndarray) -> None:
    """Whole or not at all: written under another name, then renamed."""
    draft = file.with_name(f"{file.stem}.{os.getpid()}-{uuid4().hex[:8]}.draft")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as out:
            np.savez(out, flat=flat, offset=offset)
        draft.replace(file)
    except OSError as error:
        draft.unlink(missing_ok=True)
        warnings.warn(f"tokens are not cached in {file.parent}: {error}", stacklevel=2)


# Documents packed into blocks of one length, for training and evaluation.


@dataclass(frozen=True, eq=False)
class Blocks:
    """K blocks of T tokens."""

    tokens: np.ndarray  # [K, T] int64
    mask: np.ndarray  # [K, T] bool: False on padding, and only there

    def __len__(self) -> int:
        return len(self.tokens)


def pack_blocks(tokens: TokenizedCorpus, rows: np.ndarray, block_length: int) -> Blocks:
    """The documents ``rows`` (indices or a mask), in the given order, cut into blocks of ``length`` tokens.

    Every document brings its end token, so one stands between any two. Only the last block is padded; K is 0
    if ``rows`` is empty. Rows of one client packed alone never share a block with another's.
    """
    if block_length < 1:
        raise ValueError(f"wanted a block length of at least 1, got {block_length}")
    rows = np.asarray(rows)
    rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
    begin, end = tokens.offsets[rows].tolist(), tokens.offsets[rows + 1].tolist()
    total = int(tokens.lengths[rows].sum())
    blocks = -(-total // block_length)
    packed = np.full(blocks * block_length, tokens.pad_id, dtype=np.int64)
    # One copy of D slices; an index of every token costs several times as much.
    np.concatenate([tokens.ids[:0], *(tokens.ids[a:z] for a, z in zip(begin, end, strict=True))], out=packed[:total])
    keep = np.arange(blocks * block_length) < total
    return Blocks(packed.reshape(blocks, block_length), keep.reshape(blocks, block_length))
