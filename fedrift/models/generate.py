"""Continuations of many prompts at once, with a cache of keys and values, of one model that a network wears."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import TopPLogitsWarper

from ..tree import Tree
from .stacked import StackedModel

Choose = Callable[[Tensor], Tensor]
"""Logits ``[B, V]`` -> the next token of each, ``[B, 1]``."""


def likeliest(logits: Tensor) -> Tensor:
    return logits.argmax(1, keepdim=True)


@dataclass(frozen=True, eq=False)
class Nucleus:
    """Drawn from the fewest tokens that hold ``mass`` of the probability: Holtzman, Buys, Du, Forbes & Choi, "The Curious Case
    of Neural Text Degeneration", ICLR 2020, arXiv:1904.09751. ``draw`` is on the CPU, whatever the model is on."""

    draw: torch.Generator
    mass: float = 0.9

    def __call__(self, logits: Tensor) -> Tensor:
        kept = TopPLogitsWarper(self.mass)(None, logits.float().cpu())  # type: ignore[arg-type]
        return torch.multinomial(kept.softmax(1), 1, generator=self.draw).to(logits.device)


@torch.no_grad()
def continued(model: StackedModel, params: Tree, prompts: Tensor, count: int, choose: Choose = likeliest) -> Tensor:
    """``count`` further tokens of each prompt, one after the other: ``[B, P] -> [B, count]``.

    ``params [1, ...]``. All prompts are equally long: nothing is padded. An end mark ends nothing.
    """
    found, seen, cache = [], prompts, None
    model.outfit.leaves, model.outfit.rows = params, len(prompts)
    try:
        for _ in range(count):
            out = model.network.base_model(input_ids=seen, use_cache=True, past_key_values=cache)  # type: ignore[operator]
            cache = out.past_key_values
            states = out.last_hidden_state[:, -1]
            seen = choose(model.to_logits(states, *head_of_first(model, params, states.dtype)))
            found.append(seen)
    finally:
        model.outfit.leaves = Tree()
    return torch.cat(found, 1) if found else prompts[:, :0]


def head_of_first(model: StackedModel, params: Tree, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """The matrix and the bias of the head of the only model."""
    weight, bias = model.head_of(params, dtype)
    own = model.head_leaf is not None
    return (weight[0] if own else weight).to(dtype), bias[0] if own and bias is not None else bias
