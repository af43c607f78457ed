"""Tensors on disk as safetensors: no pickle, written whole or not at all. The store's one file with torch."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import UserError
from .files import replacing

HEADER = 128  # bytes of name, shape and place that a leaf takes beside its numbers, about


def save_state(path: Path, tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> None:
    """Replace what is at ``path`` by named tensors and ``meta`` (plain JSON; it holds the round).

    Raises UserError when the disk is full; what was there before is then still there.
    """
    plain = _plain(tensors)
    size = sum(leaf.nbytes + HEADER for leaf in plain.values())
    with replacing(path, size) as part:
        try:
            save_file(plain, part, metadata={"meta": json.dumps(meta)})
        except SafetensorError as error:  # safetensors wraps what the system says into words
            if f"os error {errno.ENOSPC}" in str(error) or f"os error {errno.EDQUOT}" in str(error):
                raise OSError(errno.ENOSPC, str(error)) from error
            raise


def load_state(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors, on the CPU, and the meta of ``save_state``.

    Raises UserError where there is no state, or it is not one.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
            return tensors, json.loads((file.metadata() or {})["meta"])
    except FileNotFoundError:
        raise UserError(f"there is no state at {path}") from None
    except (SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{path} is not a state that fedrift wrote ({error}); "
                        f"remove the run's folder to begin it again") from error


def _plain(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """On the CPU, contiguous, each with a memory of its own: the format knows no views."""
    plain: dict[str, torch.Tensor] = {}
    taken: set[int] = set()
    for name, leaf in tensors.items():
        leaf = leaf.detach().cpu().contiguous()
        memory = leaf.untyped_storage().data_ptr()
        plain[name] = leaf.clone() if memory in taken else leaf
        taken.add(memory)
    return plain
