"""What goes on inside a network while clients wear it: the states after each block, and where each head looks.

Both are seen layer by layer in one forward pass, by hooks that are gone after it: nothing of a layer is kept unless who
sees it keeps it. Layers are counted from 0 as the network counts its blocks, and the last one is seen before the
network's final norm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core.errors import UserError
from ..core.tree import Tree
from .stacked_model import StackedModel
from .trainable import find_blocks

LayerCallback = Callable[[int, Tensor], None]


@torch.no_grad()
def visit_hidden_states(model: StackedModel, params: Tree, tokens: Tensor, on_layer: LayerCallback) -> None:
    """``on_layer(layer, states [A, B, T, H])`` for every block of A models ``params [A, ...]`` that read ``tokens [B, T]``."""
    count = count_models(params)

    def show(layer: int, out: Any) -> None:
        states = out[0] if isinstance(out, tuple) else out
        on_layer(layer, states.detach().view(count, *tokens.shape, -1))

    with hook_outputs(find_blocks(model.network)[1], show):
        model.hidden_states(params, tokens.expand(count, *tokens.shape), bypass_cache=True)


@torch.no_grad()
def visit_attention(model: StackedModel, params: Tree, tokens: Tensor, on_layer: LayerCallback) -> None:
    """``on_layer(layer, weights [A, B, heads, T, T])``, queries before keys, for every block.

    Only the plain implementation of attention has its weights to show; the network works in it for this one pass.
    """
    count = count_models(params)

    def show(layer: int, out: Any) -> None:
        weights = out[1] if isinstance(out, tuple) and len(out) > 1 else None
        if weights is None:
            raise UserError(f"{type(model.network).__name__} does not show where its heads look: leave attention out of the probes")
        on_layer(layer, weights.detach().unflatten(0, (count, -1)))

    with use_eager_attention(model.network), hook_outputs(find_attention_modules(model.network), show):
        model.hidden_states(params, tokens.expand(count, *tokens.shape), bypass_cache=True)


def find_attention_modules(network: nn.Module) -> list[nn.Module]:
    """The attention of every block."""
    found = []
    for block in find_blocks(network)[1]:
        found += [part for part in block.modules() if type(part).__name__.endswith("Attention")][:1]
    if not found:
        raise UserError(f"{type(network).__name__} has no attention that is known by its name: leave attention out of the probes")
    return found


@contextmanager
def hook_outputs(modules: Iterable[nn.Module], on_output: Callable[[int, Any], None]) -> Iterator[None]:
    """``on_output(number, output)`` whenever one of the modules has worked, until the end; compiled ones work plainly."""
    hooks = [
        module.register_forward_hook(lambda module, args, out, number=number: on_output(number, out))
        for number, module in enumerate(modules)
    ]
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def use_eager_attention(network: Any) -> Iterator[None]:
    """Attention by its plain implementation, and as it was afterwards."""
    before = network.config._attn_implementation
    network.set_attn_implementation("eager")
    try:
        yield
    finally:
        network.set_attn_implementation(before)


def count_models(params: Tree) -> int:
    """How many models ``params [A, ...]`` are; what lies under adapters may lead with 1."""
    return max(len(leaf) for leaf in params.values())


# Texts as a language model's own states half-way up: an encoder that every federation has already.
#
# The mean over a text's tokens of the states after the middle block. States of language models lie in a narrow cone, whatever
# the text says (Ethayarajh, EMNLP 2019, arXiv:1909.00512), so the mean over all texts and their first principal direction are
# taken out (Mu & Viswanath, "All-but-the-Top", ICLR 2018, arXiv:1702.01417). Both are told from all clients' texts together,
# which a deployment would have to sum up securely. Of few topics the first direction may be one
# that tells them apart; then groups are lost with it.

MAX_TOKENS = 256  # of a text that are read
BATCH_SIZE = 16


@dataclass(frozen=True, eq=False)
class HiddenStateEncoder:
    """The frozen encoder of one language model; ``name`` is the model's, for the cache."""

    name: str
    network: Any
    tokenizer: Any
    context_length: int

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """[D, H], without what all of them share."""
        return remove_common_component(
            np.concatenate([self.encode_batch(texts[start : start + BATCH_SIZE]) for start in range(0, len(texts), BATCH_SIZE)])
        )

    @torch.no_grad()
    def encode_batch(self, texts: Sequence[str]) -> np.ndarray:
        """Masked means of the middle block's states, [len(texts), H] float64."""
        ids = [self.tokenizer(text)["input_ids"][: min(MAX_TOKENS, self.context_length)] for text in texts]
        width = max(1, max(map(len, ids)))
        tokens, keep = torch.zeros(len(ids), width, dtype=torch.long), torch.zeros(len(ids), width, dtype=torch.bool)
        for row, line in enumerate(ids):
            tokens[row, : len(line)], keep[row, : len(line)] = torch.tensor(line, dtype=torch.long), True
        _, blocks = find_blocks(self.network)
        seen: list[Tensor] = []
        hook = blocks[max(0, len(blocks) // 2 - 1)].register_forward_hook(
            lambda module, args, out: seen.append(out[0] if isinstance(out, tuple) else out)
        )
        try:  # padding lies to the right: what is before it does not see it
            self.network.base_model(input_ids=tokens.to(next(self.network.parameters()).device), use_cache=False)
        finally:
            hook.remove()
        share = keep / keep.sum(1, keepdim=True).clamp_min(1)  # [D, T]
        return torch.einsum("dth,dt->dh", seen[0].double().cpu(), share.double()).numpy()


def remove_common_component(vectors: np.ndarray) -> np.ndarray:
    """The vectors [D, H] less their mean and their first principal direction."""
    centred = vectors - vectors.mean(axis=0)
    if len(vectors) < 3:  # two points have one direction, and it is all that tells them apart
        return np.asarray(centred)
    _, axes = np.linalg.eigh(centred.T @ centred)
    return np.asarray(centred - np.outer(centred @ axes[:, -1], axes[:, -1]))


__all__ = ["HiddenStateEncoder", "remove_common_component"]
