"""Named arrays of numbers as one Parquet file: compressed, bit for bit, and readable by any other reader of Parquet.

Floats of four bytes are stored as byte streams (all first bytes, all second bytes ...), in which Zstandard finds what there is to
find: exponents and signs repeat, mantissas are noise. One row an array: name, dtype, shape, and its numbers in one of two
columns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from .files import replacing

SINGLE, DOUBLE = "float32", "float64"  # the columns; integers and truth values are exact in the second, up to 2^53
LEVEL = 3  # of Zstandard; 9 saves half a per cent more on adapters


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray], meta: dict[str, Any]) -> None:
    """Replace what is at ``path``, whole or not at all. ``meta`` is plain JSON. Raises UserError when the disk is full."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def numbers(column: str) -> Any:
        kind, own = np.dtype(column), [(array.dtype == np.float32) == (column == SINGLE) for array in arrays.values()]
        rows = [array.astype(kind, copy=False).ravel() if mine else None
                for array, mine in zip(arrays.values(), own, strict=True)]
        return pa.array(rows, pa.list_(pa.from_numpy_dtype(kind)))

    table = pa.table({
        "name": pa.array(list(arrays), pa.string()),
        "dtype": pa.array([array.dtype.name for array in arrays.values()], pa.string()),
        "shape": pa.array([list(array.shape) for array in arrays.values()], pa.list_(pa.int64())),
        SINGLE: numbers(SINGLE), DOUBLE: numbers(DOUBLE),
    }).replace_schema_metadata({"meta": json.dumps(meta)})
    with replacing(path, table.nbytes) as part:
        pq.write_table(table, part, compression="zstd", compression_level=LEVEL, use_dictionary=False,
                       column_encoding={f"{SINGLE}.list.element": "BYTE_STREAM_SPLIT"})


def load_arrays(path: Path, *starts: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays, in the order in which they were saved, whose name begins with one of ``starts`` (all, if none is said), and
    the meta. Each has a memory of its own.

    Raises UserError where there are none, or the file is not one of ``save_arrays``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        meta = json.loads(table.schema.metadata[b"meta"])
        names, kinds, shapes = (table[name].to_pylist() for name in ("name", "dtype", "shape"))
        arrays = {}
        for row, (name, kind, shape) in enumerate(zip(names, kinds, shapes, strict=True)):
            if not starts or name.startswith(starts):
                column = SINGLE if kind == SINGLE else DOUBLE
                flat = table[column][row].values.to_numpy(zero_copy_only=False)
                arrays[name] = np.array(flat, dtype=kind).reshape(shape)
        return arrays, meta
    except FileNotFoundError:
        raise UserError(f"there are no numbers at {path}") from None
    except (pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a file that fedrift wrote ({error}); without it its round cannot be replayed") from error
