"""One local table file, as columns: Parquet, CSV, TSV, JSON or JSON Lines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import UserError, nearest

SUFFIXES = (".parquet", ".csv", ".tsv", ".json", ".jsonl")


def read_table(path: Path, wanted: Sequence[str], optional: Sequence[str] = ()) -> dict[str, list[Any]]:
    """The columns ``wanted``, and those of ``optional`` that are there, as lists of cells.

    Numbers in CSV and TSV files stay the text they are. Raises UserError for a file that cannot be read or
    parsed, and for a wanted column that is not there.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return read_parquet(path, wanted, optional)
    text = read_text(path)
    columns = read_json(path, text) if suffix in (".json", ".jsonl") else read_csv(path, text)
    return {name: columns[name] for name in pick(path.name, list(columns), wanted, optional)}


def pick(where: str, columns: Sequence[str], wanted: Sequence[str], optional: Sequence[str]) -> list[str]:
    """The columns to read; UserError if one that is wanted is not there."""
    for name in wanted:
        if name not in columns:
            near = nearest(name, columns)
            hint = f"; did you mean {near!r}?" if near else ""
            there = ", ".join(repr(c if len(c) <= 40 else c[:40] + "...") for c in list(columns)[:20])
            raise UserError(
                f"{where} has no column {name!r}{hint} Its columns: {there or 'none'}. "
                f"Name the right one with corpus.text or corpus.label"
            )
    return [*wanted, *(name for name in optional if name in columns and name not in wanted)]


def read_bytes(path: Path) -> bytes:
    """The whole file; UserError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def read_text(path: Path, *, may_be_empty: bool = False) -> str:
    """The whole file as text (UTF-8, or UTF-16 with its mark); UserError if it is empty or not text."""
    data = read_bytes(path)
    if not data.strip() and not may_be_empty:
        raise UserError(f"{path} is empty")
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    if encoding != "utf-16" and b"\0" in data:
        raise UserError(f"{path} is binary, not text; wanted one of: {' '.join(SUFFIXES)} .txt")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 (byte 0x{data[error.start]:02x} at position {error.start:,}); "
            f"convert it first, for instance: iconv -f latin1 -t utf-8"
        ) from error


def read_parquet(path: Path, wanted: Sequence[str], optional: Sequence[str]) -> dict[str, list[Any]]:
    """Only the columns asked for are read."""
    if path.is_file() and path.stat().st_size == 0:
        raise UserError(f"{path} is empty")
    try:
        with pq.ParquetFile(path) as file:
            names = pick(path.name, file.schema_arrow.names, wanted, optional)
            table = file.read(columns=names)
            return {name: table.column(name).to_pylist() for name in names}
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a readable Parquet file: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}") from error


def read_csv(path: Path, text: str) -> dict[str, list[Any]]:
    """Every cell a string; the first line names the columns."""
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        frame = pd.read_csv(StringIO(text), sep=separator, dtype=str, na_filter=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, ValueError) as error:
        raise UserError(f"{path} cannot be read as {path.suffix[1:].upper()}: {error}") from error
    if not isinstance(frame.index, pd.RangeIndex):  # pandas takes the cells too many for row names
        raise UserError(
            f"{path}: its rows have more cells than its first line names columns "
            f"({', '.join(map(repr, frame.columns[:20]))}); quote texts that hold the separator {separator!r}"
        )
    return {str(name): frame[name].tolist() for name in frame.columns}


def read_json(path: Path, text: str) -> dict[str, list[Any]]:
    """A list of records, or one record a line."""
    try:
        records = [(1, json.loads(text))] if path.suffix.lower() == ".json" else None
        if records and isinstance(records[0][1], list):
            records = list(enumerate(records[0][1], 1))
    except (ValueError, RecursionError):
        records = None  # JSON Lines by another name
    if records is None:
        records = []
        # Not splitlines(): it also cuts at U+2028 and its like, which JSON strings may hold.
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    records.append((number, json.loads(line)))
                except (ValueError, RecursionError) as error:
                    raise UserError(f"{path}, line {number}: not JSON ({error})") from error
    for number, record in records:
        if not isinstance(record, dict):
            raise UserError(
                f'{path}, record {number}: wanted an object such as {{"text": ...}}, '
                f"got {type(record).__name__}"
            )
    names = dict.fromkeys(str(name) for _, record in records for name in record)
    return {name: [record.get(name) for _, record in records] for name in names}
