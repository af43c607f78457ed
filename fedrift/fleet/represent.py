"""How a language model represents a sequence: the mean of its last hidden states over what is not padding."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..tree import Tree


def mean_states(hidden: Callable[[Tree, Tensor], Tensor], params: Tree, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """``z [C, B, H]``, and which sequences hold anything, ``[C, B]``. ``hidden``: ``(params, tokens) -> [C, B, T, H]``."""
    states, keep = hidden(params, batch["tokens"]), batch["keep"]
    share = keep / keep.sum(2, keepdim=True).clamp_min(1)  # [C, B, T]
    return (states * share.unsqueeze(3).to(states)).sum(2), keep.any(2)


__all__ = ["mean_states"]
