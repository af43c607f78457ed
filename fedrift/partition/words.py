"""Words of documents, counted: what tilts, substitutions and measures of heterogeneity look at."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import csr_array

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")

PLAIN = bytes(ord(chr(code).lower()) if chr(code).isalnum() or chr(code) == "'" else 32 for code in range(128)) + bytes(128)
OUTER = re.compile(rb"'(?![a-z0-9])")


@dataclass(frozen=True, eq=False)
class Words:
    """How often each of V words stands in each of D documents; small letters."""

    counts: csr_array  # [D, V] float64
    vocabulary: tuple[str, ...]  # [V]

    @property
    def total(self) -> np.ndarray:
        """Occurrences of each word in all documents, [V]."""
        return np.bincount(self.counts.indices, self.counts.data, len(self.vocabulary))


def split(text: str) -> list[str]:
    """The words of a text in small letters; runs of letters and digits, with apostrophes inside."""
    return spaced(text).decode().split()


def spaced(text: str) -> bytes:
    """The words of a text in small letters with blanks between them, in UTF-8."""
    if not text.isascii():
        return " ".join(WORD.findall(text.lower())).encode()
    # The same without the pattern, many times as fast: what is no word becomes a blank, as do apostrophes at word ends.
    plain = text.encode().translate(PLAIN)
    if b"'" in plain:
        plain = OUTER.sub(b" ", plain).replace(b" '", b" ").removeprefix(b"'")
    return plain


def count_words(texts: Iterable[str]) -> Words:
    """Count the words of each text. Words are numbered as they first come."""
    listed = pa.array([spaced(text).strip() for text in texts], pa.large_binary()).cast(pa.large_string())
    found = pc.ascii_split_whitespace(listed)
    flat = found.flatten()
    empty = pc.equal(listed, "").to_numpy(zero_copy_only=False)  # split into one word of no letters
    words = (flat.filter(pc.not_equal(flat, "")) if empty.any() else flat).dictionary_encode()
    lengths = np.where(empty, 0, pc.list_value_length(found).to_numpy())
    vocabulary, number = tuple(words.dictionary.to_pylist()), words.indices.to_numpy()
    offset = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    counts = csr_array((np.ones(len(number)), number, offset), shape=(len(listed), len(vocabulary)))
    counts.sum_duplicates()
    return Words(counts, vocabulary)
