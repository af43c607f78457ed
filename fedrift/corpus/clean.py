"""From rows to documents: stripped, usable, each text once, in an order that files cannot change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha256
from itertools import groupby
from typing import NamedTuple

from ..errors import UserError
from .corpus import TRAIN
from .halves import pretraining_half
from .labels import label_name
from .rows import Rows


class Document(NamedTuple):
    """One text with what is known of it."""

    digest: bytes  # sha256 of the text
    text: str
    label: str | None
    source: str
    split: int


def documents(rows: Rows, counts: Counter[str], *, lines: bool = False) -> list[Document]:
    """The usable rows; cells without text and, with ``lines``, headings are counted and left out."""
    if len(rows) and not any(isinstance(cell, str) for cell in rows.text):
        kinds = sorted({type(cell).__name__ for cell in rows.text})
        raise UserError(
            f"the text column holds no text but {', '.join(kinds)}; name the right one with corpus.text"
        )
    found = []
    for cell, label, source, split in zip(rows.text, rows.label, rows.source, rows.split, strict=True):
        if not isinstance(cell, str):
            counts["not text"] += 1
            continue
        text = tidy(cell)
        if not text:
            counts["empty"] += 1
        elif lines and is_heading(text):
            counts["heading"] += 1
        else:
            found.append(
                Document(sha256(text.encode()).digest(), text, label_name(label), label_name(source) or "", split)
            )
    return found


def tidy(text: str) -> str:
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


def gathered(found: list[Document], domains: Mapping[str, str], counts: Counter[str]) -> list[Document]:
    """Labels replaced by the domain they belong to; documents of no domain are left out."""
    kept = [d._replace(label=domains[d.label]) for d in found if d.label is not None and d.label in domains]
    counts["other domain"] += len(found) - len(kept)
    return kept


def of_half(found: list[Document], half: str, counts: Counter[str]) -> list[Document]:
    """Train documents of one half only ("pretraining" or "unseen"); validation and test stay whole."""
    kept = [d for d in found if d.split != TRAIN or pretraining_half(d.text) == (half == "pretraining")]
    counts["other half"] += len(found) - len(kept)
    return kept


def unique(found: Sequence[Document], counts: Counter[str]) -> list[Document]:
    """Each text once, in canonical order.

    Of equal texts the one in test stays, else the one in validation; then one with a label before one
    without; then the first by label and source. Texts that came with several labels are counted.
    """
    ordered = sorted(found, key=lambda d: (d.digest, -d.split, d.label is None, d.label or "", d.source))
    kept = []
    for _, same in groupby(ordered, key=lambda d: d.digest):
        equal = list(same)
        kept.append(equal[0])
        if len(equal) > 1:
            counts["duplicate"] += len(equal) - 1
            counts["conflicting label"] += len({d.label for d in equal} - {None}) > 1
    return kept
