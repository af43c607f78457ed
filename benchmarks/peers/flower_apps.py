"""Flower's newer strategies (``flwr.serverapp.strategy``), driven round by round as their ``start`` drives them.

Messages are Flower's own; the clients behind them (``flower.StrategySubject``) reply with their arrays, their number of examples
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

from benchmarks.peers.flower import StrategySubject, adaptive_factory, docstring_proximal_term
from fedrift.conformance.problems import Problem


@dataclass(frozen=True)
class FlowerAppSubject(StrategySubject):
    @property
    def name(self) -> str:
        return f"flwr.serverapp {self.strategy}"

    def run(self, problem: Problem) -> list[float]:
        known = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}
        strategy, x, seen = self.make_strategy(problem, known), problem.x0, []
        for round, cohort in enumerate(problem.cohorts, 1):
            before = getstate()  # Flower draws nodes from the global generator
            with server_app_identity():
                calls = list(strategy.configure_train(round, pack_arrays(x), ConfigRecord(), FixedGrid(cohort)))
            setstate(before)
            calls = sorted(calls, key=lambda call: call.metadata.dst_node_id)
            arrays, _ = strategy.aggregate_train(
                round, [self.reply(problem, call, k) for call, k in zip(calls, sorted(cohort), strict=True) if problem.weight_of(k)]
            )
            x = unpack_arrays(arrays)
            seen.append(x)
        return seen

    def reply(self, p: Problem, call: Any, k: int) -> Any:
        """The client's answer."""
        w = unpack_arrays(call.content["arrays"])
        told = MetricRecord({"num-examples": int(p.weight_of(k)), "train_loss": p.loss(k, w)})
        return Message(RecordDict({"arrays": pack_arrays(self.train_client(p, k, w)), "metrics": told}), reply_to=call)


def pack_arrays(x: float) -> Any:
    return ArrayRecord({"x": Array(np.array([x]))})


def unpack_arrays(arrays: Any) -> float:
    return float(arrays["x"].numpy()[0])


@contextmanager
def server_app_identity() -> Iterator[None]:
    """The process passes for that of a ServerApp, which Flower's runtime tells its run and node."""
    before = dict(vars(TaskIdentity))
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    try:
        yield
    finally:
        for name in ("_task_id", "_run_id", "_node_id"):
            setattr(TaskIdentity, name, before[name])


@dataclass(frozen=True)
class FixedGrid:
    """The part of a grid that ``configure_train`` asks for: client k is node k + 2."""

    cohort: tuple[int, ...]

    def get_node_ids(self) -> list[int]:
        return [k + 2 for k in self.cohort]


FLOWER_APPS = (
    FlowerAppSubject("fedavg", "FedAvg", lambda p, known: flower.FedAvg(**known)),
    FlowerAppSubject(
        "fedprox",
        "FedProx (client as in its docstring)",
        lambda p, known: flower.FedProx(proximal_mu=p.options["mu"], **known),
        docstring_proximal_term,
    ),
    FlowerAppSubject(
        "fedavgm",
        "FedAvgM",
        lambda p, known: flower.FedAvgM(server_learning_rate=p.options["server_lr"], server_momentum=p.options["momentum"], **known),
    ),
    FlowerAppSubject("fedadam", "FedAdam", adaptive_factory(flower.FedAdam)),
    FlowerAppSubject("fedyogi", "FedYogi", adaptive_factory(flower.FedYogi)),
    FlowerAppSubject("fedadagrad", "FedAdagrad", adaptive_factory(flower.FedAdagrad, ())),
    FlowerAppSubject("qfedavg", "QFedAvg", lambda p, known: flower.QFedAvg(client_learning_rate=p.lr, q=p.options["q"], **known)),
    FlowerAppSubject("median", "FedMedian", lambda p, known: flower.FedMedian(**known)),
    FlowerAppSubject("trimmed_mean", "FedTrimmedAvg", lambda p, known: flower.FedTrimmedAvg(beta=p.options["share"], **known)),
    FlowerAppSubject(
        "krum",
        "MultiKrum",
        lambda p, known: flower.MultiKrum(num_malicious_nodes=int(p.options["liars"]), num_nodes_to_select=int(p.options["keep"]), **known),
    ),
)


__all__ = ["FLOWER_APPS", "FlowerAppSubject"]
