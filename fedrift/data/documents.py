"""Convert rows to unique, normalized documents in an order that does not depend on files, and assign them to splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha256
from itertools import groupby
from typing import NamedTuple

import numpy as np

from ..core.errors import UserError
from ..core.random import numpy_stream
from .catalog import is_in_pretraining_half
from .conversations import Example, Unusable, normalize_characters
from .corpus import TEST, TRAIN, VALIDATION
from .rows import MISSING_VALUES, Rows, normalize_label


class Document(NamedTuple):
    """One text with its label, source and split."""

    digest: bytes  # sha256 of the text
    text: str
    label: str | None
    source: str
    split: int
    example: Example | None = None  # the turns of instruction and chat data; None for running text


def extract_documents(rows: Rows, counts: Counter[str], *, skip_headings: bool = False) -> list[Document]:
    """Convert the usable rows to documents.

    Args:
        rows: The cells as they were read.
        counts: Receives the number of rows left out, by reason.
        skip_headings: Whether to leave out headings in the form of WikiText.

    Raises:
        UserError: No cell of the text column is text.
    """
    if len(rows) and not any(isinstance(cell, (str, Example, Unusable)) for cell in rows.text):
        types = sorted({type(cell).__name__ for cell in rows.text})
        raise UserError(
            f"the text column holds no text but values of type {', '.join(types)}: name another column with dataset.text_column"
        )
    documents = []
    for cell, label, source, split in zip(rows.text, rows.label, rows.source, rows.split, strict=True):
        if isinstance(cell, Unusable):
            counts[cell.reason] += 1
            continue
        if not isinstance(cell, (str, Example)):
            counts["not text"] += 1
            continue
        example = cell if isinstance(cell, Example) else None
        text = normalize_text(cell.text if isinstance(cell, Example) else cell)
        if not text:
            counts["empty"] += 1
        elif skip_headings and is_heading(text):
            counts["heading"] += 1
        else:
            topic, origin = normalize_label(label), normalize_label(source) or ""
            origin = "" if origin in MISSING_VALUES else origin
            documents.append(Document(sha256(text.encode()).digest(), text, topic, origin, split, example))
    return documents


def normalize_text(text: str) -> str:
    """Normalize line ends to \\n, strip the text and replace unpaired surrogates."""
    return normalize_characters(text).strip()


def is_heading(text: str) -> bool:
    """Return whether a line of WikiText is a heading, such as ``= = Plot = =``."""
    return text.startswith("=") and text.endswith("=")


def map_labels_to_domains(documents: list[Document], domains: Mapping[str, str], counts: Counter[str]) -> list[Document]:
    """Replace labels by their domains and leave out documents without a domain."""
    selected = [d._replace(label=domains[d.label]) for d in documents if d.label is not None and d.label in domains]
    counts["other domain"] += len(documents) - len(selected)
    return selected


def select_subset(documents: list[Document], subset: str, counts: Counter[str]) -> list[Document]:
    """Keep the train documents of one half, and all validation and test documents.

    Args:
        documents: The documents to filter.
        subset: ``"pretraining"`` (the half that ``pocket`` saw) or ``"unseen"``.
        counts: Receives the number of documents left out.
    """
    selected = [d for d in documents if d.split != TRAIN or is_in_pretraining_half(d.text) == (subset == "pretraining")]
    counts["pretraining half"] += len(documents) - len(selected)
    return selected


def deduplicate(documents: Sequence[Document], counts: Counter[str]) -> list[Document]:
    """Keep one document per text and sort the documents canonically (by the sha256 of the text).

    Of equal texts, one in test is preferred to one in validation, and that to one in train. Next, a labeled document is
    preferred to an unlabeled one, and then the first by label and source is used; a known source
    is preferred to an unknown one. ``counts`` receives the number of
    duplicates, and of texts that occurred with several labels.
    """
    ordered = sorted(documents, key=lambda d: (d.digest, -d.split, d.label is None, d.label or "", not d.source, d.source))
    unique = []
    for _, group in groupby(ordered, key=lambda d: d.digest):
        duplicates = list(group)
        unique.append(duplicates[0])
        if len(duplicates) > 1:
            counts["duplicate"] += len(duplicates) - 1
            counts["conflicting label"] += len({d.label for d in duplicates} - {None}) > 1
    return unique


def assign_splits(documents: Sequence[Document], *, validation_fraction: float, test_fraction: float, seed: int) -> np.ndarray:
    """Assign every document to a split.

    Splits that exist in the data are kept. A missing split is drawn from train, stratified by label. It gets at least one
    document if enough documents remain for training.

    Args:
        documents: The documents with their present splits.
        validation_fraction: The share of the train documents that becomes the validation split if there is none.
        test_fraction: The same for the test split.
        seed: The seed of the draw.

    Returns:
        The split of every document, [D] int8.
    """
    split = np.array([d.split for d in documents], dtype=np.int8)
    rows = np.flatnonzero(split == TRAIN)
    missing = [
        (part, share)
        for part, share in ((TEST, test_fraction), (VALIDATION, validation_fraction))
        if share > 0 and not (split == part).any()
    ]
    if len(rows) <= len(missing):
        return split
    order = rows[stratified_order([d.label or "" for d in documents if d.split == TRAIN], numpy_stream(seed, "corpus", "split"))]
    start = 0
    for num_missing, (part, share) in zip(range(len(missing), 0, -1), missing, strict=True):
        count = min(max(1, round(share * len(rows))), len(rows) - start - num_missing)
        split[order[start : start + count]] = part
        start += count
    return split


def subsample(documents: Sequence[Document], limit: int, seed: int) -> list[Document]:
    """Draw at most ``limit`` documents, stratified by split and label.

    With the same seed, the documents of a smaller limit are among those of a larger limit.
    """
    if len(documents) <= limit:
        return list(documents)
    order = stratified_order([f"{d.split} {d.label or ''}" for d in documents], numpy_stream(seed, "corpus", "limit"))
    return [documents[row] for row in np.sort(order[:limit])]


def stratified_order(strata: Sequence[str], rng: np.random.Generator) -> np.ndarray:
    """Return an order of the rows [D] in which every prefix contains each stratum in about its overall share.

    The row with rank r in a stratum of n rows gets the position (r + u) / n, with one u in [0, 1) per stratum.
    """
    _, stratum = np.unique(np.asarray(strata), return_inverse=True)
    sizes = np.bincount(stratum)
    order = rng.permutation(len(stratum))
    by_stratum = np.argsort(stratum[order], kind="stable")
    rank = np.empty(len(order), dtype=np.int64)
    rank[by_stratum] = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    position = (rank + rng.random(len(sizes))[stratum[order]]) / sizes[stratum[order]]
    return order[np.argsort(position, kind="stable")]


def merge_datasets(
    parts: Mapping[str, list[Document]], counts: Counter[str], *, validation_fraction: float, test_fraction: float, seed: int
) -> list[Document]:
    """Combine several datasets into one, in which each of them is a domain.

    In every split, all domains get as many documents as the smallest one has; ``seed`` draws the documents of the others.
    Each part keeps its own splits, and missing ones are drawn as in `assign_splits`.

    Args:
        parts: The documents of each domain.
        counts: Receives the number of documents left out, by reason.
        validation_fraction: As in `assign_splits`.
        test_fraction: As in `assign_splits`.
        seed: The seed of all draws.
    """
    merged = []
    for domain, documents in parts.items():
        documents = deduplicate(documents, counts)
        splits = assign_splits(documents, validation_fraction=validation_fraction, test_fraction=test_fraction, seed=seed)
        merged += [d._replace(label=domain, split=int(part_split)) for d, part_split in zip(documents, splits, strict=True)]
    merged = deduplicate(merged, counts)
    selected: list[Document] = []
    for split in (TRAIN, VALIDATION, TEST):
        by_domain = {domain: [d for d in merged if d.split == split and d.label == domain] for domain in parts}
        smallest = min(len(documents) for documents in by_domain.values())
        for domain, documents in by_domain.items():
            drawn = numpy_stream(seed, "corpus", "together", domain, split).permutation(len(documents))[:smallest]
            selected += [documents[row] for row in np.sort(drawn)]
    counts["balancing"] += len(merged) - len(selected)
    return selected
