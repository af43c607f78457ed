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

from fedrift.conformance.problems import Problem, Unsupported

Options = Callable[[Problem], dict[str, Any]]


def no_options(p: Problem) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class FlukeSubject:
    """One of fluke's algorithms; ``client`` and ``server`` are its hyper-parameters from a problem's options."""

    algorithm: str
    title: str
    federation_class: type[Any]
    client_options: Options = no_options
    server_options: Options = no_options
    evaluated_model: Callable[[Any], Any] = field(default=lambda server: server.model)

    @property
    def name(self) -> str:
        return f"fluke {self.title}"

    @property
    def version(self) -> str:
        return version("fluke-fl")

    def run(self, problem: Problem) -> list[float]:
        p, counts = problem, [problem.weight_of(k) for k in range(problem.num_clients) if problem.weight_of(k)]
        even, alike = len({step for step in p.steps if step}) == 1, len(set(counts)) == 1
        if not even and not alike:
            raise Unsupported("clients that differ both in steps and in what they count")
        asked = DDict(
            client={
                "batch_size": 0,
                "local_epochs": max(p.steps) if even else 1,
                "loss": QuadraticLoss,
                "clipping": 0,
                "optimizer": {"name": "SGD", "lr": p.lr},
                "scheduler": {"name": "StepLR", "step_size": 1, "gamma": 1},
                **self.client_options(p),
            },
            server={"weighted": not alike, **self.server_options(p)},
            model=ScalarModel(p.x0),
        )
        FlukeENV().set_evaluator(NullEvaluator())
        federation = self.federation_class(p.num_clients, Splitter(p, even), asked)
        rounds = iter(p.cohorts)
        federation.server.get_eligible_clients = lambda share: [federation.clients[k] for k in next(rounds) if p.weight_of(k)]
        seen: list[float] = []
        aggregate = federation.server.aggregate

        def watched(*words: Any) -> None:
            aggregate(*words)
            seen.append(self.evaluated_model(federation.server).x.item())

        federation.server.aggregate = watched
        federation.finalize = lambda: None  # would ask the clients for an evaluation
        federation.run(len(p.cohorts), 1.0)
        return seen


@dataclass(frozen=True)
class Splitter:
    """Gives every client its quadratic, as many times as it counts or takes steps."""

    problem: Problem
    has_equal_steps: bool

    def assign(self, n_clients: int, batch_size: int) -> tuple[Any, Any]:
        return ([self.make_loader(k) for k in range(n_clients)], [None] * n_clients), None

    def make_loader(self, k: int) -> FastDataLoader:
        p = self.problem
        rows = max(int(p.weight_of(k)) if self.has_equal_steps else p.steps[k], 1)
        told = torch.tensor([[p.a[k], p.b[k], p.slope_of(k)]], dtype=torch.float64).expand(rows, -1)
        return FastDataLoader(told, told, num_labels=1, batch_size=0 if self.has_equal_steps else 1, skip_singleton=False)


class ScalarModel(torch.nn.Module):
    """A model that answers x whatever it is shown."""

    def __init__(self, x: float) -> None:
        super().__init__()
        self.x = torch.nn.Parameter(torch.tensor(x, dtype=torch.float64))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.x.expand(len(rows))


class QuadraticLoss(torch.nn.Module):
    def forward(self, x: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        a, b, slope = told.unbind(1)
        return (a / 2 * (x - b) ** 2 + slope * x).mean()


class NullEvaluator:
    """fluke evaluates after every round; there is nothing here that it could."""

    def evaluate(self, *words: Any, **more: Any) -> dict[str, float]:
        return {}


def momentum_options(p: Problem) -> dict[str, Any]:
    if p.options["server_lr"] != 1:
        raise Unsupported("a server rate: FedAVGM takes none")
    return {"momentum": p.options["momentum"]}


def adaptive_options(mode: str) -> Options:
    return lambda p: {
        "mode": mode,
        "lr": p.options["server_lr"],
        "tau": p.options["tau"],
        "beta1": p.options["beta1"],
        "beta2": p.options["beta2"],
    }


FLUKE = (
    FlukeSubject("fedavg", "FedAVG", FedAVG),
    FlukeSubject("fedprox", "FedProx", FedProx, client_options=lambda p: {"mu": p.options["mu"]}),
    FlukeSubject("scaffold", "SCAFFOLD, global_step 1", SCAFFOLD, server_options=lambda p: {"global_step": 1.0}),
    FlukeSubject("fedavgm", "FedAVGM", FedAVGM, server_options=momentum_options),
    FlukeSubject("fedadam", "FedOpt, adam", FedOpt, server_options=adaptive_options("adam")),
    FlukeSubject("fedyogi", "FedOpt, yogi", FedOpt, server_options=adaptive_options("yogi")),
    FlukeSubject("fedadagrad", "FedOpt, adagrad", FedOpt, server_options=adaptive_options("adagrad")),
    FlukeSubject("fednova", "FedNova", FedNova),
    FlukeSubject(
        "feddyn",
        "FedDyn",
        FedDyn,
        client_options=lambda p: {"alpha": p.options["alpha"]},
        server_options=lambda p: {"alpha": p.options["alpha"]},
        evaluated_model=lambda server: server.cld_mdl,
    ),
)


__all__ = ["FLUKE", "FlukeSubject"]
