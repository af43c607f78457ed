"""fedrift's own algorithms, put to the problems."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import __version__, algorithms
from ..algorithms import FedAvg
from ..algorithms.aggregates import Krum, Median, TrimmedMean
from ..fleet import SimulatedFleet
from ..optimizers import Adagrad, Adam, Sgd, Yogi
from ..rounds import begin
from ..tree import Tree
from .problem import Problem

Options = Mapping[str, float]


def betas(o: Options) -> tuple[float, float]:
    return o["beta1"], o["beta2"]


BUILD: dict[str, Callable[[Options, float], FedAvg]] = {
    "fedavg": lambda o, lr: FedAvg(),
    "fedsgd": lambda o, lr: algorithms.FedSGD(server=Sgd(lr)),
    "fedprox": lambda o, lr: algorithms.FedProx(mu=o["mu"]),
    "scaffold": lambda o, lr: algorithms.Scaffold(),
    "fedavgm": lambda o, lr: FedAvg(server=Sgd(o["server_lr"], momentum=o["momentum"])),
    "fedadam": lambda o, lr: FedAvg(server=Adam(o["server_lr"], betas(o), o["tau"])),
    "fedyogi": lambda o, lr: FedAvg(server=Yogi(o["server_lr"], betas(o), o["tau"])),
    "fedadagrad": lambda o, lr: FedAvg(server=Adagrad(o["server_lr"], betas(o), o["tau"])),
    "fednova": lambda o, lr: algorithms.FedNova(),
    "feddyn": lambda o, lr: algorithms.FedDyn(alpha=o["alpha"]),
    "qfedavg": lambda o, lr: algorithms.QFedAvg(q=o["q"]),
    "afl": lambda o, lr: algorithms.AFL(rate=o["rate"]),
    "median": lambda o, lr: FedAvg(aggregate=Median()),
    "trimmed_mean": lambda o, lr: FedAvg(aggregate=TrimmedMean(o["share"])),
    "krum": lambda o, lr: FedAvg(aggregate=Krum(int(o["liars"]), int(o["keep"]))),
}


@dataclass(frozen=True)
class Ours:
    """One of fedrift's algorithms; ``build`` makes it from a problem's options and learning rate."""

    algorithm: str
    build: Callable[[Options, float], FedAvg]
    name: str = "fedrift"
    version: str = __version__

    def run(self, problem: Problem) -> list[float]:
        algorithm = self.build(problem.options, problem.lr)
        fleet = SimulatedFleet(problem.size, loss, Steps(problem), Sgd(problem.lr))
        state = begin(algorithm, Tree(x=torch.full((1, 1), problem.x, dtype=torch.float64)), problem.size)
        seen = []
        for round, cohort in enumerate(problem.cohorts):
            who = torch.tensor(sorted(cohort))
            report = fleet.train(state, algorithm, who)
            state = replace(state, round=round + 1, server=algorithm.absorb(state.server, report),
                            memory=state.memory.put(who, report.memory))
            seen.append(state.server.params["x"].item())
        return seen


def loss(params: Tree, batch: dict[str, Tensor]) -> Tensor:
    x = params["x"][:, 0]
    return batch["a"] / 2 * (x - batch["b"]) ** 2 + batch["slope"] * x


@dataclass(frozen=True)
class Steps:
    """The problem's full-batch steps; a client's n_k is spread over them."""

    problem: Problem

    def __call__(self, round: int, cohort: Tensor) -> Iterator[dict[str, Tensor]]:
        p = self.problem
        told = {"a": p.a, "b": p.b, "slope": p.slope or (0.0,) * p.size,
                "weight": tuple(p.count(k) / max(p.steps[k], 1) for k in range(p.size))}
        count = torch.tensor(p.steps)[cohort]
        for step in range(int(count.max())):
            rows = (count > step).nonzero().flatten()
            yield {"rows": rows, **{name: torch.tensor(column, dtype=torch.float64)[cohort[rows]]
                                    for name, column in told.items()}}


OURS = tuple(Ours(name, build) for name, build in BUILD.items())

__all__ = ["OURS", "Ours"]
