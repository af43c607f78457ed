"""Look at the columns of a table before an experiment exists, to propose the text and the label column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ..core.errors import UserError
from .conversations import EXAMPLE_COLUMNS, find_format
from .readers import find_local_path, find_table_files
from .tables import SUFFIXES, check_one_column, detect_format, format_columns, read_delimited, read_json, read_text

SAMPLE_ROWS = 1000  # rows that are looked at
TEXT_NAMES = ("text", "content", "body", "article", "document", "review", "sentence", "abstract", "comment", "message", "description")
LABEL_NAMES = ("label", "topic", "category", "class", "domain", "subject", "genre", "section", "subreddit", "label_text")
MAX_TOPICS = 50  # a column with more different values is no topic


class ColumnChoice(NamedTuple):
    """The columns that are proposed for a table.

    Attributes:
        columns: All columns of the table.
        text: The column of running text; "" for instruction and chat data, whose format is found by its columns.
        label: The column of topics; "" if none looks like one.
        topics: The values of the label column in the sample, the most frequent first.
        is_small: Whether the sample holds all rows of the dataset.
    """

    columns: tuple[str, ...]
    text: str
    label: str
    topics: tuple[str, ...]
    is_small: bool = False


def propose_columns(name: str) -> ColumnChoice | None:
    """Propose the text and the label column of a local table or of a folder of tables.

    Args:
        name: The value of ``dataset.name``.

    Returns:
        The proposal; None if the dataset is no local table, so that it has no columns to choose.

    Raises:
        UserError: The table cannot be read, or no column contains text.
    """
    path, num_tables = find_local_path(name), 1
    if path is not None and path.is_dir():
        tables = find_table_files(path)[0]
        path, num_tables = tables[0][0] if tables else None, len(tables)
    if path is None or detect_format(path) not in SUFFIXES:
        return None
    columns = sample_columns(path)
    is_small = num_tables == 1 and all(len(values) < SAMPLE_ROWS for values in columns.values())
    is_chat = find_format("auto", "text", list(columns)) != "text"  # as the dataset is read if no column is named
    text = "" if is_chat else choose_text(columns)
    if not text and not is_chat:
        raise UserError(f"{path} has no column of text; its columns are {format_columns(list(columns))}. Add one, or name another file")
    label = choose_label({name: values for name, values in columns.items() if name != text and not (is_chat and name in EXAMPLE_COLUMNS)})
    counts: dict[str, int] = {}
    for value in columns.get(label, ()):
        counts[str(value)] = counts.get(str(value), 0) + 1
    return ColumnChoice(tuple(columns), text, label, tuple(sorted(counts, key=lambda topic: -counts[topic])), is_small)


def sample_columns(path: Path) -> dict[str, Sequence[Any]]:
    """Return the first rows of every column of a table."""
    file_format = detect_format(path)
    if file_format == ".parquet" and path.suffix.lower() == ".parquet":
        from pyarrow.parquet import ParquetFile

        with ParquetFile(path) as file:
            batch = next(file.iter_batches(batch_size=SAMPLE_ROWS), None)
            return batch.to_pydict() if batch is not None else dict.fromkeys(file.schema_arrow.names, ())
    if file_format in (".parquet", ".arrow"):
        raise UserError(
            f"the columns of {path.name} cannot be looked at: give an uncompressed Parquet file, CSV or JSONL, or write the YAML by hand"
        )
    text = read_text(path)
    if file_format in (".csv", ".tsv"):
        separator = "\t" if file_format == ".tsv" else ","
        columns: Mapping[str, Sequence[Any]] = read_delimited(str(path), text, separator, text_column="text")[1]
        check_one_column(path, columns, separator)
    else:
        columns = read_json(path, text)
    return {name: list(islice(values, SAMPLE_ROWS)) for name, values in columns.items()}


def choose_text(columns: Mapping[str, Sequence[Any]]) -> str:
    """Return the usual name of a text column, or the column with the longest texts; "" if no column contains texts."""
    texts = {name: [value for value in values if isinstance(value, str)] for name, values in columns.items()}
    lengths = {name: sum(map(len, values)) / len(values) for name, values in texts.items() if values}
    named = [name for usual in TEXT_NAMES for name in lengths if name.lower() == usual]
    return named[0] if named else max(lengths, key=lambda name: lengths[name], default="")


def choose_label(columns: Mapping[str, Sequence[Any]]) -> str:
    """Return the usual name of a label column, or the first column with few different values; "" if there is none."""
    usual = [name for usual in LABEL_NAMES for name in columns if name.lower() == usual]
    if usual:
        return usual[0]
    for name, values in columns.items():
        scalars = [value for value in values if isinstance(value, (str, int)) and value != ""]
        if name.lower() not in ("split", "source") and 2 <= len(set(scalars)) <= min(MAX_TOPICS, len(scalars) // 4):
            return name
    return ""
