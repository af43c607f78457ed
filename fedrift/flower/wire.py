"""The message format: trees of tensors as one block of safetensors, and everything else as JSON. Pickle is never used.

The content of a message is ``{"fedrift": {"trees": block}, "metadata": {"json": text}}``. The receiver knows the name, shape and
type of every tensor in advance. It checks the size of a block before it opens it, so a forged shape cannot allocate memory. Plain
Flower clients send arrays in numpy's format. These are parsed in this module, because ``numpy.load`` trusts the size in the header.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from numpy.lib import format as npy
from safetensors.torch import load, save

from ..core.errors import quote_value
from ..core.tree import Tree

PROTOCOL_VERSION = 2  # increases when the meaning of messages changes
HEADER_BYTES = 512  # maximum bytes for the name, type, shape and offset of one tensor
MAX_TEXT_BYTES = 1 << 16  # maximum length of the JSON of a message
MAX_NUMBER = 1e30  # maximum absolute value of a number in a message
MAX_INT = 1_000_000  # maximum whole number in a message, such as a round
TENSOR_FORMAT = "safetensors"
NPY_HEADER_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}  # by version of numpy's format
FLOAT_SIZES = (2, 4, 8)  # accepted bytes per number; torch has no longer floats


class MessageRejected(Exception):
    """Raised for a message that does not match the expected format; the text gives the reason."""


def pack_message(trees: Mapping[str, Tree], metadata: Mapping[str, Any]) -> RecordDict:
    """Build the content of a message.

    Args:
        trees: Trees of tensors by name; empty trees are omitted.
        metadata: Values that can be written as JSON.
    """
    leaves = {f"{part}/{name}": leaf.detach().cpu().contiguous().clone() for part, tree in trees.items() for name, leaf in tree.items()}
    data = save(leaves)
    block = Array(dtype=TENSOR_FORMAT, shape=(len(data),), stype=TENSOR_FORMAT, data=data)
    text = json.dumps({"protocol_version": PROTOCOL_VERSION, **metadata})
    return RecordDict({"fedrift": ArrayRecord({"trees": block}), "metadata": ConfigRecord({"json": text})})


def content_num_bytes(content: RecordDict) -> int:
    """Return the number of bytes of all tensors in a message."""
    return sum(len(array.data) for record in content.array_records.values() for array in record.values())


def read_metadata(content: RecordDict) -> dict[str, Any]:
    """Read the metadata of a message.

    Raises:
        MessageRejected: If the metadata is missing, too long, not a JSON object, or of another protocol version.
    """
    text = content.config_records["metadata"].get("json") if "metadata" in content.config_records else None
    if not isinstance(text, str):
        raise MessageRejected("it contains no metadata of fedrift")
    if len(text) > MAX_TEXT_BYTES:
        raise MessageRejected(f"its metadata has {len(text):,} bytes; at most {MAX_TEXT_BYTES:,} are allowed")
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError):
        raise MessageRejected("its metadata is not JSON") from None
    if not isinstance(metadata, dict):
        raise MessageRejected("its metadata is not a JSON object")
    if metadata.get("protocol_version") != PROTOCOL_VERSION:
        raise MessageRejected(
            f"it uses protocol version {metadata.get('protocol_version')!r}, but version {PROTOCOL_VERSION} is required: "
            "install the same version of fedrift on all machines"
        )
    return metadata


def read_trees(content: RecordDict, expected: Mapping[str, Tree]) -> dict[str, Tree]:
    """Read the trees of a message.

    Args:
        content: The content of the message.
        expected: Trees with the expected tensors; empty trees are allowed.

    Returns:
        Trees with the names, order, shapes and types of ``expected``.

    Raises:
        MessageRejected: If the tensors differ from the expected ones, are too large or cannot be read.
    """
    leaves = {f"{part}/{name}": leaf for part, tree in expected.items() for name, leaf in tree.items()}
    block = content.array_records["fedrift"].get("trees") if "fedrift" in content.array_records else None
    if not isinstance(block, Array) or block.stype != TENSOR_FORMAT:
        raise MessageRejected("it contains no tensors as safetensors")
    max_bytes = sum(leaf.nbytes for leaf in leaves.values()) + HEADER_BYTES * (len(leaves) + 1)
    if len(block.data) > max_bytes:
        raise MessageRejected(f"it contains {len(block.data):,} bytes of tensors; at most {max_bytes:,} are allowed")
    try:
        tensors = load(block.data)
    except Exception as error:  # forged bytes can cause any exception in the reader
        raise MessageRejected(f"its tensors cannot be read ({' '.join(str(error).split())[:200]})") from None
    check_names(tensors, leaves, "tensors")
    for name, leaf in leaves.items():
        if tensors[name].shape != leaf.shape or tensors[name].dtype != leaf.dtype:
            raise MessageRejected(f"{name} must be {describe_leaf(leaf)}, got {describe_leaf(tensors[name])}")
    # Tensors in a block may be unaligned in memory, where matrix products round differently. Clones are aligned.
    return {part: Tree({name: tensors[f"{part}/{name}"].clone() for name in tree}) for part, tree in expected.items()}


def read_number(metadata: Mapping[str, Any], name: str, minimum: float = -math.inf) -> float:
    """Read a number from the metadata of a message; NaN is allowed.

    Raises:
        MessageRejected: If the value is not a number, too small or too large.
    """
    value = metadata.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < minimum or abs(value) > MAX_NUMBER:
        bound = "" if minimum == -math.inf else f" of at least {minimum:g}"
        raise MessageRejected(f"{name} must be a number{bound}, got {quote_value(value)}")
    return float(value)


def read_int(metadata: Mapping[str, Any], name: str, minimum: int) -> int:
    """Read a whole number from the metadata of a message, such as a round.

    Raises:
        MessageRejected: If the value is not a whole number in the allowed range.
    """
    value = metadata.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= MAX_INT:
        raise MessageRejected(f"{name} must be a whole number from {minimum} to {MAX_INT:,}, got {quote_value(value)}")
    return value


def check_names(names: Mapping[str, Any], expected: Mapping[str, Any], kind: str) -> None:
    """Check that a message contains exactly the expected names.

    Raises:
        MessageRejected: If a name is missing or unexpected.
    """
    unmatched = sorted(names.keys() ^ expected.keys())
    if unmatched:
        rest = f" and {len(unmatched) - 3:,} more" if len(unmatched) > 3 else ""
        raise MessageRejected(f"its {kind} have missing or unexpected names: {', '.join(name[:80] for name in unmatched[:3])}{rest}")


def describe_leaf(leaf: torch.Tensor) -> str:
    """Return the type and shape of a tensor, e.g. ``float32 [1, 4]``."""
    return f"{str(leaf.dtype).removeprefix('torch.')} {list(leaf.shape)}"


# Messages of plain Flower: one array in numpy's format per tensor, without the leading axis of models.


def to_plain_arrays(tree: Tree) -> ArrayRecord:
    """Convert a model [1, ...] to the arrays that a plain Flower client or strategy expects."""
    return ArrayRecord({name: Array(leaf[0].detach().cpu().numpy()) for name, leaf in tree.items()})


def read_plain_arrays(record: Mapping[str, Array], expected: Tree) -> Tree:
    """Read a model [1, ...] from the arrays of a plain Flower message.

    Args:
        record: The arrays by name.
        expected: A model [1, ...] with the expected names, shapes and types.

    Raises:
        MessageRejected: If the arrays differ from the expected ones.
    """
    check_names(record, expected, "arrays")
    return Tree({name: read_array(name, record[name], leaf) for name, leaf in expected.items()})


def read_array(name: str, array: Array, like: torch.Tensor) -> torch.Tensor:
    """Read an array [...] in numpy's format as a tensor [1, ...].

    The header is used only if it has the expected shape. Any float type is accepted and converted to the type of ``like``, because
    Flower's strategies change float types when they aggregate.

    Raises:
        MessageRejected: If the array is not a float array of the expected shape.
    """
    shape = tuple(like.shape[1:])
    if array.stype != "numpy.ndarray" or len(array.data) > 8 * like.numel() + HEADER_BYTES:
        raise MessageRejected(f"{name} is not a numpy array of {like.numel():,} numbers")
    stream = io.BytesIO(array.data)
    try:
        dims, fortran, dtype = NPY_HEADER_READERS[npy.read_magic(stream)](stream)
    except Exception:  # the header is a Python expression, so parsing it can raise many kinds of errors
        raise MessageRejected(f"{name} is not a numpy array") from None
    data = array.data[stream.tell() :]
    if dims != shape or dtype.kind != "f" or dtype.itemsize not in FLOAT_SIZES or len(data) != like.numel() * dtype.itemsize:
        raise MessageRejected(
            f"{name} must be an array {list(shape)} of floats with 16, 32 or 64 bits, got {quote_value(str(dtype))} "
            f"{quote_value(list(dims))} in {len(data):,} bytes"
        )
    numbers = np.frombuffer(data, dtype=dtype).reshape(dims, order="F" if fortran else "C")
    return torch.from_numpy(numbers.astype(dtype.newbyteorder("="), order="C")).to(like.dtype).unsqueeze(0)
