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
from safetensors import SafetensorError
from safetensors.torch import load, save

from ..tree import Tree

WIRE = 1  # counts up when messages change what they mean
HEADER = 512  # bytes that a leaf's name, type, shape and place may take beside its numbers
TEXT = 1 << 16  # bytes that the JSON of a message may take
KIND = "safetensors"


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
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise Refused(f"its tensors cannot be read ({error})") from None
    if found.keys() != like.keys():
        odd = sorted(found.keys() ^ like.keys())
        raise Refused(f"its tensors have other names than agreed: {', '.join(odd[:3])}{' ...' if len(odd) > 3 else ''}")
    for name, leaf in like.items():
        if found[name].shape != leaf.shape or found[name].dtype != leaf.dtype:
            raise Refused(f"{name} must be {shape(leaf)}, and is {shape(found[name])}")
    # Numbers read from a block may lie at odd addresses, where matrix products round differently: cloned.
    return {part: Tree({name: found[f"{part}/{name}"].clone() for name in tree}) for part, tree in wanted.items()}


def number(told: Mapping[str, Any], name: str, least: float = -math.inf) -> float:
    """A number that a message says, NaN included."""
    value = told.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < least or math.isinf(value):
        bound = "" if least == -math.inf else f" of at least {least:g}"
        raise Refused(f"{name} must be a number{bound}, and is {str(value)[:40]!r}")
    return float(value)


def shape(leaf: torch.Tensor) -> str:
    return f"{str(leaf.dtype).removeprefix('torch.')} {list(leaf.shape)}"


# Plain Flower: arrays by leaf, as numpy writes them, without the axis of models.


def plain(tree: Tree) -> ArrayRecord:
    """A tree ``[1, ...]`` as a plain Flower client or strategy knows a model."""
    return ArrayRecord({name: Array(leaf[0].detach().cpu().numpy()) for name, leaf in tree.items()})


def read_plain(record: Mapping[str, Array], wanted: Tree) -> Tree:
    """The model ``[1, ...]`` that plain Flower sends, leaf by leaf as ``wanted`` is."""
    if record.keys() != wanted.keys():
        odd = sorted(record.keys() ^ wanted.keys())
        raise Refused(f"its arrays have other names than agreed: {', '.join(odd[:3])}{' ...' if len(odd) > 3 else ''}")
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
        version = npy.read_magic(stream)
        dims, fortran, dtype = npy.read_array_header_1_0(stream) if version == (1, 0) else npy.read_array_header_2_0(stream)
    except (ValueError, TypeError, SyntaxError, RecursionError):
        raise Refused(f"{name} is no numpy array") from None
    rest = array.data[stream.tell():]
    if dims != shape or dtype.kind != "f" or len(rest) != like.numel() * dtype.itemsize:
        raise Refused(f"{name} must be floats {list(shape)}, and is {dtype} {list(dims)} in {len(rest):,} bytes")
    numbers = np.frombuffer(rest, dtype=dtype).reshape(dims, order="F" if fortran else "C")
    return torch.from_numpy(numbers.astype(dtype.newbyteorder("="), order="C")).to(like.dtype).unsqueeze(0)
