"""Named arrays of numbers as one Parquet file: compressed, bit for bit, and readable by any other reader of Parquet.

Floats of four bytes are stored as byte streams (all first bytes, all second bytes ...), in which Zstandard finds what there is to
find: exponents and signs repeat, mantissas are noise. One row an array: name, dtype, shape, and its numbers in one of two
columns.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from .files import check_digest, compute_digest, in_words, replacing

SINGLE, DOUBLE = "float32", "float64"  # the columns; integers and truth values are exact in the second, up to 2^53
WAY_OUT = "Without it its round cannot be replayed: put back a copy of it."
LEVEL = 3  # of Zstandard; 9 saves half a per cent more on adapters


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray], meta: dict[str, Any]) -> None:
    """Replace what is at ``path``, whole or not at all, with a digest. ``meta`` is plain JSON. Raises UserError when the disk is
    full."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def numbers(column: str) -> Any:
        kind, own = np.dtype(column), [(array.dtype == np.float32) == (column == SINGLE) for array in arrays.values()]
        rows = [array.astype(kind, copy=False).ravel() if mine else None
                for array, mine in zip(arrays.values(), own, strict=True)]
        return pa.array(rows, pa.list_(pa.from_numpy_dtype(kind)))

    text = json.dumps(meta)
    table = pa.table({
        "name": pa.array(list(arrays), pa.string()),
        "dtype": pa.array([array.dtype.name for array in arrays.values()], pa.string()),
        "shape": pa.array([list(array.shape) for array in arrays.values()], pa.list_(pa.int64())),
        SINGLE: numbers(SINGLE), DOUBLE: numbers(DOUBLE),
    }).replace_schema_metadata({"meta": text, "digests": json.dumps(_digests(text, arrays))})
    with replacing(path, table.nbytes) as part:
        pq.write_table(table, part, compression="zstd", compression_level=LEVEL, use_dictionary=False,
                       column_encoding={f"{SINGLE}.list.element": "BYTE_STREAM_SPLIT"})


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
                column = SINGLE if kind == SINGLE else DOUBLE
                flat = table[column][row].values.to_numpy(zero_copy_only=False)
                arrays[name] = np.array(flat, dtype=kind).reshape(shape)
        found = _digests(text, arrays)
        if stored is not None and list(stored) != ["", *names]:
            raise ValueError("its names are not those that were stored")
    except (pa.ArrowException, OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a file that fedrift wrote ({in_words(error)}). {WAY_OUT}") from error
    for name, digest in found.items():
        check_digest(path, stored and stored[name], digest, WAY_OUT)
    return arrays, meta


def _digests(meta: str, arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """A digest of the meta, and one of each array: often only some arrays of a file are read."""
    def each() -> Iterator[tuple[str, str]]:
        yield "", compute_digest(meta, ())
        for name, array in arrays.items():
            described = f"{name} {array.dtype.name} {list(array.shape)}"
            yield name, compute_digest("", [(described, np.ascontiguousarray(array).reshape(-1).view(np.uint8))])

    return dict(each())
