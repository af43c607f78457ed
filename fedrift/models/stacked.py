"""A language model that C clients wear at once, and the two things asked of it: loss and gradient, and evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..tree import Tree
from .check import WAY_OUT, check_losses, moved, plain_losses, read_logits, sample_tokens
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
        self.network, self.tune = network, tune
        self.outfit = Outfit()
        self.modules = tune.modules(network)
        self.caveats = tune.caveats(network)
        self.head = network.get_output_embeddings()  # type: ignore[operator]
        with spoken(network, tune):
            self.to_logits = read_logits(network)
            tokens, params, expected = sample_tokens(network), moved(self.template()), list[Tensor]()
            for client in range(len(tokens)):
                own = params.map(lambda leaf: leaf[client])  # noqa: B023
                losses, idle = plain_losses(network, self.modules, own, getattr(tune, "scale", 1.0), tokens[client])
                self._leave_out(idle)
                params = Tree({name: leaf for name, leaf in params.items() if name.rsplit(".", 1)[0] not in idle})
                expected.append(losses)
        leaves = self.template().keys()
        names = {id(leaf): f"{path}.{name}" for path, module in self.modules.items() for name, leaf in module.named_parameters()
                 if f"{path}.{name}" in leaves}
        self.head_leaf = names.get(id(self.head.weight))  # a tied head's is the embedding's
        self.bias_leaf = names.get(id(getattr(self.head, "bias", None)))
        replace_modules(network, {module: tune.wear(module, path, self.outfit) for path, module in self.modules.items()})
        if lean:
            lighten(network, self.outfit)
        below = blocks_below(network, self.modules)
        wanted = self.device.type == "cpu" if prefix is None else prefix
        self.prefix = Prefix(network, below) if wanted and below else None
        with spoken(network, tune):
            self._check(params, tokens, torch.stack(expected))

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
        weight, bias = self.head_of(params, hidden.dtype)
        if self.head_leaf is not None:
            losses = OwnHead.apply(hidden.flatten(1, 2), weight, target.flatten(1), bias, self.to_logits)
            losses = losses.view(target.shape) * counted
        elif bool(counted.all()):
            losses = token_losses(hidden.flatten(0, 2), weight, target.flatten(), bias, self.to_logits).view(target.shape)
        else:
            found = token_losses(hidden[counted], weight, target[counted], bias, self.to_logits)
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

    def head_of(self, params: Tree, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """The head's matrix and bias: each client's own, ``[C, V, H]`` and ``[C, V]``, or the frozen ones without the C."""
        bias = getattr(self.head, "bias", None)
        if self.head_leaf is None:
            return self.head.weight, bias
        weight = params[self.head_leaf].to(dtype)
        if self.bias_leaf is not None:
            bias = params[self.bias_leaf].to(dtype)
        elif bias is not None:
            bias = bias.expand(len(weight), -1)
        return weight, bias

    def _leave_out(self, idle: set[str]) -> None:
        """Maps that are not used, or not by their forward pass, get no adapter. A target that names one is refused."""
        if not idle:
            return
        ends = ", ".join(sorted({path.rsplit(".", 1)[-1] for path in idle}))
        why = f"{type(self.network).__name__} computes without the forward pass of {ends} (as in {min(idle)})"
        if getattr(self.tune, "targets", ()) not in (("auto",), ("all",)) or len(idle) == len(self.modules):
            raise UserError(f"{why}, so that an adapter would change nothing: name tune.targets without {ends}")
        self.caveats.append(f"{why}, which gets no adapter")
        self.modules = {path: module for path, module in self.modules.items() if path not in idle}

    @torch.no_grad()
    def _check(self, params: Tree, tokens: Tensor, expected: Tensor) -> None:
        """The losses of a stack must be those of each client alone; where they are not with the blocks below kept, all work."""
        what = f"{type(self.network).__name__} with tune: {{is: {type(self.tune).__name__}}}"

        def check() -> None:
            keep = torch.ones_like(tokens, dtype=torch.bool)
            check_losses(self.positions(params, tokens, keep)[0], expected, self.head.weight, what)

        try:
            check()
        except Exception:
            if self.prefix is None:
                raise
            self.prefix.remove()
            self.prefix = None
            check()


@contextmanager
def spoken(network: nn.Module, tune: Tune) -> Iterator[None]:
    """Whatever a network cannot do is told in one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), "")[:160]
        raise UserError(f"{type(network).__name__} does not work with tune: {{is: {type(tune).__name__}}} "
                        f"({type(error).__name__}: {first}): {WAY_OUT}") from error


def replace_modules(network: nn.Module, by: dict[nn.Module, nn.Module]) -> None:
    """Put each module's replacement wherever the network has the module, under as many names as it has."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if child in by:
                setattr(parent, name, by[child])


def check_unshared(network: nn.Module) -> None:
    """Raise `UserError` if another stacked model has already taken this network: its adapters would lie under the new ones."""
    if taken := next((path for path, module in network.named_modules() if isinstance(module, (Lora, Own))), None):
        raise UserError(f"this {type(network).__name__} already belongs to another StackedModel, which trains {taken}: load the "
                        "network again, or use that StackedModel")
