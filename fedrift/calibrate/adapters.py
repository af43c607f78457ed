"""A federation of low-rank adapters: linear regressions whose factors are averaged, and what exact averaging would have saved.

Client k fits y = (W0 + B A) x to targets of its own map W_k = W0 + common + ``apart`` times its own; with ``apart`` 0 all
clients have the same map and differ in their samples only. Long local training drives the factors apart even then.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..algorithms import FedAvg
from ..fleet import SimulatedFleet
from ..optimizers import Sgd
from ..probes import Reading, aggregation_error, local_training, recorded, update_geometry
from ..records import Record, Trajectory
from ..rounds import begin, rounds
from ..streams import torch_stream
from ..tree import Tree
from ..values import Round

DOUBLE = torch.float64
INPUTS, OUTPUTS, RANK, ROWS = 8, 6, 2, 64


@dataclass(frozen=True)
class Adapters:
    """One experiment."""

    apart: float = 1.0
    steps: int = 50
    clients: int = 5
    lr: float = 0.1
    rounds: int = 12
    seed: int = 0


def carry_out(world: Adapters) -> Trajectory:
    """The world's run, from its first round to its end."""
    draw = torch_stream(world.seed, "adapters")
    common = normal(draw, OUTPUTS, RANK) @ normal(draw, RANK, INPUTS) / RANK ** 0.5
    own = normal(draw, world.clients, OUTPUTS, RANK) @ normal(draw, world.clients, RANK, INPUTS) / RANK ** 0.5
    x = normal(draw, world.clients, ROWS, INPUTS)
    y = x @ (common + world.apart * own).mT + 0.1 * normal(draw, world.clients, ROWS, OUTPUTS)
    params = Tree({"m.A": normal(draw, 1, RANK, INPUTS) / INPUTS ** 0.5, "m.B": torch.zeros(1, OUTPUTS, RANK, dtype=DOUBLE)})
    fleet = SimulatedFleet(world.clients, loss, Steps(x, y, world.steps), Sgd(world.lr), clip=5.0, weighting="uniform")
    state, rows = begin(FedAvg(), params, fleet.size), list[Record]()
    for done in rounds(state, fleet, FedAvg(), until=world.rounds, cohort=world.clients, seed=world.seed):
        reading: Reading = {**local_training(done), **update_geometry(done), **aggregation_error(done), **costs(done, x, y)}
        rows += recorded(reading, done.after.round, done.cohort.tolist(), world.clients)
    return Trajectory(tuple(rows))


def costs(done: Round, x: Tensor, y: Tensor) -> Reading:
    """The loss of the federation, and how much lower it were had the products been averaged (`adapters.error.loss`)."""
    product = done.local["m.B"] @ done.local["m.A"]  # [C, O, I]
    after = done.after.server.params
    now, exact = (float((x @ weight.mT - y).square().mean()) for weight in (after["m.B"][0] @ after["m.A"][0], product.mean(0)))
    return {"loss": now, "adapters.error.loss": now - exact}


def loss(params: Tree, batch: dict[str, Tensor]) -> Tensor:
    return (batch["x"] @ (params["m.B"] @ params["m.A"]).mT - batch["y"]).square().flatten(1).mean(1)


@dataclass(frozen=True, eq=False)
class Steps:
    """All of a client's rows at every step."""

    x: Tensor  # [N, B, I]
    y: Tensor  # [N, B, O]
    steps: int

    def __call__(self, round: int, cohort: Tensor) -> Iterator[dict[str, Tensor]]:
        for _ in range(self.steps):
            yield {"x": self.x[cohort], "y": self.y[cohort], "weight": torch.ones(len(cohort))}


def normal(draw: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=draw, dtype=DOUBLE)
