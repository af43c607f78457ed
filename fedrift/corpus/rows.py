"""`Rows`: what a reader brings in, before any cleaning; and the names by which splits are known."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .corpus import TEST, TRAIN, VALIDATION

SPLIT_NAMES = {
    "train": TRAIN,
    "training": TRAIN,
    "validation": VALIDATION,
    "valid": VALIDATION,
    "val": VALIDATION,
    "dev": VALIDATION,
    "test": TEST,
}


@dataclass(frozen=True, eq=False)
class Rows:
    """Cells as they stand in the data, four lists of one length."""

    text: Sequence[Any]
    label: Sequence[Any]
    source: Sequence[Any]
    split: Sequence[int]  # TRAIN too where the data is not divided

    def __len__(self) -> int:
        return len(self.text)


def split_of(name: str) -> int | None:
    """The split that a name begins with: also of ``train_partial`` and ``test-00000-of-1``."""
    return SPLIT_NAMES.get(re.split(r"[-_.]", name.lower(), maxsplit=1)[0])


def joined(parts: Iterable[Rows]) -> Rows:
    """All parts as one. Without any train part the data counts as undivided."""
    parts = list(parts)
    split = [s for part in parts for s in part.split]
    if TRAIN not in split:
        split = [TRAIN] * len(split)
    return Rows(
        [cell for part in parts for cell in part.text],
        [cell for part in parts for cell in part.label],
        [cell for part in parts for cell in part.source],
        split,
    )
