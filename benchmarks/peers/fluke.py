"""fluke (``fluke-fl``) as a subject of the conformance tests, run by its own loop with its clients, servers and optimizers.

Source: https://makgyver.github.io/fluke (an algorithm is built from a data splitter and the ``client`` and ``server``
hyperparameters of its configuration files). The cohorts are those of the problem, without clients that have no data. If all clients
take the same number of steps, ``local_epochs`` epochs of one full batch give these steps. Otherwise each client has as many equal
examples as steps, in batches of one. ``weighted`` is set if the clients have different weights. Clipping, which FedDyn's clients
use by default, is switched off. FedDyn is judged by the model that its server sends to the clients.
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
    """Return no hyperparameters."""
    return {}


@dataclass(frozen=True)
class FlukeSubject:
    """An algorithm of fluke as a subject of the conformance tests.

    Attributes:
        algorithm: The algorithm of fedrift's problems.
        title: The name in the tables of verdicts.
        federation_class: fluke's class of the federation.
        client_options: Returns the client hyperparameters for a problem.
        server_options: Returns the server hyperparameters for a problem.
        evaluated_model: Returns the model that is judged, given the server.
    """

    algorithm: str
    title: str
    federation_class: type[Any]
    client_options: Options = no_options
    server_options: Options = no_options
    evaluated_model: Callable[[Any], Any] = field(default=lambda server: server.model)

    @property
    def name(self) -> str:
        """The name in the tables of verdicts."""
        return f"fluke {self.title}"

    @property
    def version(self) -> str:
        """The installed version of fluke."""
        return version("fluke-fl")

    def run(self, problem: Problem) -> list[float]:
        """Return x after every round of the problem.

        Raises:
            Unsupported: If fluke cannot express the problem.
        """
        p, weights = problem, [problem.weight_of(k) for k in range(problem.num_clients) if problem.weight_of(k)]
        has_equal_steps, has_equal_weights = len({step for step in p.steps if step}) == 1, len(set(weights)) == 1
        if not has_equal_steps and not has_equal_weights:
            raise Unsupported("clients that differ both in their steps and in their weights")
        options = DDict(
            client={
                "batch_size": 0,
                "local_epochs": max(p.steps) if has_equal_steps else 1,
                "loss": QuadraticLoss,
                "clipping": 0,
                "optimizer": {"name": "SGD", "lr": p.lr},
                "scheduler": {"name": "StepLR", "step_size": 1, "gamma": 1},
                **self.client_options(p),
            },
            server={"weighted": not has_equal_weights, **self.server_options(p)},
            model=ScalarModel(p.x0),
        )
        FlukeENV().set_evaluator(NullEvaluator())
        federation = self.federation_class(p.num_clients, Splitter(p, has_equal_steps), options)
        rounds = iter(p.cohorts)
        federation.server.get_eligible_clients = lambda share: [federation.clients[k] for k in next(rounds) if p.weight_of(k)]
        path: list[float] = []
        aggregate = federation.server.aggregate

        def record_aggregate(*args: Any) -> None:
            aggregate(*args)
            path.append(self.evaluated_model(federation.server).x.item())

        federation.server.aggregate = record_aggregate
        federation.finalize = lambda: None  # it would evaluate the clients
        federation.run(len(p.cohorts), 1.0)
        return path


@dataclass(frozen=True)
class Splitter:
    """A data splitter that gives every client its quadratic, once per unit of weight or per step."""

    problem: Problem
    has_equal_steps: bool

    def assign(self, n_clients: int, batch_size: int) -> tuple[Any, Any]:
        """Return the data of all clients, in the form that fluke expects."""
        return ([self.make_loader(k) for k in range(n_clients)], [None] * n_clients), None

    def make_loader(self, k: int) -> FastDataLoader:
        """Return the data loader of client k."""
        p = self.problem
        rows = max(int(p.weight_of(k)) if self.has_equal_steps else p.steps[k], 1)
        coefficients = torch.tensor([[p.a[k], p.b[k], p.slope_of(k)]], dtype=torch.float64).expand(rows, -1)
        return FastDataLoader(coefficients, coefficients, num_labels=1, batch_size=0 if self.has_equal_steps else 1, skip_singleton=False)


class ScalarModel(torch.nn.Module):
    """A model that returns its parameter x for every input."""

    def __init__(self, x: float) -> None:
        super().__init__()
        self.x = torch.nn.Parameter(torch.tensor(x, dtype=torch.float64))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return x for every row."""
        return self.x.expand(len(rows))


class QuadraticLoss(torch.nn.Module):
    """The mean of the quadratics a/2 (x - b)^2 + slope x."""

    def forward(self, x: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
        """Return the loss at x, given the coefficients a, b and slope in the columns of ``coefficients``."""
        a, b, slope = coefficients.unbind(1)
        return (a / 2 * (x - b) ** 2 + slope * x).mean()


class NullEvaluator:
    """An evaluator that does nothing, because fluke evaluates after every round."""

    def evaluate(self, *words: Any, **more: Any) -> dict[str, float]:
        """Return no results."""
        return {}


def momentum_options(p: Problem) -> dict[str, Any]:
    """Return the server hyperparameters of FedAVGM."""
    if p.options["server_lr"] != 1:
        raise Unsupported("a server learning rate, because FedAVGM has none")
    return {"momentum": p.options["momentum"]}


def adaptive_options(mode: str) -> Options:
    """Return a function that gives the server hyperparameters of an adaptive optimizer."""
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
