"""A run's records as one Parquet file: a fraction of the size, and readable by the column.

``records.jsonl`` is what a run is resumed from and stays the truth; ``records.parquet`` is made from it, at the run's end
or when somebody asks, and holds of rows that say the same thing the last one.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError
from ..records import Columns
from . import lines
from .files import in_words, replacing

COLUMNS = ("run", "round", "metric", "domain", "client", "value")


def parquet_path(folder: Path) -> Path:
    return folder / "records.parquet"


def stale(folder: Path) -> bool:
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
    for row in lines.read(folder / "records.jsonl"):
        latest[tuple(row[:4])] = row[4]
    of = list(zip(*latest, strict=True)) if latest else [(), (), (), ()]
    names = pa.dictionary(pa.int32(), pa.string())
    table = pa.table({
        "run": pa.array([folder.name] * len(latest), pa.string()).cast(names),
        "round": pa.array(of[0], pa.int32()),
        "metric": pa.array(of[1], pa.string()).cast(names),
        "domain": pa.array(of[2], pa.string()).cast(names),
        "client": pa.array(of[3], pa.int32()),
        "value": pa.array([float("nan") if value is None else float(value) for value in latest.values()], pa.float64()),
    })
    path = parquet_path(folder)
    with replacing(path, table.nbytes) as part:
        pq.write_table(table, part, compression="zstd", write_page_checksum=True)
    return path


def read_parquet(folder: Path) -> Columns:
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
        way = ("remove it, and it is made again" if (folder / "records.jsonl").exists() else
               "import the study again, or put back a copy of it")
        raise UserError(f"{path} is damaged, or is no file of a run's records ({in_words(error)}); {way}") from error
    metric, domain = (each.indices.to_numpy() for each in coded)
    return Columns(round, metric, domain, client, value, *(tuple(each.dictionary.to_pylist()) for each in coded))
