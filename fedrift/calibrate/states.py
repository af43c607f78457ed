"""Hidden states that collapse on purpose: the last layer's are drawn, round by round, onto one direction.

H_t = H (I - s_t (I - v v')) with s_t growing to ``strength``, and a jitter that healthy runs have too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..probes.representation import anisotropy, effective_rank
from ..records import Record, Trajectory
from ..streams import torch_stream

POSITIONS, WIDTH = 1024, 32
LAYER = "layer 05"


@dataclass(frozen=True)
class States:
    """One experiment: nothing but the states of a probe's positions."""

    strength: float = 0.9
    jitter: float = 0.05
    rounds: int = 20
    onset: int = 5
    seed: int = 0


def carry_out(world: States) -> Trajectory:
    draw = torch_stream(world.seed, "states")
    first = torch.randn(POSITIONS, WIDTH, generator=draw, dtype=torch.float64) + 0.3
    way = torch.nn.functional.normalize(torch.randn(WIDTH, generator=draw, dtype=torch.float64), dim=0)
    across = torch.eye(WIDTH, dtype=torch.float64) - torch.outer(way, way)
    rank, rows = float(effective_rank(first)), list[Record]()
    for round in range(world.rounds + 1):
        drawn = world.strength * max(0, round - world.onset) / (world.rounds - world.onset)
        states = first - drawn * first @ across + world.jitter * torch.randn(first.shape, generator=draw, dtype=torch.float64)
        rows += [Record(round, "hidden.rank.ratio", LAYER, -1, float(effective_rank(states)) / rank),
                 Record(round, "hidden.anisotropy", LAYER, -1, float(anisotropy(states))),
                 Record(round, "loss", "", -1, 4.0 - 0.02 * round)]
    return Trajectory(tuple(rows))
