"""Read hidden states and attention weights of all layers, and embed texts by the hidden states of a language model.

Layers are visited one by one in a single forward pass through temporary hooks, so that only the callback decides what is
stored. Layers are numbered from 0, as the blocks of the network are. The states of the last layer precede the final norm.
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
from .trainable import find_backbone, find_blocks

LayerCallback = Callable[[int, Tensor], None]
"""Called with the number of a layer and its tensor."""


@torch.no_grad()
def visit_hidden_states(model: StackedModel, params: Tree, tokens: Tensor, on_layer: LayerCallback) -> None:
    """Call ``on_layer(layer, states [A, B, T, H])`` for every block.

    Args:
        model: The stacked model.
        params: The trained weights of A models, [A, ...].
        tokens: The token ids that each of the models processes, [B, T].
        on_layer: The callback.
    """
    count = count_models(params)

    def on_output(layer: int, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        on_layer(layer, states.detach().view(count, *tokens.shape, -1))

    with hook_outputs(find_blocks(model.network)[1], on_output):
        model.hidden_states(params, tokens.expand(count, *tokens.shape), bypass_cache=True)


@torch.no_grad()
def visit_attention(model: StackedModel, params: Tree, tokens: Tensor, on_layer: LayerCallback) -> None:
    """Call ``on_layer(layer, weights [A, B, heads, T, T])`` for every block; queries precede keys.

    Only the eager implementation of attention returns its weights, so that the network uses it for this pass.

    Args:
        model: The stacked model.
        params: The trained weights of A models, [A, ...].
        tokens: The token ids that each of the models processes, [B, T].
        on_layer: The callback.

    Raises:
        UserError: The attention modules are not recognized, or they do not return their weights.
    """
    count = count_models(params)

    def on_output(layer: int, output: Any) -> None:
        weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if weights is None:
            raise UserError(f"{type(model.network).__name__} does not return attention weights: remove the attention probe")
        on_layer(layer, weights.detach().unflatten(0, (count, -1)))

    with use_eager_attention(model.network), hook_outputs(find_attention_modules(model.network), on_output):
        model.hidden_states(params, tokens.expand(count, *tokens.shape), bypass_cache=True)


def find_attention_modules(network: nn.Module) -> list[nn.Module]:
    """Return the attention module of every block.

    Raises:
        UserError: No block has a module whose class name ends with "Attention".
    """
    modules = []
    for block in find_blocks(network)[1]:
        modules += [module for module in block.modules() if type(module).__name__.endswith("Attention")][:1]
    if not modules:
        raise UserError(f"{type(network).__name__} has no module whose class name ends with 'Attention': remove the attention probe")
    return modules


@contextmanager
def hook_outputs(modules: Iterable[nn.Module], on_output: Callable[[int, Any], None]) -> Iterator[None]:
    """Call ``on_output(number, output)`` after every forward pass of one of the modules, until the context ends.

    Compiled modules run eagerly in this context, because hooks would not be called otherwise.
    """
    hooks = [
        module.register_forward_hook(lambda module, args, output, number=number: on_output(number, output))
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
    """Use the eager implementation of attention and restore the previous one afterwards."""
    previous = network.config._attn_implementation
    network.set_attn_implementation("eager")
    try:
        yield
    finally:
        network.set_attn_implementation(previous)


def count_models(params: Tree) -> int:
    """Return the number A of models in ``params`` [A, ...]; matrices merged below adapters may have a leading 1."""
    return max(len(leaf) for leaf in params.values())


MAX_TOKENS = 256  # tokens per text that are used
BATCH_SIZE = 16


@dataclass(frozen=True, eq=False)
class HiddenStateEncoder:
    """A frozen text encoder that averages the states after the middle block of a language model.

    It needs no extra model. States of language models lie in a narrow cone whatever the text (Ethayarajh, EMNLP 2019,
    arXiv:1909.00512). Therefore the mean over all texts and their first principal direction are removed (Mu & Viswanath,
    "All-but-the-Top", ICLR 2018, arXiv:1702.01417). Both are computed from the texts of all clients, which a deployment would have
    to sum securely. With few topics, the first direction may separate topics, so that removing it can lose groups.
    """

    name: str  # the name of the model, which is part of the cache key
    network: Any  # the language model
    tokenizer: Any
    context_length: int  # its longest input, in tokens

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts without their common component, [D, H]."""
        return remove_common_component(
            np.concatenate([self.encode_batch(texts[start : start + BATCH_SIZE]) for start in range(0, len(texts), BATCH_SIZE)])
        )

    @torch.no_grad()
    def encode_batch(self, texts: Sequence[str]) -> np.ndarray:
        """Return the masked means of the states of the middle block, [len(texts), H] float64."""
        ids = [self.tokenizer(text)["input_ids"][: min(MAX_TOKENS, self.context_length)] for text in texts]
        width = max(1, max(map(len, ids)))
        tokens, mask = torch.zeros(len(ids), width, dtype=torch.long), torch.zeros(len(ids), width, dtype=torch.bool)
        for row, sequence in enumerate(ids):
            tokens[row, : len(sequence)], mask[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.long), True
        _, blocks = find_blocks(self.network)
        captured: list[Tensor] = []
        hook = blocks[max(0, len(blocks) // 2 - 1)].register_forward_hook(
            lambda module, args, output: captured.append(output[0] if isinstance(output, tuple) else output)
        )
        try:  # padding is on the right, so that causal attention does not reach it
            find_backbone(self.network)(input_ids=tokens.to(next(self.network.parameters()).device), use_cache=False)
        finally:
            hook.remove()
        share = mask / mask.sum(1, keepdim=True).clamp_min(1)  # [D, T]
        return torch.einsum("dth,dt->dh", captured[0].double().cpu(), share.double()).numpy()


def remove_common_component(vectors: np.ndarray) -> np.ndarray:
    """Subtract the mean and the first principal direction from vectors [D, H]."""
    centered = vectors - vectors.mean(axis=0)
    if len(vectors) < 3:  # two centered points differ in this direction only
        return np.asarray(centered)
    _, axes = np.linalg.eigh(centered.T @ centered)
    return np.asarray(centered - np.outer(centered @ axes[:, -1], axes[:, -1]))
