"""One local table file, as columns: Parquet, Arrow, CSV, TSV, JSON or JSON Lines, compressed or not."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import UserError, nearest
from .delimited import read_delimited
from .rows import Table

SUFFIXES = (".parquet", ".arrow", ".csv", ".tsv", ".json", ".jsonl", ".ndjson")
TEXT = ".txt"


def unpack_zst(data: bytes) -> bytes:
    """The content of a Zstandard file."""
    with pa.CompressedInputStream(pa.BufferReader(data), "zstd") as stream:
        return bytes(stream.read())


UNPACK: Mapping[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress, ".zst": unpack_zst}
READABLE = f"{' '.join(SUFFIXES)} {TEXT}, each also with {' '.join(UNPACK)}"


def kind_of(path: Path) -> str:
    """The suffix that says how a file is read, small and without that of its compression; "" if it cannot be read."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in UNPACK:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in (*SUFFIXES, TEXT) else ""


def stem_of(path: Path) -> str:
    """The name of a file without the suffixes of its kind and compression."""
    inner = path.stem if path.suffix.lower() in UNPACK else path.name
    return Path(inner).stem


def read_table(path: Path, wanted: Sequence[str], optional: Sequence[str] = ()) -> Table:
    """The columns ``wanted``, and those of ``optional`` that are there, as lists of cells.

    Numbers in CSV and TSV files stay the text they are. Raises UserError for a file that cannot be read or
    parsed, for a wanted column that is not there, and for one that is there twice.
    """
    kind = kind_of(path)
    if kind in (".parquet", ".arrow"):
        return read_columns(path, kind, wanted, optional)
    text = read_text(path)
    notes: list[str] = []
    if kind in (".csv", ".tsv"):
        names, columns, notes = read_delimited(str(path), text, "\t" if kind == ".tsv" else ",", prose=wanted[0])
    else:
        columns = read_json(path, text)
        names = list(columns)
    return Table({name: columns[name] for name in pick(path.name, names, wanted, optional)}, tuple(names), notes=tuple(notes))


def pick(where: str, columns: Sequence[str], wanted: Sequence[str], optional: Sequence[str]) -> list[str]:
    """The columns to read; UserError if one that is wanted is not there, or one that is read is there twice."""
    for name in wanted:
        if name not in columns:
            near = nearest(name, columns)
            hint = f"; did you mean {near!r}?" if near else "."
            raise UserError(
                f"{where} has no column {name[:80]!r}{hint} Its columns: {column_names(columns)}. "
                f"Name the right one with corpus.text, corpus.label or corpus.source"
            )
    picked = list(dict.fromkeys([*wanted, *(name for name in optional if name in columns)]))
    for name in picked:
        if (count := list(columns).count(name)) > 1:
            raise UserError(f"{where} has {count} columns named {name[:80]!r}: rename all but one, or name another one with "
                            "corpus.text, corpus.label or corpus.source")
    return picked


def column_names(columns: Sequence[str]) -> str:
    """The names of columns for a message."""
    return ", ".join(repr(c if len(c) <= 40 else c[:40] + "...") for c in list(columns)[:20]) or "none"


def read_bytes(path: Path) -> bytes:
    """The whole file, unpacked where its name says that it is packed; UserError if it cannot be read."""
    if path.exists() and not path.is_file():
        raise UserError(f"cannot read {path}: it is no regular file (a pipe, a socket or a device); copy its content to a file")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    unpack = UNPACK.get(path.suffix.lower())
    if unpack is None or not data:
        return data
    try:
        return unpack(data)
    except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error, pa.ArrowException) as error:
        raise UserError(f"{path} is not a readable {path.suffix} file: {error}") from error


def read_text(path: Path, *, may_be_empty: bool = False) -> str:
    """The whole file as text (UTF-8, or UTF-16 with its mark); UserError if it is empty or not text."""
    data = read_bytes(path)
    if not data.strip() and not may_be_empty:
        raise UserError(f"{path} is empty")
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    if encoding != "utf-16" and b"\0" in data:
        raise UserError(f"{path} is binary, not text; wanted one of: {READABLE}")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 (byte 0x{data[error.start]:02x} at position {error.start:,}); "
            f"convert it first, for instance: iconv -f latin1 -t utf-8"
        ) from error


def read_columns(path: Path, kind: str, wanted: Sequence[str], optional: Sequence[str]) -> Table:
    """Columns of a Parquet or Arrow file; of a Parquet file only those asked for are read."""
    packed = path.suffix.lower() in UNPACK
    if not path.is_file() or packed or kind == ".arrow" or path.stat().st_size == 0:
        data = read_bytes(path)
        if not data:
            raise UserError(f"{path} is empty")
    try:
        if kind == ".arrow":
            whole = read_arrow(data)
            names = pick(path.name, whole.schema.names, wanted, optional)
            return arrow_columns(whole.select(names), whole.schema)
        with pq.ParquetFile(pa.BufferReader(data) if packed else path) as file:
            names = pick(path.name, file.schema_arrow.names, wanted, optional)
            return arrow_columns(file.read(columns=names), file.schema_arrow)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a readable {kind[1:].capitalize()} file: {first_line(error)}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {first_line(error)}") from error


def read_arrow(data: bytes) -> pa.Table:
    """An Arrow file of either form: a stream, as the library ``datasets`` keeps, or a file with a footer (Feather)."""
    if data[:6] == b"ARROW1":
        return pa.ipc.open_file(pa.BufferReader(data)).read_all()
    return pa.ipc.open_stream(pa.BufferReader(data)).read_all()


def arrow_columns(table: pa.Table, schema: pa.Schema) -> Table:
    """An Arrow table as lists of cells, with the features that ``datasets`` left in the metadata of its schema."""
    features: Mapping[str, Any] = {}
    if b"huggingface" in (schema.metadata or {}):
        import datasets  # here, not above: half a second that no other file needs to wait for

        try:
            features = datasets.Features.from_arrow_schema(schema)
        except (ValueError, KeyError, TypeError, AttributeError):  # of a newer version, or edited by hand
            features = {}
    return Table({name: table.column(name).to_pylist() for name in table.column_names}, tuple(schema.names), features)


def read_json(path: Path, text: str) -> dict[str, list[Any]]:
    """A list of records, or one record a line."""
    try:
        records = [(1, parse_json(text))] if kind_of(path) == ".json" else None
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
                    records.append((number, parse_json(line)))
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


def parse_json(text: str) -> Any:
    """The JSON value of a text; ValueError where an object has a key twice, of which only the last would count."""
    return json.loads(text, object_pairs_hook=object_of)


def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has the key {twice[:80]!r} twice")
    return found


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
