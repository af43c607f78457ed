"""What averaging B and A apart costs: the loss that exact averaging of the same round would have saved."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..tree import Tree, wide
from ..values import Round
from .barrier import nats
from .bench import Bench
from .loss import Judge
from .panel import After, Look
from .passages import Passages, passages
from .probe import Reading
from .product import adapted

GROUP = "adapters"

POSITIONS = 512  # tokens whose loss counts


@dataclass(frozen=True, eq=False)
class ExactMean:
    """``adapters.error.loss``: loss of mean B times mean A less loss of the mean of B_k A_k, nats per token of the passages.

    Both means are over the clients whose reports counted, by their weights, and without the server's optimiser: a
    counterfactual of the round, whatever the run's own aggregate is. Above 0 where averaging apart did harm. The exact mean is
    worn as an adapter of rank n R, A = [A_1; ...; A_n] and B = [p_1 B_1, ..., p_n B_n]. A look reads the passages twice for
    each model that somebody trained; several are weighed by the weight of their clients.
    """

    model: Judge
    passages: Passages

    def __call__(self, done: Round) -> Reading:
        report, saved, whole = done.report, 0.0, 0.0
        group, weight = report.group.cpu(), wide(report.weight).cpu()
        for number in range(done.before.server.models):
            mine = ((group == number) & (weight > 0)).nonzero().flatten()
            if len(mine):
                share = weight[mine] / weight[mine].sum()
                local, under = done.local.rows(mine), done.before.server.under(torch.tensor([number]))
                apart, exact = (nats(self.model, Tree({**mean, **under}), self.passages)
                                for mean in (averaged(local, share), exactly_averaged(local, share)))
                saved, whole = saved + (apart - exact) * float(weight[mine].sum()), whole + float(weight[mine].sum())
        return {"adapters.error.loss": saved / whole} if whole else {}


def averaged(local: Tree, share: torch.Tensor) -> Tree:
    """Every leaf's mean by ``share [n]``, ``[n, ...] -> [1, ...]``."""
    return local.map(lambda leaf: (shaped(share, leaf) * leaf).sum(0, keepdim=True))


def exactly_averaged(local: Tree, share: torch.Tensor) -> Tree:
    """The adapter whose product is the mean of the products, ``[1, n R, I]`` and ``[1, O, n R]``; the mean of other leaves."""
    found, modules = averaged(local, share), adapted(local)
    for module in modules:
        down, up = local[module + ".A"], local[module + ".B"]
        found[module + ".A"] = down.flatten(0, 1)[None]
        found[module + ".B"] = (shaped(share, up) * up).transpose(0, 1).flatten(1)[None]
    return found


def shaped(share: torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
    """``share [n]`` to multiply a leaf ``[n, ...]`` by."""
    return share.to(leaf).view(-1, *[1] * (leaf.ndim - 1))


def looks(bench: Bench) -> list[Look | After]:
    """The cost of averaging apart, whenever deep looks are taken; nothing without adapters."""
    text = passages(bench.held_out, POSITIONS)
    if not adapted(bench.start) or not len(text.places):
        return []
    return [Look("exact mean", ExactMean(bench.model, text), "deep", 2.0 * text.tokens.numel())]
