"""From rows to documents: stripped, usable, each text once, in an order that files cannot change."""

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
from .corpus import TEST, TRAIN, VALIDATION
from .rows import Rows, normalize_label


class Document(NamedTuple):
    """One text with what is known of it."""

    digest: bytes  # sha256 of the text
    text: str
    label: str | None
    source: str
    split: int


def extract_documents(rows: Rows, counts: Counter[str], *, skip_headings: bool = False) -> list[Document]:
    """The usable rows; cells without text and, with ``skip_headings``, headings are counted and left out."""
    if len(rows) and not any(isinstance(cell, str) for cell in rows.text):
        kinds = sorted({type(cell).__name__ for cell in rows.text})
        raise UserError(f"the text column holds no text but {', '.join(kinds)}; name the right one with dataset.text_column")
    found = []
    for cell, label, source, split in zip(rows.text, rows.label, rows.source, rows.split, strict=True):
        if not isinstance(cell, str):
            counts["not text"] += 1
            continue
        text = normalize_text(cell)
        if not text:
            counts["empty"] += 1
        elif skip_headings and is_heading(text):
            counts["heading"] += 1
        else:
            found.append(Document(sha256(text.encode()).digest(), text, normalize_label(label), normalize_label(source) or "", split))
    return found


def normalize_text(text: str) -> str:
    """Line ends as \\n, nothing around the text, and no half of a surrogate pair (JSON can bring one)."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text.strip()


def is_heading(text: str) -> bool:
    """Whether a line of WikiText is a heading: ``= = Plot = =``."""
    return text.startswith("=") and text.endswith("=")


def map_labels_to_domains(documents: list[Document], domains: Mapping[str, str], counts: Counter[str]) -> list[Document]:
    """Labels replaced by the domain they belong to; documents of no domain are left out."""
    kept = [d._replace(label=domains[d.label]) for d in documents if d.label is not None and d.label in domains]
    counts["other domain"] += len(documents) - len(kept)
    return kept


def select_half(documents: list[Document], half: str, counts: Counter[str]) -> list[Document]:
    """Train documents of one half only ("pretraining" or "unseen"); validation and test stay whole."""
    kept = [d for d in documents if d.split != TRAIN or is_in_pretraining_half(d.text) == (half == "pretraining")]
    counts["other half"] += len(documents) - len(kept)
    return kept


def deduplicate(documents: Sequence[Document], counts: Counter[str]) -> list[Document]:
    """Each text once, in canonical order.

    Of equal texts the one in test stays, else the one in validation; then one with a label before one
    without; then the first by label and source. Texts that came with several labels are counted.
    """
    ordered = sorted(documents, key=lambda d: (d.digest, -d.split, d.label is None, d.label or "", d.source))
    kept = []
    for _, same in groupby(ordered, key=lambda d: d.digest):
        equal = list(same)
        kept.append(equal[0])
        if len(equal) > 1:
            counts["duplicate"] += len(equal) - 1
            counts["conflicting label"] += len({d.label for d in equal} - {None}) > 1
    return kept


# Which document goes into which split, and which stay when there are too many.


def assign_splits(documents: Sequence[Document], *, validation_fraction: float, test_fraction: float, seed: int) -> np.ndarray:
    """The split of every document, [D] int8.

    Splits that the data has are kept. A missing one is carved out of train: the given share of its
    documents, by label in proportion, at least one where there are enough to leave one for training.
    """
    split = np.array([d.split for d in documents], dtype=np.int8)
    rows = np.flatnonzero(split == TRAIN)
    wanted = [
        (part, share)
        for part, share in ((TEST, test_fraction), (VALIDATION, validation_fraction))
        if share > 0 and not (split == part).any()
    ]
    if len(rows) <= len(wanted):
        return split
    order = rows[stratified_order([d.label or "" for d in documents if d.split == TRAIN], numpy_stream(seed, "corpus", "split"))]
    start = 0
    for still, (part, share) in zip(range(len(wanted), 0, -1), wanted, strict=True):
        count = min(max(1, round(share * len(rows))), len(rows) - start - still)
        split[order[start : start + count]] = part
        start += count
    return split


def subsample(documents: Sequence[Document], limit: int, seed: int) -> list[Document]:
    """At most ``limit`` documents, splits and labels in proportion; a larger limit keeps a smaller one's."""
    if len(documents) <= limit:
        return list(documents)
    order = stratified_order([f"{d.split} {d.label or ''}" for d in documents], numpy_stream(seed, "corpus", "limit"))
    return [documents[row] for row in np.sort(order[:limit])]


def stratified_order(strata: Sequence[str], rng: np.random.Generator) -> np.ndarray:
    """An order of the rows, [D], every beginning of which holds each stratum in about its share.

    Row r of a stratum of n stands at (r + u) / n of the way, with one u in [0, 1) for each stratum.
    """
    _, stratum = np.unique(np.asarray(strata), return_inverse=True)
    sizes = np.bincount(stratum)
    order = rng.permutation(len(stratum))
    by_stratum = np.argsort(stratum[order], kind="stable")
    rank = np.empty(len(order), dtype=np.int64)
    rank[by_stratum] = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    way = (rank + rng.random(len(sizes))[stratum[order]]) / sizes[stratum[order]]
    return order[np.argsort(way, kind="stable")]


# Several corpora as one, each a domain of it.


def merge_datasets(
    parts: Mapping[str, list[Document]], counts: Counter[str], *, validation_fraction: float, test_fraction: float, seed: int
) -> list[Document]:
    """The documents of all ``parts``, labelled by the part they are of: in every split equally many of each.

    Each part keeps its own splits, or has them carved as any corpus. The smallest part decides how many; which
    documents of the others stay, the seed does.
    """
    found = []
    for domain, documents in parts.items():
        documents = deduplicate(documents, counts)
        own = assign_splits(documents, validation_fraction=validation_fraction, test_fraction=test_fraction, seed=seed)
        found += [d._replace(label=domain, split=int(s)) for d, s in zip(documents, own, strict=True)]
    found = deduplicate(found, counts)
    kept: list[Document] = []
    for split in (TRAIN, VALIDATION, TEST):
        each = {domain: [d for d in found if d.split == split and d.label == domain] for domain in parts}
        most = min(len(documents) for documents in each.values())
        for domain, documents in each.items():
            drawn = numpy_stream(seed, "corpus", "together", domain, split).permutation(len(documents))[:most]
            kept += [documents[row] for row in np.sort(drawn)]
    counts["more than the smallest part has"] += len(found) - len(kept)
    return kept
