"""Data sets of the library ``datasets``: those of the Hugging Face hub, and folders that it saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import UserError
from .rows import COLUMNS, Columns, Rows, Table, asked, assign_splits, joined, rows_of
from .tables import first_line, pick


def read_hub(name: str, configs: Sequence[str] = (), columns: Columns = COLUMNS) -> Rows:
    """The documents of a hub data set, class numbers turned into class names.

    Of several configurations each is read, and its name is the label. Splits are those of ``assign_splits``, labels
    those of ``read_labels``, as for local files.
    """
    if len(configs) <= 1:
        return read_splits(download(name, configs[0] if configs else None), f"data set {name!r}", name, columns)
    parts = []
    for config in configs:
        part = read_splits(download(name, config), f"data set {name!r}", name, (columns[0], "", columns[2]))
        parts.append(replace(part, label=[config.replace("_", "-")] * len(part)))
    return joined(parts)


def read_splits(found: Mapping[str, Any], where: str, name: str, columns: Columns) -> Rows:
    """The documents of a data set of the library ``datasets``, given by split.

    Args:
        found: Each split by its name.
        where: The data set, for messages.
        name: The data set, for the source of documents that have none.
        columns: The columns of text, label and source.
    """
    known, notes = assign_splits(list(found), where)
    parts = []
    for key, split in known.items():
        data, said = found[key], f"{where}, split {key!r}"
        names = pick(said, data.column_names, *asked(columns))
        cells = data.select_columns(names).to_dict()
        table = Table(cells, tuple(data.column_names), data.features)
        parts.append(rows_of(table, split, columns, said, f"{name}:{key}"))
    return joined(parts, notes)


def read_saved(folder: Path, columns: Columns) -> Rows:
    """A folder that ``save_to_disk`` of the library ``datasets`` wrote; UserError if it cannot be read."""
    import datasets  # here, not above: half a second that no other corpus needs to wait for

    try:
        found = datasets.load_from_disk(str(folder))
    except Exception as error:  # a missing shard, damaged bytes, other versions: the library has no common class for them
        raise UserError(f"{folder} is a folder of save_to_disk that cannot be read "
                        f"({type(error).__name__}: {first_line(error)}); save it again") from error
    whole = found if isinstance(found, datasets.DatasetDict) else {str(found.split or "data"): found}
    return read_splits(whole, str(folder), folder.name, columns)


def is_saved(folder: Path) -> bool:
    """Whether ``save_to_disk`` of the library ``datasets`` wrote a folder."""
    names = [("dataset_dict.json",), ("state.json", "dataset_info.json")]
    return any(all((folder / name).is_file() for name in every) for every in names)


def download(name: str, config: str | None) -> Any:
    """The data set by split, from the hub or its local cache; UserError if it cannot be had."""
    import datasets  # here, not above: half a second that no other corpus needs to wait for

    try:
        return datasets.load_dataset(name, config)
    except ValueError as error:  # a wrong or missing configuration; the library names those there are
        raise UserError(
            f"data set {name[:80]!r}: {one_line(error)} (a configuration goes behind a colon: {name}:NAME)"
        ) from error
    except Exception as error:
        # Offline, unknown, gated, a proxy's refusal: the library has no common class for them.
        raise UserError(
            f"data set {name[:80]!r} could not be had from the hub ({type(error).__name__}: {one_line(error)}). Ways out: "
            f"check the spelling (no local file or folder of that name was found either) and the network; or "
            f"put its files (train.parquet, test.parquet or .csv, .jsonl, with columns text and label) in a "
            f"folder and give that folder as corpus; or, for a corpus that fedrift knows by name, put a "
            f"folder of that name in the one that FEDRIFT_DATA names"
        ) from error


def one_line(error: Exception) -> str:
    """What a library says, in one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]
