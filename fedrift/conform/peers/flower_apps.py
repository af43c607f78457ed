"""Flower's newer strategies (``flwr.serverapp.strategy``), driven round by round as their ``start`` drives them.

Messages are Flower's own; the clients behind them (``flower_strategy``) reply with their arrays, their number of examples
and ``train_loss``, here F_k at the model they received, as q-FFL's paper has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import getstate, setstate
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.supercore.task_identity import TaskIdentity

from ..problem import Problem
from .flower_strategy import Strategy, adaptive, docstring_prox


@dataclass(frozen=True)
class FlowerApps(Strategy):

    @property
    def name(self) -> str:
        return f"flwr.serverapp {self.strategy}"

    def run(self, problem: Problem) -> list[float]:
        known = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}
        strategy, x, seen = self.make(problem, known), problem.x, []
        for round, cohort in enumerate(problem.cohorts, 1):
            before = getstate()  # Flower draws nodes from the global generator
            with identified():
                calls = list(strategy.configure_train(round, packed(x), ConfigRecord(), Everybody(cohort)))
            setstate(before)
            calls = sorted(calls, key=lambda call: call.metadata.dst_node_id)
            arrays, _ = strategy.aggregate_train(round, [
                self.reply(problem, call, k) for call, k in zip(calls, sorted(cohort), strict=True) if problem.count(k)])
            x = unpacked(arrays)
            seen.append(x)
        return seen

    def reply(self, p: Problem, call: Any, k: int) -> Any:
        """The client's answer."""
        w = unpacked(call.content["arrays"])
        told = MetricRecord({"num-examples": int(p.count(k)), "train_loss": p.loss(k, w)})
        return Message(RecordDict({"arrays": packed(self.trained(p, k, w)), "metrics": told}), reply_to=call)


def packed(x: float) -> Any:
    return ArrayRecord({"x": Array(np.array([x]))})


def unpacked(arrays: Any) -> float:
    return float(arrays["x"].numpy()[0])


@contextmanager
def identified() -> Iterator[None]:
    """The process passes for that of a ServerApp, which Flower's runtime tells its run and node."""
    before = dict(vars(TaskIdentity))
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    try:
        yield
    finally:
        for name in ("_task_id", "_run_id", "_node_id"):
            setattr(TaskIdentity, name, before[name])


@dataclass(frozen=True)
class Everybody:
    """The part of a grid that ``configure_train`` asks for: client k is node k + 2."""

    cohort: tuple[int, ...]

    def get_node_ids(self) -> list[int]:
        return [k + 2 for k in self.cohort]


FLOWER_APPS = (
    FlowerApps("fedavg", "FedAvg", lambda p, known: flower.FedAvg(**known)),
    FlowerApps("fedprox", "FedProx (client as in its docstring)",
               lambda p, known: flower.FedProx(proximal_mu=p.options["mu"], **known), docstring_prox),
    FlowerApps("fedavgm", "FedAvgM", lambda p, known: flower.FedAvgM(
        server_learning_rate=p.options["server_lr"], server_momentum=p.options["momentum"], **known)),
    FlowerApps("fedadam", "FedAdam", adaptive(flower.FedAdam)),
    FlowerApps("fedyogi", "FedYogi", adaptive(flower.FedYogi)),
    FlowerApps("fedadagrad", "FedAdagrad", adaptive(flower.FedAdagrad, ())),
    FlowerApps("qfedavg", "QFedAvg", lambda p, known: flower.QFedAvg(
        client_learning_rate=p.lr, q=p.options["q"], **known)),
    FlowerApps("median", "FedMedian", lambda p, known: flower.FedMedian(**known)),
    FlowerApps("trimmed_mean", "FedTrimmedAvg", lambda p, known: flower.FedTrimmedAvg(beta=p.options["share"], **known)),
    FlowerApps("krum", "MultiKrum", lambda p, known: flower.MultiKrum(
        num_malicious_nodes=int(p.options["liars"]), num_nodes_to_select=int(p.options["keep"]), **known)),
)

__all__ = ["FLOWER_APPS", "FlowerApps"]
