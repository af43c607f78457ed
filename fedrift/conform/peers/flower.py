"""Flower's strategies (``flwr.server.strategy``), driven round by round as its server drives them.

Their documented parts are theirs, the rest is plain: clients report their number of examples, the strategy
aggregates (``flower_strategy`` has the clients' steps). ``QFedAvg`` takes the loss from the server's ``evaluate_fn``,
as its source does; it is given the mean loss over the clients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.common import Code, FitRes, Parameters, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import strategy as flower
from flwr.server.client_proxy import ClientProxy

from ..problem import Problem
from .flower_strategy import Strategy, adaptive, docstring_prox


@dataclass(frozen=True)
class Flower(Strategy):

    @property
    def name(self) -> str:
        return f"flwr {self.strategy}"

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
        return Proxy(str(k)), FitRes(Status(Code.OK, ""), packed(self.trained(p, k, x)), int(p.count(k)), {})


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
