"""Tensors on disk: safetensors files with a digest, and files of fixed-size records in numbered slots.

A slot file contains no metadata. Its writer stores the slot and the digest of each record elsewhere (``fedrift.storage.checkpoint``), and
writes new records only to slots that the stored state does not use. So a process that is killed at any point leaves all stored records
intact.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..core.errors import UserError
from .files import check_digest, compute_digest, explain_write_errors, format_error, fsync_path, replace_atomically
from .jsonl import write_all

SLOTS_RECOVERY_HINT = (
    "Restore a copy from the time of the stored state, or start the run again (`fedrift run --fresh`, or remove its folder)."
)


@dataclass(frozen=True)
class SlotFile:
    """The file at ``path``, with records of ``record_size`` bytes each."""

    path: Path
    record_size: int

    def __len__(self) -> int:
        """Return the number of slots, including an incomplete last one."""
        return -(-self.path.stat().st_size // self.record_size) if self.path.exists() else 0

    def write(self, records: Mapping[int, bytes]) -> None:
        """Write each record to its slot and synchronize the file with the disk.

        Args:
            records: Slot -> record of ``record_size`` bytes.

        Raises:
            UserError: The disk is full, or the file cannot be written.
        """
        if not records:
            return
        is_new = not self.path.exists()
        with explain_write_errors(self.path, len(records) * self.record_size):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "x+b" if is_new else "r+b", buffering=0) as file:
                for slot, record in sorted(records.items()):
                    file.seek(slot * self.record_size)
                    write_all(file.fileno(), record)
                os.fsync(file.fileno())
            if is_new:
                fsync_path(self.path.parent)

    def read(self, digests: Mapping[int, bytes]) -> dict[int, bytes]:
        """Read the records of some slots and check each against its digest.

        Args:
            digests: Slot -> expected SHA-256, 32 bytes.

        Returns:
            Slot -> record.

        Raises:
            UserError: A record does not match its digest, or the file cannot be read.
        """
        records = {}
        try:
            with open(self.path, "rb") as file:
                for slot, expected in sorted(digests.items()):
                    file.seek(slot * self.record_size)
                    records[slot] = file.read(self.record_size)
                    if compute_record_digest(records[slot]) != expected:
                        raise UserError(
                            f"{self.path} is damaged: the record at byte {slot * self.record_size:,} does not match the "
                            f"digest in the stored state. {SLOTS_RECOVERY_HINT}"
                        )
        except OSError as error:
            raise UserError(f"{self.path} cannot be read: {error.strerror}. {SLOTS_RECOVERY_HINT}") from error
        return records


def compute_record_digest(record: bytes) -> bytes:
    """Return the SHA-256 of a record, 32 bytes."""
    return sha256(record).digest()


HEADER_BYTES_PER_TENSOR = 128  # approximate size of the header entry of a tensor (name, shape and offsets), in bytes
DIGEST_KEY = "sha256"
READ_ERRORS = (SafetensorError, KeyError, ValueError, OSError, RecursionError)
STATE_RECOVERY_HINT = "Restore a copy of it, or start the run again (`fedrift run --fresh`, or remove its folder)."


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, Any]) -> str:
    """Replace the file at ``path`` atomically by named tensors and metadata, with a digest of both.

    Args:
        path: The file, in safetensors format.
        tensors: Name -> tensor, on any device.
        metadata: Plain JSON. For a training state it contains the round.

    Returns:
        The digest. Another file may store it and pass it to ``load_tensors`` as ``expected_digest``.

    Raises:
        UserError: The disk is full, or ``path`` cannot be written. The previous file is then unchanged.
    """
    contiguous = _to_contiguous_cpu(tensors)
    size = sum(leaf.nbytes + HEADER_BYTES_PER_TENSOR for leaf in contiguous.values())
    digest = compute_digest(json.dumps(metadata), _iter_tensor_bytes(contiguous))
    text = json.dumps({**metadata, DIGEST_KEY: digest})  # under one key, because safetensors does not preserve the order of several keys
    with replace_atomically(path, size) as part:
        try:
            save_file(contiguous, part, metadata={"meta": text})
        except SafetensorError as error:  # safetensors reports operating system errors as text only
            if match := re.search(r"os error (\d+)", str(error)):
                raise OSError(int(match[1]), str(error)) from error
            raise
    return digest


def load_tensors(path: Path, expected_digest: str | None = None) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Load the tensors, on the CPU, and the metadata that ``save_tensors`` wrote.

    Args:
        path: The file.
        expected_digest: The return value of ``save_tensors``, if another file stores it.

    Raises:
        UserError: The file does not exist, is invalid, or its contents do not match its digest or ``expected_digest``.
    """
    try:
        with safe_open(_check_file(path), framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata, stored_digest = _split_metadata(file.metadata())
    except READ_ERRORS as error:
        raise _invalid_file_error(path, error) from error
    actual_digest = compute_digest(json.dumps(metadata), _iter_tensor_bytes(tensors))
    check_digest(path, stored_digest, actual_digest, STATE_RECOVERY_HINT)
    check_digest(path, expected_digest, actual_digest, STATE_RECOVERY_HINT)
    return tensors, metadata


def read_metadata(path: Path) -> tuple[dict[str, Any], str | None]:
    """Return the metadata that ``save_tensors`` wrote and the stored digest, without reading the tensors.

    The digest is None in files of older versions of fedrift.
    """
    try:
        with safe_open(_check_file(path), framework="pt", device="cpu") as file:
            return _split_metadata(file.metadata())
    except READ_ERRORS as error:
        raise _invalid_file_error(path, error) from error


def _split_metadata(metadata: dict[str, str] | None) -> tuple[dict[str, Any], str | None]:
    """Split the stored metadata from its digest."""
    content = json.loads((metadata or {})["meta"])
    if not isinstance(content, dict):
        raise ValueError(f"its metadata is {str(content)[:80]!r}")
    digest = content.pop(DIGEST_KEY, None)
    return content, None if digest is None else str(digest)


def _invalid_file_error(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is not a state that fedrift wrote ({format_error(error)}). {STATE_RECOVERY_HINT}")


def _check_file(path: Path) -> Path:
    """Return the path; raise UserError if it is not an existing file."""
    if not path.exists():
        raise UserError(f"there is no state at {path}")
    if not path.is_file():
        raise UserError(f"{path} is a folder, but must be a state file. {STATE_RECOVERY_HINT}")
    return path


def _iter_tensor_bytes(tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, Any]]:
    """Yield a description (name, type and shape) and the bytes of each tensor, sorted by name."""
    for name in sorted(tensors):
        leaf = tensors[name]  # the tensor is contiguous, but a single element may have a stride of 0, which view rejects
        flat = leaf.as_strided((leaf.numel(),), (1,))
        yield f"{name} {leaf.dtype} {list(leaf.shape)}", flat.view(torch.uint8).numpy()


def _to_contiguous_cpu(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return contiguous CPU tensors that share no memory, because safetensors rejects shared memory."""
    contiguous: dict[str, torch.Tensor] = {}
    used_pointers: set[int] = set()
    for name, leaf in tensors.items():
        leaf = leaf.detach().cpu().contiguous()
        pointer = leaf.untyped_storage().data_ptr()
        contiguous[name] = leaf.clone() if pointer in used_pointers else leaf
        used_pointers.add(pointer)
    return contiguous
