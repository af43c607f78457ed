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

from ..errors import UserError
from .corpus import Corpus

BATCH = 1000  # documents handed to the tokenizer at a time


@dataclass(frozen=True, eq=False)
class Tokens:
    """A tokenised corpus: the ids of all documents in a row, each closed by one end token.

    ``pad`` may equal ``end``: what is padding is never read off the ids (see `Blocks.keep`).
    """

    flat: np.ndarray  # [sum of lengths] uint16 where the vocabulary allows, else int32
    offset: np.ndarray  # [D + 1] int64: document d is flat[offset[d]:offset[d + 1]]
    end: int
    pad: int

    def __len__(self) -> int:
        return len(self.offset) - 1

    def document(self, row: int) -> np.ndarray:
        """The ids of one document, its end token last."""
        return self.flat[self.offset[row] : self.offset[row + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each document, [D] int64, the end token included."""
        return np.diff(self.offset)


def tokenise(corpus: Corpus, tokenizer: Any, *, cache: Path | None) -> Tokens:
    """All documents of ``corpus``, in its order, as ids of a fast ``tokenizer`` of the transformers library.

    No special tokens but the end token are added, and text that spells one is read as text. ``cache`` is a
    folder; a cache file that is damaged is made again, and one that cannot be written is warned of and
    done without.
    """
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UserError(
            f"{type(tokenizer).__name__} is not a fast tokenizer; wanted one with a tokenizer.json"
        )
    end = tokenizer.eos_token_id
    if end is None:
        raise UserError(f"the tokenizer {tokenizer.name_or_path!r} has no end token; set its eos_token")
    pad = end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    kind = np.dtype(np.uint16 if max(len(tokenizer), end + 1, pad + 1) <= 2**16 else np.int32)
    file = cache / f"tokens-{fingerprint(corpus, tokenizer)[:32]}.npz" if cache else None
    if file:
        kept = read_cache(file, documents=len(corpus), end=end, kind=kind)
        if kept:
            return Tokens(*kept, end, pad)
    flat, offset = encode(corpus.text, tokenizer, end, kind)
    if file:
        write_cache(file, flat, offset)
    return Tokens(flat, offset, end, pad)


def encode(texts: np.ndarray, tokenizer: Any, end: int, kind: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Ids of all texts, flat, and where each begins."""
    parts = [np.empty(0, kind)]
    lengths: list[int] = []
    for start in range(0, len(texts), BATCH):
        rows = tokenizer(
            texts[start : start + BATCH].tolist(),
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            truncation=False,
            padding=False,
            verbose=False,
        )["input_ids"]
        for row in rows:
            row.append(end)
        parts.append(np.fromiter(chain.from_iterable(rows), dtype=kind))
        lengths.extend(map(len, rows))
    return np.concatenate(parts), np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def fingerprint(corpus: Corpus, tokenizer: Any) -> str:
    """sha256 of the texts in their order and of all that decides their ids."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    for passing in ("truncation", "padding"):  # left there by whoever called the tokenizer last
        backend.pop(passing, None)
    said = sha256(json.dumps(["tokens", 1, tokenizer.eos_token_id, backend], sort_keys=True).encode())
    for text in corpus.text:
        said.update(sha256(text.encode()).digest())
    return said.hexdigest()


def read_cache(
    file: Path, *, documents: int, end: int, kind: np.dtype
) -> tuple[np.ndarray, np.ndarray] | None:
    """What an earlier call kept; None if there is nothing, or nothing sound."""
    try:
        with np.load(file, allow_pickle=False) as kept:
            flat, offset = kept["flat"], kept["offset"]
    except Exception:  # damaged bytes raise anything: BadZipFile, TokenError, MemoryError ...
        return None
    sound = (
        flat.dtype == kind
        and offset.dtype == np.int64
        and flat.ndim == 1
        and offset.shape == (documents + 1,)
        and offset[0] == 0
        and offset[-1] == len(flat)
        and bool((np.diff(offset) > 0).all())
        and bool((flat[offset[1:] - 1] == end).all())
    )
    return (flat, offset) if sound else None


def write_cache(file: Path, flat: np.ndarray, offset: np.ndarray) -> None:
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
