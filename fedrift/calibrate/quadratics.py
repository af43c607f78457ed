"""A federation of which everything is known: domains are quadratics, clients are mixtures of them.

Domain j is f_j(x) = a_j/2 |x - b_j|^2 + slope_j x; client k holds it with share mix[k, j], so that F_k = sum_j mix[k, j] f_j is
a quadratic too, and all clients holding the pool's mixture is the same documents dealt IID. A local step follows the
gradient of F_k with noise of its own. The real round loop, fleet, algorithms and probes run on it; a run takes a fraction
of a second.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor

from ..algorithms import FedAvg
from ..fleet import SimulatedFleet
from ..optimizers import Sgd
from ..probes import Reading, local_training, recorded, update_geometry
from ..records import Record, Trajectory
from ..rounds import anybody, begin, rounds
from ..seeds import number, numpy_stream
from ..streams import torch_stream
from ..tree import Tree
from ..values import Draw, Round, State
from .evidence import evidence

DOUBLE = torch.float64


def deal(domains: int, clients: int, severity: float) -> tuple[tuple[float, ...], ...]:
    """Client k holds domain k mod J more than the others do: all of it at severity 1, the pool's mixture at 0, ``[N][J]``."""
    own = np.eye(domains)[np.arange(clients) % domains]
    return tuple(map(tuple, (1 - severity) * np.full((clients, domains), 1 / domains) + severity * own))


@dataclass(frozen=True)
class World:
    """One experiment. ``b`` and ``x``, the start, count for every coordinate; ``wander`` draws each domain's b about its own."""

    a: tuple[float, ...] = (1.0, 4.0)  # [J]
    b: tuple[float, ...] = (0.0, 1.0)  # [J]
    mix: tuple[tuple[float, ...], ...] = ((1.0, 0.0), (0.0, 1.0))  # [N][J]
    slope: tuple[float, ...] = ()  # [J]
    width: int = 1
    wander: float = 0.0
    noise: float = 0.0
    steps: int = 10
    lr: float = 0.1
    x: float = 5.0
    rounds: int = 60
    cohort: int = 0  # 0: everybody
    algorithm: FedAvg = FedAvg()
    draw: Draw | None = None  # who takes part, where it is not left to chance
    general: float | None = None  # x at which general text and its grammar are best: where the pretrained model stands
    broken: tuple[int, ...] = ()  # clients whose gradients are not numbers
    seed: int = 0
    again: int = 0  # another draw of noise and cohorts over the same documents

    @property
    def draws(self) -> int:
        """The seed of noise and cohorts."""
        return number(self.seed, "again", self.again) if self.again else self.seed

    @property
    def clients(self) -> int:
        return len(self.mix)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"domain{j}" for j in range(len(self.a)))

    def optima(self) -> np.ndarray:
        """b of every domain, ``[J, width]``; the seed's, whoever holds what."""
        drawn = numpy_stream(self.seed, "optima").normal(0, 1, (len(self.a), self.width))
        return np.asarray(self.b)[:, None] + self.wander * drawn


def carry_out(world: World) -> Trajectory:
    """The world's run, from round 0 to its end."""
    a, slope = np.asarray(world.a), np.asarray(world.slope or (0.0,) * len(world.a))
    mix, b = np.asarray(world.mix), world.optima()
    pull = torch.tensor(mix @ a, dtype=DOUBLE)[:, None]  # [N, 1] curvature of F_k
    push = torch.tensor((mix * a) @ b - (mix @ slope)[:, None], dtype=DOUBLE)  # [N, width]: its gradient is pull x - push
    push[list(world.broken)] = torch.nan
    steps = Steps(pull, push, world.steps, world.noise, world.draws)
    fleet = SimulatedFleet(world.clients, loss, steps, Sgd(world.lr), weighting="uniform")
    state = begin(world.algorithm, Tree(x=torch.full((1, world.width), world.x, dtype=DOUBLE)), fleet.size)
    rows = recorded(losses(world, state, b, slope), 0, [], fleet.size)
    with np.errstate(over="ignore", invalid="ignore"):  # some are there to diverge
        for done in rounds(state, fleet, world.algorithm, until=world.rounds, cohort=world.cohort or fleet.size,
                           seed=world.draws, draw=world.draw or anybody):
            rows += observed(world, done, b, slope)
    return Trajectory(tuple(rows))


def observed(world: World, done: Round, b: np.ndarray, slope: np.ndarray) -> list[Record]:
    reading: Reading = {**losses(world, done.after, b, slope), **local_training(done), **update_geometry(done),
                        **evidence(done, world.algorithm)}
    return recorded(reading, done.after.round, done.cohort.tolist(), world.clients)


def losses(world: World, state: State, b: np.ndarray, slope: np.ndarray) -> Reading:
    """Exact losses of the models: by domain, of every client under its own model, and of the federation."""
    x = state.server.params["x"].numpy()[state.group.numpy()]  # [N, width]
    each = np.asarray(world.a) / 2 * ((x[:, None] - b) ** 2).sum(2) + slope * x.sum(1)[:, None]  # [N, J]
    mix, reading = np.asarray(world.mix), Reading()
    client = (mix * each).sum(1)
    reading["loss"] = torch.from_numpy(client)
    reading["loss", ""] = float(client.mean())
    for j, name in enumerate(world.names):
        reading["loss", name] = float((mix[:, j] * each[:, j]).sum() / mix[:, j].sum()) if mix[:, j].sum() else float("nan")
    if world.general is not None:
        far = float(((x - world.general) ** 2).sum(1).mean() / 2)
        reading |= {"general.loss": far, "syntax.margin": 2 - far, "syntax.accuracy": float(norm.cdf(2 - far))}
    return reading


def loss(params: Tree, batch: dict[str, Tensor]) -> Tensor:
    x = params["x"]
    return (batch["pull"] / 2 * x ** 2 - (batch["push"] + batch["noise"]) * x).sum(1)


@dataclass(frozen=True, eq=False)
class Steps:
    """Every client's local steps; the noise of a step is the client's and the round's own, whoever else takes part."""

    pull: Tensor  # [N, 1]
    push: Tensor  # [N, width]
    steps: int
    noise: float
    seed: int

    def __call__(self, round: int, cohort: Tensor) -> Iterator[dict[str, Tensor]]:
        shape = (self.steps, self.push.shape[1])
        noise = torch.stack([self.noise * torch.randn(shape, generator=torch_stream(self.seed, "noise", round, k), dtype=DOUBLE)
                             for k in cohort.tolist()])  # [C, S, width]
        for step in range(self.steps):
            yield {"pull": self.pull[cohort], "push": self.push[cohort], "noise": noise[:, step],
                   "weight": torch.ones(len(cohort))}
