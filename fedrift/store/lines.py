"""Files that grow by lines of JSON; a last line that a crash cut short does not count.

Floats are written by ``repr``, the shortest text that reads back as the same bits. NaN is ``null`` and
the infinities are ``1e999`` and ``-1e999``, so that every line is plain JSON for other readers too.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..errors import UserError
from .files import flush, full_disk_told, write_whole


def write_number(value: float) -> str:
    """A float as JSON that reads back as the same float."""
    if math.isfinite(value):
        return repr(float(value))
    return "null" if math.isnan(value) else "1e999" if value > 0 else "-1e999"


def write_object(value: dict[str, Any]) -> str:
    """An object on one line, NaN and infinities among its own values included."""
    pairs = (f"{json.dumps(key)}: {write_number(item) if isinstance(item, float) else json.dumps(item)}"
             for key, item in value.items())
    return "{" + ", ".join(pairs) + "}"


def append(path: Path, lines: Iterable[str]) -> None:
    """Add lines and have the disk keep them; if it cannot, the file is as it was.

    Raises UserError when the disk is full.
    """
    content = "".join(f"{line}\n" for line in lines).encode()
    if not content:
        return
    with full_disk_told(path, len(content)):
        new = not path.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab", buffering=0) as file:
            before = _drop_unfinished(path)
            try:
                write_all(file.fileno(), content)
                os.fsync(file.fileno())
            except OSError:
                os.truncate(path, before)
                raise
        if new:
            flush(path.parent)


def read(path: Path) -> list[Any]:
    """The values of all finished lines; none if there is no file.

    Raises UserError where a finished line is not JSON.
    """
    values = []
    for number, line in enumerate(finished(path), 1):
        try:
            values.append(json.loads(line))
        except ValueError as error:
            raise UserError(f"{path}, line {number} is not JSON: {line[:80]!r}. Something other than fedrift "
                            f"wrote there; remove the run's folder to begin it again.") from error
    return values


def keep(path: Path, wanted: Callable[[Any], bool]) -> int:
    """Drop the lines that are not wanted, and an unfinished one; how many finished ones were dropped."""
    if not path.exists():
        return 0
    lines, values = finished(path), read(path)
    kept = [line for line, value in zip(lines, values, strict=True) if wanted(value)]
    content = b"".join(line + b"\n" for line in kept)
    if len(content) != path.stat().st_size:
        write_whole(path, content)
    return len(lines) - len(kept)


def finished(path: Path) -> list[bytes]:
    """The lines that end with a line break."""
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


def write_all(handle: int, content: bytes) -> None:
    """Write all of it: a single call may stop half-way where a disk fills up."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(handle, rest):]


def _drop_unfinished(path: Path) -> int:
    """Cut off what follows the last line break, so that new lines stand alone; the size then."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                size = path.read_bytes().rfind(b"\n") + 1
                os.truncate(path, size)
    return size
