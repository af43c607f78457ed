"""The assignments of a clustering strategy in the file ``clustering.json``, which grows by one entry per decision.

The file is one JSON list. A decision replaces its end, so that earlier entries are neither read nor written again. A process that is killed
meanwhile leaves an incomplete last entry, which ``read_assignments`` ignores.
"""

from __future__ import annotations

import json
import os
import zlib
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import jsonl
from .files import explain_write_errors, write_atomically

if TYPE_CHECKING:
    from .run import Run

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
        return [count, zlib.crc32(jsonl.to_json(rows).encode())]

    def _append(self, entry: dict[str, Any]) -> None:
        assert self._rounds is not None
        separator, previous = (", ", self._checksums[-1]) if self._checksums else ("[", 0)
        self._rounds.append(entry["round"])
        self._checksums.append(zlib.crc32((separator + jsonl.to_json(entry)).encode(), previous))

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
                jsonl.write_all(file.fileno(), content)
                os.fsync(file.fileno())
            except OSError:
                file.seek(end)
                jsonl.write_all(file.fileno(), LIST_END)
                file.truncate()
                raise


__all__ = ["AssignmentLog", "drop_incomplete_entry"]
