"""Files that grow by lines of JSON; a last line that a crash cut short does not count.

Floats are written by ``repr``, the shortest text that reads back as the same bits. NaN is ``null`` and
the infinities are ``1e999`` and ``-1e999``, so that every line is plain JSON for other readers too.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from ..core.errors import UserError
from .files import explain_write_errors, fsync_path, write_atomically


def number_to_json(value: float) -> str:
    """A float as JSON that reads back as the same float."""
    if math.isfinite(value):
        return repr(float(value))
    return "null" if math.isnan(value) else "1e999" if value > 0 else "-1e999"


def to_json(value: Any, indent: int = 0) -> str:
    """A value as JSON, nested or not; each float in it as ``write_number`` writes it.

    Numbers and arrays of numpy are written as their Python selves; a table of pandas as a list of rows; what is missing in one as
    ``null``; paths, dates and the like as their text.

    Args:
        value: What to write.
        indent: Blanks for each level, on lines of their own; 0: all on one line.
    """
    return "".join(_iter_json_parts(value, indent, "\n" if indent else ""))


def _iter_json_parts(value: Any, indent: int, line_break: str) -> Iterator[str]:
    """The text of a value, in parts. ``line``: the line break and the blanks before what closes the value."""
    if isinstance(value, float):
        yield number_to_json(value)
    elif value is None or isinstance(value, (str, int)):
        yield json.dumps(value)
    elif isinstance(value, Decimal):
        yield str(value) if value.is_finite() else number_to_json(float(value))
    elif hasattr(value, "to_dict"):  # a table
        yield from _iter_json_parts(value.to_dict("records"), indent, line_break)
    elif hasattr(value, "tolist"):
        yield from _iter_json_parts(value.tolist(), indent, line_break)
    elif isinstance(value, (Mapping, list, tuple, set, frozenset)):
        begin, end = "{}" if isinstance(value, Mapping) else "[]"
        pairs = (
            ((f"{json.dumps(str(key))}: ", item) for key, item in value.items())
            if isinstance(value, Mapping)
            else (("", item) for item in value)
        )
        inner, comma = f"{line_break}{' ' * indent}", ("," if indent else ", ")
        yield begin
        for place, (key, item) in enumerate(pairs):
            yield f"{comma if place else ''}{inner}{key}"
            yield from _iter_json_parts(item, indent, inner)
        yield (line_break if value else "") + end
    else:
        yield "null" if type(value).__name__ in MISSING_TYPES else json.dumps(str(value))


MISSING_TYPES = ("NAType", "NaTType")  # what pandas has in the place of a value


EMPTY_CHECKSUM = (0, 0)  # the mark of no bytes


def compute_checksum(path: Path, previous: Sequence[int] = EMPTY_CHECKSUM) -> list[int]:
    """The size of a file that only grows, and the CRC-32 of its bytes. ``since``: an earlier mark, so that only what was added is
    read."""
    size, check = previous
    if path.exists():
        with open(path, "rb") as file:
            file.seek(size)
            while part := file.read(1 << 20):
                size, check = size + len(part), zlib.crc32(part, check)
    return [size, check]


def has_prefix(path: Path, checksum: Sequence[int]) -> bool:
    """Whether a file still begins with the bytes of which ``mark`` was taken."""
    left, check = checksum[0], 0
    if not path.exists():
        return left == 0
    with open(path, "rb") as file:
        while left and (part := file.read(min(left, 1 << 20))):
            left, check = left - len(part), zlib.crc32(part, check)
    return left == 0 and check == checksum[1]


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Add lines and have the disk keep them; if it cannot, the file is as it was.

    Raises UserError when the disk is full.
    """
    content = "".join(f"{line}\n" for line in lines).encode()
    if not content:
        return
    with explain_write_errors(path, len(content)):
        new = not path.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab", buffering=0) as file:
            before = _drop_partial_line(path)
            try:
                write_all(file.fileno(), content)
                os.fsync(file.fileno())
            except OSError:
                os.truncate(path, before)
                raise
        if new:
            fsync_path(path.parent)


def read_lines(path: Path) -> list[Any]:
    """The values of all finished lines; none if there is no file.

    Raises UserError where a finished line is not JSON.
    """
    values = []
    for number, line in enumerate(read_complete_lines(path), 1):
        try:
            values.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path}, line {number} is not JSON: {line[:80]!r}. Something other than fedrift "
                f"wrote there; remove the run's folder to begin it again."
            ) from error
    return values


def filter_lines(path: Path, predicate: Callable[[Any], bool]) -> int:
    """Drop the lines that are not wanted, and an unfinished one; how many finished ones were dropped."""
    if not path.exists():
        return 0
    lines, values = read_complete_lines(path), read_lines(path)
    kept = [line for line, value in zip(lines, values, strict=True) if predicate(value)]
    content = b"".join(line + b"\n" for line in kept)
    if len(content) != path.stat().st_size:
        write_atomically(path, content)
    return len(lines) - len(kept)


def read_complete_lines(path: Path) -> list[bytes]:
    """The lines that end with a line break."""
    try:
        return path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror or error}. Move it away, or remove the run's folder to begin it again."
        ) from error


def write_all(handle: int, content: bytes) -> None:
    """Write all of it: a single call may stop half-way where a disk fills up."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(handle, rest) :]


def _drop_partial_line(path: Path) -> int:
    """Cut off what follows the last line break, so that new lines stand alone; the size then."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                size = path.read_bytes().rfind(b"\n") + 1
                os.truncate(path, size)
    return size
