"""Attention: how widely each head looks, and how far its looking has moved from the pretrained model's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.inside import watch_attention
from ..models.stacked import StackedModel
from ..tree import Tree, wide
from ..values import Round, State
from .bench import Bench
from .panel import After, Look
from .passages import Passages, passages
from .probe import Reading
from .worn import begun, layer_name, mean_model, server_models

GROUP = "attention"

POSITIONS = 512  # queries of each head


@dataclass(frozen=True, eq=False)
class Attention:
    """Of each head (``layer 03 head 01``), each layer (the mean over its heads) and the whole (the mean over layers):

    ``attention.entropy``, of the weights that a position gives to itself and those before it, divided by the log of
    how many they are: 1 if it looks at all alike, 0 if at one alone. ``attention.shift``: the divergence
    KL(now || pretrained) of the two models' weights, in nats. Both are means over the positions that count; of several
    models, the mean over the fleet.

    The weights are had from a separate pass in which attention is computed plainly; training and evaluation go on in the
    fast one. A look reads (1 + M) times the tokens of its passages, which should be some 500. One layer's weights are in
    memory at a time: models x blocks x heads x T x T numbers.
    """

    model: StackedModel
    start: Tree  # [1, ...] the pretrained model, as it is worn
    passages: Passages

    def __call__(self, done: Round) -> Reading:
        return self.of(done.after)

    def of(self, state: State) -> Reading:
        """Of the server's models."""
        models = server_models(state)
        each = [self.look(models.rows(slice(number, number + 1))) for number in range(state.server.models)]
        reading: Reading = {}
        for metric, values in zip(("attention.entropy", "attention.shift"), mean_model(torch.stack(each), state), strict=True):
            reading[metric] = values.mean()  # values [L, heads]
            for layer, heads in enumerate(values):
                reading[metric, layer_name(layer)] = heads.mean()
                for head, value in enumerate(heads):
                    reading[metric, f"{layer_name(layer)} head {head:02d}"] = value
        return reading

    def look(self, model: Tree) -> Tensor:
        """Entropy and shift of each head of one model ``[1, ...]``: ``[2, L, heads]``."""
        found: list[Tensor] = []

        def see(layer: int, weights: Tensor) -> None:
            before, now = weights
            counts = self.passages.counts.to(weights.device)
            found.append(torch.stack([attention_entropy(now, counts), attention_shift(now, before, counts)]).cpu())

        both = begun(self.start, model).map(lambda one, other: torch.cat([one, other]), model)
        watch_attention(self.model, both, self.passages.tokens.to(self.model.device), see)
        return torch.stack(found, 1)


def attention_entropy(weights: Tensor, counts: Tensor) -> Tensor:
    """Mean over the positions that count of -sum a log a / log(allowed keys), ``[B, heads, T, T], [B, T] -> [heads]``.

    Position t may look at the t + 1 positions up to itself; the first, that has no choice, must not count.
    """
    allowed = torch.arange(1, weights.shape[-1] + 1, device=weights.device)
    share = torch.special.entr(wide(weights)).sum(-1) / wide(allowed).log()  # [B, heads, T]
    return over_positions(share, counts)


def attention_shift(now: Tensor, before: Tensor, counts: Tensor) -> Tensor:
    """Mean over the positions that count of KL(now || before), ``[B, heads, T, T] twice, [B, T] -> [heads]``."""
    now, before = wide(now), wide(before)
    tiny = torch.finfo(torch.float32).tiny  # a weight that underflowed is not a proof of impossibility
    apart = torch.special.xlogy(now, now.clamp_min(tiny)) - torch.special.xlogy(now, before.clamp_min(tiny))
    return over_positions(apart.sum(-1), counts)


def over_positions(values: Tensor, counts: Tensor) -> Tensor:
    """``[B, heads, T], [B, T] -> [heads]``: the mean over the positions that count."""
    chosen = counts[:, None].expand_as(values)
    return torch.where(chosen, values, 0.0).sum((0, 2)) / counts.sum()


def looks(bench: Bench) -> list[Look | After]:
    """Attention, whenever deep looks are taken; for one model of the server."""
    text = passages(bench.held_out, POSITIONS)
    if not len(text.places):
        return []
    return [Look("attention", Attention(bench.model, bench.start, text), "deep", 2.0 * text.tokens.numel())]
