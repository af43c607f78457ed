"""Writing a file whole or not at all, and saying what a full disk wanted."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import UserError

FULL = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def replacing(path: Path, size: int) -> Iterator[Path]:
    """A path beside ``path`` for ``size`` bytes; it takes the place of ``path`` at the end of the block.

    If the block raises, ``path`` stays as it was and what was half written goes. The name beside it is
    always the same, so that processes killed here leave one such file at most and never a heap.

    Raises UserError when the disk is full.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with full_disk_told(path, size):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield part
            flush(part)
            os.replace(part, path)
            flush(path.parent)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


def write_whole(path: Path, content: bytes) -> None:
    """Put ``content`` in the place of whatever is at ``path``, whole or not at all."""
    with replacing(path, len(content)) as part:
        part.write_bytes(content)


def flush(path: Path) -> None:
    """Have the disk keep a file, or a folder's list of names, before going on."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open a folder
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def full_disk_told(path: Path, size: int) -> Iterator[None]:
    """Turn the system's "no space left" into a UserError that says how much was needed, and where."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise UserError(
            f"the disk is full: {path} needs {size:,} bytes and {room(path.parent)}. What was stored "
            f"before is whole. Make room and run the same command again: it resumes.") from error


def room(folder: Path) -> str:
    """How much is free where ``folder`` is, in words."""
    try:
        return f"{shutil.disk_usage(folder).free:,} are free in {folder}"
    except OSError:
        return f"there are fewer in {folder}"
