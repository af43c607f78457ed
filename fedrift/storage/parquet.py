"""A run's records as one Parquet file: a fraction of the size, and readable by the column.

``records.jsonl`` is what a run is resumed from and stays the truth; ``records.parquet`` is made from it, at the run's end
or when somebody asks, and holds of rows that say the same thing the last one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import UserError
from ..core.records import RecordColumns
from . import jsonl
from .files import check_digest, compute_digest, format_error, replace_atomically

COLUMNS = ("run", "round", "metric", "domain", "client", "value")


def parquet_path(folder: Path) -> Path:
    return folder / "records.parquet"


def is_parquet_stale(folder: Path) -> bool:
    """Whether there are rows that the Parquet file does not have."""
    rows, made = folder / "records.jsonl", parquet_path(folder)
    if not rows.exists():
        return False
    return not made.exists() or made.stat().st_mtime_ns < rows.stat().st_mtime_ns


def write_parquet(folder: Path) -> Path:
    """Make ``records.parquet`` of a run's folder; the same rows always give the same bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    latest: dict[tuple[object, ...], float | None] = {}
    for row in jsonl.read_lines(folder / "records.jsonl"):
        latest[tuple(row[:4])] = row[4]
    of = list(zip(*latest, strict=True)) if latest else [(), (), (), ()]
    names = pa.dictionary(pa.int32(), pa.string())
    table = pa.table(
        {
            "run": pa.array([folder.name] * len(latest), pa.string()).cast(names),
            "round": pa.array(of[0], pa.int32()),
            "metric": pa.array(of[1], pa.string()).cast(names),
            "domain": pa.array(of[2], pa.string()).cast(names),
            "client": pa.array(of[3], pa.int32()),
            "value": pa.array([float("nan") if value is None else float(value) for value in latest.values()], pa.float64()),
        }
    )
    path = parquet_path(folder)
    with replace_atomically(path, table.nbytes) as part:
        pq.write_table(table, part, compression="zstd", write_page_checksum=True)
    return path


def read_parquet(folder: Path) -> RecordColumns:
    """The records of a run's Parquet file, in the order of writing. Raises UserError where it is damaged, or none of a run."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = parquet_path(folder)
    names = pa.dictionary(pa.int32(), pa.string())
    try:
        table = pq.ParquetFile(path, page_checksum_verification=True).read(columns=list(COLUMNS[1:])).select(COLUMNS[1:])
        coded = [table[name].cast(names).combine_chunks() for name in ("metric", "domain")]
        coded = [each.combine_chunks() if isinstance(each, pa.ChunkedArray) else each for each in coded]
        if any(column.null_count for column in table.columns):
            raise ValueError("it has cells without a value")
        round, client = (table[name].cast(pa.int32()).to_numpy() for name in ("round", "client"))
        value = table["value"].cast(pa.float64()).to_numpy()
    except (pa.ArrowException, OSError, LookupError, TypeError, ValueError, AttributeError) as error:
        way = (
            "remove it, and it is made again" if (folder / "records.jsonl").exists() else "import the study again, or put back a copy of it"
        )
        raise UserError(f"{path} is damaged, or is no file of a run's records ({format_error(error)}); {way}") from error
    metric, domain = (each.indices.to_numpy() for each in coded)
    return RecordColumns(round, metric, domain, client, value, *(tuple(each.dictionary.to_pylist()) for each in coded))


def check_run_column(folder: Path) -> None:
    """Raise UserError where a run's Parquet file holds the records of another run: queries find records by that column."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    path = parquet_path(folder)
    if path.exists():
        named = pc.unique(pq.ParquetFile(path).read(columns=["run"])["run"]).to_pylist()
        if named and named != [folder.name]:
            raise UserError(f"{path} holds records of run {', '.join(map(str, named))[:80]}, not of run {folder.name}")


# Named arrays of numbers as one Parquet file: compressed, bit for bit, and readable by any other reader of Parquet.
#
# Floats of four bytes are stored as byte streams (all first bytes, all second bytes ...), in which Zstandard finds what there is to
# find: exponents and signs repeat, mantissas are noise. One row an array: name, dtype, shape, and its numbers in one of two
# columns.

# the columns; integers and truth values are exact in the second, up to 2^53
FLOAT32_COLUMN, FLOAT64_COLUMN = ("float32", "float64")
ARRAYS_RECOVERY_HINT = "Without it its round cannot be replayed: put back a copy of it."
ZSTD_LEVEL = 3  # of Zstandard; 9 saves half a per cent more on adapters


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray], metadata: dict[str, Any]) -> None:
    """Replace what is at ``path``, whole or not at all, with a digest. ``meta`` is plain JSON. Raises UserError when the disk is
    full."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def numbers(column: str) -> Any:
        kind, own = np.dtype(column), [(array.dtype == np.float32) == (column == FLOAT32_COLUMN) for array in arrays.values()]
        rows = [array.astype(kind, copy=False).ravel() if mine else None for array, mine in zip(arrays.values(), own, strict=True)]
        return pa.array(rows, pa.list_(pa.from_numpy_dtype(kind)))

    text = json.dumps(metadata)
    table = pa.table(
        {
            "name": pa.array(list(arrays), pa.string()),
            "dtype": pa.array([array.dtype.name for array in arrays.values()], pa.string()),
            "shape": pa.array([list(array.shape) for array in arrays.values()], pa.list_(pa.int64())),
            FLOAT32_COLUMN: numbers(FLOAT32_COLUMN),
            FLOAT64_COLUMN: numbers(FLOAT64_COLUMN),
        }
    ).replace_schema_metadata({"meta": text, "digests": json.dumps(_compute_digests(text, arrays))})
    with replace_atomically(path, table.nbytes) as part:
        pq.write_table(
            table,
            part,
            compression="zstd",
            compression_level=ZSTD_LEVEL,
            use_dictionary=False,
            column_encoding={f"{FLOAT32_COLUMN}.list.element": "BYTE_STREAM_SPLIT"},
        )


def load_arrays(path: Path, *starts: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays, in the order in which they were saved, whose name begins with one of ``starts`` (all, if none is said), and
    the meta. Each has a memory of its own.

    Raises UserError where there are none, the file is not one of ``save_arrays``, or what is read does not match its digest.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise UserError(f"there are no numbers at {path}")
    try:
        table = pq.read_table(path)
        said = table.schema.metadata
        text = said[b"meta"].decode()
        meta, stored = json.loads(text), json.loads(said.get(b"digests", b"null"))
        names, kinds, shapes = (table[name].to_pylist() for name in ("name", "dtype", "shape"))
        arrays = {}
        for row, (name, kind, shape) in enumerate(zip(names, kinds, shapes, strict=True)):
            if not starts or name.startswith(starts):
                column = FLOAT32_COLUMN if kind == FLOAT32_COLUMN else FLOAT64_COLUMN
                flat = table[column][row].values.to_numpy(zero_copy_only=False)
                arrays[name] = np.array(flat, dtype=kind).reshape(shape)
        found = _compute_digests(text, arrays)
        if stored is not None and list(stored) != ["", *names]:
            raise ValueError("its names are not those that were stored")
    except (pa.ArrowException, OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a file that fedrift wrote ({format_error(error)}). {ARRAYS_RECOVERY_HINT}") from error
    for name, digest in found.items():
        check_digest(path, stored and stored[name], digest, ARRAYS_RECOVERY_HINT)
    return arrays, meta


def _compute_digests(metadata: str, arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """A digest of the meta, and one of each array: often only some arrays of a file are read."""

    def each() -> Iterator[tuple[str, str]]:
        yield "", compute_digest(metadata, ())
        for name, array in arrays.items():
            described = f"{name} {array.dtype.name} {list(array.shape)}"
            yield name, compute_digest("", [(described, np.ascontiguousarray(array).reshape(-1).view(np.uint8))])

    return dict(each())
