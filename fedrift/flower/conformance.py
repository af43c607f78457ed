"""Conformance of a user's own Flower strategy: a strategy of the message API, judged by the paper of the algorithm that it extends.

The strategy is driven round by round as its ``start`` drives it. The clients behind it take full-batch gradient steps in plain numbers,
with the learning rate ``lr`` and the ``proximal-mu`` of the round's configuration. They reply with their array, their number of
examples and ``train_loss``, the loss of the model that they received, by the strategy's own keys.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from random import getstate, setstate
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy
from flwr.supercore.task_identity import TaskIdentity

from ..conformance.problems import Problem, Unsupported
from ..core.errors import UserError

StrategyType = type[Strategy]
# The problem says which clients take part in a round, so the strategy trains all of them.
NODES = {"fraction_train": 1.0, "min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}


def adaptive_options(p: Problem) -> dict[str, float]:
    """The server optimizer's settings by Flower's names."""
    betas = {f"{beta[:-1]}_{beta[-1]}": p.options[beta] for beta in ("beta1", "beta2")}
    return {"eta": p.options["server_lr"], "eta_l": p.lr, "tau": p.options["tau"], **betas}


def krum_options(p: Problem) -> dict[str, float]:
    """Krum selects one client; MultiKrum can be asked for several."""
    if int(p.options["num_selected"]) != 1:
        raise Unsupported("Krum selects one client, and the problem asks for several")
    return {"num_malicious_nodes": int(p.options["num_byzantine"])}


# Flower's class -> the algorithm that it is judged as, and the problem's settings by Flower's names; subclasses come first.
ALGORITHMS: tuple[tuple[StrategyType, str, Callable[[Problem], dict[str, float]]], ...] = (
    (flower.FedProx, "fedprox", lambda p: {"proximal_mu": p.options["mu"]}),
    (flower.FedAvgM, "fedavgm", lambda p: {"server_learning_rate": p.options["server_lr"], "server_momentum": p.options["momentum"]}),
    (flower.FedAdam, "fedadam", adaptive_options),
    (flower.FedYogi, "fedyogi", adaptive_options),
    (flower.FedAdagrad, "fedadagrad", lambda p: {key: value for key, value in adaptive_options(p).items() if "beta" not in key}),
    (flower.QFedAvg, "qfedavg", lambda p: {"client_learning_rate": p.lr, "q": p.options["q"]}),
    (flower.FedMedian, "median", lambda p: {}),
    (flower.FedTrimmedAvg, "trimmed_mean", lambda p: {"beta": p.options["trim_fraction"]}),
    (flower.Krum, "krum", krum_options),
    (
        flower.MultiKrum,
        "krum",
        lambda p: {"num_malicious_nodes": int(p.options["num_byzantine"]), "num_nodes_to_select": int(p.options["num_selected"])},
    ),
    (flower.FedAvg, "fedavg", lambda p: {}),
)
# These extend FedAvg and are other algorithms, of which no problem is known.
NOT_JUDGED: tuple[StrategyType, ...] = (flower.Bulyan, flower.FedXgbBagging, flower.FedXgbCyclic)


@dataclass(frozen=True)
class StrategySubject:
    """A strategy class as a subject of the conformance suite."""

    strategy: StrategyType
    algorithm: str
    options: Callable[[Problem], dict[str, float]]

    @property
    def name(self) -> str:
        return self.strategy.__name__

    @property
    def version(self) -> str:
        """The version of Flower that it runs with."""
        return version("flwr")

    def run(self, problem: Problem) -> list[float]:
        """The server's x after every round."""
        strategy, x, path = self.make_strategy(problem), problem.x0, []
        config = ConfigRecord({"lr": problem.lr})  # one for all rounds, as in ``start``
        for number, cohort in enumerate(problem.cohorts, 1):
            before = getstate()  # Flower draws nodes from the global generator
            with server_identity():
                calls = list(strategy.configure_train(number, pack(x), config, cast(Grid, FixedGrid(cohort))))
                setstate(before)
                by_node = sorted(calls, key=lambda call: call.metadata.dst_node_id)
                replies = [reply(problem, call, call.metadata.dst_node_id - 2, strategy) for call in by_node]
            arrays, _ = strategy.aggregate_train(number, [each for each in replies if each is not None])
            if arrays is None:
                raise Unsupported(f"{self.name} aggregated nothing in round {number}")
            x = float(next(iter(arrays.values())).numpy()[0])
            path.append(x)
        return path

    def make_strategy(self, problem: Problem) -> Strategy:
        """The strategy with the problem's settings, as far as its constructor takes them."""
        options = self.options(problem)
        wanted = {**NODES, **options}
        known = inspect.signature(self.strategy.__init__).parameters
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in known.values()):
            missing = sorted(options.keys() - known.keys())
            if missing:
                raise Unsupported(f"the constructor of {self.name} does not take {', '.join(missing)}")
            wanted = {key: value for key, value in wanted.items() if key in known}
        made = self.strategy(**wanted)
        for name in vars(made).keys() & NODES.keys():  # else Flower waits for nodes that never come
            setattr(made, name, NODES[name])
        return made


def make_subject(strategy: StrategyType) -> StrategySubject:
    """A strategy class as a subject, judged as the algorithm of the nearest class of Flower's that it extends.

    Args:
        strategy: A subclass of ``flwr.serverapp.strategy.Strategy`` whose constructor takes the arguments of that class, or
            ``**kwargs``.

    Raises:
        UserError: It extends no class with a known algorithm.
    """
    if issubclass(strategy, NOT_JUDGED):
        kind = next(other.__name__ for other in NOT_JUDGED if issubclass(strategy, other))
        raise UserError(
            f"{strategy.__name__} is a {kind}, and the conformance suite has no problem for that algorithm: name another strategy"
        )
    for base, algorithm, options in ALGORITHMS:
        if issubclass(strategy, base):
            return StrategySubject(strategy, algorithm, options)
    known = ", ".join(base.__name__ for base, _, _ in ALGORITHMS)
    raise UserError(f"{strategy.__name__} extends none of Flower's strategies with a known algorithm: {known}")


def is_strategy(thing: Any) -> bool:
    """Whether something is a strategy class of Flower's message API."""
    return isinstance(thing, type) and issubclass(thing, Strategy)


def reply(p: Problem, call: Message, client: int, strategy: Strategy) -> Message | None:
    """What a client answers, by the keys of the strategy's records; None of a client without data."""
    if not p.weight_of(client):
        return None
    arrays_key, weight_key = getattr(strategy, "arrayrecord_key", "arrays"), getattr(strategy, "weighted_by_key", "num-examples")
    arrays, config = (cast(Any, call.content[key]) for key in (arrays_key, getattr(strategy, "configrecord_key", "config")))
    w = float(arrays["x"].numpy()[0])
    lr, mu = float(config["lr"]), float(config.get("proximal-mu", 0.0))
    y = w
    for _ in range(p.steps[client]):
        y -= lr * (p.gradient(client, y) + mu * (y - w))
    numbers: dict[str, Any] = {weight_key: int(p.weight_of(client)), "train_loss": p.loss(client, w)}
    return Message(RecordDict({arrays_key: pack(y), "metrics": MetricRecord(numbers)}), reply_to=call)


def pack(x: float) -> ArrayRecord:
    return ArrayRecord({"x": Array(np.array([x]))})


@contextmanager
def server_identity() -> Iterator[None]:
    """Make this process pass for that of a ServerApp, in whose name messages are made."""
    before = {name: getattr(TaskIdentity, name, None) for name in ("_task_id", "_run_id", "_node_id")}
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(TaskIdentity, name, value)


@dataclass(frozen=True)
class FixedGrid:
    """The part of a grid that ``configure_train`` asks for: client k is node k + 2."""

    cohort: tuple[int, ...]

    def get_node_ids(self) -> list[int]:
        return [client + 2 for client in self.cohort]
