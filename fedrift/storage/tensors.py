"""Records of one size in one file, each in a numbered slot.

The file says nothing about itself: who writes a record keeps its slot and its digest elsewhere (``fedrift.storage.checkpoint``), and
writes new records only to slots that the stored state does not use. A process killed half-way so leaves every stored record as
it was.
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
    "Put back a copy of it of the time of the state, or begin the run again (`fedrift run --fresh`, or remove its folder)."
)


@dataclass(frozen=True)
class SlotFile:
    """The file at ``path``, whose records take ``size`` bytes each."""

    path: Path
    record_size: int

    def __len__(self) -> int:
        """How many slots the file has, an unfinished last one included."""
        return -(-self.path.stat().st_size // self.record_size) if self.path.exists() else 0

    def write(self, records: Mapping[int, bytes]) -> None:
        """Write each record to its slot and have the disk keep all of them.

        Raises UserError when the disk is full, or the file cannot be written.
        """
        if not records:
            return
        new = not self.path.exists()
        with explain_write_errors(self.path, len(records) * self.record_size):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "x+b" if new else "r+b", buffering=0) as file:
                for slot, record in sorted(records.items()):
                    file.seek(slot * self.record_size)
                    write_all(file.fileno(), record)
                os.fsync(file.fileno())
            if new:
                fsync_path(self.path.parent)

    def read(self, digests: Mapping[int, bytes]) -> dict[int, bytes]:
        """The records in some slots, each checked against its digest.

        Raises UserError where one is not what was written.
        """
        found = {}
        try:
            with open(self.path, "rb") as file:
                for slot, expected in sorted(digests.items()):
                    file.seek(slot * self.record_size)
                    found[slot] = file.read(self.record_size)
                    if compute_record_digest(found[slot]) != expected:
                        raise UserError(
                            f"{self.path} is damaged: the record at byte {slot * self.record_size:,} does not match the "
                            f"digest that the state holds. {SLOTS_RECOVERY_HINT}"
                        )
        except OSError as error:
            raise UserError(f"{self.path} cannot be read: {error.strerror}. {SLOTS_RECOVERY_HINT}") from error
        return found


def compute_record_digest(record: bytes) -> bytes:
    """SHA-256 of a record, 32 bytes."""
    return sha256(record).digest()


# Tensors on disk as safetensors: no pickle, written whole or not at all, with a digest. The store's one file with torch.

HEADER_BYTES_PER_TENSOR = 128  # bytes of name, shape and place that a leaf takes beside its numbers, about


DIGEST_KEY = "sha256"
READ_ERRORS = (SafetensorError, KeyError, ValueError, OSError, RecursionError)
STATE_RECOVERY_HINT = "Put back a copy of it, or begin the run again (`fedrift run --fresh`, or remove its folder)."


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, Any]) -> str:
    """Replace what is at ``path`` by named tensors and ``meta`` (plain JSON; it holds the round), with a digest of both.

    Returns:
        The digest. A file that is made of several can keep those of the others in its own ``meta``, for ``load_state``.

    Raises:
        UserError: The disk is full, or ``path`` cannot be written; what was there before is then still there.
    """
    plain = _to_contiguous_cpu(tensors)
    size = sum(leaf.nbytes + HEADER_BYTES_PER_TENSOR for leaf in plain.values())
    digest = compute_digest(json.dumps(metadata), _iter_tensor_bytes(plain))
    text = json.dumps({**metadata, DIGEST_KEY: digest})  # under one key: safetensors writes several in any order
    with replace_atomically(path, size) as part:
        try:
            save_file(plain, part, metadata={"meta": text})
        except SafetensorError as error:  # safetensors wraps what the system says into words
            if said := re.search(r"os error (\d+)", str(error)):
                raise OSError(int(said[1]), str(error)) from error
            raise
    return digest


def load_tensors(path: Path, expected_digest: str | None = None) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors, on the CPU, and the meta of ``save_state``.

    Args:
        path: The file.
        digest: What ``save_state`` returned, where another file remembers it.

    Raises:
        UserError: There is no state, it is none, or its contents do not match its digest, or ``digest``.
    """
    try:
        with safe_open(_check_file(path), framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            meta, stored = _split_metadata(file.metadata())
    except READ_ERRORS as error:
        raise _invalid_file_error(path, error) from error
    found = compute_digest(json.dumps(meta), _iter_tensor_bytes(tensors))
    check_digest(path, stored, found, STATE_RECOVERY_HINT)
    check_digest(path, expected_digest, found, STATE_RECOVERY_HINT)
    return tensors, meta


def read_metadata(path: Path) -> tuple[dict[str, Any], str | None]:
    """The meta of ``save_state`` and the stored digest, without the tensors; no digest in a file of an older fedrift."""
    try:
        with safe_open(_check_file(path), framework="pt", device="cpu") as file:
            return _split_metadata(file.metadata())
    except READ_ERRORS as error:
        raise _invalid_file_error(path, error) from error


def _split_metadata(metadata: dict[str, str] | None) -> tuple[dict[str, Any], str | None]:
    """The meta, and the digest that was stored in it."""
    said = json.loads((metadata or {})["meta"])
    if not isinstance(said, dict):
        raise ValueError(f"its meta is {str(said)[:80]!r}")
    digest = said.pop(DIGEST_KEY, None)
    return said, None if digest is None else str(digest)


def _invalid_file_error(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is not a state that fedrift wrote ({format_error(error)}). {STATE_RECOVERY_HINT}")


def _check_file(path: Path) -> Path:
    """The path, if a file is there."""
    if not path.exists():
        raise UserError(f"there is no state at {path}")
    if not path.is_file():
        raise UserError(f"{path} is a folder where a state has to be. {STATE_RECOVERY_HINT}")
    return path


def _iter_tensor_bytes(tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, Any]]:
    """Name, type and shape, and the bytes of each leaf, by name."""
    for name in sorted(tensors):
        leaf = tensors[name]  # contiguous, but one element may have a stride of 0
        flat = leaf.as_strided((leaf.numel(),), (1,))
        yield f"{name} {leaf.dtype} {list(leaf.shape)}", flat.view(torch.uint8).numpy()


def _to_contiguous_cpu(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """On the CPU, contiguous, each with a memory of its own: the format knows no views."""
    plain: dict[str, torch.Tensor] = {}
    taken: set[int] = set()
    for name, leaf in tensors.items():
        leaf = leaf.detach().cpu().contiguous()
        memory = leaf.untyped_storage().data_ptr()
        plain[name] = leaf.clone() if memory in taken else leaf
        taken.add(memory)
    return plain


__all__ = ["SlotFile", "compute_record_digest"]
