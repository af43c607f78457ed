"""Apple's pfl-research (``pfl``) as a subject of the conformance tests, used as in its tutorials.

Sources: https://apple.github.io/pfl-research (tutorials) and the docstrings of ``pfl.algorithm``. The training loop, the simulated
backend and the PyTorch bridge are pfl's. Users are sampled in the order of the problem's cohorts, without users that have no data.
If all clients take the same number of steps, ``local_batch_size=None`` and ``local_num_epochs`` give full batches. Otherwise each
client has as many equal examples as steps, in batches of one. The mean is weighted by ``WeightByDatapoints``, or by ``WeightByUser``
if all weights are equal. The central optimizer is ``torch.optim.SGD``, with a learning rate of 1 except for FedAvgM. pfl sends
float32.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints, WeightByUser
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.algorithm.fedprox import FedProx, FedProxParams
from pfl.algorithm.scaffold import SCAFFOLD, SCAFFOLDParams
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.user_state import InMemoryUserStateStorage
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel

from fedrift.conformance.problems import Problem, Unsupported

AlgorithmFactory = Callable[[Problem, dict[str, Any]], tuple[Any, Any]]  # -> (algorithm, its parameters)


@dataclass(frozen=True)
class PflSubject:
    """An algorithm of pfl as a subject of the conformance tests.

    Attributes:
        algorithm: The algorithm of fedrift's problems.
        title: The name in the tables of verdicts.
        make_algorithm: Creates the algorithm and its parameters for a problem.
        central_optimizer_options: Returns the options of the central optimizer for a problem.
        can_weight: Whether its statistics can be weighted by the number of data points.
    """

    algorithm: str
    title: str
    make_algorithm: AlgorithmFactory
    central_optimizer_options: Callable[[Problem], dict[str, Any]] = lambda p: {"lr": 1.0}
    can_weight: bool = True

    @property
    def name(self) -> str:
        """The name in the tables of verdicts."""
        return f"pfl {self.title}"

    @property
    def version(self) -> str:
        """The installed version of pfl."""
        return version("pfl")

    def run(self, problem: Problem) -> list[float]:
        """Return x after every round of the problem.

        Raises:
            Unsupported: If pfl cannot express the problem.
        """
        cohorts = [[k for k in cohort if problem.weight_of(k)] for cohort in problem.cohorts]
        weights = [problem.weight_of(k) for k in range(problem.num_clients) if problem.weight_of(k)]
        has_equal_steps, has_equal_weights = len({step for step in problem.steps if step}) == 1, len(set(weights)) == 1
        if len({len(cohort) for cohort in cohorts}) > 1:
            raise Unsupported("cohorts of different sizes")
        if not has_equal_weights and not (has_equal_steps and self.can_weight):
            raise Unsupported("clients with different weights")
        rows = [int(problem.weight_of(k)) if has_equal_steps else problem.steps[k] for k in range(problem.num_clients)]
        module = Quadratic(problem.x0)
        order = (k for cohort in cohorts for k in cohort)
        users = FederatedDataset(lambda k: make_user(problem, k, rows[k]), lambda: next(order))
        weighting = [WeightByUser() if has_equal_weights else WeightByDatapoints()] if self.can_weight else []
        model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), **self.central_optimizer_options(problem)))
        algorithm, params = self.make_algorithm(
            problem,
            {
                "central_num_iterations": len(cohorts),
                "evaluation_frequency": len(cohorts) + 1,
                "train_cohort_size": len(cohorts[0]),
                "val_cohort_size": 0,
            },
        )
        recorder = PathRecorder(module)
        asyncio.set_event_loop(asyncio.new_event_loop())  # pfl uses the current event loop
        algorithm.run(
            params,
            SimulatedBackend(users, users, weighting),
            model,
            NNTrainHyperParams(
                local_num_epochs=max(problem.steps) if has_equal_steps else 1,
                local_learning_rate=problem.lr,
                local_batch_size=None if has_equal_steps else 1,
            ),
            callbacks=[recorder],
            send_metrics_to_platform=False,
        )
        return recorder.path


def make_user(p: Problem, k: int, rows: int) -> Dataset:
    """Return a user whose data are ``rows`` copies of its quadratic."""
    columns = [torch.full((rows,), value) for value in (p.a[k], p.b[k], p.slope_of(k))]
    return Dataset(raw_data=columns, user_id=str(k))


class Quadratic(torch.nn.Module):
    """A module with the parameter x, and the loss and metrics that pfl requires."""

    def __init__(self, x: float) -> None:
        super().__init__()
        self.x = torch.nn.Parameter(torch.tensor([x]))

    def loss(self, a: torch.Tensor, b: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        """Return the mean of a/2 (x - b)^2 + slope x."""
        return (a / 2 * (self.x - b) ** 2 + slope * self.x).mean()

    def metrics(self, a: torch.Tensor, b: torch.Tensor, slope: torch.Tensor) -> dict[str, Any]:
        """Return the loss as a metric of pfl."""
        return {"loss": Weighted(self.loss(a, b, slope).item(), 1)}


class PathRecorder(TrainingProcessCallback):  # type: ignore[misc]
    """A callback that records x after every round."""

    def __init__(self, module: Quadratic) -> None:
        self.module, self.path = module, list[float]()

    def after_central_iteration(self, aggregate_metrics: Any, model: Any, *, central_iteration: int) -> tuple[bool, Any]:
        """Record x; pfl calls this after every round."""
        self.path.append(self.module.x.item())
        return False, Metrics()


def scaffold(p: Problem, known: dict[str, Any]) -> tuple[Any, Any]:
    """Create SCAFFOLD with Option II of the paper, which the problems test."""
    return SCAFFOLD(), SCAFFOLDParams(
        population=p.num_clients, use_gradient_as_control_variate=False, user_state_storage=InMemoryUserStateStorage(), **known
    )


PFL = (
    PflSubject("fedavg", "FederatedAveraging", lambda p, known: (FederatedAveraging(), NNAlgorithmParams(**known))),
    PflSubject("fedprox", "FedProx", lambda p, known: (FedProx(), FedProxParams(mu=p.options["mu"], **known))),
    PflSubject(
        "fedavgm",
        "FederatedAveraging, central SGD with momentum",
        lambda p, known: (FederatedAveraging(), NNAlgorithmParams(**known)),
        lambda p: {"lr": p.options["server_lr"], "momentum": p.options["momentum"]},
    ),
    PflSubject("scaffold", "SCAFFOLD, Option II", scaffold, can_weight=False),
)


__all__ = ["PFL", "PflSubject"]
