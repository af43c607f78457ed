"""Where two runs part: how far apart their servers are, round by round, and what that does to the losses.

The distance is between the weights that clients are served, B A and what is merged under it, not between B and B and A and A,
which can differ where the models do not. It is told in units of how far the origin has gone since the fork began:
sqrt(mean_k |W'_k - W_k|^2) / sqrt(mean_k |W_k - W0_k|^2), k over the clients, each with the model it shares.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..probes.product import adapted
from ..recording import Updates
from ..records import Trajectory
from ..store import Run
from ..tree import Tree, wide

Served = tuple[Tree, Tree, Tensor]
"""Params ``[M, ...]``, what is merged under them ``[M, ...]``, and who shares which ``[N]``."""


@dataclass(frozen=True)
class Apart:
    """One round of both. Losses in nats per token, NaN where there was no evaluation; ``domains``: the fork's loss less the
    origin's."""

    round: int
    distance: float
    origin: float
    fork: float
    domains: dict[str, float]

    @property
    def difference(self) -> float:
        return self.fork - self.origin


def parted(origin: Run, fork: Run) -> list[Apart]:
    """Round by round, from the one before the fork on, as far as both went."""
    since = int(fork.experiment["fork"]["round"]) - 1
    one, two = Updates(origin), Updates(fork)
    ours, theirs = origin.trajectory(), fork.trajectory()
    start, rows = one.params(since), []
    for round in sorted({*one.rounds} & {*two.rounds}):
        before, after = one.params(round), two.params(round)
        gone = between(before, start)
        distance = between(after, before) / gone if gone else 0.0 if round == since else math.nan
        rows.append(Apart(round, distance, at(ours, round), at(theirs, round), {
            domain: at(theirs, round, domain) - at(ours, round, domain) for domain in domains(ours)}))
    return rows


def between(one: Served, two: Served) -> float:
    """sqrt(mean_k |W_k - W'_k|^2) over the clients."""
    pairs, count = torch.stack([one[2].cpu(), two[2].cpu()], 1).unique(dim=0, return_counts=True)
    total = torch.zeros(len(pairs), dtype=torch.float64)
    first, second = weights(*one[:2]), weights(*two[:2])
    for name in first:
        total += (wide(first[name])[pairs[:, 0]] - wide(second[name])[pairs[:, 1]]).square().flatten(1).sum(1)
    return float(((total * count).sum() / count.sum()).sqrt())


def weights(params: Tree, base: Tree) -> Tree:
    """What is served, ``[M, ...]``: B A and what is merged under it where there are adapters, any other leaf as it is."""
    modules = adapted(params)
    served = {name: leaf for name, leaf in params.items() if name[:-2] not in modules}
    for module in modules:
        served[module] = wide(params[module + ".B"]) @ wide(params[module + ".A"])
        if module + ".base" in base:
            served[module] = served[module] + wide(base[module + ".base"])
    return Tree(served)


def domains(run: Trajectory) -> tuple[str, ...]:
    return run.domains_of("loss") if "loss" in run.metrics else ()


def at(run: Trajectory, round: int, domain: str = "") -> float:
    """The loss after a round."""
    if not run.has("loss", domain):
        return math.nan
    place = np.searchsorted(run.rounds, round)
    there = place < len(run.rounds) and run.rounds[place] == round
    return float(run.curve("loss", domain)[place]) if there else math.nan


__all__ = ["Apart", "between", "parted", "weights"]
