"""Read local table files (Parquet, Arrow, CSV, TSV, JSON, JSON Lines), plain or compressed, as columns.

CSV and TSV files are read strictly: every row must have as many cells as the header, and no stray quotation mark may
join several rows into one cell.
"""

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
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..core.errors import UserError, closest_match
from .rows import DEFAULT_COLUMNS, ColumnNames, Table, requested_columns

LONG_CELL_LINES = 5  # a cell of more lines is reported if hardly any other cell has two lines
RARE_SHARE = 0.05  # largest share of the rows that counts as hardly any


def read_delimited(where: str, text: str, separator: str, text_column: str) -> tuple[list[str], dict[str, list[str]], list[str]]:
    """Read a table of delimited cells as strings; the first line names the columns.

    Args:
        where: The path of the file, for messages.
        text: The content of the file.
        separator: The separator between cells.
        text_column: The column of running text, whose cells may have many lines.

    Returns:
        The names of all columns, the columns by name (the first of two columns with one name), and notes for the reader.

    Raises:
        UserError: A row has more or fewer cells than the header, a quoted cell is not closed, is closed too early, or
            contains lines that are rows of their own.
    """
    lines = list(io.StringIO(text, newline=""))
    names: list[str] = []
    rows: list[list[str]] = []
    spans: dict[int, tuple[int, int]] = {}  # first and last line (from 1) of each row with several lines
    old_limit = csv.field_size_limit(min(len(text) + 1, 2**31 - 1))
    reader = csv.reader(lines, delimiter=separator, strict=True)
    first_line = 1
    try:
        for cells in reader:
            if not names:
                names = cells
            elif cells:
                if len(cells) != len(names):
                    raise cell_count_error(where, first_line, cells, names, separator)
                if reader.line_num > first_line:
                    spans[len(rows)] = first_line, reader.line_num
                rows.append(cells)
            first_line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{where}, row that starts in line {first_line}: {describe_quote_error(error)}. Inside a quoted text, write each quotation "
            'mark twice (""); also quote a text that only starts with a quotation mark'
        ) from error
    finally:
        csv.field_size_limit(old_limit)
    check_stray_quotes(where, lines, rows, spans, names.index(text_column) if text_column in names else -1, separator)
    columns: dict[str, list[str]] = {}
    for index, name in enumerate(names):
        columns.setdefault(name, [row[index] for row in rows])
    return names, columns, long_cell_notes(Path(where).name, spans, len(rows))


def cell_count_error(where: str, line: int, cells: Sequence[str], names: Sequence[str], separator: str) -> UserError:
    """Return the error for a row with another number of cells than the header."""
    comparison = "more" if len(cells) > len(names) else "fewer"
    header = ", ".join(name[:40] for name in names[:8])
    return UserError(
        f"{where}, line {line}: the row has {comparison} cells ({len(cells)}) than the header has columns "
        f"({len(names)}: {header}). Quote texts that contain the separator {separator!r}"
    )


def describe_quote_error(error: csv.Error) -> str:
    """Describe an error of the CSV parser in plain words."""
    message = str(error)
    if "end of data" in message:
        return "a quotation mark is opened but never closed"
    return "a quoted text continues after its closing quotation mark" if "expected after" in message else message


def check_stray_quotes(
    where: str, lines: Sequence[str], rows: Sequence[Sequence[str]], spans: dict[int, tuple[int, int]], text_index: int, separator: str
) -> None:
    """Check that no quoted cell contains lines that are rows of their own.

    Such a cell arises if one stray quotation mark opens it and another one closes it many lines below. Each of its lines has
    as many cells as a row. In most of these lines, the cells outside the text column fit their columns: a cell repeats a
    value of its column or, if all values of the column differ, is a new value of the same shape.

    Args:
        where: The path of the file, for messages.
        lines: All lines of the file.
        rows: The parsed rows.
        spans: The first and last line of each row with several lines, by row.
        text_index: The index of the text column, or -1.
        separator: The separator between cells.

    Raises:
        UserError: A cell contains such lines.
    """
    if not spans or len(rows[0]) < 2:
        return
    width = len(rows[0])
    split_lines = {
        row: [lines[line - 1].rstrip("\r\n").split(separator) for line in range(first_line, last_line + 1)]
        for row, (first_line, last_line) in spans.items()
    }
    candidates = [cells for cell_lists in split_lines.values() for cells in cell_lists if len(cells) == width]
    matchers = {
        column: cell_matcher([row[column] for row in rows], [cells[column] for cells in candidates])
        for column in range(width)
        if column != text_index
    }
    for row, (first_line, last_line) in spans.items():
        quoted = next(column for column, value in enumerate(rows[row]) if "\n" in value or "\r" in value)
        line_matches = []
        for line, cells in enumerate(split_lines[row], first_line):
            # In the first and last line, the cells before and after the quoted cell belong to this row itself.
            outer_columns = [
                column for column in matchers if (line > first_line or column > quoted) and (line < last_line or column < quoted)
            ]
            if outer_columns and cells != [""]:
                line_matches.append(
                    (
                        line,
                        row_match([matchers[column](cells[column].strip('"')) for column in outer_columns])
                        if len(cells) == width
                        else "none",
                    )
                )
        matches = [match for _, match in line_matches if match not in ("none", "other")]
        if not line_matches or any(match == "none" for _, match in line_matches) or 2 * len(matches) < len(line_matches):
            continue
        if "sure" in matches or matches.count("perhaps") > 1:
            example = next(line for line, match in line_matches if match not in ("none", "other"))
            raise UserError(
                f"{where}, line {first_line}: a quoted text starts here, ends in line {last_line} and contains lines that "
                f"look like rows of their own (line {example}), so that a quotation mark seems to be stray. Remove it, or quote the "
                'text and write each of its quotation marks twice ("")'
            )


def row_match(matches: Sequence[str]) -> str:
    """Combine the matches of the cells of a line into one for the line.

    The result is the best match of its cells, or "other" if one cell does not fit its column.
    """
    if "" in matches:
        return "other"
    return next((kind for kind in ("sure", "perhaps", "repeated") if kind in matches), "other")


def cell_matcher(values: Sequence[str], candidates: Sequence[str]) -> Callable[[str], str]:
    """Return a function that rates how well a cell fits a column.

    The rating is "sure", "perhaps", "repeated" (the value is in no row, but in several candidates) or "" (no fit). It is
    "open" for every cell if the column holds free text.

    Args:
        values: The cells of the column.
        candidates: The cells of lines that may be rows. They help to distinguish a column of few values from one of many.
    """
    known, all_cells, count = set(values), [*values, *candidates], Counter(candidates)
    if len({*all_cells}) < 0.9 * len(all_cells):
        return lambda cell: "sure" if cell in known else "repeated" if count[cell] > 1 else ""
    shapes = {digit_shape(value) for value in values}
    if len(shapes) > 0.1 * len(values) + 1 or not all("0" in shape for shape in shapes):
        return lambda cell: "open"
    numbers = [int(value) for value in values if value.isdecimal()]
    low, high = min(numbers, default=0), max(numbers, default=0)

    def unused(cell: str) -> str:
        if digit_shape(cell) not in shapes or cell in known:
            return ""
        return "sure" if not cell.isdecimal() or low < int(cell) < high else "perhaps"

    return unused


def digit_shape(cell: str) -> str:
    """Replace every run of digits in a cell by one 0."""
    return re.sub(r"\d+", "0", cell)


def long_cell_notes(where: str, spans: dict[int, tuple[int, int]], num_rows: int) -> list[str]:
    """Return a note if one or two cells of a table have many lines and nearly all others have one."""
    long = [(start, stop) for start, stop in spans.values() if stop - start >= LONG_CELL_LINES]
    if not long or len(spans) > max(2, RARE_SHARE * num_rows):
        return []
    start, stop = max(long, key=lambda span: span[1] - span[0])
    return [
        f"{where}: a quoted text extends from line {start} to line {stop}, but hardly any other row has two lines; "
        "check for a stray quotation mark"
    ]


SUFFIXES = (".parquet", ".arrow", ".csv", ".tsv", ".json", ".jsonl", ".ndjson")
TEXT_SUFFIX = ".txt"


def decompress_zst(data: bytes) -> bytes:
    """Decompress the content of a Zstandard file."""
    with pa.CompressedInputStream(pa.BufferReader(data), "zstd") as stream:
        return bytes(stream.read())


def decompress_streams(data: bytes, make_decompressor: Callable[[], Any]) -> bytes:
    """Decompress streams that follow each other, as in a bzip2 or xz file of a parallel compressor.

    The functions of the standard library ignore everything from the first damaged stream on, so that documents would be missing.

    Args:
        data: The content of the file.
        make_decompressor: Creates the decompressor of one stream.

    Raises:
        ValueError: A stream is not complete.
        OSError: The bytes after a stream are no stream.
        lzma.LZMAError: As OSError, for xz.
    """
    parts = []
    while data:
        decompressor = make_decompressor()
        parts.append(decompressor.decompress(data))
        if not decompressor.eof:
            raise ValueError("Compressed data ended before the end-of-stream marker was reached")
        data = decompressor.unused_data.lstrip(b"\0")  # xz files may be padded with zeros
    return b"".join(parts)


DECOMPRESSORS: Mapping[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".bz2": partial(decompress_streams, make_decompressor=bz2.BZ2Decompressor),
    ".xz": partial(decompress_streams, make_decompressor=lzma.LZMADecompressor),
    ".zst": decompress_zst,
}
ARROW_END_MARK = b"\xff\xff\xff\xff\0\0\0\0"  # of a stream of record batches
LFS_POINTER = b"version https://git-lfs.github.com/spec/"  # the first bytes of a file whose content Git LFS has not downloaded
SUPPORTED_FORMATS = f"{' '.join(SUFFIXES)} {TEXT_SUFFIX}, each also with {' '.join(DECOMPRESSORS)}"


def detect_format(path: Path) -> str:
    """Return the lower-case suffix that determines how a file is read, without compression; "" if it cannot be read."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in DECOMPRESSORS:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in (*SUFFIXES, TEXT_SUFFIX) else ""


def base_stem(path: Path) -> str:
    """Return the name of a file without the suffixes of its format and compression."""
    inner = path.stem if path.suffix.lower() in DECOMPRESSORS else path.name
    return Path(inner).stem


def read_table(path: Path, required: Sequence[str] | ColumnNames) -> Table:
    """Read columns of a table file as lists of cells.

    Numbers in CSV and TSV files remain text.

    Args:
        path: The file.
        required: Columns that must exist, or the configured columns, which decide together with those of the table what is read.

    Raises:
        UserError: The file cannot be read or parsed, a required column is missing, or a requested column occurs twice.
    """
    file_format = detect_format(path)
    if file_format in (".parquet", ".arrow"):
        return read_columns(path, file_format, required)
    text = read_text(path)
    notes: list[str] = []
    if file_format in (".csv", ".tsv"):
        separator = "\t" if file_format == ".tsv" else ","
        header = next(csv.reader(io.StringIO(text, newline=""), delimiter=separator), [])
        check_separator(path, header, separator, required)
        names, columns, notes = read_delimited(str(path), text, separator, split_request(required, header)[0][0])
    else:
        columns = read_json(path, text)
        names = list(columns)
    return Table({name: columns[name] for name in resolve_columns(path.name, names, required)}, tuple(names), notes=tuple(notes))


SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}


def check_separator(path: Path, header: Sequence[str], separator: str, request: Sequence[str] | ColumnNames) -> None:
    """Check that the cells are not separated by another character than those of a file with this suffix.

    Raises:
        UserError: The required columns are in the header only if another character separates its cells.
    """
    if len(header) != 1 or set(split_request(request, header)[0]) <= set(header):
        return
    for other in SEPARATORS:
        names = header[0].split(other)
        if len(names) > 1 and set(split_request(request, names)[0]) <= set(names):
            raise separator_error(path, other, separator)


def check_one_column(path: Path, columns: Mapping[str, Sequence[str]], separator: str) -> None:
    """Check that the only column of a table does not hold several ones, if it is not known yet which columns are to be read.

    Raises:
        UserError: Another character separates cells in the header and in each row.
    """
    for name, cells in columns.items() if len(columns) == 1 else ():
        for other in SEPARATORS:
            if other in name and all(cell.count(other) >= name.count(other) for cell in cells):
                raise separator_error(path, other, separator)


def separator_error(path: Path, found: str, expected: str) -> UserError:
    """Return the error for a table whose cells are separated by another character than those of a file with this suffix."""
    fitting = {",": "csv", "\t": "tsv"}.get(found)
    return UserError(
        f"{path.name}: its cells are separated by {SEPARATORS[found]}, but those of a {detect_format(path)} file by "
        f"{SEPARATORS[expected]}. " + (f"Rename it to .{fitting}" if fitting else f"Save it again with {SEPARATORS[expected]}")
    )


def split_request(request: Sequence[str] | ColumnNames, columns: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the required and the optional columns of a request for a table with these columns."""
    return requested_columns(request, columns) if isinstance(request, ColumnNames) else (list(request), [])


def resolve_columns(where: str, columns: Sequence[str], request: Sequence[str] | ColumnNames) -> list[str]:
    """Return the names of the columns to read.

    Args:
        where: The table, for messages.
        columns: Its columns.
        request: Columns that must exist, or the configured columns.

    Raises:
        UserError: A required column is missing, or a requested column occurs twice.
    """
    required, optional = split_request(request, columns)
    for name in required:
        if name not in columns:
            match = closest_match(name, columns)
            hint = f"; did you mean {match!r}?" if match else "."
            raise UserError(
                f"{where} has no column {name[:80]!r}{hint} Its columns are: {format_columns(columns)}. "
                f"Name another column with dataset.text_column, dataset.label_column or dataset.source_column"
                + (
                    ", or another dataset.format"
                    if isinstance(request, ColumnNames) and request.data_format not in ("auto", "text")
                    else ". Instruction data has the columns messages, prompt and completion, or instruction and output"
                    if isinstance(request, ColumnNames) and name == DEFAULT_COLUMNS.text
                    else ""
                )
            )
    selected = list(dict.fromkeys([*required, *(name for name in optional if name in columns)]))
    for name in selected:
        if (count := list(columns).count(name)) > 1:
            raise UserError(
                f"{where} has {count} columns named {name[:80]!r}: rename all but one, or name another column with "
                "dataset.text_column, dataset.label_column or dataset.source_column"
            )
    return selected


def format_columns(columns: Sequence[str]) -> str:
    """Format column names for a message."""
    return ", ".join(repr(c if len(c) <= 40 else c[:40] + "...") for c in list(columns)[:20]) or "none"


def read_bytes(path: Path) -> bytes:
    """Read a whole file and decompress it if its suffix is that of a compression format.

    Raises:
        UserError: The file cannot be read or decompressed.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"cannot read {path}: it is not a regular file but a pipe, a socket or a device. Copy its content to a file")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    check_not_pointer(path, data)
    decompress = DECOMPRESSORS.get(path.suffix.lower())
    if decompress is None or not data:
        return data
    try:
        return decompress(data)
    except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error, pa.ArrowException) as error:
        raise UserError(f"{path} is not a readable {path.suffix} file: {error}") from error


def check_not_pointer(path: Path, data: bytes) -> None:
    """Raise UserError if the first bytes of a file are those of a pointer of Git LFS, which stands for the file."""
    if data.startswith(LFS_POINTER):
        raise UserError(f"{path} is a pointer of Git LFS, not the data: run `git lfs pull` in its repository, or download the file")


def read_text(path: Path, *, allow_empty: bool = False) -> str:
    """Read a whole text file (UTF-8, or UTF-16 or UTF-32 with a byte order mark).

    Raises:
        UserError: The file is empty (unless ``allow_empty``), binary or in another encoding.
    """
    data = read_bytes(path)
    if not data.strip() and not allow_empty:
        raise UserError(f"{path} is empty")
    marks = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}  # the longest first
    encoding = next((name for mark, name in marks.items() if data.startswith(mark)), "utf-8-sig")
    if encoding == "utf-8-sig" and b"\0" in data:
        raise UserError(f"{path} is a binary file, not text. Supported formats: {SUPPORTED_FORMATS}")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not encoded as {encoding.removesuffix('-sig').upper()} (byte 0x{data[error.start]:02x} at position "
            f"{error.start:,}). Convert it first, for example with: iconv -f latin1 -t utf-8"
        ) from error


def read_columns(path: Path, kind: str, request: Sequence[str] | ColumnNames) -> Table:
    """Read columns of a Parquet or Arrow file; from a Parquet file, only the requested columns are read."""
    is_compressed = path.suffix.lower() in DECOMPRESSORS
    if not path.is_file() or is_compressed or kind == ".arrow" or path.stat().st_size == 0:
        data = read_bytes(path)
        if not data:
            raise UserError(f"{path} is empty")
    names: list[str] = []
    try:
        if not (is_compressed or kind == ".arrow"):
            with path.open("rb") as start:
                check_not_pointer(path, start.read(len(LFS_POINTER)))
        if kind == ".arrow":
            table = read_arrow(data)
            names = resolve_columns(path.name, table.schema.names, request)
            return replace(arrow_columns(table.select(names), table.schema), notes=arrow_notes(path.name, data))
        with pq.ParquetFile(pa.BufferReader(data) if is_compressed else path) as file:
            names = resolve_columns(path.name, file.schema_arrow.names, request)
            return arrow_columns(file.read(columns=names), file.schema_arrow)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a readable {kind[1:].capitalize()} file: {first_line(error)}") from error
    except (OverflowError, ValueError) as error:  # dates and times that Python cannot represent
        raise UserError(
            f"{path} holds a value that cannot be converted to Python ({first_line(error)}): store the columns "
            f"{format_columns(names)} as text"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {first_line(error)}") from error


def read_arrow(data: bytes) -> pa.Table:
    """Read an Arrow file in either form: a stream (as the library ``datasets`` writes) or a file with a footer (Feather)."""
    if data[:6] == b"ARROW1":
        return pa.ipc.open_file(pa.BufferReader(data)).read_all()
    return pa.ipc.open_stream(pa.BufferReader(data)).read_all()


def arrow_notes(where: str, data: bytes) -> tuple[str, ...]:
    """Return a note if a stream of record batches has no end mark, so that further batches may be missing."""
    if data[:6] == b"ARROW1" or data.endswith(ARROW_END_MARK):
        return ()
    return (f"{where} has no end mark: it may have been cut off, and rows may be missing",)


def arrow_columns(table: pa.Table, schema: pa.Schema) -> Table:
    """Convert an Arrow table to lists of cells, with the features that ``datasets`` stored in the schema metadata."""
    features: Mapping[str, Any] = {}
    if b"huggingface" in (schema.metadata or {}):
        import datasets  # imported here because it takes half a second and most files do not need it

        try:  # Features.from_arrow_schema would drop class names if another program stored the class numbers in another type
            features = datasets.Features.from_dict(json.loads(schema.metadata[b"huggingface"])["info"]["features"])
        except (ValueError, KeyError, TypeError, AttributeError):  # the metadata was written by a newer version or edited by hand
            features = {}
    return Table({name: table.column(name).to_pylist() for name in table.column_names}, tuple(schema.names), features)


def read_json(path: Path, text: str) -> dict[str, list[Any]]:
    """Read a JSON list of records, or JSON Lines with one record per line."""
    try:
        records = [(1, parse_json(text))] if detect_format(path) == ".json" else None
        if records and isinstance(records[0][1], list):
            records = list(enumerate(records[0][1], 1))
    except (ValueError, RecursionError):
        records = None  # JSON Lines in a file with the suffix .json
    if records is None:
        records = []
        # splitlines() would also split at U+2028 and similar characters, which JSON strings may contain.
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    records.append((number, parse_json(line)))
                except (ValueError, RecursionError) as error:
                    raise UserError(f"{path}, line {number}: the line is not valid JSON ({error})") from error
    for number, record in records:
        if not isinstance(record, dict):
            raise UserError(f'{path}, record {number}: expected an object such as {{"text": ...}}, got {type(record).__name__}')
    names = dict.fromkeys(str(name) for _, record in records for name in record)
    return {name: [record.get(name) for _, record in records] for name in names}


def parse_json(text: str) -> Any:
    """Parse JSON text.

    Raises:
        ValueError: The text is not valid JSON, or an object has a key twice (the standard parser would keep the last one).
    """
    return json.loads(text, object_pairs_hook=unique_object)


def unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Convert the key-value pairs of a JSON object to a dictionary; raise ValueError for a repeated key."""
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has the key {repeated[:80]!r} twice")
    return record


def first_line(error: BaseException) -> str:
    """Return the first line of an error message, at most 200 characters."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
