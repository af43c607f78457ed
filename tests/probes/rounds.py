"""Rounds of small random networks, for tests of probes that inspect them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from fedrift.algorithms import FedAvg
from fedrift.core.tree import Tree
from fedrift.core.types import CohortUpdate, FederatedState, RoundResult
from fedrift.data.tokenization import Blocks
from fedrift.engine.loop import init_state
from fedrift.models.stacked_model import StackedModel
from fedrift.models.trainable import Lora
from fedrift.probes.held_out import HeldOut
from tests.models.networks import network

VOCABULARY = 61


def stacked(kind: str = "llama", tune=None) -> StackedModel:
    return StackedModel(network(kind), tune or Lora(r=2))


def noise(tree: Tree, size: float, seed: int) -> Tree:
    draw = torch.Generator().manual_seed(seed)
    return tree.map(lambda leaf: size * torch.randn(leaf.shape, generator=draw, dtype=torch.float64).to(leaf))


def make_round(model: StackedModel, moves: list[float], failed: tuple[int, ...] = (), server: float | None = None) -> RoundResult:
    """Return a round in which client k moved by noise of size ``moves[k]``, and the server by ``server`` if it is given."""
    start = model.init_params()
    count = len(moves)
    state = init_state(FedAvg(), start, count)
    delta = Tree({name: torch.cat([noise(start, size, number)[name] for number, size in enumerate(moves)]) for name in start})
    out = torch.zeros(count, dtype=torch.bool).index_fill(0, torch.tensor(failed, dtype=torch.long), True)
    ones = torch.ones(count)
    update = CohortUpdate(
        delta,
        Tree(),
        Tree(),
        delta.zeros_like(),
        ones * ~out,
        ones.long(),
        torch.zeros(count, 2),
        ones.long(),
        out,
        torch.zeros(count, dtype=torch.long),
        torch.tensor([count]),
        ones,
    )
    step = noise(start, server, 99) if server is not None else delta.map(lambda leaf: leaf.mean(0, keepdim=True))
    after = replace(state, round=1, server=replace(state.server, params=start + step))
    return RoundResult(state, after, torch.arange(count), update)


def held_out(blocks: int = 12, length: int = 12, domains: int = 3, seed: int = 0) -> HeldOut:
    """Return random tokens with equally many blocks of each domain; the second half of each last block is padding."""
    draw = np.random.default_rng(seed)
    tokens = draw.integers(2, VOCABULARY, (blocks, length))
    keep = np.ones_like(tokens, dtype=bool)
    domain = np.repeat(np.arange(domains), blocks // domains)
    for last in np.flatnonzero(np.diff(domain, append=domains)):
        keep[last, length // 2 :] = False
    return HeldOut(Blocks(tokens, keep), domain, tuple("abcdefg"[:domains]), np.ones((2, domains)))


def with_clusters(state: FederatedState, groups: list[int], models: Tree) -> FederatedState:
    return replace(state, cluster_ids=torch.tensor(groups), server=replace(state.server, params=models))
