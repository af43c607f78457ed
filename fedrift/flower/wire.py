"""What travels: trees as one block of safetensors, everything else as JSON. No pickle, and nothing larger than was agreed.

A message's content is ``{"fedrift": {"trees": block}, "metadata": {"json": text}}``. Who receives knows beforehand which leaves
of which shape and type must come, so a block is measured before it is opened, and a shape that somebody made up allocates
nothing. (An array in numpy's own format says its size in a header that ``numpy.load`` believes; those of plain Flower clients
are read by hand here.)
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

PROTOCOL_VERSION = 2  # counts up when messages change what they mean
HEADER_BYTES = 512  # bytes that a leaf's name, type, shape and place may take beside its numbers
MAX_TEXT_BYTES = 1 << 16  # bytes that the JSON of a message may take
MAX_NUMBER = 1e30  # number that a message may say
MAX_INT = 1_000_000  # whole number, such as a round
TENSOR_FORMAT = "safetensors"
NPY_HEADER_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}  # of numpy's format, by version
FLOAT_SIZES = (2, 4, 8)  # bytes of the numbers that are read; torch has no longer ones


class MessageRejected(Exception):
    """A message that is not what was agreed; says why."""


def pack_message(trees: Mapping[str, Tree], metadata: Mapping[str, Any]) -> RecordDict:
    """The content of a message. Empty trees are left out."""
    leaves = {f"{part}/{name}": leaf.detach().cpu().contiguous().clone() for part, tree in trees.items() for name, leaf in tree.items()}
    data = save(leaves)
    block = Array(dtype=TENSOR_FORMAT, shape=(len(data),), stype=TENSOR_FORMAT, data=data)
    text = json.dumps({"protocol_version": PROTOCOL_VERSION, **metadata})
    return RecordDict({"fedrift": ArrayRecord({"trees": block}), "metadata": ConfigRecord({"json": text})})


def content_num_bytes(content: RecordDict) -> int:
    """Bytes of the numbers in a message."""
    return sum(len(array.data) for record in content.array_records.values() for array in record.values())


def read_metadata(content: RecordDict) -> dict[str, Any]:
    """What a message says beside its trees."""
    text = content.config_records["metadata"].get("json") if "metadata" in content.config_records else None
    if not isinstance(text, str):
        raise MessageRejected("it says nothing that fedrift understands")
    if len(text) > MAX_TEXT_BYTES:
        raise MessageRejected(f"it says {len(text):,} bytes; at most {MAX_TEXT_BYTES:,} are read")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise MessageRejected("what it says is not JSON") from None
    if not isinstance(found, dict):
        raise MessageRejected("what it says is no JSON object")
    if found.get("protocol_version") != PROTOCOL_VERSION:
        raise MessageRejected(
            f"it speaks version {found.get('protocol_version')!r} of fedrift's messages, here is version "
            f"{PROTOCOL_VERSION}: install the same fedrift"
        )
    return found


def read_trees(content: RecordDict, expected: Mapping[str, Tree]) -> dict[str, Tree]:
    """The trees of a message: exactly the leaves of ``expected``, in its order, each of the same shape and type."""
    like = {f"{part}/{name}": leaf for part, tree in expected.items() for name, leaf in tree.items()}
    block = content.array_records["fedrift"].get("trees") if "fedrift" in content.array_records else None
    if not isinstance(block, Array) or block.stype != TENSOR_FORMAT:
        raise MessageRejected("it brings no tensors as safetensors")
    most = sum(leaf.nbytes for leaf in like.values()) + HEADER_BYTES * (len(like) + 1)
    if len(block.data) > most:
        raise MessageRejected(f"it brings {len(block.data):,} bytes; {most:,} at most were agreed")
    try:
        found = load(block.data)
    except Exception as error:  # whatever a reader makes of bytes that somebody made up
        raise MessageRejected(f"its tensors cannot be read ({' '.join(str(error).split())[:200]})") from None
    check_names(found, like, "tensors")
    for name, leaf in like.items():
        if found[name].shape != leaf.shape or found[name].dtype != leaf.dtype:
            raise MessageRejected(f"{name} must be {describe_leaf(leaf)}, and is {describe_leaf(found[name])}")
    # Numbers read from a block may lie at odd addresses, where matrix products round differently: cloned.
    return {part: Tree({name: found[f"{part}/{name}"].clone() for name in tree}) for part, tree in expected.items()}


def read_number(metadata: Mapping[str, Any], name: str, minimum: float = -math.inf) -> float:
    """A number that a message says, NaN included."""
    value = metadata.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < minimum or abs(value) > MAX_NUMBER:
        bound = "" if minimum == -math.inf else f" of at least {minimum:g}"
        raise MessageRejected(f"{name} must be a number{bound}, and is {quote_value(value)}")
    return float(value)


def read_int(metadata: Mapping[str, Any], name: str, minimum: int) -> int:
    """A whole number that a message says, such as a round's."""
    value = metadata.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= MAX_INT:
        raise MessageRejected(f"{name} must be a whole number from {minimum} to {MAX_INT:,}, and is {quote_value(value)}")
    return value


def check_names(names: Mapping[str, Any], expected: Mapping[str, Any], kind: str) -> None:
    """Raise MessageRejected unless the names are those that were agreed."""
    odd = sorted(names.keys() ^ expected.keys())
    if odd:
        more = f" and {len(odd) - 3:,} more" if len(odd) > 3 else ""
        raise MessageRejected(f"its {kind} have other names than agreed: {', '.join(name[:80] for name in odd[:3])}{more}")


def describe_leaf(leaf: torch.Tensor) -> str:
    return f"{str(leaf.dtype).removeprefix('torch.')} {list(leaf.shape)}"


# Plain Flower: arrays by leaf, as numpy writes them, without the axis of models.


def to_stock_arrays(tree: Tree) -> ArrayRecord:
    """A tree ``[1, ...]`` as a plain Flower client or strategy knows a model."""
    return ArrayRecord({name: Array(leaf[0].detach().cpu().numpy()) for name, leaf in tree.items()})


def read_stock_arrays(record: Mapping[str, Array], expected: Tree) -> Tree:
    """The model ``[1, ...]`` that plain Flower sends, leaf by leaf as ``expected`` is."""
    check_names(record, expected, "arrays")
    return Tree({name: read_array(name, record[name], leaf) for name, leaf in expected.items()})


def read_array(name: str, array: Array, like: torch.Tensor) -> torch.Tensor:
    """One array ``[...]`` in numpy's format as a leaf ``[1, ...]``; its header is believed only where it says what is wanted.

    Flower's strategies widen arrays as they aggregate, so any float is taken and brought back to the leaf's type.
    """
    shape = tuple(like.shape[1:])
    if array.stype != "numpy.ndarray" or len(array.data) > 8 * like.numel() + HEADER_BYTES:
        raise MessageRejected(f"{name} is no numpy array of {like.numel():,} numbers")
    stream = io.BytesIO(array.data)
    try:
        dims, fortran, dtype = NPY_HEADER_READERS[npy.read_magic(stream)](stream)
    except Exception:  # a header is an expression of Python, and its tokens, syntax and types have errors of all kinds
        raise MessageRejected(f"{name} is no numpy array") from None
    rest = array.data[stream.tell() :]
    if dims != shape or dtype.kind != "f" or dtype.itemsize not in FLOAT_SIZES or len(rest) != like.numel() * dtype.itemsize:
        raise MessageRejected(
            f"{name} must be floats {list(shape)} of 16, 32 or 64 bits, and is {quote_value(str(dtype))} "
            f"{quote_value(list(dims))} in {len(rest):,} bytes"
        )
    numbers = np.frombuffer(rest, dtype=dtype).reshape(dims, order="F" if fortran else "C")
    return torch.from_numpy(numbers.astype(dtype.newbyteorder("="), order="C")).to(like.dtype).unsqueeze(0)
