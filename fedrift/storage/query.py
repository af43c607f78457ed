"""SQL queries over all runs: DuckDB tables ``records``, ``runs`` and ``findings``, which read the files of the runs without copying them.

    records(run, round, metric, domain, client, value)               one row per number
    runs(run, status, final_loss, rounds, last_loss, large_loss,     one row per run: its status, its losses, its cost, and one column
         train_tokens, seconds, failure, ...)                        per path of the experiment
    findings(run, failure, grade, first_round, strength, ...)        the findings that detectors stored

Losses are in nats per token: ``final_loss`` is the mean of the last five evaluations, as everywhere in fedrift, ``last_loss`` that of the
last evaluation alone, and ``large_loss`` that of the final evaluation after the last round (metric ``final.loss``). A path of the
experiment is a column of that name, in double quotes: ``"partition.severity"``. The class of a value has the path of the value, for example
``algorithm``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import UserError
from .index import UnreadableRun, get_read_error, list_runs, list_unreadable, try_read_each
from .parquet import check_run_column, has_value_statistics, is_parquet_stale, parquet_path, read_parquet, write_parquet
from .run import Run

if TYPE_CHECKING:
    import duckdb
    import pandas as pd
    import pyarrow as pa

TABLES_HINT = 'The tables are records, runs and findings; `fedrift query "DESCRIBE runs"` lists the columns of a table'
EMPTY_RECORDS_SQL = "SELECT ''::VARCHAR run, 0 round, '' metric, '' domain, 0 client, 0.0::DOUBLE AS value WHERE false"
# The definition of ``diagnosis.finding.final_loss``: round 0, before training, counts only in a run without another round.
RUNS_SQL = """CREATE VIEW runs AS SELECT run_rows.* REPLACE (losses.final_loss AS final_loss) FROM internal.run_rows LEFT JOIN (
    SELECT run, avg(value) AS final_loss FROM (
        SELECT run, value FROM records WHERE metric = 'loss' AND domain = '' AND client < 0
        QUALIFY (round > 0 OR max(round) OVER (PARTITION BY run) = 0) AND row_number() OVER (PARTITION BY run ORDER BY round DESC) <= 5
    ) GROUP BY run
) losses USING (run)"""
RUN_COLUMNS = {"run": "string", "status": "string", "final_loss": "float64"}
FINDING_COLUMNS = {
    "run": "string",
    "failure": "string",
    "grade": "string",
    "first_round": "float64",
    "strength": "float64",
    "sentence": "string",
}


def query_frame(root: Path, query: str) -> pd.DataFrame:
    """Run an SQL query over all runs under ``root`` and return the result as a table.

    Example:
        >>> query_frame(Path("runs"), "SELECT run, final_loss FROM runs WHERE algorithm = 'FedAvg'")
    """
    with connect(root) as connection, _explain_query_errors():
        return _execute(connection, query).df()


def query_rows(root: Path, query: str) -> list[dict[str, Any]]:
    """Run an SQL query and return rows of Python values, which keep all digits of integers and decimals.

    Repeated column names get a numeric suffix.
    """
    with connect(root) as connection, _explain_query_errors():
        result = _execute(connection, query)
        names: list[str] = []
        for name, column_type, *_ in result.description or ():
            if "TIME ZONE" in str(column_type):  # DuckDB converts such times to Python values only with the package pytz
                raise UserError(f"the column {name[:80]!r} holds times with a time zone: convert them with ::TIMESTAMP or ::VARCHAR")
            names.append(next(unique for unique in chain([name], (f"{name}_{n}" for n in count(1))) if unique not in names))
        return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def _execute(connection: duckdb.DuckDBPyConnection, query: str) -> duckdb.DuckDBPyConnection:
    """Run a query that returns rows.

    Raises:
        UserError: The query is empty, or it is not one statement that only reads. A statement such as COPY writes a file.
    """
    statements = connection.extract_statements(query)
    if not statements:
        raise UserError(f"{query[:80]!r} is not a query that returns rows. {TABLES_HINT}")
    if len(statements) > 1:
        raise UserError(f"{query[:80]!r} has {len(statements)} statements; give one. {TABLES_HINT}")
    kind, first_word = statements[0].type.name, statements[0].query.split(maxsplit=1)[0].upper()
    # DuckDB turns a PIVOT over all values of a column into several statements, whatever statement contains it.
    if kind != "SELECT" and (kind, first_word) != ("MULTI", "PIVOT"):
        raise UserError(
            f"{query[:80]!r} is not a statement that only reads; SELECT, FROM, WITH, PIVOT, DESCRIBE, SUMMARIZE and SHOW are allowed. "
            f"`--json` prints a result for other programs, and `fedrift export` writes files. {TABLES_HINT}"
        )
    return connection.execute(statements[0])


@contextmanager
def _explain_query_errors() -> Iterator[None]:
    """Turn the errors of a query into a UserError. Some arise only when rows are fetched, such as a value that cannot be converted."""
    import duckdb

    try:
        yield
    except (duckdb.Error, UnicodeError) as error:
        raise UserError(f"{' '.join(str(error).split())}. {TABLES_HINT}") from None


def connect(root: Path, runs: Iterable[Run] | None = None) -> duckdb.DuckDBPyConnection:
    """Open a DuckDB connection with the three tables.

    Missing or outdated Parquet files are written first. An unreadable run does not affect the others: its row in ``runs`` has the status
    ``unreadable`` and the reason as ``failure``.

    Args:
        root: The folder of runs.
        runs: The runs to include; the default is all runs under ``root``.
    """
    import duckdb

    all_runs, unreadable = list(list_runs(root) if runs is None else runs), list_unreadable(root) if runs is None else []
    parquet_paths, faulty_runs = try_read_each(all_runs, _check_readable)
    files = [str(path) for _, path in parquet_paths if path is not None]
    connection = duckdb.connect()
    if any(
        _verify_parquet_cached(path, *_get_file_version(path)) for _, path in parquet_paths if path is not None
    ):  # both must be off, or DuckDB 2.0 skips rows that are NaN
        connection.execute("SET disabled_optimizers='statistics_propagation,filter_pushdown'")
    if files:
        connection.read_parquet([str(path) for path in files]).create_view("records")  # type: ignore[arg-type]
    else:
        connection.execute(f"CREATE VIEW records AS {EMPTY_RECORDS_SQL}")
    connection.register("run_rows", build_runs_table(all_runs, [*unreadable, *faulty_runs]))
    connection.execute("CREATE SCHEMA internal; CREATE TABLE internal.run_rows AS FROM run_rows")  # a schema that SHOW TABLES does not list
    connection.unregister("run_rows")
    connection.execute(RUNS_SQL)
    connection.register("findings", build_findings_table(all_runs))
    return connection


def get_read_errors(runs: Iterable[Run]) -> dict[str, str]:
    """Return run id -> reason for the runs that cannot be read."""
    return {unreadable.id: unreadable.reason for unreadable in try_read_each(runs, _check_readable)[1]}


def _check_readable(run: Run) -> Path | None:
    """Return the Parquet file of a run, or None if it has no rows; raise UserError if the run cannot be read."""
    if fault := get_read_error(run):
        raise UserError(fault)
    path = ensure_parquet(run)
    if path is not None:
        _check_run_column_cached(path, *_get_file_version(path))
    return path


# A report opens several connections. A file that did not change is verified only once per process.


def _get_file_version(path: Path) -> tuple[int, int, int]:
    """Return numbers that change when a file changes: the time of its last change in ns, its size in bytes, and its inode."""
    file_status = path.stat()
    return file_status.st_mtime_ns, file_status.st_size, file_status.st_ino


@lru_cache(maxsize=1 << 14)
def _verify_parquet_cached(path: Path, modified_ns: int, size: int, inode: int) -> bool:
    """Verify a records file, because DuckDB does not verify its checksums, and return whether it has statistics of its values."""
    read_parquet(path.parent)
    return has_value_statistics(path)


@lru_cache(maxsize=1 << 14)
def _check_run_column_cached(path: Path, modified_ns: int, size: int, inode: int) -> None:
    check_run_column(path.parent)


def ensure_parquet(run: Run) -> Path | None:
    """Return the Parquet file of a run, written again if necessary, or None if the run has no rows yet.

    Raises:
        UserError: The file is damaged and there are no rows to recreate it from, or a finished run has lost rows.
    """
    path, rows = parquet_path(run.folder), run.folder / "records.jsonl"
    if is_parquet_stale(run.folder):
        run.check_records()
        write_parquet(run.folder)
    if not path.exists():
        return None
    try:
        _verify_parquet_cached(path, *_get_file_version(path))
    except UserError:
        if not rows.exists():
            raise
        run.check_records()
        write_parquet(run.folder)
    return path


def build_runs_table(runs: Iterable[Run], unreadable: Iterable[UnreadableRun] = ()) -> pa.Table:
    """Build the table ``runs``, with one row per run: its status, its summary and its flattened experiment.

    The column ``final_loss`` is empty: the view ``runs`` computes it from the records, and only for queries that use it.

    Args:
        runs: The runs.
        unreadable: Runs that are already known to be unreadable.
    """
    readable, more_unreadable = try_read_each(runs, _build_run_row)
    faults = {run.id: {"run": run.id, "status": "unreadable", "failure": run.reason} for run in (*unreadable, *more_unreadable)}
    rows = [row for run, row in readable if run.id not in faults] + list(faults.values())
    return _build_table(rows, RUN_COLUMNS)


def _build_table(rows: list[dict[str, Any]], types: Mapping[str, str]) -> pa.Table:
    """Return rows as an Arrow table. NaN stays NaN and a missing value is NULL, which pandas cannot keep apart. Mixed types become text."""
    import pyarrow as pa

    columns = {}
    for name in dict.fromkeys((*types, *(name for row in rows for name in row))):
        values = [row.get(name) for row in rows]
        try:
            column = pa.array(values, pa.type_for_alias(types[name]) if name in types else None)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            column = pa.array([None if value is None else str(value) for value in values])
        columns[name] = column.cast(pa.string()) if pa.types.is_null(column.type) else column
    return pa.table(columns)


def _build_run_row(run: Run) -> dict[str, Any]:
    config = {key: value for key, value in run.config.items() if key not in ("id", "partition_table")}
    summary = run.summary()
    status = "finished" if summary else run.status
    failure = run.failure_message() if status == "failed" else ""
    return {
        "run": run.id,
        "status": status,
        "rounds": summary.get("rounds"),
        "last_loss": summary.get("loss"),
        "large_loss": summary.get("final_loss"),
        "train_tokens": summary.get("train_tokens"),
        "seconds": sum((summary.get("seconds") or {}).values()) if summary else None,
        "failure": failure,
        **flatten(config),
    }


def _build_finding_rows(run: Run) -> list[dict[str, Any]]:
    return [
        {
            "run": run.id,
            **{
                key: value if isinstance(value, (str, int, float, bool)) or value is None else json.dumps(value)
                for key, value in finding.items()
            },
        }
        for finding in run.findings()
    ]


def build_findings_table(runs: Iterable[Run]) -> pa.Table:
    """Build the table ``findings``, with one row per finding in the ``findings.json`` of the runs."""
    return _build_table([row for _, rows in try_read_each(runs, _build_finding_rows)[0] for row in rows], FINDING_COLUMNS)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested keys to dotted paths; a class name under ``type`` gets the path of its parent, and lists become JSON."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        path = prefix if key == "type" and prefix else f"{prefix}.{key}" if prefix else key
        if isinstance(value, Mapping):
            flat |= flatten(value, path)
        else:
            flat[path] = json.dumps(value) if isinstance(value, (list, tuple)) else value
    return flat
