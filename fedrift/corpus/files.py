"""Local files: a table, a text file, a folder of tables or a folder of text files.

* a table (Parquet, CSV, TSV, JSON, JSON Lines): one document a row;
* a ``.txt`` file by itself: one document a paragraph (blank lines between);
* a folder of tables: files named after a split (``train.parquet``, ``train_partial.parquet``,
  ``test-00000-of-1.parquet``, ``dev.csv``) keep it and the others are left alone; without any such
  name all tables together are one undivided corpus;
* a folder of ``.txt`` files, one document each: the first sub-folder is the label; sub-folders that are
  all named after splits are the splits, and the folders in them the labels.
"""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import UserError, nearest
from .corpus import TRAIN
from .rows import SPLIT_NAMES, Rows, joined, split_of
from .tables import SUFFIXES, read_table, read_text


def read_path(path: Path, text: str = "text", label: str = "label") -> Rows:
    """The documents of a file or folder; ``text`` and ``label`` name the columns of tables.

    A table without a column "label" has no labels; any other label column that is named must be there.
    """
    if not path.exists():
        raise missing(path)
    if path.is_dir():
        tables = table_files(path)
        return (
            joined(table(file, split, text, label) for file, split in tables) if tables else text_folder(path)
        )
    if path.suffix.lower() == ".txt":
        return paragraphs(path)
    if path.suffix.lower() in SUFFIXES:
        return table(path, TRAIN, text, label)
    raise UserError(
        f"{path}: no reader for {path.suffix or 'a name without suffix'!r}; "
        f"wanted one of: {' '.join(SUFFIXES)} .txt"
    )


def table_files(folder: Path) -> list[tuple[Path, int]]:
    """The tables of a folder with the split of each."""
    files = sorted(file for file in visible(folder, "*") if file.suffix.lower() in SUFFIXES)
    named = [(file, split) for file in files if (split := split_of(file.stem)) is not None]
    return named or [(file, TRAIN) for file in files]


def table(path: Path, split: int, text: str, label: str) -> Rows:
    """One table; a column "source" says where each document came from, else the file's name does."""
    wanted = [text] if label in ("", "label") else [text, label]
    columns = read_table(path, wanted, optional=[name for name in (label, "source") if name])
    count = len(columns[text])
    return Rows(
        columns[text],
        columns.get(label, [None] * count),
        columns.get("source", [path.name] * count),
        [split] * count,
    )


def paragraphs(path: Path) -> Rows:
    """A text file by itself, cut at blank lines."""
    found = re.split(r"\n[^\S\n]*\n", read_text(path).replace("\r\n", "\n").replace("\r", "\n"))
    return Rows(found, [None] * len(found), [path.name] * len(found), [TRAIN] * len(found))


def text_folder(folder: Path) -> Rows:
    """A folder of text files, one document each."""
    files = sorted(visible(folder, "**/*.txt"))
    if not files:
        raise nothing_usable(folder)
    places = [file.relative_to(folder).parts for file in files]
    tops = {parts[0].lower() if len(parts) > 1 else "" for parts in places}
    divided = tops <= set(SPLIT_NAMES)
    text, label, split = [], [], []
    for file, parts in zip(files, places, strict=True):
        text.append(read_text(file, may_be_empty=True))
        split.append(SPLIT_NAMES[parts[0].lower()] if divided else TRAIN)
        inner = parts[1:-1] if divided else parts[:-1]
        label.append(inner[0] if inner else None)
    return joined([Rows(text, label, ["/".join(parts) for parts in places], split)])


def visible(folder: Path, pattern: str) -> list[Path]:
    """The files of a folder that match, hidden ones left out; UserError if the folder cannot be read."""
    try:
        return [
            file
            for file in folder.glob(pattern)
            if file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        ]
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror or error}") from error


def missing(path: Path) -> UserError:
    """No such file; the nearest name beside it."""
    beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    near = nearest(path.name, beside)
    hint = f"; did you mean {str(path.parent / near)!r}?" if near else ""
    return UserError(f"no file or folder {str(path)!r}{hint}")


def nothing_usable(folder: Path) -> UserError:
    """A folder without documents; what it holds, and the folders below that would do."""
    holds = sorted(item.name + "/" * item.is_dir() for item in folder.iterdir())
    below = [item.name for item in sorted(folder.iterdir()) if item.is_dir() and table_files(item)]
    hint = f"; did you mean {str(folder / below[0])!r}?" if below else ""
    return UserError(
        f"{folder} holds nothing usable{hint} Wanted files: {' '.join(SUFFIXES)} .txt; "
        f"it holds: {', '.join(holds[:12]) or 'nothing'}"
    )
