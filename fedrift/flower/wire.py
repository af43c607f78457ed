"""What travels: trees as one block of safetensors, everything else as JSON. No pickle, and nothing larger than was agreed.

A message's content is ``{"fedrift": {"trees": block}, "said": {"json": text}}``. Who receives knows beforehand which leaves of
which shape and type must come, so a block is measured before it is opened, and a shape that somebody made up allocates nothing.
(An array in numpy's own format says its size in a header that ``numpy.load`` believes; those of plain Flower clients are
read by hand here.)
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

from ..errors import quote
from ..tree import Tree

WIRE = 1  # counts up when messages change what they mean
HEADER = 512  # bytes that a leaf's name, type, shape and place may take beside its numbers
TEXT = 1 << 16  # bytes that the JSON of a message may take
LARGEST = 1e30  # number that a message may say
MOST = 1_000_000  # whole number, such as a round
KIND = "safetensors"
HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}  # of numpy's format, by version
FLOATS = (2, 4, 8)  # bytes of the numbers that are read; torch has no longer ones


class Refused(Exception):
    """A message that is not what was agreed; says why."""


def write(trees: Mapping[str, Tree], said: Mapping[str, Any]) -> RecordDict:
    """The content of a message. Empty trees are left out."""
    leaves = {f"{part}/{name}": leaf.detach().cpu().contiguous().clone()
              for part, tree in trees.items() for name, leaf in tree.items()}
    data = save(leaves)
    block = Array(dtype=KIND, shape=(len(data),), stype=KIND, data=data)
    text = json.dumps({"wire": WIRE, **said})
    return RecordDict({"fedrift": ArrayRecord({"trees": block}), "said": ConfigRecord({"json": text})})


def size(content: RecordDict) -> int:
    """Bytes of the numbers in a message."""
    return sum(len(array.data) for record in content.array_records.values() for array in record.values())


def said(content: RecordDict) -> dict[str, Any]:
    """What a message says beside its trees."""
    text = content.config_records["said"].get("json") if "said" in content.config_records else None
    if not isinstance(text, str):
        raise Refused("it says nothing that fedrift understands")
    if len(text) > TEXT:
        raise Refused(f"it says {len(text):,} bytes; at most {TEXT:,} are read")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise Refused("what it says is not JSON") from None
    if not isinstance(found, dict):
        raise Refused("what it says is no JSON object")
    if found.get("wire") != WIRE:
        raise Refused(f"it speaks version {found.get('wire')!r} of fedrift's messages, here is version {WIRE}: "
                      "install the same fedrift")
    return found


def read(content: RecordDict, wanted: Mapping[str, Tree]) -> dict[str, Tree]:
    """The trees of a message: exactly the leaves of ``wanted``, in its order, each of the same shape and type."""
    like = {f"{part}/{name}": leaf for part, tree in wanted.items() for name, leaf in tree.items()}
    block = content.array_records["fedrift"].get("trees") if "fedrift" in content.array_records else None
    if not isinstance(block, Array) or block.stype != KIND:
        raise Refused("it brings no tensors as safetensors")
    most = sum(leaf.nbytes for leaf in like.values()) + HEADER * (len(like) + 1)
    if len(block.data) > most:
        raise Refused(f"it brings {len(block.data):,} bytes; {most:,} at most were agreed")
    try:
        found = load(block.data)
    except Exception as error:  # whatever a reader makes of bytes that somebody made up
        raise Refused(f"its tensors cannot be read ({' '.join(str(error).split())[:200]})") from None
    check_names(found, like, "tensors")
    for name, leaf in like.items():
        if found[name].shape != leaf.shape or found[name].dtype != leaf.dtype:
            raise Refused(f"{name} must be {shape(leaf)}, and is {shape(found[name])}")
    # Numbers read from a block may lie at odd addresses, where matrix products round differently: cloned.
    return {part: Tree({name: found[f"{part}/{name}"].clone() for name in tree}) for part, tree in wanted.items()}


def number(told: Mapping[str, Any], name: str, least: float = -math.inf) -> float:
    """A number that a message says, NaN included."""
    value = told.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < least or abs(value) > LARGEST:
        bound = "" if least == -math.inf else f" of at least {least:g}"
        raise Refused(f"{name} must be a number{bound}, and is {quote(value)}")
    return float(value)


def whole(told: Mapping[str, Any], name: str, least: int) -> int:
    """A whole number that a message says, such as a round's."""
    value = told.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MOST:
        raise Refused(f"{name} must be a whole number from {least} to {MOST:,}, and is {quote(value)}")
    return value


def check_names(found: Mapping[str, Any], wanted: Mapping[str, Any], things: str) -> None:
    """Raise Refused unless the names are those that were agreed."""
    odd = sorted(found.keys() ^ wanted.keys())
    if odd:
        more = f" and {len(odd) - 3:,} more" if len(odd) > 3 else ""
        raise Refused(f"its {things} have other names than agreed: {', '.join(name[:80] for name in odd[:3])}{more}")


def shape(leaf: torch.Tensor) -> str:
    return f"{str(leaf.dtype).removeprefix('torch.')} {list(leaf.shape)}"


# Plain Flower: arrays by leaf, as numpy writes them, without the axis of models.


def plain(tree: Tree) -> ArrayRecord:
    """A tree ``[1, ...]`` as a plain Flower client or strategy knows a model."""
    return ArrayRecord({name: Array(leaf[0].detach().cpu().numpy()) for name, leaf in tree.items()})


def read_plain(record: Mapping[str, Array], wanted: Tree) -> Tree:
    """The model ``[1, ...]`` that plain Flower sends, leaf by leaf as ``wanted`` is."""
    check_names(record, wanted, "arrays")
    return Tree({name: read_array(name, record[name], leaf) for name, leaf in wanted.items()})


def read_array(name: str, array: Array, like: torch.Tensor) -> torch.Tensor:
    """One array ``[...]`` in numpy's format as a leaf ``[1, ...]``; its header is believed only where it says what is wanted.

    Flower's strategies widen arrays as they aggregate, so any float is taken and brought back to the leaf's type.
    """
    shape = tuple(like.shape[1:])
    if array.stype != "numpy.ndarray" or len(array.data) > 8 * like.numel() + HEADER:
        raise Refused(f"{name} is no numpy array of {like.numel():,} numbers")
    stream = io.BytesIO(array.data)
    try:
        dims, fortran, dtype = HEADERS[npy.read_magic(stream)](stream)
    except Exception:  # a header is an expression of Python, and its tokens, syntax and types have errors of all kinds
        raise Refused(f"{name} is no numpy array") from None
    rest = array.data[stream.tell():]
    if dims != shape or dtype.kind != "f" or dtype.itemsize not in FLOATS or len(rest) != like.numel() * dtype.itemsize:
        raise Refused(f"{name} must be floats {list(shape)} of 16, 32 or 64 bits, and is {quote(str(dtype))} {quote(list(dims))} "
                      f"in {len(rest):,} bytes")
    numbers = np.frombuffer(rest, dtype=dtype).reshape(dims, order="F" if fortran else "C")
    return torch.from_numpy(numbers.astype(dtype.newbyteorder("="), order="C")).to(like.dtype).unsqueeze(0)
