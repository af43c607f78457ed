"""fedrift's own algorithms, put to the problems."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .. import __version__, algorithms
from ..algorithms import FedAvg
from ..algorithms.aggregates import FFA, FedEx, FLoRA, Krum, Median, RoLoRA, Svd, TrimmedMean
from ..fleet import SimulatedFleet
from ..optimizers import Adagrad, Adam, Sgd, Yogi
from ..rounds import begin
from ..tree import Tree
from .problem import Matrix, Problem

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
    "ditto": lambda o, lr: algorithms.Ditto(lam=o["lam"]),
    "fine_tuned": lambda o, lr: algorithms.FineTuned(),
    "pfedme": lambda o, lr: algorithms.PFedMe(Sgd(o["beta"]), lam=o["lam"], eta=o["eta"], inner=int(o["inner"])),
    "lora": lambda o, lr: FedAvg(),
    "ffa": lambda o, lr: FedAvg(aggregate=FFA()),
    "rolora": lambda o, lr: FedAvg(aggregate=RoLoRA()),
    "fedex": lambda o, lr: FedAvg(aggregate=FedEx()),
    "flora": lambda o, lr: FedAvg(aggregate=FLoRA()),
    "svd": lambda o, lr: FedAvg(aggregate=Svd()),
    "fedper": lambda o, lr: algorithms.FedPer(),
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
        fleet = SimulatedFleet(problem.size, adapters_loss if problem.adapters else loss, Steps(problem), Sgd(problem.lr))
        state = begin(algorithm, first_params(problem), problem.size)
        seen = []
        for round, cohort in enumerate(problem.cohorts):
            who = torch.tensor(sorted(cohort))
            report = fleet.train(state, algorithm, who)
            state = replace(state, round=round + 1, server=algorithm.absorb(state.server, report),
                            memory=state.memory.put(who, report.memory))
            params = state.server.params
            if problem.asks >= 0:
                one = torch.tensor([problem.asks])
                params = algorithm.wear(params.rows(state.group[one]), state.memory.rows(one))
            seen.append(answer(problem, Tree({**params, **state.server.base})))
        return seen


def first_params(problem: Problem) -> Tree:
    if problem.adapters is None:
        return Tree(x=torch.full((1, 1), problem.x, dtype=torch.float64))
    return Tree({"m.B": matrix(problem.adapters.up), "m.A": matrix(problem.adapters.down)})


def matrix(rows: Matrix) -> Tensor:
    """``[1, O, R]`` or ``[1, R, I]``."""
    return torch.tensor([rows], dtype=torch.float64)


def answer(problem: Problem, params: Tree) -> float:
    """x, or what the module answers."""
    asked = problem.adapters
    if asked is None:
        return params["x"].item()
    u, v = (torch.tensor(vector, dtype=torch.float64) for vector in (asked.u, asked.v))
    return (u @ (asked.scale * weight(params))[0] @ v).item()


def weight(params: Tree) -> Tensor:
    """What the adapters make of a module, below their scale, ``[C, O, I]``."""
    product = params["m.B"] @ params["m.A"]
    return product + params["m.base"] if "m.base" in params else product


def loss(params: Tree, batch: dict[str, Tensor]) -> Tensor:
    x = params["x"][:, 0]
    return batch["a"] / 2 * (x - batch["b"]) ** 2 + batch["slope"] * x


def adapters_loss(params: Tree, batch: dict[str, Tensor]) -> Tensor:
    apart = batch["scale"].view(-1, 1, 1) * weight(params) - batch["target"]
    return batch["a"] / 2 * apart.square().flatten(1).sum(1)


@dataclass(frozen=True)
class Steps:
    """The problem's full-batch steps; a client's n_k is spread over them."""

    problem: Problem

    def __call__(self, round: int, cohort: Tensor) -> Iterator[dict[str, Tensor]]:
        p = self.problem
        told: dict[str, tuple[Any, ...]] = {
            "a": p.a, "b": p.b, "slope": p.slope or (0.0,) * p.size,
            "weight": tuple(p.count(k) / max(p.steps[k], 1) for k in range(p.size))}
        if p.adapters:
            told |= {"target": p.adapters.targets, "scale": (p.adapters.scale,) * p.size}
        count = torch.tensor(p.steps)[cohort]
        for step in range(int(count.max())):
            rows = (count > step).nonzero().flatten()
            yield {"rows": rows, **{name: torch.tensor(column, dtype=torch.float64)[cohort[rows]]
                                    for name, column in told.items()}}


OURS = tuple(Ours(name, build) for name, build in BUILD.items())

__all__ = ["OURS", "Ours"]
