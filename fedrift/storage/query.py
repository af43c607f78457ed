"""All runs as three tables for SQL: ``records``, ``runs`` and ``findings``; DuckDB answers, nothing is copied.

    records(run, round, metric, domain, client, value)                     one row a number
    runs(run, status, rounds, loss, final_loss, train_tokens, seconds, failure, <the experiment, a column a path>)
    findings(run, failure, grade, first_round, strength, sentence, ...)       what detectors left beside the runs

A path of the experiment is a column of that name: ``"partition.severity"``, in double quotes; a class is ``algorithm``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import UserError
from .index import UnreadableRun, find_fault, list_runs, list_unreadable, read_each
from .parquet import check_run_column, is_parquet_stale, parquet_path, read_parquet, write_parquet
from .run import Run

if TYPE_CHECKING:
    import duckdb
    import pandas as pd
    import pyarrow as pa

TABLES_HINT = 'The tables are records, runs and findings; `fedrift query "DESCRIBE runs"` lists the columns of one'
EMPTY_RECORDS_SQL = "SELECT ''::VARCHAR run, 0 round, '' metric, '' domain, 0 client, 0.0::DOUBLE AS value WHERE false"
FINDING_COLUMNS = {
    "run": "string",
    "failure": "string",
    "grade": "string",
    "first_round": "float64",
    "strength": "float64",
    "sentence": "string",
}


def query_frame(root: Path, query: str) -> pd.DataFrame:
    """The answer to a query over all runs under ``root``."""
    with connect(root) as connection:
        return _execute(connection, query).df()


def query_rows(root: Path, query: str) -> list[dict[str, Any]]:
    """The answer as Python's own values, which keep every digit of integers and decimals; a column whose name is there already
    has a number behind it."""
    with connect(root) as connection:
        answer = _execute(connection, query)
        names: list[str] = []
        for name, *_ in answer.description or ():
            names.append(next(each for each in chain([name], (f"{name}_{n}" for n in count(1))) if each not in names))
        return [dict(zip(names, row, strict=True)) for row in answer.fetchall()]


def _execute(connection: duckdb.DuckDBPyConnection, query: str) -> duckdb.DuckDBPyConnection:
    """Run a query that has an answer. Raises UserError where it is wrong, or no query."""
    import duckdb

    try:
        answer = connection.execute(query)
        if answer is None or answer.description is None:  # DuckDB answers nothing to an empty query
            raise UserError(f"{query[:80]!r} asks nothing. {TABLES_HINT}")
        return answer
    except (duckdb.Error, UnicodeError) as error:
        raise UserError(f"{' '.join(str(error).split())}. {TABLES_HINT}") from None


def connect(root: Path, runs: Iterable[Run] | None = None) -> duckdb.DuckDBPyConnection:
    """A connection with the three tables. Parquet files are made where they are missing or older than the rows.

    A run that cannot be read hides no other: its row in ``runs`` has the status ``unreadable`` and the reason as ``failure``.
    """
    import duckdb

    every, bad = list(list_runs(root) if runs is None else runs), list_unreadable(root) if runs is None else []
    recorded, faulty = read_each(every, _check_readable)
    files = [str(path) for _, path in recorded if path is not None]
    connection = duckdb.connect()
    if files:
        connection.read_parquet(files).create_view("records")  # type: ignore[arg-type]
    else:
        connection.execute(f"CREATE VIEW records AS {EMPTY_RECORDS_SQL}")
    connection.register("runs", build_runs_table(every, [*bad, *faulty]))
    connection.register("findings", build_findings_table(every))
    return connection


def find_faults(runs: Iterable[Run]) -> dict[str, str]:
    """Why runs cannot be read, by id; of those that can nothing."""
    return {each.id: each.reason for each in read_each(runs, _check_readable)[1]}


def _check_readable(run: Run) -> Path | None:
    if fault := find_fault(run):
        raise UserError(fault)
    path = ensure_parquet(run)
    check_run_column(run.folder)
    return path


def ensure_parquet(run: Run) -> Path | None:
    """The run's Parquet file, made or made again if it must be; None where there are no rows yet.

    Raises UserError where it is damaged and there are no rows to make it of, or a finished run has lost rows.
    """
    path, rows = parquet_path(run.folder), run.folder / "records.jsonl"
    if is_parquet_stale(run.folder):
        run.check_records()
        write_parquet(run.folder)
    if not path.exists():
        return None
    try:
        read_parquet(run.folder)  # DuckDB does not look at the checksums
    except UserError:
        if not rows.exists():
            raise
        run.check_records()
        write_parquet(run.folder)
    return path


def build_runs_table(runs: Iterable[Run], unreadable: Iterable[UnreadableRun] = ()) -> pa.Table:
    """Return one row per run: its status, its results and its flattened experiment. ``unreadable``: runs known to be unreadable."""
    found, more = read_each(runs, _build_run_row)
    faults = {each.id: {"run": each.id, "status": "unreadable", "failure": each.reason} for each in (*unreadable, *more)}
    rows = [row for run, row in found if run.id not in faults] + list(faults.values())
    return _build_table(rows, {"run": "string", "status": "string"})


def _build_table(rows: list[dict[str, Any]], types: Mapping[str, str]) -> pa.Table:
    """Return rows as an Arrow table, in which NaN stays NaN and a missing value is NULL; pandas would make one of the two.

    A column of mixed types is text.
    """
    import pyarrow as pa

    names = list(dict.fromkeys((*types, *(name for row in rows for name in row))))
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        try:
            columns[name] = pa.array(values, pa.type_for_alias(types[name]) if name in types else None)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            columns[name] = pa.array([None if value is None else str(value) for value in values])
        if pa.types.is_null(columns[name].type):
            columns[name] = columns[name].cast(pa.string())
    return pa.table(columns)


def _build_run_row(run: Run) -> dict[str, Any]:
    said = {key: value for key, value in run.config.items() if key not in ("id", "partition_table")}
    end = run.summary()
    status = "finished" if end else run.status
    failure = run.failure_message() if status == "failed" else ""
    return {
        "run": run.id,
        "status": status,
        "rounds": end.get("rounds"),
        "loss": end.get("loss"),
        "final_loss": end.get("final_loss"),
        "train_tokens": end.get("train_tokens"),
        "seconds": sum((end.get("seconds") or {}).values()) if end else None,
        "failure": failure,
        **flatten(said),
    }


def _build_finding_rows(run: Run) -> list[dict[str, Any]]:
    return [
        {
            "run": run.id,
            **{
                key: value if isinstance(value, (str, int, float, bool)) or value is None else json.dumps(value)
                for key, value in each.items()
            },
        }
        for each in run.findings()
    ]


def build_findings_table(runs: Iterable[Run]) -> pa.Table:
    """Return one row per finding, of ``findings.json`` beside each run."""
    return _build_table([row for _, found in read_each(runs, _build_finding_rows)[0] for row in found], FINDING_COLUMNS)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted paths; a class under ``is`` is its parent's own value; lists are JSON."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        path = prefix if key == "type" and prefix else f"{prefix}.{key}" if prefix else key
        if isinstance(value, Mapping):
            found |= flatten(value, path)
        else:
            found[path] = json.dumps(value) if isinstance(value, (list, tuple)) else value
    return found
