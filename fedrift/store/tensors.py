"""Tensors on disk as safetensors: no pickle, written whole or not at all, with a digest. The store's one file with torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import UserError
from .files import check_digest, compute_digest, in_words, replacing

HEADER = 128  # bytes of name, shape and place that a leaf takes beside its numbers, about


DIGEST = "sha256"
DAMAGES = (SafetensorError, KeyError, ValueError, OSError, RecursionError)
WAY_OUT = "Put back a copy of it, or begin the run again (`fedrift run --fresh`, or remove its folder)."


def save_state(path: Path, tensors: Mapping[str, torch.Tensor], meta: dict[str, Any]) -> str:
    """Replace what is at ``path`` by named tensors and ``meta`` (plain JSON; it holds the round), with a digest of both.

    Returns:
        The digest. A file that is made of several can keep those of the others in its own ``meta``, for ``load_state``.

    Raises:
        UserError: The disk is full, or ``path`` cannot be written; what was there before is then still there.
    """
    plain = _plain(tensors)
    size = sum(leaf.nbytes + HEADER for leaf in plain.values())
    digest = compute_digest(json.dumps(meta), _described(plain))
    text = json.dumps({**meta, DIGEST: digest})  # under one key: safetensors writes several in any order
    with replacing(path, size) as part:
        try:
            save_file(plain, part, metadata={"meta": text})
        except SafetensorError as error:  # safetensors wraps what the system says into words
            if said := re.search(r"os error (\d+)", str(error)):
                raise OSError(int(said[1]), str(error)) from error
            raise
    return digest


def load_state(path: Path, digest: str | None = None) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors, on the CPU, and the meta of ``save_state``.

    Args:
        path: The file.
        digest: What ``save_state`` returned, where another file remembers it.

    Raises:
        UserError: There is no state, it is none, or its contents do not match its digest, or ``digest``.
    """
    try:
        with safe_open(_file(path), framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            meta, stored = _take_apart(file.metadata())
    except DAMAGES as error:
        raise _no_state(path, error) from error
    found = compute_digest(json.dumps(meta), _described(tensors))
    check_digest(path, stored, found, WAY_OUT)
    check_digest(path, digest, found, WAY_OUT)
    return tensors, meta


def read_meta(path: Path) -> tuple[dict[str, Any], str | None]:
    """The meta of ``save_state`` and the stored digest, without the tensors; no digest in a file of an older fedrift."""
    try:
        with safe_open(_file(path), framework="pt", device="cpu") as file:
            return _take_apart(file.metadata())
    except DAMAGES as error:
        raise _no_state(path, error) from error


def _take_apart(metadata: dict[str, str] | None) -> tuple[dict[str, Any], str | None]:
    """The meta, and the digest that was stored in it."""
    said = json.loads((metadata or {})["meta"])
    if not isinstance(said, dict):
        raise ValueError(f"its meta is {str(said)[:80]!r}")
    digest = said.pop(DIGEST, None)
    return said, None if digest is None else str(digest)


def _no_state(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is not a state that fedrift wrote ({in_words(error)}). {WAY_OUT}")


def _file(path: Path) -> Path:
    """The path, if a file is there."""
    if not path.exists():
        raise UserError(f"there is no state at {path}")
    if not path.is_file():
        raise UserError(f"{path} is a folder where a state has to be. {WAY_OUT}")
    return path


def _described(tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, Any]]:
    """Name, type and shape, and the bytes of each leaf, by name."""
    for name in sorted(tensors):
        leaf = tensors[name]  # contiguous, but one element may have a stride of 0
        flat = leaf.as_strided((leaf.numel(),), (1,))
        yield f"{name} {leaf.dtype} {list(leaf.shape)}", flat.view(torch.uint8).numpy()


def _plain(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """On the CPU, contiguous, each with a memory of its own: the format knows no views."""
    plain: dict[str, torch.Tensor] = {}
    taken: set[int] = set()
    for name, leaf in tensors.items():
        leaf = leaf.detach().cpu().contiguous()
        memory = leaf.untyped_storage().data_ptr()
        plain[name] = leaf.clone() if memory in taken else leaf
        taken.add(memory)
    return plain
