"""One run's folder: what was asked, what came of it round by round, and where to go on.

    runs/<id>/experiment.json     the experiment, resolved
              environment.json    versions, platform, processor, device, threads, the engine's choices
              records.jsonl       [round, metric, domain, client, value] a line; append-only
              records.parquet     the same for queries, made at the end; all there is of a run from an archive
              timings.jsonl       seconds by phase; apart, as they differ from one day to another
              events.jsonl        {round, kind, message, client}
              state.safetensors   the last state, whole or not at all (``fedrift.store.tensors``)
              memory.rows         what each client keeps, where the algorithm has it keep anything (``fedrift.recording.state``)
              updates/            every round's report and state, where they were asked for (``fedrift.recording``)
              finished.json       the summary; there once the run is over
              failed.json         why it stopped; gone when it resumes

Rows are written before the state: a crash between them leaves rows that ``rewind`` drops.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import UserError
from ..records import Record, Trajectory
from . import lines
from .files import full_disk_told, in_words, write_whole
from .parquet import parquet_path, read_parquet, stale, write_parquet

SECTIONS = ("corpus", "tune", "partition", "algorithm", "plan", "evaluate", "mitigation")  # of an experiment, that are objects
SCALARS = ("model", "seed", "id")  # that are none
NUMBERS = (float, int, type(None))
SHAPES = {dict: "an object", list: "a list", bool: "true or false"}
PATIENCE = 1.0  # seconds for a reader's glance at the lock to pass


@dataclass(frozen=True)
class Run:
    """The run ``id`` under ``root``, whether it is there yet or not."""

    root: Path
    id: str

    @property
    def folder(self) -> Path:
        return Path(self.root) / self.id

    @property
    def state_path(self) -> Path:
        """Where ``save_state`` and ``load_state`` of ``fedrift.store.tensors`` find this run's state."""
        return self.folder / "state.safetensors"

    @property
    def memory_path(self) -> Path:
        """Where what each client keeps lies, as ``state_path`` says (``fedrift.recording.state``)."""
        return self.folder / "memory.rows"

    # Whole files

    def write_json(self, name: str, value: Any) -> None:
        """Write ``<name>.json``, whole or not at all."""
        try:
            text = json.dumps(value, indent=2, ensure_ascii=False, default=_plain)
        except TypeError as error:
            raise UserError(f"{name}.json of run {self.id} would hold what is not JSON: {error}") from error
        write_whole(self.folder / f"{name}.json", text.encode() + b"\n")

    def read_json(self, name: str, shape: type = object) -> Any:
        """What ``<name>.json`` holds. Raises UserError where it is not there, not JSON, or not of the ``shape``."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            raise UserError(f"run {self.id} has no {path.name} in {self.folder}")
        return read_stored(path, shape, "remove its folder to begin it again")

    @property
    def experiment(self) -> dict[str, Any]:
        """What was asked. Raises UserError where the file holds no experiment; of a key that it lacks, when that is read."""
        said: dict[str, Any] = self.read_json("experiment", dict)
        for name, value in said.items():
            if (name in SECTIONS) != isinstance(value, dict) and name in (*SECTIONS, *SCALARS):
                wanted = "an object" if name in SECTIONS else "no object"
                raise UserError(f"{self.folder / 'experiment.json'}: {name!r} is {str(value)[:80]!r}, and has to be {wanted}; "
                                "remove its folder to begin it again")
        return said

    @property
    def environment(self) -> dict[str, Any]:
        """What ``settle`` wrote; empty before that."""
        return self.read_json("environment", dict) if (self.folder / "environment.json").exists() else {}

    def decisions(self) -> list[dict[str, Any]]:
        """What a mitigation decided, in ``mitigation.json``; empty where there is none."""
        path = self.folder / "mitigation.json"
        return _of_rounds(self.read_json("mitigation", list), path) if path.exists() else []

    def findings(self) -> list[dict[str, Any]]:
        """What detectors found, in ``findings.json``; empty where there is none."""
        if not (self.folder / "findings.json").exists():
            return []
        said = self.read_json("findings")
        found = said.get("findings", []) if isinstance(said, dict) else said
        if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
            raise UserError(f"{self.folder / 'findings.json'} holds {str(said)[:80]!r}, and has to hold a list of objects; "
                            "remove it")
        return found

    def ending(self) -> dict[str, Any]:
        """What ``finish`` wrote; empty before that."""
        if not self.finished:
            return {}
        end: dict[str, Any] = self.read_json("finished", dict)
        seconds = end.get("seconds", {})
        if not isinstance(seconds, dict) or not all(type(value) in NUMBERS for value in seconds.values()):
            raise UserError(f"{self.folder / 'finished.json'}: 'seconds' is {str(seconds)[:80]!r}, and has to be an object of "
                            "numbers; remove its folder to begin it again")
        stored = end.get("stored", {})
        if not isinstance(stored, dict) or not all(_is_mark(mark) for mark in stored.values()):
            raise UserError(f"{self.folder / 'finished.json'}: 'stored' is {str(stored)[:80]!r}, and has to be an object of "
                            "marks; remove its folder to begin it again")
        return end

    def failure(self) -> str:
        """Why the run stopped; "" if it did not."""
        return str(self.read_json("failed", dict)["message"]) if (self.folder / "failed.json").exists() else ""

    def check_shapes(self) -> None:
        """Raise UserError where a file of the run does not hold what it has to hold."""
        for read in (lambda: self.experiment, lambda: self.environment, self.ending, self.failure, self.findings, self.decisions,
                     self.events, self.timings):
            read()

    # Rows

    def append(self, records: Iterable[Record]) -> None:
        """Add records, all of them or none."""
        lines.append(self.folder / "records.jsonl", map(_row, records))

    def event(self, round: int, kind: str, message: str, client: int = -1) -> None:
        """Note something that happened and is no number."""
        said = {"round": int(round), "kind": kind, "message": message, "client": int(client)}
        lines.append(self.folder / "events.jsonl", [lines.write_value(said)])

    def timing(self, round: int, **seconds: float) -> None:
        """Note the seconds of each phase of a round: ``timing(3, train=4.1, evaluate=0.5, store=0.1)``."""
        took = {phase: float(value) for phase, value in seconds.items()}
        lines.append(self.folder / "timings.jsonl", [lines.write_value({"round": int(round), **took})])

    def records(self) -> list[Record]:
        """All records, in the order of writing. Raises UserError where a finished run has lost some since."""
        path = self.folder / "records.jsonl"
        if not path.exists() and parquet_path(self.folder).exists():
            return list(read_parquet(self.folder))
        self.check_rows()
        return [_record(row, path) for row in lines.read(path)]

    def check_rows(self) -> None:
        """Raise UserError where the rows of a finished run are not those that it ended with; older runs have noted none."""
        self._check_stored("records.jsonl")

    def check_models(self) -> None:
        """Raise UserError where the models of a finished run are not those that it ended with; older runs have noted none."""
        self._check_stored("model/")

    def _check_stored(self, start: str) -> None:
        for name, mark in self.ending().get("stored", {}).items():
            path = self.folder / name
            if name.startswith(start) and not lines.is_beginning(path, mark):
                there = path.stat().st_size if path.exists() else 0
                raise UserError(f"{path} is not what it was when the run ended ({there:,} bytes, {mark[0]:,} then): it lost or "
                                "changed something since. Put a copy of it back, or run it again (`fedrift run --fresh`, or "
                                f"remove {self.folder})")

    def trajectory(self) -> Trajectory:
        """The same as curves; from the Parquet file, which says nothing twice, where it is up to date."""
        fast = parquet_path(self.folder).exists() and not stale(self.folder)
        return Trajectory(read_parquet(self.folder) if fast else tuple(self.records()))

    def events(self) -> list[dict[str, Any]]:
        path = self.folder / "events.jsonl"
        return _of_rounds(lines.read(path), path)

    def timings(self) -> list[dict[str, Any]]:
        path = self.folder / "timings.jsonl"
        return _of_rounds(lines.read(path), path, numbers=True)

    def rewind(self, round: int) -> int:
        """Drop every row after ``round``, to resume from a state of that round; how many records went.

        ``rewind(-1)`` drops them all, for a run that has no state yet.
        """
        rows = self.folder / "records.jsonl"
        dropped = lines.keep(rows, lambda row: _record(row, rows).round <= round)
        for path, numbers in ((self.folder / "timings.jsonl", True), (self.folder / "events.jsonl", False)):
            lines.keep(path, lambda row: _of_rounds([row], path, numbers)[0]["round"] <= round)  # noqa: B023
        (self.folder / "failed.json").unlink(missing_ok=True)
        return dropped

    # The end

    @property
    def finished(self) -> bool:
        return (self.folder / "finished.json").exists()

    def finish(self, summary: dict[str, Any]) -> None:
        """Say that the run is over, and what came of it."""
        if stale(self.folder):
            write_parquet(self.folder)
        files = [path for path in (self.folder / "records.jsonl", *sorted((self.folder / "model").rglob("*.safetensors")))
                 if path.is_file()]
        stored = {path.relative_to(self.folder).as_posix(): lines.mark(path) for path in files}
        self.write_json("finished", {**summary, "stored": stored} if stored else summary)
        (self.folder / "failed.json").unlink(missing_ok=True)

    def fail(self, round: int, message: str, traceback: str = "") -> None:
        """Say that the run stopped and why, with the traceback; it can still be resumed."""
        self.write_json("failed", {"round": int(round), "message": message, "traceback": traceback})

    @property
    def status(self) -> str:
        """``missing``, ``finished``, ``running``, ``failed`` or ``unfinished``."""
        if not (self.folder / "experiment.json").exists():
            return "missing"
        if self.finished:
            return "finished"
        if self._held():
            return "running"
        return "failed" if (self.folder / "failed.json").exists() else "unfinished"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only process that writes this run; the system lets go however the process ends."""
        lock = FileLock(self.folder / "lock")
        try:
            with full_disk_told(self.folder / "lock", 0):
                self.folder.mkdir(parents=True, exist_ok=True)
                lock.acquire(timeout=PATIENCE)
        except Timeout:
            raise UserError(f"run {self.id} is being written by another process ({self.folder}); "
                            f"wait for it, or stop it: the run then resumes where it was") from None
        try:
            yield
        finally:
            lock.release()

    def _held(self) -> bool:
        path = self.folder / "lock"
        if not path.exists():
            return False
        try:
            with FileLock(path, timeout=0):
                return False
        except Timeout:
            return True
        except OSError:  # a folder that may only be read: nobody can be writing there either
            return False


def _row(record: Record) -> str:
    round, metric, domain, client, value = record
    return f"[{int(round)}, {_quoted(metric)}, {_quoted(domain)}, {int(client)}, {lines.write_number(float(value))}]"


@lru_cache(maxsize=4096)
def _quoted(name: str) -> str:
    """A name as JSON; a round has a row of the same metric for each of N clients."""
    return json.dumps(name, ensure_ascii=False)


def _record(row: Any, path: Path) -> Record:
    if isinstance(row, list) and len(row) == len(Record._fields):
        round, metric, domain, client, value = row
        if type(round) is type(client) is int and type(metric) is type(domain) is str and type(value) in NUMBERS:
            return Record(round, metric, domain, client, float("nan") if value is None else float(value))
    raise UserError(f"{path} holds {str(row)[:80]!r}, which is no record {list(Record._fields)}. Something other than fedrift "
                    "wrote there; remove the run's folder to begin it again.")


def _of_rounds(rows: list[Any], path: Path, numbers: bool = False) -> list[dict[str, Any]]:
    """The rows, if each is an object that says its round; ``numbers``: and holds nothing but numbers."""
    for row in rows:
        if not isinstance(row, dict) or type(row.get("round")) is not int or (
                numbers and any(type(value) not in NUMBERS for value in row.values())):
            raise UserError(f"{path} holds {str(row)[:80]!r}, which is no object of a round. Something other than fedrift wrote "
                            "there; remove the run's folder to begin it again.")
    return rows


def _is_mark(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(number) is int and number >= 0 for number in value)


class StoredObject(dict[str, Any]):
    """A JSON object that was read from a file: a key that it lacks is a mistake in the file, told in one line."""

    source: Path | None = None

    def __missing__(self, key: str) -> Any:
        raise UserError(f"{self.source} has no {key!r} where it has to have one: something other than fedrift wrote it")


def read_stored(path: Path, shape: type = object, way_out: str = "") -> Any:
    """What a JSON file holds, its objects as ``StoredObject``. Raises UserError where it is not JSON, or not of the ``shape``."""
    def stored(pairs: list[tuple[str, Any]]) -> StoredObject:
        found = StoredObject(pairs)
        found.source = path
        return found

    try:
        said = json.loads(path.read_bytes(), object_pairs_hook=stored)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({in_words(error)}); {way_out}") from error
    if not isinstance(said, shape):
        raise UserError(f"{path} holds {str(said)[:80]!r}, and has to hold {SHAPES[shape]}; {way_out}")
    return said


def _plain(value: Any) -> Any:
    """Numbers and arrays of numpy as their Python selves."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} {value!r}")
