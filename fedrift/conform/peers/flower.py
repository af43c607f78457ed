"""Flower's strategies (``flwr.server.strategy``), driven round by round as its server drives them.

Their documented parts are theirs, the rest is plain: clients take gradient steps in plain numbers and report their
number of examples; the strategy aggregates. ``FedProx`` leaves the proximal term to the user's client and shows it
in its docstring, which is what the client here does. ``QFedAvg`` takes the loss from the server's ``evaluate_fn``,
as its source does; it is given the mean loss over the clients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from flwr.common import Code, FitRes, Parameters, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import strategy as flower
from flwr.server.client_proxy import ClientProxy

from ..problem import Problem

Make = Callable[[Problem, dict[str, Any]], Any]


def adaptive(kind: type[Any], betas: tuple[str, ...] = ("beta1", "beta2")) -> Make:
    """A server optimiser with the problem's options."""
    def make(p: Problem, known: dict[str, Any]) -> Any:
        decays = {f"{beta[:-1]}_{beta[-1]}": p.options[beta] for beta in betas}
        return kind(eta=p.options["server_lr"], eta_l=p.lr, tau=p.options["tau"], **decays, **known)
    return make


def docstring_prox(p: Problem) -> Callable[[float, float, float], float]:
    """FedProx's docstring adds mu/2 |y - w| to the loss: the norm is not squared."""
    return lambda y, w, gradient: gradient + p.options["mu"] / 2 * np.sign(y - w)


@dataclass(frozen=True)
class Flower:
    """One strategy. ``correct``: what the client adds to its gradient, where the documentation says so."""

    algorithm: str
    strategy: str
    make: Make
    correct: Callable[[Problem], Callable[[float, float, float], float]] | None = None

    @property
    def name(self) -> str:
        return f"flwr {self.strategy}"

    @property
    def version(self) -> str:
        return version("flwr")

    def run(self, problem: Problem) -> list[float]:
        x, seen = problem.x, []

        def evaluate(round: int, arrays: list[Any], config: dict[str, Any]) -> tuple[float, dict[str, Any]]:
            return float(np.mean([problem.loss(k, float(arrays[0][0])) for k in range(problem.size)])), {}

        known = {"initial_parameters": packed(x), "evaluate_fn": evaluate, "min_fit_clients": 1,
                 "min_available_clients": 1, "min_evaluate_clients": 1}
        strategy = self.make(problem, known)
        for round, cohort in enumerate(problem.cohorts, 1):
            strategy.configure_fit(round, packed(x), Everybody(cohort))
            found, _ = strategy.aggregate_fit(round, [self.fit(problem, k, x) for k in cohort if problem.count(k)], [])
            x = float(parameters_to_ndarrays(found)[0][0])
            seen.append(x)
        return seen

    def fit(self, p: Problem, k: int, x: float) -> tuple[ClientProxy, FitRes]:
        """The client's answer."""
        follow = self.correct(p) if self.correct else lambda y, w, gradient: gradient
        y = x
        for _ in range(p.steps[k]):
            y -= p.lr * follow(y, x, p.gradient(k, y))
        return Proxy(str(k)), FitRes(Status(Code.OK, ""), packed(y), int(p.count(k)), {})


def packed(x: float) -> Parameters:
    return ndarrays_to_parameters([np.array([x])])


class Proxy(ClientProxy):  # type: ignore[misc]
    """A client that has answered already."""

    get_properties = get_parameters = fit = evaluate = reconnect = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Everybody:
    """The part of a client manager that ``configure_fit`` asks for."""

    cohort: tuple[int, ...]

    def num_available(self) -> int:
        return len(self.cohort)

    def sample(self, num_clients: int, min_num_clients: int | None = None) -> list[ClientProxy]:
        return [Proxy(str(k)) for k in self.cohort]


FLOWER = (
    Flower("fedavg", "FedAvg", lambda p, known: flower.FedAvg(**known)),
    Flower("fedprox", "FedProx (client as in its docstring)",
           lambda p, known: flower.FedProx(proximal_mu=p.options["mu"], **known), docstring_prox),
    Flower("fedavgm", "FedAvgM", lambda p, known: flower.FedAvgM(
        server_learning_rate=p.options["server_lr"], server_momentum=p.options["momentum"], **known)),
    Flower("fedadam", "FedAdam", adaptive(flower.FedAdam)),
    Flower("fedyogi", "FedYogi", adaptive(flower.FedYogi)),
    Flower("fedadagrad", "FedAdagrad", adaptive(flower.FedAdagrad, ())),
    Flower("qfedavg", "QFedAvg", lambda p, known: flower.QFedAvg(
        q_param=p.options["q"], qffl_learning_rate=p.lr, **known)),
    Flower("median", "FedMedian", lambda p, known: flower.FedMedian(**known)),
    Flower("trimmed_mean", "FedTrimmedAvg", lambda p, known: flower.FedTrimmedAvg(beta=p.options["share"], **known)),
    Flower("krum", "Krum", lambda p, known: flower.Krum(
        num_malicious_clients=int(p.options["liars"]),
        num_clients_to_keep=int(p.options["keep"]) if p.options["keep"] > 1 else 0, **known)),
)

__all__ = ["FLOWER", "Flower"]
