"""Writing a file whole or not at all, saying what a full disk wanted, and the digest that a binary file carries."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..core.errors import UserError

DISK_FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def replace_atomically(path: Path, size: int) -> Iterator[Path]:
    """A path beside ``path`` for ``size`` bytes; it takes the place of ``path`` at the end of the block.

    If the block raises, ``path`` stays as it was and what was half written goes. The name beside it is
    always the same, so that processes killed here leave one such file at most and never a heap.

    Raises UserError when the disk is full, or the file cannot be written there.
    """
    part = path.with_name(f".{path.name}.part")
    for place in (path, part):
        if place.is_dir():
            raise UserError(f"{place} is a folder where fedrift writes a file; move it away, and run the same command again")
    try:
        with explain_write_errors(path, size):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield part
            fsync_path(part)
            os.replace(part, path)
            fsync_path(path.parent)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


def compute_digest(metadata: str, parts: Iterable[tuple[str, Any]]) -> str:
    """The SHA-256 of what a file holds, 64 hex digits; it is stored in the file beside the contents.

    Args:
        meta: The file's own text, JSON.
        parts: A description (name, type and shape) and the bytes of each array, in an order that reading gives again.
    """
    found = sha256(metadata.encode())
    for described, content in parts:
        found.update(f"\0{described}\0".encode())
        found.update(content)
    return found.hexdigest()


def check_digest(path: Path, expected: str | None, actual: str, recovery_hint: str) -> None:
    """Raise UserError where the contents of a file are not those that it was written with; a file of an older fedrift has no
    digest, and passes."""
    if expected is not None and expected != actual:
        raise UserError(f"{path} is damaged: its contents do not match the digest that was stored with them. {recovery_hint}")


def format_error(error: BaseException | str) -> str:
    """What a library says of a damaged file, on one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def write_atomically(path: Path, content: bytes) -> None:
    """Put ``content`` in the place of whatever is at ``path``, whole or not at all."""
    with replace_atomically(path, len(content)) as part:
        part.write_bytes(content)


def fsync_path(path: Path) -> None:
    """Have the disk keep a file, or a folder's list of names, before going on."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open a folder
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def explain_write_errors(path: Path, size: int) -> Iterator[None]:
    """Turn the system's refusal to write into a UserError: how much a full disk lacks, or why it may not be written there."""
    try:
        yield
    except TimeoutError:  # of a lock
        raise
    except OSError as error:
        if error.errno not in DISK_FULL_ERRNOS:
            raise UserError(
                f"{path} cannot be written: {error.strerror or error}. Make {path.parent} writable, or name another folder (--runs-dir)"
            ) from error
        raise UserError(
            f"the disk is full: {path} needs {size:,} bytes and {describe_free_space(path.parent)}. What was stored "
            f"before is whole. Make room and run the same command again: it resumes."
        ) from error


def describe_free_space(folder: Path) -> str:
    """How much is free where ``folder`` is, in words."""
    try:
        return f"{shutil.disk_usage(folder).free:,} are free in {folder}"
    except OSError:
        return f"there are fewer in {folder}"
