"""One run's folder: what was asked, what came of it round by round, and where to go on.

    runs/<id>/experiment.json     the experiment, resolved
              environment.json    versions, platform, processor, device, threads, the engine's choices
              records.jsonl       [round, metric, domain, client, value] a line; append-only
              records.parquet     the same for queries, made at the end; all there is of a run from an archive
              timings.jsonl       seconds by phase; apart, as they differ from one day to another
              events.jsonl        {round, kind, message, client}
              state.safetensors   the last state, whole or not at all (``fedrift.storage.tensors``)
              client_states.rows  what each client keeps, where the algorithm has it keep anything (``fedrift.storage.checkpoint``)
              updates/            every round's report and state, where they were asked for (``fedrift.storage.fork``)
              finished.json       the summary; there once the run is over
              failed.json         why it stopped; gone when it resumes

Rows are written before the state: a crash between them leaves rows that ``rewind`` drops.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from ..core.errors import UserError
from ..core.records import Record, Trajectory
from . import jsonl
from .files import explain_write_errors, format_error, write_atomically
from .parquet import is_parquet_stale, parquet_path, read_parquet, write_parquet

OBJECT_KEYS = (
    "dataset",
    "trainable",
    "partition",
    "algorithm",
    "training",
    "evaluation",
    "clustering",
)  # of an experiment, that are objects
SCALAR_KEYS = ("model", "seed", "id")  # that are none
NUMBER_TYPES = (float, int, type(None))
JSON_TYPE_NAMES = {dict: "an object", list: "a list", bool: "true or false"}
LOCK_TIMEOUT_S = 1.0  # seconds for a reader's glance at the lock to pass


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
        """Where ``save_state`` and ``load_state`` of ``fedrift.storage.tensors`` find this run's state."""
        return self.folder / "state.safetensors"

    @property
    def client_state_path(self) -> Path:
        """Where what each client keeps lies, as ``state_path`` says (``fedrift.storage.checkpoint``)."""
        return self.folder / "client_states.rows"

    # Whole files

    def write_json(self, name: str, value: Any) -> None:
        """Write ``<name>.json``, whole or not at all."""
        try:
            text = json.dumps(value, indent=2, ensure_ascii=False, default=_to_plain)
        except TypeError as error:
            raise UserError(f"{name}.json of run {self.id} would hold what is not JSON: {error}") from error
        write_atomically(self.folder / f"{name}.json", text.encode() + b"\n")

    def read_json(self, name: str, json_type: type = object) -> Any:
        """What ``<name>.json`` holds. Raises UserError where it is not there, not JSON, or not of the ``shape``."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            raise UserError(f"run {self.id} has no {path.name} in {self.folder}")
        return read_json_file(path, json_type, "remove its folder to begin it again")

    @property
    def config(self) -> dict[str, Any]:
        """What was asked. Raises UserError where the file holds no experiment; of a key that it lacks, when that is read."""
        said: dict[str, Any] = self.read_json("experiment", dict)
        for name, value in said.items():
            if (name in OBJECT_KEYS) != isinstance(value, dict) and name in (*OBJECT_KEYS, *SCALAR_KEYS):
                wanted = "an object" if name in OBJECT_KEYS else "no object"
                raise UserError(
                    f"{self.folder / 'experiment.json'}: {name!r} is {str(value)[:80]!r}, and has to be {wanted}; "
                    "remove its folder to begin it again"
                )
        return said

    @property
    def environment(self) -> dict[str, Any]:
        """What ``settle`` wrote; empty before that."""
        return self.read_json("environment", dict) if (self.folder / "environment.json").exists() else {}

    def cluster_assignments(self) -> list[dict[str, Any]]:
        """What a clustering decided, in ``clustering.json``; empty where there is none."""
        path = self.folder / "clustering.json"
        return _check_round_rows(self.read_json("clustering", list), path) if path.exists() else []

    def findings(self) -> list[dict[str, Any]]:
        """What detectors found, in ``findings.json``; empty where there is none."""
        if not (self.folder / "findings.json").exists():
            return []
        said = self.read_json("findings")
        found = said.get("findings", []) if isinstance(said, dict) else said
        if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
            raise UserError(f"{self.folder / 'findings.json'} holds {str(said)[:80]!r}, and has to hold a list of objects; remove it")
        return found

    def summary(self) -> dict[str, Any]:
        """What ``finish`` wrote; empty before that."""
        if not self.is_finished:
            return {}
        end: dict[str, Any] = self.read_json("finished", dict)
        seconds = end.get("seconds", {})
        if not isinstance(seconds, dict) or not all(type(value) in NUMBER_TYPES for value in seconds.values()):
            raise UserError(
                f"{self.folder / 'finished.json'}: 'seconds' is {str(seconds)[:80]!r}, and has to be an object of "
                "numbers; remove its folder to begin it again"
            )
        stored = end.get("stored", {})
        if not isinstance(stored, dict) or not all(_is_checksum(mark) for mark in stored.values()):
            raise UserError(
                f"{self.folder / 'finished.json'}: 'stored' is {str(stored)[:80]!r}, and has to be an object of "
                "marks; remove its folder to begin it again"
            )
        return end

    def failure_message(self) -> str:
        """Why the run stopped; "" if it did not."""
        return str(self.read_json("failed", dict)["message"]) if (self.folder / "failed.json").exists() else ""

    def check_files(self) -> None:
        """Raise UserError where a file of the run does not hold what it has to hold."""
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

    # Rows

    def append_records(self, records: Iterable[Record]) -> None:
        """Add records, all of them or none."""
        jsonl.append_lines(self.folder / "records.jsonl", map(_format_record, records))

    def log_event(self, round: int, kind: str, message: str, client: int = -1) -> None:
        """Note something that happened and is no number."""
        said = {"round": int(round), "kind": kind, "message": message, "client": int(client)}
        jsonl.append_lines(self.folder / "events.jsonl", [jsonl.to_json(said)])

    def log_timing(self, round: int, **seconds: float) -> None:
        """Note the seconds of each phase of a round: ``log_timing(3, train=4.1, evaluate=0.5, store=0.1)``."""
        took = {phase: float(value) for phase, value in seconds.items()}
        jsonl.append_lines(self.folder / "timings.jsonl", [jsonl.to_json({"round": int(round), **took})])

    def records(self) -> list[Record]:
        """All records, in the order of writing. Raises UserError where a finished run has lost some since."""
        path = self.folder / "records.jsonl"
        if not path.exists() and parquet_path(self.folder).exists():
            return list(read_parquet(self.folder))
        self.check_records()
        return [_parse_record(row, path) for row in jsonl.read_lines(path)]

    def check_records(self) -> None:
        """Raise UserError where the rows of a finished run are not those that it ended with; older runs have noted none."""
        self._check_checksums("records.jsonl")

    def check_models(self) -> None:
        """Raise UserError where the models of a finished run are not those that it ended with; older runs have noted none."""
        self._check_checksums("model/")

    def _check_checksums(self, prefix: str) -> None:
        for name, mark in self.summary().get("stored", {}).items():
            path = self.folder / name
            if name.startswith(prefix) and not jsonl.has_prefix(path, mark):
                there = path.stat().st_size if path.exists() else 0
                raise UserError(
                    f"{path} is not what it was when the run ended ({there:,} bytes, {mark[0]:,} then): it lost or "
                    "changed something since. Put a copy of it back, or run it again (`fedrift run --fresh`, or "
                    f"remove {self.folder})"
                )

    def metrics(self) -> pd.DataFrame:
        """Return all recorded numbers as a table: round, metric, domain, client, value."""
        return self.trajectory().to_frame()

    def trajectory(self) -> Trajectory:
        """The same as curves; from the Parquet file, which says nothing twice, where it is up to date."""
        fast = parquet_path(self.folder).exists() and not is_parquet_stale(self.folder)
        return Trajectory(read_parquet(self.folder) if fast else tuple(self.records()))

    def events(self) -> list[dict[str, Any]]:
        path = self.folder / "events.jsonl"
        return _check_round_rows(jsonl.read_lines(path), path)

    def timings(self) -> list[dict[str, Any]]:
        path = self.folder / "timings.jsonl"
        return _check_round_rows(jsonl.read_lines(path), path, numbers_only=True)

    def truncate_after(self, round: int) -> int:
        """Drop every row after ``round``, to resume from a state of that round; how many records went.

        ``rewind(-1)`` drops them all, for a run that has no state yet.
        """
        rows = self.folder / "records.jsonl"
        dropped = jsonl.filter_lines(rows, lambda row: _parse_record(row, rows).round <= round)
        for path, numbers in ((self.folder / "timings.jsonl", True), (self.folder / "events.jsonl", False)):
            jsonl.filter_lines(path, lambda row: _check_round_rows([row], path, numbers)[0]["round"] <= round)  # noqa: B023
        (self.folder / "failed.json").unlink(missing_ok=True)
        return dropped

    # The end

    @property
    def is_finished(self) -> bool:
        return (self.folder / "finished.json").exists()

    def mark_finished(self, summary: dict[str, Any]) -> None:
        """Say that the run is over, and what came of it."""
        if is_parquet_stale(self.folder):
            write_parquet(self.folder)
        files = [
            path for path in (self.folder / "records.jsonl", *sorted((self.folder / "model").rglob("*.safetensors"))) if path.is_file()
        ]
        stored = {path.relative_to(self.folder).as_posix(): jsonl.compute_checksum(path) for path in files}
        self.write_json("finished", {**summary, "stored": stored} if stored else summary)
        (self.folder / "failed.json").unlink(missing_ok=True)

    def mark_failed(self, round: int, message: str, traceback: str = "") -> None:
        """Say that the run stopped and why, with the traceback; it can still be resumed."""
        self.write_json("failed", {"round": int(round), "message": message, "traceback": traceback})

    @property
    def status(self) -> str:
        """``missing``, ``finished``, ``running``, ``failed`` or ``unfinished``."""
        if not (self.folder / "experiment.json").exists():
            return "missing"
        if self.is_finished:
            return "finished"
        if self._is_locked():
            return "running"
        return "failed" if (self.folder / "failed.json").exists() else "unfinished"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only process that writes this run; the system lets go however the process ends."""
        lock = FileLock(self.folder / "lock")
        try:
            with explain_write_errors(self.folder / "lock", 0):
                self.folder.mkdir(parents=True, exist_ok=True)
                lock.acquire(timeout=LOCK_TIMEOUT_S)
        except Timeout:
            raise UserError(
                f"run {self.id} is being written by another process ({self.folder}); "
                f"wait for it, or stop it: the run then resumes where it was"
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
        except OSError:  # a folder that may only be read: nobody can be writing there either
            return False


def _format_record(record: Record) -> str:
    round, metric, domain, client, value = record
    return f"[{int(round)}, {_quote_name(metric)}, {_quote_name(domain)}, {int(client)}, {jsonl.number_to_json(float(value))}]"


@lru_cache(maxsize=4096)
def _quote_name(name: str) -> str:
    """A name as JSON; a round has a row of the same metric for each of N clients."""
    return json.dumps(name, ensure_ascii=False)


def _parse_record(row: Any, path: Path) -> Record:
    if isinstance(row, list) and len(row) == len(Record._fields):
        round, metric, domain, client, value = row
        if type(round) is type(client) is int and type(metric) is type(domain) is str and type(value) in NUMBER_TYPES:
            return Record(round, metric, domain, client, float("nan") if value is None else float(value))
    raise UserError(
        f"{path} holds {str(row)[:80]!r}, which is no record {list(Record._fields)}. Something other than fedrift "
        "wrote there; remove the run's folder to begin it again."
    )


def _check_round_rows(rows: list[Any], path: Path, numbers_only: bool = False) -> list[dict[str, Any]]:
    """The rows, if each is an object that says its round; ``numbers``: and holds nothing but numbers."""
    for row in rows:
        if (
            not isinstance(row, dict)
            or type(row.get("round")) is not int
            or (numbers_only and any(type(value) not in NUMBER_TYPES for value in row.values()))
        ):
            raise UserError(
                f"{path} holds {str(row)[:80]!r}, which is no object of a round. Something other than fedrift wrote "
                "there; remove the run's folder to begin it again."
            )
    return rows


def _is_checksum(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(number) is int and number >= 0 for number in value)


class StoredObject(dict[str, Any]):
    """A JSON object that was read from a file: a key that it lacks is a mistake in the file, told in one line."""

    path: Path | None = None

    def __missing__(self, key: str) -> Any:
        raise UserError(f"{self.path} has no {key!r} where it has to have one: something other than fedrift wrote it")


def read_json_file(path: Path, json_type: type = object, recovery_hint: str = "") -> Any:
    """What a JSON file holds, its objects as ``StoredObject``. Raises UserError where it is not JSON, or not of the ``shape``."""

    def stored(pairs: list[tuple[str, Any]]) -> StoredObject:
        found = StoredObject(pairs)
        found.path = path
        return found

    try:
        said = json.loads(path.read_bytes(), object_pairs_hook=stored)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({format_error(error)}); {recovery_hint}") from error
    if not isinstance(said, json_type):
        raise UserError(f"{path} holds {str(said)[:80]!r}, and has to hold {JSON_TYPE_NAMES[json_type]}; {recovery_hint}")
    return said


def _to_plain(value: Any) -> Any:
    """Numbers and arrays of numpy as their Python selves."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} {value!r}")


# What a run was made with, and what must not change before it resumes.

KERNEL_VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
)  # environment variables that choose the kernels of torch, oneDNN and MKL
PACKAGES = ("fedrift", "torch", "transformers", "tokenizers", "peft", "datasets", "safetensors", "numpy")


def collect_environment(device: str, threads: int, engine: dict[str, Any], shares_passes: bool = False) -> dict[str, Any]:
    """Versions, platform, processor, device and threads; ``engine``: choices that change the last bits of a result.
    ``together``: passes are shared with other runs, so the last bits are those of the company.

    Of the engine are, say, how many clients are stacked and the arithmetic: with other choices a resumed
    run would not be the unbroken one bit for bit.
    """
    return {
        "python": platform.python_version(),
        "packages": {name: _get_version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "processor": collect_processor_info(),
        "device": device,
        "threads": threads,
        "engine": engine,
        **({"passes": "shared with other runs"} if shares_passes else {}),
    }


def collect_processor_info() -> dict[str, Any]:
    """Describe what decides the rounding of a matrix product: the processor, its instructions and the limits set on them."""
    import torch  # here, for tables and reports read environments without it

    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return {
        "name": str(known.get("cpu_name") or platform.processor() or platform.machine()),
        "capability": torch.backends.cpu.get_cpu_capability(),  # of torch's own kernels
        "instructions": " ".join(sorted(name for name, has in known.items() if has is True)),
        "limits": {name: os.environ[name] for name in KERNEL_VARIABLES if name in os.environ},
    }


def check_environment(run: Run, environment: dict[str, Any]) -> list[str]:
    """Write the environment of a new run, or compare it with that of one to be resumed.

    Returns what differs, in words, for a note in the run's events: another version, thread count or processor may
    change the last bits. What an older version did not write is not compared. Raises UserError where the engine's choices differ.
    """
    before = run.environment
    if not before:
        run.write_json("environment", environment)
        return []
    odd = _list_differences(before["engine"], environment["engine"])
    if odd:
        raise UserError(
            f"run {run.id} was begun with other engine choices and would not resume as the same "
            f"run: {'; '.join(odd)}. Ask for those, or remove {run.folder} to begin again."
        )
    return _list_differences(_flatten(before), _flatten(environment)) + _list_processor_differences(
        before.get("processor", {}), environment.get("processor", {})
    )


def _list_differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return [
        f"{name} was {old.get(name)!r} and is {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def _list_processor_differences(previous: dict[str, Any], current: dict[str, Any]) -> list[str]:
    said = [
        f"processor {name} was {previous[name]!r} and is {current[name]!r}"
        for name in ("name", "capability", "limits")
        if name in previous and name in current and previous[name] != current[name]
    ]
    if "instructions" in previous and "instructions" in current:
        old, new = set(previous["instructions"].split()), set(current["instructions"].split())
        said += [
            f"the processor {verb} {', '.join(sorted(names))}"
            for verb, names in (("no longer has", old - new), ("now has", new - old))
            if names
        ]
    return said


def _flatten(environment: dict[str, Any]) -> dict[str, Any]:
    rest = {name: value for name, value in environment.items() if name not in ("packages", "engine", "processor")}
    return {**rest, **environment["packages"]}


def _get_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
