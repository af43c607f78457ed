"""`Rows`: what a reader brings in, before any cleaning; and the names by which splits are known."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import UserError
from .corpus import TEST, TRAIN, VALIDATION
from .labels import read_labels

SPLIT_NAMES = {
    "train": TRAIN,
    "training": TRAIN,
    "validation": VALIDATION,
    "valid": VALIDATION,
    "val": VALIDATION,
    "dev": VALIDATION,
    "test": TEST,
    "testing": TEST,
    "eval": TEST,
    "evaluation": TEST,
}
Columns = tuple[str, str, str]
"""The names of the columns of text, label and source."""
COLUMNS: Columns = ("text", "label", "source")
SPLIT_WORD = re.compile(rf"(?:^|[-._ /\d])({'|'.join(SPLIT_NAMES)})(?:set|data|split)?(?=$|[-._ /\d])")


@dataclass(frozen=True, eq=False)
class Table:
    """Some columns of one table, as Python values."""

    columns: Mapping[str, Sequence[Any]]
    names: tuple[str, ...]  # of all columns of the table, those that were not read included
    features: Mapping[str, Any] = field(default_factory=dict)  # as the library `datasets` knows them
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Rows:
    """Cells as they stand in the data, four lists of one length."""

    text: Sequence[Any]
    label: Sequence[Any]
    source: Sequence[Any]
    split: Sequence[int]  # TRAIN too where the data is not divided
    columns: tuple[str, ...] = ()  # of the tables; empty where the documents come from no table
    has_source: bool = True  # whether the sources come from the data, and are not the names of its files
    notes: tuple[str, ...] = ()  # what a reader of the results must know

    def __len__(self) -> int:
        return len(self.text)


def split_of(name: str) -> int | None:
    """The split that a file, folder or part of a data set is named after; None if it is after none.

    As in the library ``datasets``, a split's word counts wherever it stands between digits, blanks and any of
    ``- _ . /``: train-00000-of-00002, train1, imdb_test, data/dev. Raises UserError for a name of two splits.
    """
    found = {SPLIT_NAMES[word] for word in SPLIT_WORD.findall(name.lower())}
    if len(found) > 1:
        raise UserError(f"{name[:80]!r} names more than one split ({' and '.join(split_words(name))}): rename it after one, "
                        "or name the file itself as corpus")
    return found.pop() if found else None


def split_words(name: str) -> list[str]:
    """The split words in a name."""
    return list(dict.fromkeys(SPLIT_WORD.findall(name.lower())))


def assign_splits(names: Sequence[str], where: str) -> tuple[dict[str, int], list[str]]:
    """Say which parts of a data set are read, and as which split.

    Parts named after a split keep it, and parts of other names beside them are left alone. Without any such name all
    parts are one undivided corpus; so is a lone part named after test or validation.

    Returns:
        The split of every part that is read, and what a reader of the results must know.

    Raises:
        UserError: There are splits, but none to train on.
    """
    found = {name: split_of(name) for name in names}
    known = {name: split for name, split in found.items() if split is not None}
    others = [name for name in names if found[name] is None]
    if not known:
        return dict.fromkeys(names, TRAIN), []
    if TRAIN not in known.values():
        if others or len(set(known.values())) > 1:
            raise UserError(f"{where} has {several(list(known))} but nothing named after train"
                            + (f"; beside it: {several(others)}" if others else "")
                            + ". Rename the part to train on to train, or name that part alone as corpus")
        return dict.fromkeys(names, TRAIN), [f"{where} has no train split: {several(list(known))} is divided anew"]
    return known, left_alone(others, where)


def left_alone(names: Sequence[str], where: str) -> list[str]:
    """A note of parts that are not read."""
    return [f"{where}: left alone: {several(names)} (not named after a split)"] if names else []


def several(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
    return ", ".join(name[:80] for name in names[:5]) + more


def asked(columns: Columns) -> tuple[list[str], list[str]]:
    """The columns that have to be there, and those that may: label and source under their usual names, none if empty."""
    wanted = [columns[0], *(name for name, usual in zip(columns[1:], COLUMNS[1:], strict=True) if name not in ("", usual))]
    return wanted, [name for name in columns[1:] if name]


def rows_of(table: Table, split: int, columns: Columns, where: str, file: str) -> Rows:
    """The rows of one table; ``columns`` name those of text, label and source, ``file`` stands in for the last."""
    text, label, source = columns
    found, count = table.columns, len(table.columns[text])
    labels: Sequence[Any] = [None] * count
    notes: list[str] = []
    if label in found:
        labels, notes = read_labels(found[label], table.features.get(label), f"{where}, column {label!r}")
    if not count:
        notes.append(f"{where} has no rows")
    return Rows(found[text], labels, found.get(source, [file] * count), [split] * count, table.names, source in found,
                (*table.notes, *notes))


def joined(parts: Iterable[Rows], notes: Iterable[str] = ()) -> Rows:
    """All parts as one."""
    parts = list(parts)
    return Rows(
        [cell for part in parts for cell in part.text],
        [cell for part in parts for cell in part.label],
        [cell for part in parts for cell in part.source],
        [split for part in parts for split in part.split],
        tuple(dict.fromkeys(name for part in parts for name in part.columns)),
        all(part.has_source for part in parts),
        tuple(dict.fromkeys([*notes, *(note for part in parts for note in part.notes)])),
    )
