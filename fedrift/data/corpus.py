"""`Corpus`: the documents of one experiment, clean, labelled and split."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256

import numpy as np

TRAIN, VALIDATION, TEST = 0, 1, 2


@dataclass(frozen=True, eq=False)
class Corpus:
    """D documents, each in exactly one split.

    As loaded, the order is canonical (by sha256 of the text), so that results never depend on the
    order of files or rows. Views made by ``take`` keep the domains, and so the label numbers.
    """

    name: str
    text: np.ndarray  # [D] object: str, stripped, no two equal
    label: np.ndarray  # [D] int64: index into domains; -1 where a document has none
    domains: tuple[str, ...]  # sorted
    source: np.ndarray  # [D] object: str, where the document came from (file, subreddit, url, ...)
    split: np.ndarray  # [D] int8: TRAIN, VALIDATION or TEST
    size: np.ndarray  # [D] int64: tokens if tokenised, else whitespace words; budgets are counted in it
    drop_counts: Mapping[str, int] = field(default_factory=dict)  # what loading did: documents by reason
    columns: tuple[str, ...] = ()  # of the tables it was read from
    has_source: bool = True  # whether the sources come from the data, and are not the names of its files
    notes: tuple[str, ...] = ()  # what a reader of the results must know of how it was read

    def __len__(self) -> int:
        return len(self.text)

    def take(self, rows: np.ndarray) -> Corpus:
        """The documents at ``rows`` (indices or a mask), in that order."""
        arrays = {name: getattr(self, name)[rows] for name in ("text", "label", "source", "split", "size")}
        return replace(self, **arrays)

    def with_sizes(self, size: np.ndarray) -> Corpus:
        """The same documents with other sizes, [D]; ``corpus.with_sizes(tokens.lengths)`` counts in tokens."""
        size = np.asarray(size, dtype=np.int64)
        if size.shape != self.size.shape:
            raise ValueError(f"wanted one size for each of {len(self)} documents, got shape {size.shape}")
        return replace(self, size=size)

    @property
    def train(self) -> Corpus:
        """The documents to train on."""
        return self.take(self.split == TRAIN)

    @property
    def validation(self) -> Corpus:
        """The documents to choose settings by."""
        return self.take(self.split == VALIDATION)

    @property
    def test(self) -> Corpus:
        """The documents to report on."""
        return self.take(self.split == TEST)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 in hex of text, label and split of every document, whatever their order."""
        lines = sorted(
            json.dumps([sha256(text.encode()).hexdigest(), int(split), self.domains[label] if label >= 0 else None])
            for text, label, split in zip(self.text, self.label, self.split, strict=True)
        )
        return sha256("\n".join(lines).encode()).hexdigest()
