"""Texts as a language model's own states half-way up: an encoder that every federation has already.

The mean over a text's tokens of the states after the middle block. States of language models lie in a narrow cone, whatever
the text says (Ethayarajh, EMNLP 2019, arXiv:1909.00512), so the mean over all texts and their first principal direction are
taken out (Mu & Viswanath, "All-but-the-Top", ICLR 2018, arXiv:1702.01417). Both are told from all clients' texts together,
which a deployment would have to sum up securely. Of few topics the first direction may be one
that tells them apart; then groups are lost with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .tune import blocks_of

TOKENS = 256  # of a text that are read
BATCH = 16


@dataclass(frozen=True, eq=False)
class States:
    """The frozen encoder of one language model; ``name`` is the model's, for the cache."""

    name: str
    network: Any
    tokenizer: Any
    window: int

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """[D, H], without what all of them share."""
        return without_common(np.concatenate([self.some(texts[start:start + BATCH]) for start in range(0, len(texts), BATCH)]))

    @torch.no_grad()
    def some(self, texts: Sequence[str]) -> np.ndarray:
        """Masked means of the middle block's states, [len(texts), H] float64."""
        ids = [self.tokenizer(text)["input_ids"][:min(TOKENS, self.window)] for text in texts]
        width = max(1, max(map(len, ids)))
        tokens, keep = torch.zeros(len(ids), width, dtype=torch.long), torch.zeros(len(ids), width, dtype=torch.bool)
        for row, line in enumerate(ids):
            tokens[row, :len(line)], keep[row, :len(line)] = torch.tensor(line, dtype=torch.long), True
        _, blocks = blocks_of(self.network)
        seen: list[Tensor] = []
        hook = blocks[max(0, len(blocks) // 2 - 1)].register_forward_hook(
            lambda module, args, out: seen.append(out[0] if isinstance(out, tuple) else out))
        try:  # padding lies to the right: what is before it does not see it
            self.network.base_model(input_ids=tokens.to(next(self.network.parameters()).device), use_cache=False)
        finally:
            hook.remove()
        share = keep / keep.sum(1, keepdim=True).clamp_min(1)  # [D, T]
        return torch.einsum("dth,dt->dh", seen[0].double().cpu(), share.double()).numpy()


def without_common(vectors: np.ndarray) -> np.ndarray:
    """The vectors [D, H] less their mean and their first principal direction."""
    centred = vectors - vectors.mean(axis=0)
    if len(vectors) < 3:  # two points have one direction, and it is all that tells them apart
        return np.asarray(centred)
    _, axes = np.linalg.eigh(centred.T @ centred)
    return np.asarray(centred - np.outer(centred @ axes[:, -1], axes[:, -1]))


__all__ = ["States", "without_common"]
