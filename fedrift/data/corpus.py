"""Define `Corpus`, the documents of one experiment after cleaning, labeling and splitting."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256

import numpy as np

from .conversations import ChatTemplate, TrainOn

TRAIN, VALIDATION, TEST = 0, 1, 2
UNLABELED = "unlabelled"  # the domain of documents without a label; a random stream depends on the spelling (``order_documents``)
# Part of the fingerprint of conversations and of the name of their cached tokens. Raise it if other tokens of theirs are trained or
# counted, so that neither stored runs nor stored tokens are used again. Running text does not depend on it.
EXAMPLES_VERSION = "examples 2"


@dataclass(frozen=True, eq=False)
class Corpus:
    """D documents, each of which belongs to exactly one split.

    A loaded corpus is in canonical order (by the sha256 of the text), so that results never depend on the order of files or
    rows. A selection made by `take` keeps `domains`, so that the label numbers stay valid.

    Example:
        >>> corpus = load_corpus(DatasetConfig("bbc"))
        >>> len(corpus.train), corpus.domains
    """

    name: str
    text: np.ndarray  # [D] object: str, without surrounding white space, all different
    label: np.ndarray  # [D] int64: index into domains, -1 for a document without a label
    domains: tuple[str, ...]  # sorted
    source: np.ndarray  # [D] object: str, the origin of the document (file, subreddit, URL, ...)
    split: np.ndarray  # [D] int8: TRAIN, VALIDATION or TEST
    size: np.ndarray  # [D] int64: tokens if tokenized, else words separated by white space; token budgets use it
    drop_counts: Mapping[str, int] = field(
        default_factory=dict
    )  # number of documents by what loading did with them (duplicate, empty, ...)
    columns: tuple[str, ...] = ()  # the columns of the tables from which it was read
    has_source: bool = True  # False if the sources are only the names of the files
    notes: tuple[str, ...] = ()  # facts about the loading that a reader of the results must know
    examples: np.ndarray | None = None  # [D] object: conversations.Example, for instruction and chat data
    train_on: TrainOn = "answer"  # the tokens of examples that count in the loss; running text counts in full
    chat_template: ChatTemplate = "auto"  # the template that joins the turns of examples

    def __len__(self) -> int:
        return len(self.text)

    def take(self, rows: np.ndarray) -> Corpus:
        """Select documents by row.

        Args:
            rows: Indices of documents or a boolean mask [D]; the result has their order.
        """
        arrays = {name: getattr(self, name)[rows] for name in ("text", "label", "source", "split", "size")}
        return replace(self, **arrays, examples=None if self.examples is None else self.examples[rows])

    def with_sizes(self, size: np.ndarray) -> Corpus:
        """Return the same documents with other sizes.

        ``corpus.with_sizes(tokens.lengths)`` makes the sizes token counts.

        Args:
            size: The new size of each document, [D].

        Raises:
            ValueError: The shape of ``size`` is not [D].
        """
        size = np.asarray(size, dtype=np.int64)
        if size.shape != self.size.shape:
            raise ValueError(f"size must hold one number for each of the {len(self)} documents, but has shape {size.shape}")
        return replace(self, size=size)

    @property
    def train(self) -> Corpus:
        """Return the training documents."""
        return self.take(self.split == TRAIN)

    @property
    def validation(self) -> Corpus:
        """Return the validation documents, by which settings are chosen."""
        return self.take(self.split == VALIDATION)

    @property
    def test(self) -> Corpus:
        """Return the test documents, on which results are reported."""
        return self.take(self.split == TEST)

    @cached_property
    def fingerprint(self) -> str:
        """Return the sha256 (hexadecimal) of the text, label and split of all documents, independent of their order."""
        lines = sorted(
            json.dumps([sha256(text.encode()).hexdigest(), int(split), self.domains[label] if label >= 0 else None])
            for text, label, split in zip(self.text, self.label, self.split, strict=True)
        )
        if self.examples is not None:
            lines += [EXAMPLES_VERSION, *sorted(sha256(example.to_json().encode()).hexdigest() for example in self.examples)]
        return sha256("\n".join(lines).encode()).hexdigest()

    @cached_property
    def source_fingerprint(self) -> str:
        """Return the sha256 (hexadecimal) of the sources of all documents, on which only natural clients depend."""
        pairs = sorted([sha256(text.encode()).hexdigest(), str(source)] for text, source in zip(self.text, self.source, strict=True))
        return sha256(json.dumps(pairs).encode()).hexdigest()
