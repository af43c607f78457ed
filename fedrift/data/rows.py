"""Represent the raw rows of a dataset, normalize labels and detect splits by name.

Equal cells give equal topic names, whether they come from a file or from a hub dataset.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple
from unicodedata import normalize

from ..core.errors import UserError
from .conversations import content_columns, find_example_format, find_format, read_documents, unread_notes
from .corpus import TEST, TRAIN, VALIDATION

# The strings that pandas, and hence the CSV reader of the library `datasets`, reads as missing values.
MISSING_VALUES = frozenset("#N/A|#N/A N/A|#NA|-1.#IND|-1.#QNAN|-NaN|-nan|1.#IND|1.#QNAN|<NA>|N/A|NA|NULL|NaN|None|n/a|nan|null".split("|"))
AMBIGUOUS_LABELS = frozenset({"na", "n/a", "none", "null", "nil", "-", "?", "-1", "unknown", "missing", "undefined"})
NUMBER_PATTERN = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?")


def read_labels(cells: Sequence[Any], feature: Any, where: str) -> tuple[list[str | None], list[str]]:
    """Convert the cells of a label column to topic names.

    Args:
        cells: The column, as Python values.
        feature: The feature of the column as defined by the library ``datasets``, or None if there is none.
        where: The column, for messages, such as ``"train.csv, column 'label'"``.

    Returns:
        One name per cell (None for a cell without a label), and notes for a reader of the results.

    Raises:
        UserError: The cells are structures or bytes, or a class number has no name.
    """
    notes: list[str] = []
    if any(isinstance(cell, (list, tuple)) for cell in cells):
        num_long_lists = sum(isinstance(cell, (list, tuple)) and len(cell) > 1 for cell in cells)
        if num_long_lists:
            notes.append(f"{where} holds lists: the first item is used as the label ({num_long_lists:,} rows have more than one item)")
        cells = [(cell[0] if cell else None) if isinstance(cell, (list, tuple)) else cell for cell in cells]
        feature = getattr(feature, "feature", feature)
    for cell in cells:
        if isinstance(cell, (Mapping, list, tuple, bytes)):
            raise UserError(
                f"{where} holds {describe_type(cell)}, which cannot be topics. Name a column of text or numbers with "
                "dataset.label_column, or use no labels with dataset.label_column=''"
            )
    names = getattr(feature, "names", None)
    if names is not None and all(cell is None or is_integer(cell) for cell in cells):
        return [class_label(cell, names, where) for cell in cells], notes
    labels = strip_integer_decimals([normalize_label(cell) for cell in cells])
    missing = Counter(name for name in labels if name in MISSING_VALUES)
    if missing:
        notes.append(f"{where}: {missing.total():,} labels are {quote_labels(missing)} and count as missing")
    ambiguous = Counter(name for name in labels if name and name not in MISSING_VALUES and name.lower() in AMBIGUOUS_LABELS)
    if ambiguous:
        notes.append(f"{where}: {quote_labels(ambiguous)} counts as a topic ({ambiguous.total():,} rows); dataset.domains can exclude it")
    return [None if name in MISSING_VALUES else name for name in labels], notes


def check_sources(cells: Sequence[Any], where: str) -> None:
    """Raise UserError if the cells of a source column are structures, lists or bytes."""
    for cell in cells:
        if isinstance(cell, (Mapping, list, tuple, bytes)):
            found = "lists" if isinstance(cell, (list, tuple)) else describe_type(cell)
            raise UserError(
                f"{where} holds {found}, which cannot be sources. Name a column of text or numbers with dataset.source_column, or use no "
                "sources with dataset.source_column=''"
            )


def normalize_label(cell: Any) -> str | None:
    """Convert a label to text: 3 and 3.0 become "3", and -0.0 becomes "0"; None, NaN and the empty string become None (no label)."""
    if cell is None or isinstance(cell, str):
        name = (cell or "").strip()
        return None if name.lower() in ("", "nan") else name
    if isinstance(cell, Decimal):
        return None if cell.is_nan() else f"{cell.normalize() + 0:f}"  # the sum turns -0 into 0
    if isinstance(cell, float):
        return None if math.isnan(cell) else f"{cell + 0.0:.0f}" if cell.is_integer() else str(cell)
    return str(cell)


def class_label(cell: Any, names: Sequence[str], where: str) -> str | None:
    """Return the name of a class number; -1 and None mean that there is no label.

    Raises:
        UserError: The metadata has no name for the number.
    """
    if cell is None or cell == -1:
        return None
    if not 0 <= cell < len(names):
        raise UserError(f"{where} holds class number {int(cell)}, but its metadata only names the classes 0 to {len(names) - 1}")
    return str(names[int(cell)])


def strip_integer_decimals(labels: list[str | None]) -> list[str | None]:
    """Remove ``.0`` from integers if a text column holds only numbers.

    A column of integers with gaps is written as ``1.0`` to a CSV file, but is 1 in every other format.
    """
    known = {name for name in labels if name is not None and name not in MISSING_VALUES}
    if not any(name.endswith(".0") for name in known):
        return labels
    if not all(NUMBER_PATTERN.fullmatch(name) and name in (repr(float(name)), name.partition(".")[0]) for name in known):
        return labels
    return [name.removesuffix(".0") if name else name for name in labels]


def group_similar_names(domains: Sequence[str]) -> list[tuple[str, ...]]:
    """Group names that differ only in capitals, white space or Unicode form."""
    groups: dict[str, list[str]] = {}
    for name in domains:
        groups.setdefault(" ".join(normalize("NFKC", name).casefold().split()), []).append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def is_integer(cell: Any) -> bool:
    """Return whether a cell is an integer or an integral float, but not a Boolean."""
    return (isinstance(cell, int) and not isinstance(cell, bool)) or (isinstance(cell, float) and cell.is_integer())


def describe_type(cell: Any) -> str:
    """Describe the type of a cell for a message."""
    if isinstance(cell, Mapping):
        return f"structures ({', '.join(map(str, list(cell)[:5]))})"[:80]
    return "lists of lists" if isinstance(cell, (list, tuple)) else "bytes"


def quote_labels(names: Counter[str]) -> str:
    """Quote the five most frequent names, in descending order of frequency."""
    return ", ".join(repr(name[:40]) for name, _ in names.most_common(5))


# The words by which splits are recognized in the names of files, folders and parts of a dataset.

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


class ColumnNames(NamedTuple):
    """The names of the text, label and source columns, and the format of the documents (``conversations.py``)."""

    text: str = "text"
    label: str = "label"
    source: str = "source"
    data_format: str = "auto"


DEFAULT_COLUMNS = ColumnNames()
SPLIT_PATTERN = re.compile(rf"(?:^|[-._ /\d])({'|'.join(SPLIT_NAMES)})(?:set|data|split)?(?=$|[-._ /\d])")
# Words that mean a split but are no split names, so that files with such names would be read as training data.
SPLIT_LIKE_PATTERN = re.compile(
    r"(?:^|[-._ /\d])(trn|tst|devel(?:opment)?|(?:hold|held)[-_ ]?out|trains|tests|evals|valids|validate|devtest|traindev|unseen)"
    r"(?:set|data|split)?(?=$|[-._ /\d])"
)
CAMEL_CASE_PATTERN = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")  # the starts of words in myTest and IMDBTest


@dataclass(frozen=True, eq=False)
class Table:
    """Some columns of one table, as Python values."""

    columns: Mapping[str, Sequence[Any]]
    column_names: tuple[str, ...]  # all columns of the table, including those that were not read
    features: Mapping[str, Any] = field(default_factory=dict)  # features of the library `datasets`, by column
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Rows:
    """Uncleaned cells of a dataset in four lists of equal length."""

    text: Sequence[Any]  # texts, examples, or values that cannot be used
    label: Sequence[Any]
    source: Sequence[Any]
    split: Sequence[int]  # TRAIN for all rows if the data has no splits
    columns: tuple[str, ...] = ()  # columns of the tables; empty if the documents do not come from a table
    has_source: bool = True  # False if the sources are only the names of the files
    notes: tuple[str, ...] = ()  # facts that a reader of the results must know

    def __len__(self) -> int:
        return len(self.text)


def detect_split(name: str) -> int | None:
    """Return the split that the name of a file, folder or part of a dataset contains, or None.

    The rule is that of the library ``datasets``: a split word counts if it stands between digits, spaces and any of
    ``- _ . /``. Examples are train-00000-of-00002, train1, imdb_test and data/dev.

    Raises:
        UserError: The name contains the words of two splits.
    """
    found = {SPLIT_NAMES[word] for word in SPLIT_PATTERN.findall(name.lower())}
    if len(found) > 1:
        raise UserError(
            f"{name[:80]!r} names more than one split ({' and '.join(split_words(name))}): rename it after one split, "
            "or use the file itself as dataset"
        )
    return found.pop() if found else None


def split_words(name: str) -> list[str]:
    """Return the different split words in a name."""
    return list(dict.fromkeys(SPLIT_PATTERN.findall(name.lower())))


def detect_splits(names: Sequence[str], where: str) -> tuple[dict[str, int], list[str]]:
    """Decide which parts of a dataset are read, and as which split.

    Parts named after a split are read as that split, and the other parts are ignored. If no part is named after a split, all
    parts form one undivided corpus. The same holds for a single part named after test or validation.

    Args:
        names: The names of the parts.
        where: The dataset, for messages.

    Returns:
        The split of every part that is read, and notes for a reader of the results.

    Raises:
        UserError: There are splits, but none to train on, or none, although a part seems to be a split under another name.
    """
    splits = {name: detect_split(name) for name in names}
    named = {name: split for name, split in splits.items() if split is not None}
    unnamed = [name for name in names if splits[name] is None]
    if not named:
        check_not_split_like(names, where)
        return dict.fromkeys(names, TRAIN), []
    if TRAIN not in named.values():
        if unnamed or len(set(named.values())) > 1:
            raise UserError(
                f"{where} has {format_names(list(named))} but no part named after train"
                + (f"; its other parts are {format_names(unnamed)}" if unnamed else "")
                + ". Rename the training part to train, or use that part alone as dataset"
            )
        return dict.fromkeys(names, TRAIN), [f"{where} has no train split: {format_names(list(named))} is divided into new splits"]
    return named, skipped_note(unnamed, where)


def check_not_split_like(names: Iterable[str], where: str) -> None:
    """Check that parts without split names, which are all read as training data, do not seem to be splits.

    Raises:
        UserError: There are several parts, and the name of one of them contains a word such as tst or holdout, or a split word that only
            a capital letter separates from other words, as in myTest.
    """
    names = list(dict.fromkeys(names))
    words = {name: CAMEL_CASE_PATTERN.sub("-", name).lower() for name in names}
    split_like = [name for name in names if SPLIT_LIKE_PATTERN.search(words[name]) or SPLIT_PATTERN.search(words[name])]
    if split_like and len(names) > 1:
        raise UserError(
            f"{where}: by their names, {format_names(split_like)} may be splits, but {format_names(names)} would all be training data. "
            f"Rename the splits (recognized words: {', '.join(SPLIT_NAMES)}), or use one part alone as dataset"
        )


def skipped_note(names: Sequence[str], where: str) -> list[str]:
    """Return a note on the parts that are not read, if there are any."""
    return [f"{where}: ignored {format_names(names)} (not named after a split)"] if names else []


def format_names(names: Sequence[str]) -> str:
    """Format the first five names and the number of further ones."""
    suffix = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
    return ", ".join(name[:80] for name in names[:5]) + suffix


def requested_columns(columns: ColumnNames, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the required and the optional columns of a table.

    The columns with the content of documents are required. The label and source columns are optional under their default names and
    required under other names; an empty name requests no column.

    Args:
        columns: The configured columns and the configured format.
        names: All columns of the table, which decide the format ``auto``.
    """
    required, optional = content_columns(find_format(columns.data_format, columns.text, names), columns.text, names)
    pairs = ((columns.label, DEFAULT_COLUMNS.label), (columns.source, DEFAULT_COLUMNS.source))
    required += [name for name, default in pairs if name not in ("", default)]
    return required, [*optional, *(name for name, _ in pairs if name)]


def table_to_rows(table: Table, split: int, columns: ColumnNames, where: str, default_source: str) -> Rows:
    """Convert one table to rows.

    Args:
        table: The columns.
        split: The split of all rows.
        columns: The names of the text, label and source columns.
        where: The table, for messages.
        default_source: The source of all documents if there is no source column.
    """
    label, source, cells = columns.label, columns.source, table.columns
    documents = read_documents(columns.data_format, columns.text, cells, table.column_names)
    count = len(documents)
    labels: Sequence[Any] = [None] * count
    notes: list[str] = []
    if label in cells:
        labels, notes = read_labels(cells[label], table.features.get(label), f"{where}, column {label!r}")
    elif label and (similar := [name for name in table.column_names if name.strip().casefold() == label.casefold()]):
        notes.append(
            f"{where} has no column {label!r} but {format_names([repr(name) for name in similar])}, so that no document has a label; "
            "dataset.label_column names the column"
        )
    if not count:
        notes.append(f"{where} has no rows")
    if source in cells:
        check_sources(cells[source], f"{where}, column {source!r}")
    other, found = find_example_format(table.column_names), find_format(columns.data_format, columns.text, table.column_names)
    if found != "text":
        required, optional = content_columns(found, columns.text, table.column_names)
        notes += unread_notes(cells, [*required, *optional], table.column_names)
    if columns.data_format == "auto" and other and any(isinstance(document, str) for document in documents):
        notes.append(f"{where}: the column {columns.text!r} is read; the format of the other columns is dataset.format={other}")
    return Rows(
        documents,
        labels,
        cells.get(source, [default_source] * count),
        [split] * count,
        table.column_names,
        source in cells,
        (*table.notes, *notes),
    )


def concat_rows(parts: Iterable[Rows], notes: Iterable[str] = ()) -> Rows:
    """Concatenate rows, and prepend ``notes`` to their notes."""
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
