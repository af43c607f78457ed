"""JSON files that only grow; an incomplete last line, which a crash may leave, is ignored.

Floats are written by ``repr``, the shortest text that reads back as the same bits. NaN is written as ``null`` and the infinities as
``1e999`` and ``-1e999``, so that every line is standard JSON.

``clustering.json`` grows too: it is one JSON list, whose end each assignment of a clustering strategy replaces, so that earlier entries are
neither read nor written again. A process that is killed meanwhile leaves an incomplete last entry, which ``drop_incomplete_entry`` removes.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import UserError
from .files import explain_write_errors, fsync_path, write_atomically

if TYPE_CHECKING:
    from .run import Run


def number_to_json(value: float) -> str:
    """Format a float as JSON that reads back as the same float."""
    if math.isfinite(value):
        return repr(float(value))
    return "null" if math.isnan(value) else "1e999" if value > 0 else "-1e999"


def to_json(value: Any, indent: int = 0) -> str:
    """Format a value as JSON, with each float as ``number_to_json`` writes it.

    Numpy numbers and arrays become Python numbers and lists, a pandas table becomes a list of rows, and its missing values become ``null``.
    Paths, dates and other objects become their text.

    Args:
        value: The value, nested or not.
        indent: The number of spaces per level; 0 writes everything on one line.
    """
    return "".join(_iter_json_parts(value, indent, "\n" if indent else ""))


def _iter_json_parts(value: Any, indent: int, line_break: str) -> Iterator[str]:
    """Yield the JSON text of a value in parts. ``line_break`` is the line break and indentation before its closing bracket."""
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
        opening, closing = "{}" if isinstance(value, Mapping) else "[]"
        items = (
            ((f"{json.dumps(str(key))}: ", item) for key, item in value.items())
            if isinstance(value, Mapping)
            else (("", item) for item in value)
        )
        inner_break, separator = f"{line_break}{' ' * indent}", ("," if indent else ", ")
        yield opening
        for index, (key, item) in enumerate(items):
            yield f"{separator if index else ''}{inner_break}{key}"
            yield from _iter_json_parts(item, indent, inner_break)
        yield (line_break if value else "") + closing
    else:
        yield "null" if type(value).__name__ in MISSING_TYPES else json.dumps(str(value))


MISSING_TYPES = ("NAType", "NaTType")  # the types of missing values in pandas


EMPTY_CHECKSUM = (0, 0)  # the checksum of an empty file


def compute_checksum(path: Path, previous: Sequence[int] = EMPTY_CHECKSUM) -> list[int]:
    """Return the size of a file that only grows, and the CRC-32 of its bytes.

    Args:
        path: The file; a missing file is empty.
        previous: An earlier checksum of the file, so that only the bytes added since are read.
    """
    size, crc = previous
    if path.exists():
        with open(path, "rb") as file:
            file.seek(size)
            while chunk := file.read(1 << 20):
                size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return [size, crc]


def has_prefix(path: Path, checksum: Sequence[int]) -> bool:
    """Return whether a file still begins with the bytes of an earlier checksum."""
    remaining, crc = checksum[0], 0
    if not path.is_file():
        return remaining == 0
    with open(path, "rb") as file:
        while remaining and (chunk := file.read(min(remaining, 1 << 20))):
            remaining, crc = remaining - len(chunk), zlib.crc32(chunk, crc)
    return remaining == 0 and crc == checksum[1]


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Append lines and synchronize the file with the disk; if this fails, the file is unchanged.

    Raises:
        UserError: The disk is full, or the file cannot be written.
    """
    content = "".join(f"{line}\n" for line in lines).encode()
    if not content:
        return
    with explain_write_errors(path, len(content)):
        is_new = not path.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab", buffering=0) as file:
            previous_size = _drop_partial_line(path)
            try:
                write_all(file.fileno(), content)
                os.fsync(file.fileno())
            except OSError:
                os.truncate(path, previous_size)
                raise
        if is_new:
            fsync_path(path.parent)


def read_lines(path: Path) -> list[Any]:
    """Return the values of all complete lines, or [] if the file does not exist.

    Raises:
        UserError: A complete line is not JSON.
    """
    return parse_lines(read_complete_lines(path), path)


def parse_lines(lines: Sequence[bytes], path: Path) -> list[Any]:
    """Return the values of lines.

    Args:
        lines: The lines, without their line breaks.
        path: The file of the lines, for error messages.

    Raises:
        UserError: A line is not JSON.
    """
    try:
        together: list[Any] = json.loads(b"[" + b",".join(lines) + b"]")  # several times as fast as one line after another
        if len(together) == len(lines):
            return together
    except (ValueError, RecursionError):
        pass  # the loop below finds the line
    values = []
    for number, line in enumerate(lines, 1):
        try:
            values.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path}, line {number} is not JSON: {line[:80]!r}. Something other than fedrift "
                f"changed the file; remove the run's folder to start the run again."
            ) from error
    return values


def filter_lines(path: Path, predicate: Callable[[Any], bool]) -> int:
    """Drop the lines that do not satisfy ``predicate``, and an incomplete last line; return the number of complete lines dropped."""
    if not path.exists():
        return 0
    lines = read_complete_lines(path)
    values = parse_lines(lines, path)
    selected = [line for line, value in zip(lines, values, strict=True) if predicate(value)]
    content = b"".join(line + b"\n" for line in selected)
    if len(content) != path.stat().st_size:
        write_atomically(path, content)
    return len(lines) - len(selected)


def read_complete_lines(path: Path, start: int = 0) -> list[bytes]:
    """Return the lines that end with a line break, from byte ``start`` on."""
    try:
        if not path.exists():
            return []
        with open(path, "rb") as file:
            file.seek(start)
            return file.read().split(b"\n")[:-1]
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror or error}. Move it away, or remove the run's folder to start the run again."
        ) from error


def write_all(handle: int, content: bytes) -> None:
    """Write all bytes; a single call may write only a part, for example when the disk fills up."""
    remaining = memoryview(content)
    while remaining:
        remaining = remaining[os.write(handle, remaining) :]


def _drop_partial_line(path: Path) -> int:
    """Remove an incomplete last line, so that new lines start on their own line, and return the size of the file."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                size = path.read_bytes().rfind(b"\n") + 1
                os.truncate(path, size)
    return size


LIST_END = b"\n]\n"  # the last bytes of a complete file
ENTRY_END = b"\n  }"  # the last bytes of an entry; objects inside an entry are indented further


def drop_incomplete_entry(content: bytes) -> bytes:
    """Return the content of the file without an incomplete last entry; complete contents are returned unchanged."""
    last = content.rfind(ENTRY_END)
    return content if content.endswith(LIST_END) or last < 0 else content[: last + len(ENTRY_END)] + LIST_END


class AssignmentLog:
    """The cluster assignments of one run. Only one process at a time may write a run.

    Each assignment is read, formatted and hashed once, whatever the number of decisions.

    Args:
        run: The run. Its file is read at the first use.

    Example:
        >>> log = AssignmentLog(run)  # doctest: +SKIP
        >>> log.add({"round": 0, "cluster_ids": [0, 1]})  # doctest: +SKIP
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._rounds: list[int] | None = None  # the round of each entry; None: the file was not read yet
        self._checksums: list[int] = []  # CRC-32 of the list up to and including each entry, without its closing bracket

    @property
    def path(self) -> Path:
        """Return the path of the file."""
        return self.run.folder / "clustering.json"

    @property
    def rounds(self) -> list[int]:
        """Return the round of each assignment, in the order of decision."""
        if self._rounds is None:
            self._rounds = []
            for entry in self.run.cluster_assignments():
                self._append(entry)
        return self._rounds

    def add(self, entry: dict[str, Any]) -> None:
        """Store the assignment of ``entry["round"]``; stored assignments of this and of later rounds are dropped.

        Raises:
            UserError: A value is not JSON, the disk is full, or the file cannot be written.
        """
        text = self.run.format_json("clustering", [entry])
        is_append = all(earlier < entry["round"] for earlier in self.rounds) and self._ends_with_entry()
        if is_append:
            self._replace_end(f",{text[1:]}\n".encode())  # without the bracket that opens the list
        else:
            earlier = [stored for stored in self.run.cluster_assignments() if stored["round"] < entry["round"]]
            write_atomically(self.path, (self.run.format_json("clustering", [*earlier, entry]) + "\n").encode())
            self._rounds, self._checksums = [], []
            for stored in earlier:
                self._append(stored)
        self._append(json.loads(text)[0])

    def checksum(self, last_round: int) -> list[int]:
        """Return the number of assignments up to a round, and the CRC-32 of their list in one line."""
        count = sum(round <= last_round for round in self.rounds)
        if count and all(earlier <= later for earlier, later in pairwise(self.rounds)):
            return [count, zlib.crc32(b"]", self._checksums[count - 1])]
        rows = [row for row in self.run.cluster_assignments() if row["round"] <= last_round] if count else []
        return [count, zlib.crc32(to_json(rows).encode())]

    def _append(self, entry: dict[str, Any]) -> None:
        assert self._rounds is not None
        separator, previous = (", ", self._checksums[-1]) if self._checksums else ("[", 0)
        self._rounds.append(entry["round"])
        self._checksums.append(zlib.crc32((separator + to_json(entry)).encode(), previous))

    def _ends_with_entry(self) -> bool:
        """Return whether the file ends with a complete entry, to which another one can be added."""
        expected = ENTRY_END + LIST_END
        if not self.path.exists() or self.path.stat().st_size < len(expected):
            return False
        with open(self.path, "rb") as file:
            file.seek(-len(expected), os.SEEK_END)
            return file.read() == expected

    def _replace_end(self, content: bytes) -> None:
        """Replace the end of the list by ``content``; if this fails, the file is unchanged."""
        with explain_write_errors(self.path, len(content)), open(self.path, "r+b", buffering=0) as file:
            end = file.seek(-len(LIST_END), os.SEEK_END)
            try:
                write_all(file.fileno(), content)
                os.fsync(file.fileno())
            except OSError:
                file.seek(end)
                write_all(file.fileno(), LIST_END)
                file.truncate()
                raise
