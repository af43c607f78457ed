"""What goes on inside a network while clients wear it: the states after each block, and where each head looks.

Both are seen layer by layer in one forward pass, by hooks that are gone after it: nothing of a layer is kept unless who
sees it keeps it. Layers are counted from 0 as the network counts its blocks, and the last one is seen before the
network's final norm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..tree import Tree
from .stacked import StackedModel
from .tune import blocks_of

See = Callable[[int, Tensor], None]


@torch.no_grad()
def watch_states(model: StackedModel, params: Tree, tokens: Tensor, see: See) -> None:
    """``see(layer, states [A, B, T, H])`` for every block of A models ``params [A, ...]`` that read ``tokens [B, T]``."""
    count = wearers(params)

    def show(layer: int, out: Any) -> None:
        states = out[0] if isinstance(out, tuple) else out
        see(layer, states.detach().view(count, *tokens.shape, -1))

    with hooked(blocks_of(model.network)[1], show):
        model.hidden(params, tokens.expand(count, *tokens.shape), whole=True)


@torch.no_grad()
def watch_attention(model: StackedModel, params: Tree, tokens: Tensor, see: See) -> None:
    """``see(layer, weights [A, B, heads, T, T])``, queries before keys, for every block.

    Only the plain implementation of attention has its weights to show; the network works in it for this one pass.
    """
    count = wearers(params)

    def show(layer: int, out: Any) -> None:
        weights = out[1] if isinstance(out, tuple) and len(out) > 1 else None
        if weights is None:
            raise UserError(f"{type(model.network).__name__} does not show where its heads look: leave attention out of the "
                            "probes")
        see(layer, weights.detach().unflatten(0, (count, -1)))

    with plain_attention(model.network), hooked(attentions(model.network), show):
        model.hidden(params, tokens.expand(count, *tokens.shape), whole=True)


def attentions(network: nn.Module) -> list[nn.Module]:
    """The attention of every block."""
    found = []
    for block in blocks_of(network)[1]:
        found += [part for part in block.modules() if type(part).__name__.endswith("Attention")][:1]
    if not found:
        raise UserError(f"{type(network).__name__} has no attention that is known by its name: leave attention out of the probes")
    return found


@contextmanager
def hooked(modules: Iterable[nn.Module], show: Callable[[int, Any], None]) -> Iterator[None]:
    """``show(number, output)`` whenever one of the modules has worked, until the end; compiled ones work plainly meanwhile."""
    hooks = [module.register_forward_hook(lambda module, args, out, number=number: show(number, out))
             for number, module in enumerate(modules)]
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def plain_attention(network: Any) -> Iterator[None]:
    """Attention by its plain implementation, and as it was afterwards."""
    before = network.config._attn_implementation
    network.set_attn_implementation("eager")
    try:
        yield
    finally:
        network.set_attn_implementation(before)


def wearers(params: Tree) -> int:
    """How many models ``params [A, ...]`` are; what lies under adapters may lead with 1."""
    return max(len(leaf) for leaf in params.values())
