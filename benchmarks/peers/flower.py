"""Flower's strategies (``flwr.server.strategy``) as subjects of the conformance tests, and the client of both generations.

Clients take gradient steps on plain numbers. In both generations, Flower's ``FedProx`` leaves the proximal term to the user's client
and shows it in its docstring. The client in this module implements that docstring.

The strategies are called round by round as Flower's server calls them. Clients report their number of examples, and the strategy
aggregates. ``QFedAvg`` takes the loss from the server's ``evaluate_fn``, which returns the mean loss over the clients.
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

from fedrift.conformance.problems import Problem

StrategyFactory = Callable[[Problem, dict[str, Any]], Any]


@dataclass(frozen=True)
class StrategySubject:
    """A Flower strategy as a subject of the conformance tests.

    Attributes:
        algorithm: The algorithm of fedrift's problems that the strategy implements.
        strategy: The name of the strategy in the tables of verdicts.
        make_strategy: Creates the strategy for a problem.
        gradient_correction: Returns the function that corrects a client's gradient, if the documentation requires one.
    """

    algorithm: str
    strategy: str
    make_strategy: StrategyFactory
    gradient_correction: Callable[[Problem], Callable[[float, float, float], float]] | None = None

    @property
    def version(self) -> str:
        """The installed version of Flower."""
        return version("flwr")

    def train_client(self, p: Problem, k: int, w: float) -> float:
        """Run the local steps of client k from the model w, and return the resulting model."""
        correct = self.gradient_correction(p) if self.gradient_correction else lambda y, w, gradient: gradient
        y = w
        for _ in range(p.steps[k]):
            y -= p.lr * correct(y, w, p.gradient(k, y))
        return y


def adaptive_factory(strategy_class: type[Any], betas: tuple[str, ...] = ("beta1", "beta2")) -> StrategyFactory:
    """Return a factory of adaptive strategies with the server optimizer options of a problem."""

    def make(p: Problem, known: dict[str, Any]) -> Any:
        decays = {f"{beta[:-1]}_{beta[-1]}": p.options[beta] for beta in betas}
        return strategy_class(eta=p.options["server_lr"], eta_l=p.lr, tau=p.options["tau"], **decays, **known)

    return make


def docstring_proximal_term(p: Problem) -> Callable[[float, float, float], float]:
    """Return the correction of Flower's FedProx docstring, which adds mu/2 |y - w| to the loss: the norm is not squared."""
    return lambda y, w, gradient: gradient + p.options["mu"] / 2 * np.sign(y - w)


@dataclass(frozen=True)
class FlowerSubject(StrategySubject):
    """A strategy of ``flwr.server`` as a subject of the conformance tests."""

    @property
    def name(self) -> str:
        """The name in the tables of verdicts."""
        return f"flwr {self.strategy}"

    def run(self, problem: Problem) -> list[float]:
        """Return x after every round of the problem."""
        x, path = problem.x0, []

        def evaluate(round: int, arrays: list[Any], config: dict[str, Any]) -> tuple[float, dict[str, Any]]:
            return float(np.mean([problem.loss(k, float(arrays[0][0])) for k in range(problem.num_clients)])), {}

        defaults = {
            "initial_parameters": pack_parameters(x),
            "evaluate_fn": evaluate,
            "min_fit_clients": 1,
            "min_available_clients": 1,
            "min_evaluate_clients": 1,
        }
        strategy = self.make_strategy(problem, defaults)
        for round, cohort in enumerate(problem.cohorts, 1):
            strategy.configure_fit(round, pack_parameters(x), FixedClientManager(cohort))
            parameters, _ = strategy.aggregate_fit(round, [self.fit(problem, k, x) for k in cohort if problem.weight_of(k)], [])
            x = float(parameters_to_ndarrays(parameters)[0][0])
            path.append(x)
        return path

    def fit(self, p: Problem, k: int, x: float) -> tuple[ClientProxy, FitRes]:
        """Train client k from x and return its result."""
        return AnsweredClient(str(k)), FitRes(Status(Code.OK, ""), pack_parameters(self.train_client(p, k, x)), int(p.weight_of(k)), {})


def pack_parameters(x: float) -> Parameters:
    """Pack x as Flower parameters."""
    return ndarrays_to_parameters([np.array([x])])


class AnsweredClient(ClientProxy):  # type: ignore[misc]
    """A client proxy that is only an identifier, because its result is computed directly."""

    get_properties = get_parameters = fit = evaluate = reconnect = None  # type: ignore[assignment]


@dataclass(frozen=True)
class FixedClientManager:
    """The part of a client manager that ``configure_fit`` uses."""

    cohort: tuple[int, ...]

    def num_available(self) -> int:
        """Return the size of the cohort."""
        return len(self.cohort)

    def sample(self, num_clients: int, min_num_clients: int | None = None) -> list[ClientProxy]:
        """Return the clients of the cohort."""
        return [AnsweredClient(str(k)) for k in self.cohort]


FLOWER = (
    FlowerSubject("fedavg", "FedAvg", lambda p, known: flower.FedAvg(**known)),
    FlowerSubject(
        "fedprox",
        "FedProx (client as in its docstring)",
        lambda p, known: flower.FedProx(proximal_mu=p.options["mu"], **known),
        docstring_proximal_term,
    ),
    FlowerSubject(
        "fedavgm",
        "FedAvgM",
        lambda p, known: flower.FedAvgM(server_learning_rate=p.options["server_lr"], server_momentum=p.options["momentum"], **known),
    ),
    FlowerSubject("fedadam", "FedAdam", adaptive_factory(flower.FedAdam)),
    FlowerSubject("fedyogi", "FedYogi", adaptive_factory(flower.FedYogi)),
    FlowerSubject("fedadagrad", "FedAdagrad", adaptive_factory(flower.FedAdagrad, ())),
    FlowerSubject("qfedavg", "QFedAvg", lambda p, known: flower.QFedAvg(q_param=p.options["q"], qffl_learning_rate=p.lr, **known)),
    FlowerSubject("median", "FedMedian", lambda p, known: flower.FedMedian(**known)),
    FlowerSubject("trimmed_mean", "FedTrimmedAvg", lambda p, known: flower.FedTrimmedAvg(beta=p.options["trim_fraction"], **known)),
    FlowerSubject(
        "krum",
        "Krum",
        lambda p, known: flower.Krum(
            num_malicious_clients=int(p.options["num_byzantine"]),
            num_clients_to_keep=int(p.options["num_selected"]) if p.options["num_selected"] > 1 else 0,
            **known,
        ),
    ),
)


__all__ = ["FLOWER", "FlowerSubject", "StrategyFactory", "StrategySubject", "adaptive_factory", "docstring_proximal_term"]
