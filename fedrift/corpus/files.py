"""Local files: a table, a text file, a folder of tables or a folder of text files (docs/corpora.md has it as a table).

* a table (Parquet, Arrow, CSV, TSV, JSON, JSON Lines): one document a row;
* a ``.txt`` file by itself: one document a paragraph (blank lines between);
* a folder that ``save_to_disk`` of the library ``datasets`` wrote: its splits;
* a folder of tables: files or sub-folders named after a split (``train1.csv``, ``test-00000-of-1.parquet``, ``dev/a.csv``)
  keep it and the others are left alone; without any such name all tables together are one undivided corpus;
* a folder of ``.txt`` files named after splits (``train.txt``, ``valid.txt``): one document a paragraph;
* a folder of other ``.txt`` files, one document each: the first sub-folder is the label. Sub-folders named after splits are
  the splits, never labels, and the others beside them are left alone.

Each of these may be compressed. What is left alone is said (``Rows.notes``).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import UserError, nearest
from .corpus import TRAIN
from .hub import is_saved, read_saved
from .rows import (
    COLUMNS,
    Columns,
    Rows,
    asked,
    assign_splits,
    joined,
    left_alone,
    rows_of,
    several,
    split_of,
    split_words,
)
from .tables import READABLE, SUFFIXES, TEXT, kind_of, read_table, read_text, stem_of

# Files that tell of a data set and hold none of it.
ABOUT = {"readme", "license", "licence", "citation", "changelog", "notice"}
ABOUT_JSON = {"dataset_info", "dataset_infos", "dataset_dict", "state", "croissant", "metadata", "datapackage"}
ABOUT_SUFFIXES = {".md", ".rst", ".yaml", ".yml", ".toml", ".py", ".jsonld", ".lock"}


def local_path(name: str) -> Path | None:
    """The file or folder of that name, ``~`` being the home folder; None if there is none, or there can be none."""
    path = os.path.expanduser(name)  # which, unlike a Path, takes any text
    return Path(path) if os.path.exists(path) else None


def read_path(path: Path, columns: Columns = COLUMNS) -> Rows:
    """The documents of a file or folder; ``columns`` name those of text, label and source in tables.

    A table without a column "label" or "source" has none; under any other name that is given it must be there.
    """
    if not os.path.exists(path):
        raise missing(path)
    if path.is_dir():
        return read_folder(path, columns)
    kind = kind_of(path)
    if kind == TEXT:
        return paragraphs(path, TRAIN)
    if kind in SUFFIXES:
        return table(path, TRAIN, columns, path.name)
    suffix = "".join(path.suffixes[-2:]) or "a name without suffix"
    raise UserError(f"{path}: no reader for {suffix!r}; wanted one of: {READABLE}")


def read_folder(folder: Path, columns: Columns) -> Rows:
    """The documents of a folder."""
    if is_saved(folder):
        return read_saved(folder, columns)
    tables, notes = table_files(folder)
    if tables:
        return joined((table(file, split, columns, file.relative_to(folder).as_posix()) for file, split in tables), notes)
    return text_folder(folder)


def table_files(folder: Path) -> tuple[list[tuple[Path, int]], list[str]]:
    """The tables of a folder with the split of each, and a note of what is left alone."""
    every = [file for file in visible(folder) if not is_about(file)]
    names = {file.relative_to(folder).as_posix(): file for file in every if kind_of(file) in SUFFIXES and in_splits(folder, file)}
    if not names:
        return [], []
    unread = [file.relative_to(folder).as_posix() for file in every if file not in names.values()]
    splits, notes = assign_splits(list(names), folder.name)
    if unread:
        notes.append(f"{folder.name}: left alone: {several(unread)} (no table, or in a folder not named after a split)")
    return [(names[name], split) for name, split in splits.items()], notes


def in_splits(folder: Path, file: Path) -> bool:
    """Whether a file lies in the folder itself or below sub-folders that are all named after splits."""
    return all(split_of(part) is not None for part in file.relative_to(folder).parts[:-1])


def is_about(file: Path) -> bool:
    """Whether a file tells of a data set and holds none of it: README, dataset_info.json, _metadata and the like."""
    stem, suffix = stem_of(file).lower(), file.suffix.lower()
    return (stem in ABOUT or file.name.startswith("_") or suffix in ABOUT_SUFFIXES
            or (kind_of(file) == ".json" and stem in ABOUT_JSON))


def table(path: Path, split: int, columns: Columns, where: str) -> Rows:
    """One table; a column "source" says where each document came from, else the file's name does."""
    return rows_of(read_table(path, *asked(columns)), split, columns, where, path.name)


def paragraphs(path: Path, split: int) -> Rows:
    """A text file by itself, cut at blank lines."""
    found = re.split(r"\n[^\S\n]*\n", read_text(path).replace("\r\n", "\n").replace("\r", "\n"))
    return Rows(found, [None] * len(found), [path.name] * len(found), [split] * len(found), has_source=False)


def text_folder(folder: Path) -> Rows:
    """A folder of text files: one document each, or a paragraph each where the files themselves are splits."""
    every = visible(folder)
    files = [file for file in every if kind_of(file) == TEXT and not is_about(file)]
    if not files:
        raise nothing_usable(folder)
    places = {file: file.relative_to(folder).parts for file in files}
    unread = [file.relative_to(folder).as_posix() for file in every if file not in places and not is_about(file)]
    notes = [f"{folder.name}: left alone: {several(unread)} (no text file)"] if unread else []
    if all(len(parts) == 1 for parts in places.values()):
        found = {split for file in files if (split := split_of(stem_of(file))) is not None}
        if TRAIN in found and len(found) > 1:
            splits, more = assign_splits([file.name for file in files], folder.name)
            return joined((paragraphs(folder / name, split) for name, split in splits.items()), [*more, *notes])
    read, more = text_splits(folder, places)
    inner = label_folders({file: places[file][:-1] for file in read})
    rows = Rows([read_text(file, may_be_empty=True) for file in read], [inner[file] for file in read],
                ["/".join(places[file]) for file in read], list(read.values()), has_source=False)
    return joined([rows], [*more, *notes])


def text_splits(folder: Path, places: Mapping[Path, Sequence[str]]) -> tuple[dict[Path, int], list[str]]:
    """The text files that are read with the split of each, from the sub-folders named after splits; and notes."""
    found = {file: split_of("/".join(parts[:-1])) for file, parts in places.items()}
    known = {file: split for file, split in found.items() if split is not None}
    if not known:
        return dict.fromkeys(places, TRAIN), []
    outside = [file for file in places if found[file] is None]
    others = sorted({places[file][0] + "/" for file in outside if len(places[file]) > 1})
    named = sorted({part + "/" for file in known for part in places[file][:-1] if split_words(part)})
    where = folder.name
    if TRAIN not in known.values() and (others or len(set(known.values())) > 1):
        raise UserError(f"{where} has {several(named)} but no sub-folder named after train"
                        + (f"; beside it: {several(others)}" if others else "")
                        + ". Rename the sub-folder to train on to train/, or name that folder alone as corpus")
    if others and len(set(known.values())) == 1:
        raise UserError(f"{where} has sub-folders {several(named)}, named after a split, beside {several(others)}: a split or a "
                        "topic? Rename it, or put the topics into train/ and test/")
    if TRAIN not in known.values():
        return dict.fromkeys(known, TRAIN), [f"{where} has no train split: {several(named)} is divided anew"]
    loose = sorted(places[file][0] for file in outside if len(places[file]) == 1)
    return known, left_alone([*others, *loose], where)


def label_folders(places: Mapping[Path, Sequence[str]]) -> dict[Path, str | None]:
    """The topic of each text file: the first of its sub-folders that is no split, nor one that holds all splits."""
    outer = [next((number for number, part in enumerate(parts) if split_words(part)), 0) for parts in places.values()]
    common = min(outer, default=0)
    while common and len({tuple(parts[:common]) for parts in places.values()}) > 1:
        common -= 1
    inner = {file: [part for part in parts if not split_words(part)] for file, parts in places.items()}
    return {file: parts[common] if len(parts) > common else None for file, parts in inner.items()}


def visible(folder: Path) -> list[Path]:
    """All that is in a folder and no folder, sorted, without what is hidden; UserError if it cannot be read."""
    try:
        return sorted(
            file
            for file in folder.glob("**/*")
            if not file.is_dir() and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        )
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror or error}") from error


def missing(path: Path) -> UserError:
    """No such file; the nearest name beside it."""
    beside = [other.name for other in path.parent.iterdir()] if os.path.isdir(path.parent) else []
    near = nearest(path.name, beside) if len(path.name) < 256 else None
    hint = f"; did you mean {str(path.parent / near)!r}?" if near else ""
    return UserError(f"no file or folder {str(path)[-80:]!r}{hint}")


def nothing_usable(folder: Path) -> UserError:
    """A folder without documents; what it holds, and the folders below that would do."""
    holds = sorted(item.name + "/" * item.is_dir() for item in folder.iterdir())
    below = [item.name for item in sorted(folder.iterdir()) if item.is_dir() and (is_saved(item) or holds_tables(item))]
    hint = f"; did you mean {str(folder / below[0])!r}?" if below else "."
    return UserError(
        f"{folder} holds nothing usable{hint} Wanted files: {READABLE}; "
        f"it holds: {', '.join(holds[:12]) or 'nothing'}"
    )


def holds_tables(folder: Path) -> bool:
    """Whether a folder has tables that would be read."""
    return any(kind_of(file) in SUFFIXES and not is_about(file) and in_splits(folder, file) for file in visible(folder))
