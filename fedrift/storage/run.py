"""The folder of one run: its experiment, its results per round, and its state.

    runs/<id>/experiment.json     the resolved experiment
              environment.json    versions, platform, processor, device, threads and engine options
              records.jsonl       [round, metric, domain, client, value] per line; append-only
              records.parquet     the same records for queries, written at the end; the only records file of an imported run
              timings.jsonl       seconds per phase of each round; a separate file, because they are not reproducible
              events.jsonl        {round, kind, message, client} per line
              state.safetensors   the last state, written atomically (``fedrift.storage.tensors``)
              client_states.rows  the persistent states of clients, if the algorithm has any (``fedrift.storage.checkpoint``)
              updates/            the update and the state of every round, if requested (``fedrift.storage.updates``)
              finished.json       the summary; exists once the run is finished
              failed.json         why the run stopped; removed when it resumes

Rows are written before the state. If a crash happens between the two, ``truncate_after`` drops the additional rows.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from ..core.errors import UserError
from ..core.records import Record, Trajectory
from . import jsonl
from .files import explain_write_errors, format_error, remove_file, write_atomically
from .parquet import is_parquet_stale, parquet_path, read_parquet, write_parquet

if TYPE_CHECKING:
    import pandas as pd

OBJECT_KEYS = (
    "dataset",
    "trainable",
    "partition",
    "algorithm",
    "training",
    "evaluation",
    "clustering",
)  # the keys of an experiment whose values are objects
SCALAR_KEYS = ("model", "seed", "id")  # the keys whose values must not be objects
NUMBER_TYPES = (float, int, type(None))
SUMMARY_NUMBERS = {"rounds", "loss", "final_loss", "train_tokens"}  # of finished.json, as far as the run has them
JSON_TYPE_NAMES = {dict: "an object", list: "a list", bool: "true or false"}
LOCK_TIMEOUT_S = 1.0  # in seconds; longer than a reader of ``Run.status`` holds the lock


@dataclass(frozen=True)
class Run:
    """The run ``id`` in the folder ``root``, whether it exists or not.

    Args:
        root: The folder of the runs.
        id: The id of the run, which is the name of its folder.

    Example:
        >>> run.status
        'finished'
        >>> run.metrics().query("metric == 'loss' and domain == '' and client < 0")["round"].tolist()
        [0, 1]
    """

    root: Path
    id: str

    @property
    def folder(self) -> Path:
        """Return the folder of the run."""
        return Path(self.root) / self.id

    @property
    def state_path(self) -> Path:
        """Return the path of the stored state (``fedrift.storage.tensors``)."""
        return self.folder / "state.safetensors"

    @property
    def client_state_path(self) -> Path:
        """Return the path of the stored persistent states of clients (``fedrift.storage.checkpoint``)."""
        return self.folder / "client_states.rows"

    def write_json(self, name: str, value: Any) -> None:
        """Write ``<name>.json`` atomically.

        Raises:
            UserError: A value is not JSON, the disk is full, or the file cannot be written.
        """
        write_atomically(self.folder / f"{name}.json", self.format_json(name, value).encode() + b"\n")

    def format_json(self, name: str, value: Any) -> str:
        """Return the text of ``<name>.json`` without its last line break.

        Raises:
            UserError: A value is not JSON.
        """
        try:
            return json.dumps(value, indent=2, ensure_ascii=False, default=_to_plain)
        except TypeError as error:
            raise UserError(f"{name}.json of run {self.id} cannot be written because a value is not JSON: {error}") from error

    def read_json(self, name: str, json_type: type = object) -> Any:
        """Read ``<name>.json``.

        Args:
            name: The name of the file without its extension.
            json_type: The required type of the value.

        Raises:
            UserError: The file does not exist, is not JSON, or has a value of another type.
        """
        path = self.folder / f"{name}.json"
        if not path.exists():
            raise UserError(f"run {self.id} has no {path.name} in {self.folder}")
        return read_json_file(path, json_type, "remove the run's folder to start the run again")

    @property
    def config(self) -> dict[str, Any]:
        """Return the resolved experiment as plain JSON.

        Raises:
            UserError: The file is not an experiment, or has changed since the run finished. A missing key raises this error when it is
                accessed.
        """
        content = self.read_config()
        if self.summary().get("stored", {}).get("experiment.json", checksum := _compute_json_checksum(content)) != checksum:
            raise self._changed_error("experiment.json")
        return content

    def read_config(self) -> dict[str, Any]:
        """Return the content of ``experiment.json``, which may have changed since the run finished.

        Raises:
            UserError: The file is not an experiment.
        """
        content: dict[str, Any] = self.read_json("experiment", dict)
        for name, value in content.items():
            if (name in OBJECT_KEYS) != isinstance(value, dict) and name in (*OBJECT_KEYS, *SCALAR_KEYS):
                rule = "must be an object" if name in OBJECT_KEYS else "must not be an object"
                raise UserError(
                    f"{self.folder / 'experiment.json'}: {name!r} {rule}, got {str(value)[:80]!r}; "
                    "remove the run's folder to start the run again"
                )
        return content

    @property
    def environment(self) -> dict[str, Any]:
        """Return the environment that ``check_environment`` stored, or {} before that."""
        return self.read_json("environment", dict) if (self.folder / "environment.json").exists() else {}

    def cluster_assignments(self) -> list[dict[str, Any]]:
        """Return the assignments of the clustering strategy (``clustering.json``), or [] without clustering."""
        path = self.folder / "clustering.json"
        if not path.exists():
            return []
        hint = "remove the run's folder to start the run again"
        content = read_json_file(path, list, hint, repair=None if self.is_finished else jsonl.drop_incomplete_entry)
        return _check_round_rows(content, path)

    def findings(self) -> list[dict[str, Any]]:
        """Return the findings of the detectors (``findings.json``), or [] if there are none."""
        if not (self.folder / "findings.json").exists():
            return []
        content = self.read_json("findings")
        findings = content.get("findings", []) if isinstance(content, dict) else content
        if not isinstance(findings, list) or not all(isinstance(finding, dict) for finding in findings):
            raise UserError(
                f"{self.folder / 'findings.json'} must contain a list of objects, but contains {str(content)[:80]!r}; remove it"
            )
        return findings

    def summary(self) -> dict[str, Any]:
        """Return the summary that ``mark_finished`` wrote, or {} before that."""
        if not self.is_finished:
            return {}
        summary: dict[str, Any] = self.read_json("finished", dict)
        seconds = summary.get("seconds", {})
        if not isinstance(seconds, dict) or not all(type(value) in NUMBER_TYPES for value in seconds.values()):
            raise UserError(
                f"{self.folder / 'finished.json'}: 'seconds' must be an object of numbers, got {str(seconds)[:80]!r}; "
                "remove the run's folder to start the run again"
            )
        for name in SUMMARY_NUMBERS & summary.keys():
            if type(summary[name]) not in NUMBER_TYPES:
                raise UserError(
                    f"{self.folder / 'finished.json'}: {name!r} must be a number, got {str(summary[name])[:80]!r}; "
                    "remove the run's folder to start the run again"
                )
        stored = summary.get("stored", {})
        if not isinstance(stored, dict) or not all(_is_checksum(checksum) for checksum in stored.values()):
            raise UserError(
                f"{self.folder / 'finished.json'}: 'stored' must be an object of checksums, got {str(stored)[:80]!r}; "
                "remove the run's folder to start the run again"
            )
        plain = {name: value for name, value in summary.items() if name != "stored"}
        if stored.get("finished.json", checksum := _compute_json_checksum(plain)) != checksum:
            raise self._changed_error("finished.json")
        return summary

    def failure_message(self) -> str:
        """Return why the run stopped, or "" if it did not fail."""
        return str(self.read_json("failed", dict)["message"]) if (self.folder / "failed.json").exists() else ""

    def check_files(self) -> None:
        """Raise UserError if a file of the run has invalid contents."""
        for read in (
            lambda: self.config,
            lambda: self.environment,
            self.summary,
            self.failure_message,
            self.findings,
            self.cluster_assignments,
            self.events,
            self.timings,
        ):
            read()

    def append_records(self, records: Iterable[Record]) -> None:
        """Append records, either all of them or none; for a finished run, their checksum is renewed.

        Raises:
            UserError: The records of a finished run have changed since, or the file cannot be written.
        """
        path, summary = self.folder / "records.jsonl", self.summary()
        if summary:
            self.check_records()
            remove_file(self.folder / "finished.json")  # a run that is killed here is unfinished, not one whose records have changed
        jsonl.append_lines(path, _format_records(records))
        if summary:
            stored = summary.get("stored", {})
            renewed = {path.name: jsonl.compute_checksum(path, stored[path.name])} if path.name in stored else {}
            self.write_json("finished", {**summary, "stored": {**stored, **renewed}})

    def log_event(self, round: int, kind: str, message: str, client: int = -1) -> None:
        """Record an event that is not a number.

        Args:
            round: The round of the event.
            kind: The kind of event, a short phrase.
            message: The message.
            client: The client, or -1 if the event does not concern a single client.
        """
        event = {"round": int(round), "kind": kind, "message": message, "client": int(client)}
        jsonl.append_lines(self.folder / "events.jsonl", [jsonl.to_json(event)])

    def log_timing(self, round: int, **seconds: float) -> None:
        """Record the seconds of each phase of a round: ``log_timing(3, train=4.1, evaluate=0.5, store=0.1)``."""
        # Microseconds are finer than what a clock repeats; all digits of a float would more than double the file.
        timing = {phase: float(f"{value:.6f}") for phase, value in seconds.items()}
        jsonl.append_lines(self.folder / "timings.jsonl", [jsonl.to_json({"round": int(round), **timing})])

    def records(self) -> list[Record]:
        """Return all records, in the order of writing.

        Raises:
            UserError: The records of a finished run have changed since.
        """
        path = self.folder / "records.jsonl"
        if not path.exists() and parquet_path(self.folder).exists():
            return list(read_parquet(self.folder))
        self.check_records()
        return [_parse_record(row, path) for row in jsonl.read_lines(path)]

    def read_added_records(self, start: int) -> tuple[list[Record], int]:
        """Return the records that were added to the file since it had ``start`` bytes, and its size now without an incomplete last line.

        Args:
            start: The second return value of the previous call; 0 for the first one. If the file is shorter now, all records are returned.

        Raises:
            UserError: The records of a finished run have changed since.
        """
        path = self.folder / "records.jsonl"
        if not path.exists():
            return (self.records(), 0) if not start else ([], start)
        self.check_records()
        if path.stat().st_size < start:
            start = 0
        lines = jsonl.read_complete_lines(path, start)
        records = [_parse_record(row, path) for row in jsonl.parse_lines(lines, path)]
        return records, start + sum(len(line) + 1 for line in lines)

    def compute_records_checksum(self) -> list[int]:
        """Return the size and the CRC-32 of ``records.jsonl`` with the records of the run, also if only the Parquet file exists."""
        content = "".join(f"{line}\n" for line in _format_records(self.records())).encode()
        return [len(content), zlib.crc32(content)]

    def check_records(self) -> None:
        """Raise UserError if the records of a finished run have changed since it finished; runs of old versions have no checksums."""
        self._check_checksums("records.jsonl")

    def check_models(self) -> None:
        """Raise UserError if the models of a finished run have changed since it finished; runs of old versions have no checksums."""
        self._check_checksums("model/")

    def _check_checksums(self, prefix: str) -> None:
        for name, checksum in self.summary().get("stored", {}).items():
            path = self.folder / name
            if not name.startswith(prefix):
                continue
            size = path.stat().st_size if path.is_file() else 0
            if size != checksum[0] or not jsonl.has_prefix(path, checksum):
                raise self._changed_error(name, f" ({size:,} bytes now, {checksum[0]:,} then)")

    def _changed_error(self, name: str, sizes: str = "") -> UserError:
        return UserError(
            f"{self.folder / name} has changed since the run finished{sizes}. Restore a copy of it, or start the run again "
            f"(`fedrift run --fresh`, or remove {self.folder})"
        )

    def metrics(self) -> pd.DataFrame:
        """Return all recorded numbers as a table with the columns round, metric, domain, client and value."""
        return self.trajectory().to_frame()

    def trajectory(self) -> Trajectory:
        """Return all recorded numbers as curves, from the Parquet file if it is up to date."""
        use_parquet = parquet_path(self.folder).exists() and not is_parquet_stale(self.folder)
        return Trajectory(read_parquet(self.folder) if use_parquet else tuple(self.records()))

    def events(self) -> list[dict[str, Any]]:
        """Return all events, in the order of writing."""
        path = self.folder / "events.jsonl"
        return _check_round_rows(jsonl.read_lines(path), path)

    def timings(self) -> list[dict[str, Any]]:
        """Return the seconds per phase of each round, in the order of writing."""
        path = self.folder / "timings.jsonl"
        return _check_round_rows(jsonl.read_lines(path), path, numbers_only=True)

    def truncate_after(self, round: int) -> int:
        """Drop every row after ``round``, in order to resume from the state of that round; return the number of dropped records.

        ``truncate_after(-1)`` drops all rows, for a run that has no state yet.
        """
        return self._truncate(round)[1]

    def restore_records(self, round: int) -> list[Record]:
        """Drop every row after ``round`` as ``truncate_after`` does, and return the records that remain; they are parsed only once."""
        return self._truncate(round)[0]

    def _truncate(self, round: int) -> tuple[list[Record], int]:
        """Drop every row after ``round``; return the remaining records and the number of dropped records."""
        path, records, num_records = self.folder / "records.jsonl", list[Record](), 0

        def keep_record(row: Any) -> bool:
            nonlocal num_records
            num_records += 1
            record = _parse_record(row, path)
            if record.round <= round:
                records.append(record)
            return record.round <= round

        jsonl.filter_lines(path, keep_record)
        for other, numbers_only in ((self.folder / "timings.jsonl", True), (self.folder / "events.jsonl", False)):
            jsonl.filter_lines(other, lambda row: _check_round_rows([row], other, numbers_only)[0]["round"] <= round)  # noqa: B023
        remove_file(self.folder / "failed.json")
        return records, num_records - len(records)

    @property
    def is_finished(self) -> bool:
        """Return whether the run is finished."""
        return (self.folder / "finished.json").exists()

    def mark_finished(self, summary: dict[str, Any], records: Sequence[Record] | None = None) -> None:
        """Mark the run as finished and store its summary and the checksums of its experiment, records, models and the summary itself.

        Args:
            summary: The summary, as plain JSON.
            records: All records of the run, so that they are not read again. None: they are read from the file.
        """
        if is_parquet_stale(self.folder):
            write_parquet(self.folder, records)
        files = [
            path for path in (self.folder / "records.jsonl", *sorted((self.folder / "model").rglob("*.safetensors"))) if path.is_file()
        ]
        stored = {path.relative_to(self.folder).as_posix(): jsonl.compute_checksum(path) for path in files}
        if (self.folder / "experiment.json").exists():
            stored["experiment.json"] = _compute_json_checksum(self.read_config())
        stored["finished.json"] = _compute_json_checksum(summary)
        self.write_json("finished", {**summary, "stored": stored})
        remove_file(self.folder / "failed.json")

    def mark_failed(self, round: int, message: str, traceback: str = "") -> None:
        """Record that the run stopped after ``round``, with the reason and the traceback; it can still be resumed."""
        self.write_json("failed", {"round": int(round), "message": message, "traceback": traceback})

    @property
    def status(self) -> str:
        """Return ``missing``, ``finished``, ``running``, ``failed`` or ``unfinished``."""
        if not (self.folder / "experiment.json").exists():
            return "missing"
        if self.is_finished:
            return "finished"
        if self._is_locked():
            return "running"
        return "failed" if (self.folder / "failed.json").exists() else "unfinished"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock of the run, so that only this process writes it; the operating system releases it when the process ends.

        Raises:
            UserError: Another process holds the lock, or the folder cannot be written.
        """
        lock = FileLock(self.folder / "lock")
        try:
            with explain_write_errors(self.folder / "lock", 0):
                self.folder.mkdir(parents=True, exist_ok=True)
                lock.acquire(timeout=LOCK_TIMEOUT_S)
        except Timeout:
            raise UserError(
                f"run {self.id} is being written by another process ({self.folder}); "
                f"wait for that process or stop it, and the run then resumes"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def _is_locked(self) -> bool:
        path = self.folder / "lock"
        if not path.exists():
            return False
        try:
            with FileLock(path, timeout=0):
                return False
        except Timeout:
            return True
        except OSError:  # in a read-only folder no process can be writing
            return False


def _format_records(records: Iterable[Record]) -> Iterator[str]:
    """Yield each record as JSON. The parts that the values of all clients share are formatted once, because there may be many clients."""
    shared: tuple[int, str, str] | None = None
    begin = ""
    for round, metric, domain, client, value in records:
        if (round, metric, domain) != shared:
            shared = round, metric, domain
            begin = f"[{int(round)}, {_quote_name(metric)}, {_quote_name(domain)}, "
        yield f"{begin}{int(client)}, {jsonl.number_to_json(float(value))}]"


@lru_cache(maxsize=4096)
def _quote_name(name: str) -> str:
    """Return a name as JSON."""
    return json.dumps(name, ensure_ascii=False)


def _parse_record(row: Any, path: Path) -> Record:
    """Return a record from its row; raise UserError if the row is not a record."""
    if isinstance(row, list) and len(row) == len(Record._fields):
        round, metric, domain, client, value = row
        if type(round) is type(client) is int and type(metric) is type(domain) is str and type(value) in NUMBER_TYPES:
            return Record(round, metric, domain, client, float("nan") if value is None else float(value))
    raise UserError(
        f"{path} contains {str(row)[:80]!r}, which is not a record {list(Record._fields)}. Something other than fedrift "
        "changed the file; remove the run's folder to start the run again."
    )


def _check_round_rows(rows: list[Any], path: Path, numbers_only: bool = False) -> list[dict[str, Any]]:
    """Return the rows if each is an object with a round (and, with ``numbers_only``, only numbers); else raise UserError."""
    for row in rows:
        if (
            not isinstance(row, dict)
            or type(row.get("round")) is not int
            or (numbers_only and any(type(value) not in NUMBER_TYPES for value in row.values()))
        ):
            raise UserError(
                f"{path} contains {str(row)[:80]!r}, which is not a valid row of a round. Something other than fedrift "
                "changed the file; remove the run's folder to start the run again."
            )
    return rows


def _compute_json_checksum(value: Mapping[str, Any]) -> list[int]:
    """Return the size and the CRC-32 of a JSON object; 1 and 1.0 are equal, and the order of keys does not matter."""
    plain = json.loads(json.dumps(value, default=_to_plain), parse_int=float)
    content = json.dumps(plain, sort_keys=True).encode()
    return [len(content), zlib.crc32(content)]


def _is_checksum(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(number) is int and number >= 0 for number in value)


class StoredObject(dict[str, Any]):
    """A JSON object from a file; access to a missing key raises UserError with the name of the file."""

    path: Path | None = None

    def __missing__(self, key: str) -> Any:
        raise UserError(f"{self.path} has no {key!r}, which is required; something other than fedrift changed the file")


def read_json_file(path: Path, json_type: type = object, recovery_hint: str = "", repair: Callable[[bytes], bytes] | None = None) -> Any:
    """Read a JSON file, with its objects as ``StoredObject``.

    Args:
        path: The file.
        json_type: The required type of the value.
        recovery_hint: The end of an error message, which says how to repair the file.
        repair: Changes the bytes of the file before they are parsed. None: no change.

    Raises:
        UserError: The file is not JSON, or its value has another type.
    """

    def to_stored_object(pairs: list[tuple[str, Any]]) -> StoredObject:
        stored = StoredObject(pairs)
        stored.path = path
        return stored

    try:
        stored_bytes = path.read_bytes()
        content = json.loads(repair(stored_bytes) if repair else stored_bytes, object_pairs_hook=to_stored_object)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({format_error(error)}); {recovery_hint}") from error
    if not isinstance(content, json_type):
        raise UserError(f"{path} must contain {JSON_TYPE_NAMES[json_type]}, but contains {str(content)[:80]!r}; {recovery_hint}")
    return content


def _to_plain(value: Any) -> Any:
    """Convert numpy numbers, numpy arrays and paths to plain JSON values."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} {value!r}")
