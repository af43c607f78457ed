"""Apple's pfl-research (``pfl``): its own training loop, simulated backend and PyTorch bridge, as its tutorials use them.

Sources: https://apple.github.io/pfl-research (tutorials) and the docstrings of ``pfl.algorithm``. Users are drawn by
a sampler of ours, who gives the problem's cohorts, and a user without data is not sampled. Full batches are asked
for by ``local_batch_size=None`` with ``local_num_epochs`` steps; where clients differ in steps, by as many equal
examples in batches of one. The mean is weighted by ``WeightByDatapoints``, or is ``WeightByUser``'s where all count
alike. The central optimiser is ``torch.optim.SGD``, with a rate of 1 except for FedAvgM. pfl sends float32.
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
    """One of pfl's algorithms. ``can_weight``: whether its statistics can be weighted by the number of data points."""

    algorithm: str
    title: str
    make_algorithm: AlgorithmFactory
    central_optimizer_options: Callable[[Problem], dict[str, Any]] = lambda p: {"lr": 1.0}
    can_weight: bool = True

    @property
    def name(self) -> str:
        return f"pfl {self.title}"

    @property
    def version(self) -> str:
        return version("pfl")

    def run(self, problem: Problem) -> list[float]:
        here = [[k for k in cohort if problem.weight_of(k)] for cohort in problem.cohorts]
        counts = [problem.weight_of(k) for k in range(problem.num_clients) if problem.weight_of(k)]
        even, alike = len({step for step in problem.steps if step}) == 1, len(set(counts)) == 1
        if len({len(cohort) for cohort in here}) > 1:
            raise Unsupported("cohorts of more than one size")
        if not alike and not (even and self.can_weight):
            raise Unsupported("clients that differ in what they count cannot be asked for")
        rows = [int(problem.weight_of(k)) if even else problem.steps[k] for k in range(problem.num_clients)]
        module = Quadratic(problem.x0)
        order = (k for cohort in here for k in cohort)
        users = FederatedDataset(lambda k: make_user(problem, k, rows[k]), lambda: next(order))
        weighting = [WeightByUser() if alike else WeightByDatapoints()] if self.can_weight else []
        model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), **self.central_optimizer_options(problem)))
        algorithm, params = self.make_algorithm(
            problem,
            {
                "central_num_iterations": len(here),
                "evaluation_frequency": len(here) + 1,
                "train_cohort_size": len(here[0]),
                "val_cohort_size": 0,
            },
        )
        seen = PathRecorder(module)
        asyncio.set_event_loop(asyncio.new_event_loop())  # pfl asks for the current one
        algorithm.run(
            params,
            SimulatedBackend(users, users, weighting),
            model,
            NNTrainHyperParams(
                local_num_epochs=max(problem.steps) if even else 1, local_learning_rate=problem.lr, local_batch_size=None if even else 1
            ),
            callbacks=[seen],
            send_metrics_to_platform=False,
        )
        return seen.path


def make_user(p: Problem, k: int, rows: int) -> Dataset:
    """A client's quadratic, ``rows`` times over."""
    columns = [torch.full((rows,), value) for value in (p.a[k], p.b[k], p.slope_of(k))]
    return Dataset(raw_data=columns, user_id=str(k))


class Quadratic(torch.nn.Module):
    """x, and the loss and metrics that pfl asks of a module."""

    def __init__(self, x: float) -> None:
        super().__init__()
        self.x = torch.nn.Parameter(torch.tensor([x]))

    def loss(self, a: torch.Tensor, b: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        return (a / 2 * (self.x - b) ** 2 + slope * self.x).mean()

    def metrics(self, a: torch.Tensor, b: torch.Tensor, slope: torch.Tensor) -> dict[str, Any]:
        return {"loss": Weighted(self.loss(a, b, slope).item(), 1)}


class PathRecorder(TrainingProcessCallback):  # type: ignore[misc]
    """x after every round."""

    def __init__(self, module: Quadratic) -> None:
        self.module, self.path = module, list[float]()

    def after_central_iteration(self, aggregate_metrics: Any, model: Any, *, central_iteration: int) -> tuple[bool, Any]:
        self.path.append(self.module.x.item())
        return False, Metrics()


def scaffold(p: Problem, known: dict[str, Any]) -> tuple[Any, Any]:
    """Option II, which the problems are about."""
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
