"""CSV and TSV, read strictly: every row has as many cells as the first line names columns, and no quote swallows rows."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..core.errors import UserError, closest_match
from .rows import Table

LONG_CELL_LINES = 5  # lines in one cell that are remarked on where hardly another cell has two
RARE_SHARE = 0.05  # share of the rows that count as hardly one


def read_delimited(where: str, text: str, separator: str, text_column: str) -> tuple[list[str], dict[str, list[str]], list[str]]:
    """Read a table of separated cells, each a string; the first line names the columns.

    Args:
        where: The path of the file, for messages.
        text: Its content.
        separator: What stands between cells.
        text_column: The column of running text, whose cells may have many lines.

    Returns:
        The names of all columns, the columns by name (of two of one name the first), and notes for the reader.

    Raises:
        UserError: A row has more or fewer cells than the first line; a quote is not closed, or is closed before its
            cell ends, or swallows lines that are rows of their own.
    """
    lines = list(io.StringIO(text, newline=""))
    names: list[str] = []
    rows: list[list[str]] = []
    spans: dict[int, tuple[int, int]] = {}  # of rows of more than one line: the first and the last, from 1
    limit = csv.field_size_limit(min(len(text) + 1, 2**31 - 1))
    reader = csv.reader(lines, delimiter=separator, strict=True)
    begin = 1
    try:
        for cells in reader:
            if not names:
                names = cells
            elif cells:
                if len(cells) != len(names):
                    raise cell_count_error(where, begin, cells, names, separator)
                if reader.line_num > begin:
                    spans[len(rows)] = begin, reader.line_num
                rows.append(cells)
            begin = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{where}, row from line {begin}: {describe_quote_error(error)}. Inside a quoted text a quotation mark is "
            'written twice (""); a text that only begins with one is to be quoted too'
        ) from error
    finally:
        csv.field_size_limit(limit)
    check_stray_quotes(where, lines, rows, spans, names.index(text_column) if text_column in names else -1, separator)
    columns: dict[str, list[str]] = {}
    for number, name in enumerate(names):
        columns.setdefault(name, [row[number] for row in rows])
    return names, columns, long_cell_notes(Path(where).name, spans, len(rows))


def cell_count_error(where: str, line: int, cells: Sequence[str], names: Sequence[str], separator: str) -> UserError:
    """A row that does not fit the first line."""
    found = "more" if len(cells) > len(names) else "fewer"
    first = ", ".join(name[:40] for name in names[:8])
    return UserError(
        f"{where}, line {line}: the row has {found} cells ({len(cells)}) than the first line names columns "
        f"({len(names)}: {first}); quote texts that hold the separator {separator!r}"
    )


def describe_quote_error(error: csv.Error) -> str:
    """What is wrong with the quotation marks, in words."""
    said = str(error)
    if "end of data" in said:
        return "a quotation mark is opened and never closed"
    return "a quoted text goes on after its closing quotation mark" if "expected after" in said else said


def check_stray_quotes(
    where: str, lines: Sequence[str], rows: Sequence[Sequence[str]], spans: dict[int, tuple[int, int]], text_index: int, separator: str
) -> None:
    """Refuse a cell whose lines are rows: a stray quotation mark opened it, and another closed it far below.

    Every line of such a cell has as many cells as a row, and in most of them the right things stand in the columns beside
    the text: a value that the column has elsewhere or, where no two rows share one, an unused one of the same shape.
    """
    if not spans or len(rows[0]) < 2:
        return
    width = len(rows[0])
    inner = {
        row: [lines[line - 1].rstrip("\r\n").split(separator) for line in range(begin, end + 1)] for row, (begin, end) in spans.items()
    }
    like_rows = [cells for found in inner.values() for cells in found if len(cells) == width]
    beside = {
        number: cell_matcher([row[number] for row in rows], [cells[number] for cells in like_rows])
        for number in range(width)
        if number != text_index
    }
    for row, (begin, end) in spans.items():
        quoted = next(number for number, value in enumerate(rows[row]) if "\n" in value or "\r" in value)
        found = []
        for line, cells in enumerate(inner[row], begin):
            # What stands beside the quoted cell in its first and last line belongs to this row.
            looked = [number for number in beside if (line > begin or number > quoted) and (line < end or number < quoted)]
            if looked and cells != [""]:
                found.append(
                    (line, row_match([beside[number](cells[number].strip('"')) for number in looked]) if len(cells) == width else "none")
                )
        fits = [kind for _, kind in found if kind not in ("none", "other")]
        if not found or any(kind == "none" for _, kind in found) or 2 * len(fits) < len(found):
            continue
        if "sure" in fits or fits.count("perhaps") > 1:
            example = next(line for line, kind in found if kind not in ("none", "other"))
            raise UserError(
                f"{where}, line {begin}: a quoted text that opens here closes in line {end} and holds lines that "
                f"are rows of their own (line {example}): a quotation mark is stray. Take it out, or quote the "
                'text and write each of its quotation marks twice ("")'
            )


def row_match(matches: Sequence[str]) -> str:
    """How well the cells of a line fit the columns of a row: as the best of them does, or "other" where one does not."""
    if "" in matches:
        return "other"
    return next((kind for kind in ("sure", "perhaps", "repeated") if kind in matches), "other")


def cell_matcher(values: Sequence[str], candidates: Sequence[str]) -> Callable[[str], str]:
    """How a cell fits a column of ``values``: "sure", "perhaps", "repeated" or not (""); "open" where anything would.

    ``candidates``, cells of lines that may be rows, help to tell a column of few values from one of many. One that is in no
    row, but in several such lines, is "repeated".
    """
    seen, every, count = set(values), [*values, *candidates], Counter(candidates)
    if len({*every}) < 0.9 * len(every):
        return lambda cell: "sure" if cell in seen else "repeated" if count[cell] > 1 else ""
    shapes = {digit_shape(value) for value in values}
    if len(shapes) > 0.1 * len(values) + 1 or not all("0" in one for one in shapes):
        return lambda cell: "open"
    numbers = [int(value) for value in values if value.isdecimal()]
    low, high = min(numbers, default=0), max(numbers, default=0)

    def unused(cell: str) -> str:
        if digit_shape(cell) not in shapes or cell in seen:
            return ""
        return "sure" if not cell.isdecimal() or low < int(cell) < high else "perhaps"

    return unused


def digit_shape(cell: str) -> str:
    """A cell with every run of digits as one 0."""
    return re.sub(r"\d+", "0", cell)


def long_cell_notes(where: str, spans: dict[int, tuple[int, int]], num_rows: int) -> list[str]:
    """A note where a cell or two of a table run over many lines, and all others over one."""
    long = [(begin, end) for begin, end in spans.values() if end - begin >= LONG_CELL_LINES]
    if not long or len(spans) > max(2, RARE_SHARE * num_rows):
        return []
    begin, end = max(long, key=lambda span: span[1] - span[0])
    return [
        f"{where}: a quoted text runs from line {begin} to {end}, and hardly another row has two lines; look for a stray quotation mark"
    ]


# One local table file, as columns: Parquet, Arrow, CSV, TSV, JSON or JSON Lines, compressed or not.

SUFFIXES = (".parquet", ".arrow", ".csv", ".tsv", ".json", ".jsonl", ".ndjson")
TEXT_SUFFIX = ".txt"


def decompress_zst(data: bytes) -> bytes:
    """The content of a Zstandard file."""
    with pa.CompressedInputStream(pa.BufferReader(data), "zstd") as stream:
        return bytes(stream.read())


DECOMPRESSORS: Mapping[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
    ".zst": decompress_zst,
}
SUPPORTED_FORMATS = f"{' '.join(SUFFIXES)} {TEXT_SUFFIX}, each also with {' '.join(DECOMPRESSORS)}"


def detect_format(path: Path) -> str:
    """The suffix that says how a file is read, small and without that of its compression; "" if it cannot be read."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in DECOMPRESSORS:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in (*SUFFIXES, TEXT_SUFFIX) else ""


def base_stem(path: Path) -> str:
    """The name of a file without the suffixes of its kind and compression."""
    inner = path.stem if path.suffix.lower() in DECOMPRESSORS else path.name
    return Path(inner).stem


def read_table(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> Table:
    """The columns ``required``, and those of ``optional`` that are there, as lists of cells.

    Numbers in CSV and TSV files stay the text they are. Raises UserError for a file that cannot be read or
    parsed, for a wanted column that is not there, and for one that is there twice.
    """
    kind = detect_format(path)
    if kind in (".parquet", ".arrow"):
        return read_columns(path, kind, required, optional)
    text = read_text(path)
    notes: list[str] = []
    if kind in (".csv", ".tsv"):
        names, columns, notes = read_delimited(str(path), text, "\t" if kind == ".tsv" else ",", text_column=required[0])
    else:
        columns = read_json(path, text)
        names = list(columns)
    return Table({name: columns[name] for name in resolve_columns(path.name, names, required, optional)}, tuple(names), notes=tuple(notes))


def resolve_columns(where: str, columns: Sequence[str], required: Sequence[str], optional: Sequence[str]) -> list[str]:
    """The columns to read; UserError if one that is wanted is not there, or one that is read is there twice."""
    for name in required:
        if name not in columns:
            near = closest_match(name, columns)
            hint = f"; did you mean {near!r}?" if near else "."
            raise UserError(
                f"{where} has no column {name[:80]!r}{hint} Its columns: {format_columns(columns)}. "
                f"Name the right one with dataset.text_column, dataset.label_column or dataset.source_column"
            )
    picked = list(dict.fromkeys([*required, *(name for name in optional if name in columns)]))
    for name in picked:
        if (count := list(columns).count(name)) > 1:
            raise UserError(
                f"{where} has {count} columns named {name[:80]!r}: rename all but one, or name another one with "
                "dataset.text_column, dataset.label_column or dataset.source_column"
            )
    return picked


def format_columns(columns: Sequence[str]) -> str:
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
    unpack = DECOMPRESSORS.get(path.suffix.lower())
    if unpack is None or not data:
        return data
    try:
        return unpack(data)
    except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error, pa.ArrowException) as error:
        raise UserError(f"{path} is not a readable {path.suffix} file: {error}") from error


def read_text(path: Path, *, allow_empty: bool = False) -> str:
    """The whole file as text (UTF-8, or UTF-16 with its mark); UserError if it is empty or not text."""
    data = read_bytes(path)
    if not data.strip() and not allow_empty:
        raise UserError(f"{path} is empty")
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    if encoding != "utf-16" and b"\0" in data:
        raise UserError(f"{path} is binary, not text; wanted one of: {SUPPORTED_FORMATS}")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 (byte 0x{data[error.start]:02x} at position {error.start:,}); "
            f"convert it first, for instance: iconv -f latin1 -t utf-8"
        ) from error


def read_columns(path: Path, kind: str, required: Sequence[str], optional: Sequence[str]) -> Table:
    """Columns of a Parquet or Arrow file; of a Parquet file only those asked for are read."""
    packed = path.suffix.lower() in DECOMPRESSORS
    if not path.is_file() or packed or kind == ".arrow" or path.stat().st_size == 0:
        data = read_bytes(path)
        if not data:
            raise UserError(f"{path} is empty")
    try:
        if kind == ".arrow":
            whole = read_arrow(data)
            names = resolve_columns(path.name, whole.schema.names, required, optional)
            return arrow_columns(whole.select(names), whole.schema)
        with pq.ParquetFile(pa.BufferReader(data) if packed else path) as file:
            names = resolve_columns(path.name, file.schema_arrow.names, required, optional)
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
        records = [(1, parse_json(text))] if detect_format(path) == ".json" else None
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
            raise UserError(f'{path}, record {number}: wanted an object such as {{"text": ...}}, got {type(record).__name__}')
    names = dict.fromkeys(str(name) for _, record in records for name in record)
    return {name: [record.get(name) for _, record in records] for name in names}


def parse_json(text: str) -> Any:
    """The JSON value of a text; ValueError where an object has a key twice, of which only the last would count."""
    return json.loads(text, object_pairs_hook=unique_object)


def unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has the key {twice[:80]!r} twice")
    return found


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
