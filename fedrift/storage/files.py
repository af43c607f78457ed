"""Atomic writing of files, error messages for full disks, and digests of binary files."""

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
    """Yield a temporary path beside ``path``, which replaces ``path`` at the end of the block.

    If the block raises, ``path`` is unchanged and the temporary file is removed. The temporary name is always the same, so killed processes
    leave at most one such file.

    Args:
        path: The file to replace.
        size: The expected size in bytes, for the message about a full disk.

    Raises:
        UserError: The disk is full, or the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.part")
    with explain_write_errors(path, size):  # without permission to search the folder, even this check fails
        for target in (path, temporary):
            if target.is_dir():
                raise UserError(
                    f"{target} is a folder, but fedrift must write a file there; move the folder and run the same command again"
                )
    try:
        with explain_write_errors(path, size):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            fsync_path(temporary)
            os.replace(temporary, path)
            fsync_path(path.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def remove_file(path: Path) -> None:
    """Remove a file if it exists; raise UserError if it cannot be removed or is a folder."""
    with explain_write_errors(path, 0):
        path.unlink(missing_ok=True)


def compute_digest(metadata: str, parts: Iterable[tuple[str, Any]]) -> str:
    """Return the SHA-256 of the contents of a file, 64 hex digits, which is stored in that file.

    Args:
        metadata: The metadata of the file, as JSON.
        parts: A description (name, type and shape) and the bytes of each array, in an order that a reader can reproduce.
    """
    digest = sha256(metadata.encode())
    for description, content in parts:
        digest.update(f"\0{description}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def check_digest(path: Path, expected: str | None, actual: str, recovery_hint: str) -> None:
    """Raise UserError if the digest of a file does not match its contents; files of older versions without a digest pass."""
    if expected is not None and expected != actual:
        raise UserError(f"{path} is damaged: its contents do not match the digest that was stored with them. {recovery_hint}")


def format_error(error: BaseException | str) -> str:
    """Format the error of a library on one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the file at ``path`` atomically by ``content``."""
    with replace_atomically(path, len(content)) as temporary:
        temporary.write_bytes(content)


def fsync_path(path: Path) -> None:
    """Synchronize a file, or the list of names of a folder, with the disk."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open folders
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def explain_write_errors(path: Path, size: int) -> Iterator[None]:
    """Turn an OSError on writing into a UserError that names the missing space or the reason.

    Args:
        path: The file that is written.
        size: The number of bytes to write.
    """
    try:
        yield
    except TimeoutError:  # from a lock, not from writing
        raise
    except OSError as error:
        if os.path.isdir(path):  # Path.is_dir raises an error without permission to search the parent folder
            raise UserError(f"{path} is a folder, but fedrift must write a file there; move it and run the same command again") from error
        if error.errno not in DISK_FULL_ERRNOS:
            raise UserError(
                f"{path} cannot be written: {error.strerror or error}. Make {path.parent} writable, or choose another folder"
            ) from error
        raise UserError(
            f"the disk is full: {path} needs {size:,} bytes and {describe_free_space(path.parent)}. Everything stored "
            f"before is intact. Free some space and run the same command again to resume."
        ) from error


def describe_free_space(folder: Path) -> str:
    """Describe the free space at ``folder`` in words."""
    try:
        return f"{shutil.disk_usage(folder).free:,} are free in {folder}"
    except OSError:
        return f"fewer are free in {folder}"
