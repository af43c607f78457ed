"""Greedy continuations of many prompts at once, with a cache of keys and values, of one model that a network wears."""

from __future__ import annotations

import torch
from torch import Tensor

from ..tree import Tree
from .stacked import StackedModel


@torch.no_grad()
def continued(model: StackedModel, params: Tree, prompts: Tensor, count: int) -> Tensor:
    """The ``count`` likeliest next tokens, one after the other, of each prompt: ``[B, P] -> [B, count]``.

    ``params [1, ...]``. All prompts are equally long: nothing is padded. An end mark ends nothing.
    """
    head = model.head.weight if model.head_leaf is None else params[model.head_leaf][0]
    found, seen, cache = [], prompts, None
    model.outfit.leaves, model.outfit.rows = params, len(prompts)
    try:
        for _ in range(count):
            out = model.network.base_model(input_ids=seen, use_cache=True, past_key_values=cache)  # type: ignore[operator]
            cache = out.past_key_values
            seen = (out.last_hidden_state[:, -1] @ head.T.to(out.last_hidden_state.dtype)).argmax(1, keepdim=True)  # [B, 1]
            found.append(seen)
    finally:
        model.outfit.leaves = Tree()
    return torch.cat(found, 1) if found else prompts[:, :0]
