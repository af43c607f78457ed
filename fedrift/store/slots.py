"""Records of one size in one file, each in a numbered slot.

The file says nothing about itself: who writes a record keeps its slot and its digest elsewhere (``fedrift.recording.state``), and
writes new records only to slots that the stored state does not use. A process killed half-way so leaves every stored record as
it was.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from ..errors import UserError
from .files import flush, full_disk_told
from .lines import write_all

WAY_OUT = "Put back a copy of it of the time of the state, or begin the run again (`fedrift run --fresh`, or remove its folder)."


@dataclass(frozen=True)
class Slots:
    """The file at ``path``, whose records take ``size`` bytes each."""

    path: Path
    size: int

    def __len__(self) -> int:
        """How many slots the file has, an unfinished last one included."""
        return -(-self.path.stat().st_size // self.size) if self.path.exists() else 0

    def write(self, records: Mapping[int, bytes]) -> None:
        """Write each record to its slot and have the disk keep all of them.

        Raises UserError when the disk is full, or the file cannot be written.
        """
        if not records:
            return
        new = not self.path.exists()
        with full_disk_told(self.path, len(records) * self.size):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "x+b" if new else "r+b", buffering=0) as file:
                for slot, record in sorted(records.items()):
                    file.seek(slot * self.size)
                    write_all(file.fileno(), record)
                os.fsync(file.fileno())
            if new:
                flush(self.path.parent)

    def read(self, slots: Mapping[int, bytes]) -> dict[int, bytes]:
        """The records in some slots, each checked against its digest.

        Raises UserError where one is not what was written.
        """
        found = {}
        try:
            with open(self.path, "rb") as file:
                for slot, expected in sorted(slots.items()):
                    file.seek(slot * self.size)
                    found[slot] = file.read(self.size)
                    if digest(found[slot]) != expected:
                        raise UserError(f"{self.path} is damaged: the record at byte {slot * self.size:,} does not match the "
                                        f"digest that the state holds. {WAY_OUT}")
        except OSError as error:
            raise UserError(f"{self.path} cannot be read: {error.strerror}. {WAY_OUT}") from error
        return found


def digest(record: bytes) -> bytes:
    """SHA-256 of a record, 32 bytes."""
    return sha256(record).digest()


__all__ = ["Slots", "digest"]
