"""fluke (``fluke-fl``): its federations, run by its own loop with clients, server and optimiser of its own.

Source: https://makgyver.github.io/fluke (an algorithm is built from a data splitter and the ``client`` and ``server``
hyper-parameters of its configuration files). The cohort of each round is ours, and a client without data is in none.
Full batches are one batch an epoch, ``local_epochs`` of them; where clients differ in steps, as many equal examples
in batches of one. ``weighted`` is said where clients differ in what they count. Clipping, which FedDyn's clients do
by default, is switched off. FedDyn is judged by the model that its server sends to the clients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import torch
from fluke import DDict, FlukeENV
from fluke.algorithms.fedavg import FedAVG
from fluke.algorithms.fedavgm import FedAVGM
from fluke.algorithms.feddyn import FedDyn
from fluke.algorithms.fednova import FedNova
from fluke.algorithms.fedopt import FedOpt
from fluke.algorithms.fedprox import FedProx
from fluke.algorithms.scaffold import SCAFFOLD
from fluke.data import FastDataLoader

from ..problem import Problem, Unsupported

Options = Callable[[Problem], dict[str, Any]]


def none(p: Problem) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Fluke:
    """One of fluke's algorithms; ``client`` and ``server`` are its hyper-parameters from a problem's options."""

    algorithm: str
    title: str
    kind: type[Any]
    client: Options = none
    server: Options = none
    shown: Callable[[Any], Any] = field(default=lambda server: server.model)

    @property
    def name(self) -> str:
        return f"fluke {self.title}"

    @property
    def version(self) -> str:
        return version("fluke-fl")

    def run(self, problem: Problem) -> list[float]:
        p, counts = problem, [problem.count(k) for k in range(problem.size) if problem.count(k)]
        even, alike = len({step for step in p.steps if step}) == 1, len(set(counts)) == 1
        if not even and not alike:
            raise Unsupported("clients that differ both in steps and in what they count")
        asked = DDict(
            client={"batch_size": 0, "local_epochs": max(p.steps) if even else 1, "loss": Quadratic, "clipping": 0,
                    "optimizer": {"name": "SGD", "lr": p.lr}, "scheduler": {"name": "StepLR", "step_size": 1, "gamma": 1},
                    **self.client(p)},
            server={"weighted": not alike, **self.server(p)}, model=Scalar(p.x))
        FlukeENV().set_evaluator(Nothing())
        federation = self.kind(p.size, Splitter(p, even), asked)
        rounds = iter(p.cohorts)
        federation.server.get_eligible_clients = lambda share: [
            federation.clients[k] for k in next(rounds) if p.count(k)]
        seen: list[float] = []
        aggregate = federation.server.aggregate

        def watched(*words: Any) -> None:
            aggregate(*words)
            seen.append(self.shown(federation.server).x.item())

        federation.server.aggregate = watched
        federation.finalize = lambda: None  # would ask the clients for an evaluation
        federation.run(len(p.cohorts), 1.0)
        return seen


@dataclass(frozen=True)
class Splitter:
    """Gives every client its quadratic, as many times as it counts or takes steps."""

    problem: Problem
    even: bool

    def assign(self, n_clients: int, batch_size: int) -> tuple[Any, Any]:
        return ([self.loader(k) for k in range(n_clients)], [None] * n_clients), None

    def loader(self, k: int) -> FastDataLoader:
        p = self.problem
        rows = max(int(p.count(k)) if self.even else p.steps[k], 1)
        told = torch.tensor([[p.a[k], p.b[k], p.lean(k)]], dtype=torch.float64).expand(rows, -1)
        return FastDataLoader(told, told, num_labels=1, batch_size=0 if self.even else 1, skip_singleton=False)


class Scalar(torch.nn.Module):
    """A model that answers x whatever it is shown."""

    def __init__(self, x: float) -> None:
        super().__init__()
        self.x = torch.nn.Parameter(torch.tensor(x, dtype=torch.float64))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.x.expand(len(rows))


class Quadratic(torch.nn.Module):
    def forward(self, x: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        a, b, slope = told.unbind(1)
        return (a / 2 * (x - b) ** 2 + slope * x).mean()


class Nothing:
    """fluke evaluates after every round; there is nothing here that it could."""

    def evaluate(self, *words: Any, **more: Any) -> dict[str, float]:
        return {}


def one_server_rate(p: Problem) -> dict[str, Any]:
    if p.options["server_lr"] != 1:
        raise Unsupported("a server rate: FedAVGM takes none")
    return {"momentum": p.options["momentum"]}


def adaptive(mode: str) -> Options:
    return lambda p: {"mode": mode, "lr": p.options["server_lr"], "tau": p.options["tau"],
                      "beta1": p.options["beta1"], "beta2": p.options["beta2"]}


FLUKE = (
    Fluke("fedavg", "FedAVG", FedAVG),
    Fluke("fedprox", "FedProx", FedProx, client=lambda p: {"mu": p.options["mu"]}),
    Fluke("scaffold", "SCAFFOLD, global_step 1", SCAFFOLD, server=lambda p: {"global_step": 1.0}),
    Fluke("fedavgm", "FedAVGM", FedAVGM, server=one_server_rate),
    Fluke("fedadam", "FedOpt, adam", FedOpt, server=adaptive("adam")),
    Fluke("fedyogi", "FedOpt, yogi", FedOpt, server=adaptive("yogi")),
    Fluke("fedadagrad", "FedOpt, adagrad", FedOpt, server=adaptive("adagrad")),
    Fluke("fednova", "FedNova", FedNova),
    Fluke("feddyn", "FedDyn", FedDyn, client=lambda p: {"alpha": p.options["alpha"]},
          server=lambda p: {"alpha": p.options["alpha"]}, shown=lambda server: server.cld_mdl),
)

__all__ = ["FLUKE", "Fluke"]
