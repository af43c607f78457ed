"""Labels as names: the same cells give the same topics whether they come from a file or from a hub data set."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from unicodedata import normalize

from ..core.errors import UserError
from .corpus import TEST, TRAIN, VALIDATION

# What pandas, and with it the CSV reader of the library `datasets`, takes for a missing value.
MISSING_VALUES = frozenset("#N/A|#N/A N/A|#NA|-1.#IND|-1.#QNAN|-NaN|-nan|1.#IND|1.#QNAN|<NA>|N/A|NA|NULL|NaN|None|n/a|nan|null".split("|"))
AMBIGUOUS_LABELS = frozenset({"na", "n/a", "none", "null", "nil", "-", "?", "unknown", "missing", "undefined"})
NUMBER_PATTERN = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?")


def read_labels(cells: Sequence[Any], feature: Any, where: str) -> tuple[list[str | None], list[str]]:
    """Turn the cells of a label column into topic names.

    Args:
        cells: The column, as Python values.
        feature: The column's feature in the sense of the library ``datasets``, or None where there is none.
        where: The column, for messages: ``"train.csv, column 'label'"``.

    Returns:
        One name a cell (None: no label), and what a reader of the results must know.

    Raises:
        UserError: The cells are structures or bytes, or a class number has no name.
    """
    notes: list[str] = []
    if any(isinstance(cell, (list, tuple)) for cell in cells):
        several = sum(isinstance(cell, (list, tuple)) and len(cell) > 1 for cell in cells)
        if several:
            notes.append(f"{where} holds lists: the first item counts as the label ({several:,} rows have more than one)")
        cells = [(cell[0] if cell else None) if isinstance(cell, (list, tuple)) else cell for cell in cells]
        feature = getattr(feature, "feature", feature)
    for cell in cells:
        if isinstance(cell, (Mapping, list, tuple, bytes)):
            raise UserError(
                f"{where} holds {describe_type(cell)}, which name no topic. Name a column of text or numbers with "
                "dataset.label_column, or take no labels with dataset.label_column=''"
            )
    names = getattr(feature, "names", None)
    if names is not None and all(cell is None or is_integer(cell) for cell in cells):
        return [class_label(cell, names, where) for cell in cells], notes
    labels = strip_integer_decimals([normalize_label(cell) for cell in cells])
    missing = Counter(name for name in labels if name in MISSING_VALUES)
    if missing:
        notes.append(f"{where}: {missing.total():,} labels read {quote_labels(missing)} and count as no label")
    doubtful = Counter(name for name in labels if name and name not in MISSING_VALUES and name.lower() in AMBIGUOUS_LABELS)
    if doubtful:
        notes.append(f"{where}: {quote_labels(doubtful)} counts as a topic ({doubtful.total():,} rows); dataset.domains can leave it out")
    return [None if name in MISSING_VALUES else name for name in labels], notes


def normalize_label(cell: Any) -> str | None:
    """A label as text: 3 and 3.0 are "3"; None, NaN and the empty string are no label."""
    if cell is None or isinstance(cell, str):
        name = (cell or "").strip()
        return None if name.lower() in ("", "nan") else name
    if isinstance(cell, Decimal):
        return None if cell.is_nan() else f"{cell.normalize():f}"
    if isinstance(cell, float):
        return None if math.isnan(cell) else f"{cell:.0f}" if cell.is_integer() else str(cell)
    return str(cell)


def class_label(cell: Any, names: Sequence[str], where: str) -> str | None:
    """The name of a class number; -1 and a missing number are no label."""
    if cell is None or cell == -1:
        return None
    if not 0 <= cell < len(names):
        raise UserError(f"{where} holds class number {int(cell)}, but its metadata names classes 0 to {len(names) - 1}")
    return str(names[int(cell)])


def strip_integer_decimals(labels: list[str | None]) -> list[str | None]:
    """Whole numbers without ``.0``, where a column of text holds numbers alone.

    A column of whole numbers with gaps is written as ``1.0`` to a CSV file, and is 1 in every other format.
    """
    known = {name for name in labels if name is not None and name not in MISSING_VALUES}
    if not any(name.endswith(".0") for name in known):
        return labels
    if not all(NUMBER_PATTERN.fullmatch(name) and name in (repr(float(name)), name.partition(".")[0]) for name in known):
        return labels
    return [name.removesuffix(".0") if name else name for name in labels]


def group_similar_names(domains: Sequence[str]) -> list[tuple[str, ...]]:
    """Groups of names that differ only in capitals, white space or the Unicode form."""
    groups: dict[str, list[str]] = {}
    for name in domains:
        groups.setdefault(" ".join(normalize("NFKC", name).casefold().split()), []).append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def is_integer(cell: Any) -> bool:
    """Whether a cell is a whole number and no truth value."""
    return (isinstance(cell, int) and not isinstance(cell, bool)) or (isinstance(cell, float) and cell.is_integer())


def describe_type(cell: Any) -> str:
    """What a cell is, in words."""
    if isinstance(cell, Mapping):
        return f"structures ({', '.join(map(str, list(cell)[:5]))})"[:80]
    return "lists of lists" if isinstance(cell, (list, tuple)) else "bytes"


def quote_labels(names: Counter[str]) -> str:
    """The names in quotes, the most frequent first."""
    return ", ".join(repr(name[:40]) for name, _ in names.most_common(5))


# `Rows`: what a reader brings in, before any cleaning; and the names by which splits are known.

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
ColumnNames = tuple[str, str, str]
"""The names of the columns of text, label and source."""
DEFAULT_COLUMNS: ColumnNames = ("text", "label", "source")
SPLIT_PATTERN = re.compile(rf"(?:^|[-._ /\d])({'|'.join(SPLIT_NAMES)})(?:set|data|split)?(?=$|[-._ /\d])")


@dataclass(frozen=True, eq=False)
class Table:
    """Some columns of one table, as Python values."""

    columns: Mapping[str, Sequence[Any]]
    column_names: tuple[str, ...]  # of all columns of the table, those that were not read included
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


def detect_split(name: str) -> int | None:
    """The split that a file, folder or part of a data set is named after; None if it is after none.

    As in the library ``datasets``, a split's word counts wherever it stands between digits, blanks and any of
    ``- _ . /``: train-00000-of-00002, train1, imdb_test, data/dev. Raises UserError for a name of two splits.
    """
    found = {SPLIT_NAMES[word] for word in SPLIT_PATTERN.findall(name.lower())}
    if len(found) > 1:
        raise UserError(
            f"{name[:80]!r} names more than one split ({' and '.join(split_words(name))}): rename it after one, "
            "or name the file itself as dataset"
        )
    return found.pop() if found else None


def split_words(name: str) -> list[str]:
    """The split words in a name."""
    return list(dict.fromkeys(SPLIT_PATTERN.findall(name.lower())))


def detect_splits(names: Sequence[str], where: str) -> tuple[dict[str, int], list[str]]:
    """Say which parts of a data set are read, and as which split.

    Parts named after a split keep it, and parts of other names beside them are left alone. Without any such name all
    parts are one undivided corpus; so is a lone part named after test or validation.

    Returns:
        The split of every part that is read, and what a reader of the results must know.

    Raises:
        UserError: There are splits, but none to train on.
    """
    found = {name: detect_split(name) for name in names}
    known = {name: split for name, split in found.items() if split is not None}
    others = [name for name in names if found[name] is None]
    if not known:
        return dict.fromkeys(names, TRAIN), []
    if TRAIN not in known.values():
        if others or len(set(known.values())) > 1:
            raise UserError(
                f"{where} has {format_names(list(known))} but nothing named after train"
                + (f"; beside it: {format_names(others)}" if others else "")
                + ". Rename the part to train on to train, or name that part alone as dataset"
            )
        return dict.fromkeys(names, TRAIN), [f"{where} has no train split: {format_names(list(known))} is divided anew"]
    return known, skipped_note(others, where)


def skipped_note(names: Sequence[str], where: str) -> list[str]:
    """A note of parts that are not read."""
    return [f"{where}: left alone: {format_names(names)} (not named after a split)"] if names else []


def format_names(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
    return ", ".join(name[:80] for name in names[:5]) + more


def requested_columns(columns: ColumnNames) -> tuple[list[str], list[str]]:
    """The columns that have to be there, and those that may: label and source under their usual names, none if empty."""
    wanted = [columns[0], *(name for name, usual in zip(columns[1:], DEFAULT_COLUMNS[1:], strict=True) if name not in ("", usual))]
    return wanted, [name for name in columns[1:] if name]


def table_to_rows(table: Table, split: int, columns: ColumnNames, where: str, default_source: str) -> Rows:
    """The rows of one table; ``columns`` name those of text, label and source, ``file`` stands in for the last."""
    text, label, source = columns
    found, count = table.columns, len(table.columns[text])
    labels: Sequence[Any] = [None] * count
    notes: list[str] = []
    if label in found:
        labels, notes = read_labels(found[label], table.features.get(label), f"{where}, column {label!r}")
    if not count:
        notes.append(f"{where} has no rows")
    return Rows(
        found[text],
        labels,
        found.get(source, [default_source] * count),
        [split] * count,
        table.column_names,
        source in found,
        (*table.notes, *notes),
    )


def concat_rows(parts: Iterable[Rows], notes: Iterable[str] = ()) -> Rows:
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
