"""A language model that C clients wear at once, and the two things asked of it: loss and gradient, and evaluation."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..tree import Tree
from .head import OwnHead, token_losses
from .lean import lighten
from .prefix import Prefix, blocks_below
from .tune import Tune, blocks_of
from .worn import Lora, Outfit, Own


class StackedModel:
    """A frozen causal language model whose trained parts are given with every call, stacked along C.

    It is an ``Objective``: ``model(params [C, ...], batch)`` is each client's mean loss ``[C]`` in nats
    per token. ``batch["tokens"] [C, B, T]`` holds token ids, ``batch["keep"] [C, B, T]`` is false on
    padding; the label of a position is the token after it, so the first of a block is only context.
    ``lean``: known blocks compute the same with fewer passes over memory; without it all but the worn modules and the head is
    transformers' own. ``prefix``: blocks below everything that is trained work once for each sequence, and what they made of it
    is kept (None: on a CPU, if there are such blocks).
    """

    def __init__(self, network: nn.Module, tune: Tune, lean: bool = True,
                 prefix: bool | None = None) -> None:
        check_unshared(network)
        network.eval().requires_grad_(False)
        expected = self._own_loss(network)
        self.network, self.tune = network, tune
        self.outfit = Outfit()
        self.modules = tune.modules(network)
        self.head = network.get_output_embeddings()  # type: ignore[operator]
        embedding = network.get_input_embeddings()  # type: ignore[operator]
        owner = embedding if self.head.weight is embedding.weight else self.head  # a tied head is the embedding's
        leaves = self.template().keys()
        self.head_leaf = next((f"{path}.weight" for path, module in self.modules.items()
                               if module is owner and f"{path}.weight" in leaves), None)
        for path, module in self.modules.items():
            network.set_submodule(path, tune.wear(module, path, self.outfit))
        if lean:
            lighten(network, self.outfit)
        below = blocks_below(network, self.modules)
        wanted = self.device.type == "cpu" if prefix is None else prefix
        self.prefix = Prefix(network, below) if wanted and below else None
        self._check_loss(expected)

    def compile(self) -> None:
        """Compile every block, once for each shape: worth its minute on long runs."""
        for block in blocks_of(self.network)[1]:
            block.compile()

    def template(self, seed: int = 0) -> Tree:
        """The trained parts as they begin, ``[1, ...]``; only adapters depend on the seed."""
        return self.tune.params(self.modules, seed)

    @property
    def device(self) -> torch.device:
        return self.head.weight.device  # type: ignore[no-any-return]

    def __call__(self, params: Tree, batch: dict[str, Tensor]) -> Tensor:
        total, count = self.sums(params, batch["tokens"], batch["keep"])
        return total.sum(1) / count.sum(1).clamp_min(1)

    def sums(self, params: Tree, tokens: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Summed loss (nats) and predicted tokens of every sequence, both ``[C, B]``."""
        losses, counted = self.positions(params, tokens, keep)
        return losses.sum(2), counted.sum(2)

    def positions(self, params: Tree, tokens: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Loss (nats) of every token after the first, 0 on padding, and which are predicted, both ``[C, B, T-1]``."""
        hidden = self.hidden(params, tokens)[:, :, :-1]  # [C, B, T-1, H]
        target, counted = tokens[:, :, 1:], keep[:, :, 1:]
        if self.head_leaf is not None:
            weight = params[self.head_leaf].to(hidden.dtype)
            losses = OwnHead.apply(hidden.flatten(1, 2), weight, target.flatten(1)).view(target.shape) * counted
        elif bool(counted.all()):
            losses = token_losses(hidden.flatten(0, 2), self.head.weight, target.flatten()).view(target.shape)
        else:
            found = token_losses(hidden[counted], self.head.weight, target[counted])
            losses = found.new_zeros(target.shape).masked_scatter(counted, found)
        return losses, counted

    def hidden(self, params: Tree, tokens: Tensor, whole: bool = False) -> Tensor:
        """The last hidden states of every position, ``[C, B, T] -> [C, B, T, H]``. ``whole``: every block works."""
        rows = tokens.flatten(0, 1)
        known = nullcontext() if whole or self.prefix is None else self.prefix.stands_for(rows)
        self.outfit.leaves, self.outfit.rows = params, len(rows)
        try:
            with known:
                states = self.network.base_model(input_ids=rows, use_cache=False).last_hidden_state  # type: ignore[operator]
        finally:
            self.outfit.leaves = Tree()
        return states.view(*tokens.shape, -1)  # type: ignore[no-any-return]

    @staticmethod
    def _own_loss(network: nn.Module) -> Tensor:
        """The loss as the network itself computes it, of a few tokens."""
        tokens = torch.arange(12, device=network.get_output_embeddings().weight.device).view(2, 6)  # type: ignore[operator]
        with torch.no_grad():
            return network(input_ids=tokens, labels=tokens, use_cache=False).loss  # type: ignore[no-any-return]

    def _check_loss(self, theirs: Tensor) -> None:
        """A network that does more to its states or logits than is known here must not be judged by what is known here."""
        tokens = torch.arange(12, device=self.device).view(1, 2, 6)
        with torch.no_grad():
            total, _ = self.sums(self.template(), tokens, torch.ones_like(tokens, dtype=torch.bool))
        if not torch.allclose(total.sum() / 10, theirs.to(total), rtol=1e-3):
            raise UserError(f"{type(self.network).__name__} computes its logits in a way that fedrift does not know "
                            f"(loss {theirs.item():.4f}, ours {total.sum().item() / 10:.4f}); please report the model")


def check_unshared(network: nn.Module) -> None:
    """Raise `UserError` if another stacked model has already taken this network: its adapters would lie under the new ones."""
    if taken := next((path for path, module in network.named_modules() if isinstance(module, (Lora, Own))), None):
        raise UserError(f"this {type(network).__name__} already belongs to another StackedModel, which trains {taken}: load the "
                        "network again, or use that StackedModel")
