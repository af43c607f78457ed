"""Run a workload with Apple's pfl: its FederatedAveraging over its simulated backend, in one process."""

from __future__ import annotations

import asyncio
from functools import cache
from itertools import cycle
from types import MethodType
from typing import Any

import torch
from comparison import LR
from peer_work import Learner, Turn, Workload
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByUser
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel


class TurnCallback(TrainingProcessCallback):  # type: ignore[misc]
    """A callback that pfl calls before the first round and after each round, to take turns."""

    def __init__(self, work: Workload, turn: Turn, learner: Learner) -> None:
        self.last_round, self.turn, self.learner = work.warmup_rounds + work.num_rounds - 1, turn, learner

    def on_train_begin(self, *, model: Any) -> Metrics:
        """Wait for the first turn."""
        self.turn.next_round(self.evaluate)
        return Metrics()

    def after_central_iteration(self, aggregate_metrics: Any, model: Any, *, central_iteration: int) -> tuple[bool, Any]:
        """Report a round and wait for the next turn, or report the final parameters."""
        if central_iteration < self.last_round:
            self.turn.next_round(self.evaluate)
        else:
            self.turn.finish(self.learner.get_params(), self.evaluate)
        return False, Metrics()

    def evaluate(self) -> float:
        """Evaluate the server's parameters, which pfl keeps in the learner between rounds."""
        return self.learner.evaluate({name: leaf.clone() for name, leaf in self.learner.get_params().items()})


def run(work: Workload, turn: Turn) -> None:
    """Run all rounds of a workload, each in its turn."""
    total_rounds, learner = work.warmup_rounds + work.num_rounds, Learner(work)
    vars(learner)["metrics"] = MethodType(
        lambda self, tokens, eval=False: {}, learner
    )  # pfl requires the method, although nothing is evaluated
    users, order = cache(lambda client: Dataset([work.rows_of(client)], user_id=str(client))), cycle(range(work.num_clients))
    dataset = FederatedDataset(users, lambda: next(order))
    params = NNAlgorithmParams(
        central_num_iterations=total_rounds, evaluation_frequency=total_rounds + 1, train_cohort_size=work.num_clients, val_cohort_size=0
    )
    trained = [leaf for leaf in learner.parameters() if leaf.requires_grad]
    model = PyTorchModel(
        learner,
        lambda leaves, lr: torch.optim.SGD([leaf for leaf in leaves if leaf.requires_grad], lr=lr),
        torch.optim.SGD(trained, lr=1.0),
    )
    asyncio.set_event_loop(asyncio.new_event_loop())  # pfl uses the current event loop
    FederatedAveraging().run(
        params,
        SimulatedBackend(dataset, dataset, [WeightByUser()]),
        model,
        NNTrainHyperParams(local_num_epochs=1, local_learning_rate=LR, local_batch_size=len(work.rows_of(0)) // work.local_steps),
        callbacks=[TurnCallback(work, turn, learner)],
        send_metrics_to_platform=False,
    )
