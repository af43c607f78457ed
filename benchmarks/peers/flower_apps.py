"""Flower's newer strategies (``flwr.serverapp.strategy``), called round by round as their method ``start`` does.

The messages are Flower's. The clients (``flower.StrategySubject``) reply with their arrays, their number of examples and
``train_loss``. The latter is F_k at the model that they received, as in the q-FFL paper.
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
    """A strategy of ``flwr.serverapp`` as a subject of the conformance tests."""

    @property
    def name(self) -> str:
        """The name in the tables of verdicts."""
        return f"flwr.serverapp {self.strategy}"

    def run(self, problem: Problem) -> list[float]:
        """Return x after every round of the problem."""
        defaults = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}
        strategy, x, path = self.make_strategy(problem, defaults), problem.x0, []
        for round, cohort in enumerate(problem.cohorts, 1):
            random_state = getstate()  # Flower samples nodes with the global random generator
            with server_app_identity():
                messages = list(strategy.configure_train(round, pack_arrays(x), ConfigRecord(), FixedGrid(cohort)))
            setstate(random_state)
            messages = sorted(messages, key=lambda message: message.metadata.dst_node_id)
            arrays, _ = strategy.aggregate_train(
                round,
                [self.reply(problem, message, k) for message, k in zip(messages, sorted(cohort), strict=True) if problem.weight_of(k)],
            )
            x = unpack_arrays(arrays)
            path.append(x)
        return path

    def reply(self, p: Problem, call: Any, k: int) -> Any:
        """Train a client and return its reply to a message."""
        w = unpack_arrays(call.content["arrays"])
        metrics = MetricRecord({"num-examples": int(p.weight_of(k)), "train_loss": p.loss(k, w)})
        return Message(RecordDict({"arrays": pack_arrays(self.train_client(p, k, w)), "metrics": metrics}), reply_to=call)


def pack_arrays(x: float) -> Any:
    """Pack x as a Flower array record."""
    return ArrayRecord({"x": Array(np.array([x]))})


def unpack_arrays(arrays: Any) -> float:
    """Unpack x from a Flower array record."""
    return float(arrays["x"].numpy()[0])


@contextmanager
def server_app_identity() -> Iterator[None]:
    """Give this process the run and node ids that Flower's runtime gives to a ServerApp."""
    previous = dict(vars(TaskIdentity))
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    try:
        yield
    finally:
        for name in ("_task_id", "_run_id", "_node_id"):
            setattr(TaskIdentity, name, previous[name])


@dataclass(frozen=True)
class FixedGrid:
    """The part of a grid that ``configure_train`` uses: client k is node k + 2."""

    cohort: tuple[int, ...]

    def get_node_ids(self) -> list[int]:
        """Return the nodes of the cohort."""
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
    FlowerAppSubject("trimmed_mean", "FedTrimmedAvg", lambda p, known: flower.FedTrimmedAvg(beta=p.options["trim_fraction"], **known)),
    FlowerAppSubject(
        "krum",
        "MultiKrum",
        lambda p, known: flower.MultiKrum(
            num_malicious_nodes=int(p.options["num_byzantine"]), num_nodes_to_select=int(p.options["num_selected"]), **known
        ),
    ),
)


__all__ = ["FLOWER_APPS", "FlowerAppSubject"]
