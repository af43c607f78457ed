"""Parquet files of a run: its records, for fast queries, and named arrays of numbers.

A run is resumed from ``records.jsonl``, which is authoritative. ``records.parquet`` is derived from it at the end of the run or on demand,
is much smaller, and can be read by column. If several rows have the same round, metric, domain and client, it contains the last one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import UserError
from ..core.records import Record, RecordColumns
from . import jsonl
from .files import check_digest, compute_digest, format_error, replace_atomically

if TYPE_CHECKING:
    import pyarrow as pa

DIGEST_KEY = "fedrift.digest"  # of the records, in the metadata of the file
COLUMNS = ("run", "round", "metric", "domain", "client", "value")


def parquet_path(folder: Path) -> Path:
    """Return the path of the records file."""
    return folder / "records.parquet"


def is_parquet_stale(folder: Path) -> bool:
    """Return whether ``records.jsonl`` has rows that the Parquet file lacks."""
    rows, parquet = folder / "records.jsonl", parquet_path(folder)
    if not rows.exists():
        return False
    return not parquet.exists() or parquet.stat().st_mtime_ns < rows.stat().st_mtime_ns


def write_parquet(folder: Path, records: Sequence[Record] | None = None) -> Path:
    """Write ``records.parquet`` in the folder of a run; equal rows give equal bytes.

    Args:
        folder: The folder of the run.
        records: The rows of ``records.jsonl``, in the order of writing. None: they are read from the file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    latest: dict[tuple[object, ...], float | None] = {}
    for round, metric, domain, client, value in jsonl.read_lines(folder / "records.jsonl") if records is None else records:
        latest[round, metric, domain, client] = value
    keys = list(zip(*latest, strict=True)) if latest else [(), (), (), ()]
    dictionary_type = pa.dictionary(pa.int32(), pa.string())
    table = pa.table(
        {
            "run": pa.array([folder.name] * len(latest), pa.string()).cast(dictionary_type),
            "round": pa.array(keys[0], pa.int32()),
            "metric": pa.array(keys[1], pa.string()).cast(dictionary_type),
            "domain": pa.array(keys[2], pa.string()).cast(dictionary_type),
            "client": pa.array(keys[3], pa.int32()),
            "value": pa.array([float("nan") if value is None else float(value) for value in latest.values()], pa.float64()),
        }
    )
    path = parquet_path(folder)
    table = table.replace_schema_metadata({DIGEST_KEY: _digest_records(table)})
    with replace_atomically(path, table.nbytes) as temporary:
        # No statistics of values: they ignore NaN, and DuckDB 2.0 then skips rows that are NaN (`WHERE isnan(value)` finds none).
        # Values are split into byte streams, like arrays below: over 50 rounds of 5 to 20 clients this saves a fifth.
        pq.write_table(
            table,
            temporary,
            compression="zstd",
            compression_level=ZSTD_LEVEL,
            use_dictionary=list(COLUMNS[:-1]),
            column_encoding={COLUMNS[-1]: "BYTE_STREAM_SPLIT"},
            write_page_checksum=True,
            write_statistics=list(COLUMNS[:-1]),
        )
    return path


def read_parquet(folder: Path) -> RecordColumns:
    """Read the records of a run from its Parquet file, in the order of writing.

    Raises:
        UserError: The file is damaged, or is not a records file of a run.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = parquet_path(folder)
    dictionary_type = pa.dictionary(pa.int32(), pa.string())
    try:
        table = pq.ParquetFile(path, page_checksum_verification=True).read(columns=list(COLUMNS[1:])).select(COLUMNS[1:])
        encoded = [table[name].cast(dictionary_type).combine_chunks() for name in ("metric", "domain")]
        encoded = [array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array for array in encoded]
        if any(column.null_count for column in table.columns):
            raise ValueError("it has cells without a value")
        indices = [_to_numpy(array.indices) for array in encoded]
        if any(
            len(index) and not 0 <= index.min() <= index.max() < len(array.dictionary)
            for index, array in zip(indices, encoded, strict=True)
        ):
            raise ValueError("it names metrics or domains that it does not hold")
        # Checksums of pages do not cover the headers of pages, so that a changed bit there can change what is read.
        digest = (table.schema.metadata or {}).get(DIGEST_KEY.encode())
        if digest is not None and digest != _digest_records(table).encode():
            raise ValueError("its digest is not that of its records")
        round, client = (_to_numpy(table[name].cast(pa.int32())) for name in ("round", "client"))
        value = _to_numpy(table["value"].cast(pa.float64()))
    except (pa.ArrowException, OSError, LookupError, TypeError, ValueError, AttributeError) as error:
        fix = (
            "remove it, and fedrift creates it again"
            if (folder / "records.jsonl").exists()
            else "import the study again, or restore a copy of it"
        )
        raise UserError(f"{path} is damaged, or is not the records file of a run ({format_error(error)}); {fix}") from error
    metric, domain = indices
    return RecordColumns(round, metric, domain, client, value, *(tuple(array.dictionary.to_pylist()) for array in encoded))


def _to_numpy(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Return a column of numbers without missing values. pyarrow's own ``to_numpy`` imports pandas, which takes longer than the rest."""
    array = column.combine_chunks() if hasattr(column, "chunks") else column
    return np.from_dlpack(array)


def _digest_records(table: pa.Table) -> str:
    """Return the SHA-256 of the columns of a records file but ``run``, whatever the order of their dictionaries."""
    import pyarrow as pa

    digest = sha256()
    for name in COLUMNS[1:]:
        column = table[name]
        if name in ("metric", "domain"):
            digest.update("\0".join(column.cast(pa.string()).to_pylist()).encode())
        else:
            digest.update(_to_numpy(column).astype(np.float64 if name == "value" else np.int32).tobytes())
    return digest.hexdigest()


def check_run_column(folder: Path) -> None:
    """Raise UserError if the Parquet file of a run holds the records of another run. Queries select records by this column."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    path = parquet_path(folder)
    if path.exists():
        run_ids = pc.unique(pq.ParquetFile(path).read(columns=["run"])["run"]).to_pylist()
        if run_ids and run_ids != [folder.name]:
            raise UserError(f"{path} holds records of run {', '.join(map(str, run_ids))[:80]}, not of run {folder.name}")


def has_value_statistics(path: Path) -> bool:
    """Return whether a records file has statistics of its values, as files of earlier versions of fedrift have."""
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(path)
    return any(metadata.row_group(group).column(COLUMNS.index("value")).is_stats_set for group in range(metadata.num_row_groups))


# Named arrays as one Parquet file, compressed without loss, with one row per array: name, dtype, shape, and the numbers in one of two
# columns. float32 numbers are split into byte streams (all first bytes, all second bytes, ...). This helps Zstandard, because exponents and
# signs repeat, while mantissas are noise.

# arrays of other dtypes use the second column, in which integers and booleans are exact up to 2^53
FLOAT32_COLUMN, FLOAT64_COLUMN = ("float32", "float64")
ARRAYS_RECOVERY_HINT = "Restore a copy of it; its round cannot be replayed without it."
ZSTD_LEVEL = 3  # level 9 saves only another 0.5 % on adapters


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray], metadata: dict[str, Any]) -> None:
    """Replace the file at ``path`` atomically by named arrays and metadata, with digests.

    Args:
        path: The file.
        arrays: Name -> array.
        metadata: Plain JSON.

    Raises:
        UserError: The disk is full, or the file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    def numbers(column: str) -> Any:
        dtype, in_column = np.dtype(column), [(array.dtype == np.float32) == (column == FLOAT32_COLUMN) for array in arrays.values()]
        rows = [array.astype(dtype, copy=False).ravel() if used else None for array, used in zip(arrays.values(), in_column, strict=True)]
        return pa.array(rows, pa.list_(pa.from_numpy_dtype(dtype)))

    metadata_json = json.dumps(metadata)
    table = pa.table(
        {
            "name": pa.array(list(arrays), pa.string()),
            "dtype": pa.array([array.dtype.name for array in arrays.values()], pa.string()),
            "shape": pa.array([list(array.shape) for array in arrays.values()], pa.list_(pa.int64())),
            FLOAT32_COLUMN: numbers(FLOAT32_COLUMN),
            FLOAT64_COLUMN: numbers(FLOAT64_COLUMN),
        }
    ).replace_schema_metadata({"meta": metadata_json, "digests": json.dumps(_compute_digests(metadata_json, arrays))})
    with replace_atomically(path, table.nbytes) as temporary:
        pq.write_table(
            table,
            temporary,
            compression="zstd",
            compression_level=ZSTD_LEVEL,
            use_dictionary=False,
            column_encoding={f"{FLOAT32_COLUMN}.list.element": "BYTE_STREAM_SPLIT"},
        )


def load_arrays(path: Path, *prefixes: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Load named arrays, in the order in which they were saved, and the metadata. Each array has its own memory.

    Args:
        path: A file that ``save_arrays`` wrote.
        prefixes: Load only arrays whose name begins with one of these prefixes; without prefixes load all.

    Raises:
        UserError: The file does not exist, is invalid, or an array does not match its digest.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise UserError(f"there is no file with arrays at {path}")
    try:
        table = pq.read_table(path)
        schema_metadata = table.schema.metadata
        metadata_json = schema_metadata[b"meta"].decode()
        metadata, stored_digests = json.loads(metadata_json), json.loads(schema_metadata.get(b"digests", b"null"))
        names, dtypes, shapes = (table[name].to_pylist() for name in ("name", "dtype", "shape"))
        arrays = {}
        for row, (name, dtype, shape) in enumerate(zip(names, dtypes, shapes, strict=True)):
            if not prefixes or name.startswith(prefixes):
                column = FLOAT32_COLUMN if dtype == FLOAT32_COLUMN else FLOAT64_COLUMN
                flat = table[column][row].values.to_numpy(zero_copy_only=False)
                arrays[name] = np.array(flat, dtype=dtype).reshape(shape)
        digests = _compute_digests(metadata_json, arrays)
        if stored_digests is not None and list(stored_digests) != ["", *names]:
            raise ValueError("its array names do not match its digests")
    except (pa.ArrowException, OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a file that fedrift wrote ({format_error(error)}). {ARRAYS_RECOVERY_HINT}") from error
    for name, digest in digests.items():
        check_digest(path, stored_digests and stored_digests[name], digest, ARRAYS_RECOVERY_HINT)
    return arrays, metadata


def _compute_digests(metadata: str, arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Return a digest of the metadata and one of each array, because often only some arrays of a file are read."""

    def iter_digests() -> Iterator[tuple[str, str]]:
        yield "", compute_digest(metadata, ())
        for name, array in arrays.items():
            description = f"{name} {array.dtype.name} {list(array.shape)}"
            yield name, compute_digest("", [(description, np.ascontiguousarray(array).reshape(-1).view(np.uint8))])

    return dict(iter_digests())
