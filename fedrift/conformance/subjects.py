"""fedrift's own algorithms as subjects of the conformance tests, and loading of other implementations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .. import __version__, algorithms
from ..algorithms import FedAvg
from ..algorithms.aggregators import FedEx, FFALoRA, FlexLoRA, FLoRA, Krum, Median, RoLoRA, TrimmedMean
from ..core.errors import UserError, unknown_name_error
from ..core.optimizers import Adagrad, Adam, Sgd, Yogi
from ..core.registry import import_object, is_import_path
from ..core.tree import Tree
from ..engine.loop import init_state
from ..simulation import ClientSimulator
from .problems import Matrix, Problem, Subject
from .reference import REFERENCES

Options = Mapping[str, float]


def adam_betas(o: Options) -> tuple[float, float]:
    """Return beta1 and beta2 of a problem's options."""
    return o["beta1"], o["beta2"]


ALGORITHM_FACTORIES: dict[str, Callable[[Options, float], FedAvg]] = {
    "fedavg": lambda o, lr: FedAvg(),
    "fedsgd": lambda o, lr: algorithms.FedSGD(server_optimizer=Sgd(lr)),
    "fedprox": lambda o, lr: algorithms.FedProx(mu=o["mu"]),
    "scaffold": lambda o, lr: algorithms.Scaffold(),
    "fedavgm": lambda o, lr: FedAvg(server_optimizer=Sgd(o["server_lr"], momentum=o["momentum"])),
    "fedadam": lambda o, lr: FedAvg(server_optimizer=Adam(o["server_lr"], adam_betas(o), o["tau"])),
    "fedyogi": lambda o, lr: FedAvg(server_optimizer=Yogi(o["server_lr"], adam_betas(o), o["tau"])),
    "fedadagrad": lambda o, lr: FedAvg(server_optimizer=Adagrad(o["server_lr"], adam_betas(o), o["tau"])),
    "fednova": lambda o, lr: algorithms.FedNova(),
    "feddyn": lambda o, lr: algorithms.FedDyn(alpha=o["alpha"]),
    "qfedavg": lambda o, lr: algorithms.QFedAvg(q=o["q"]),
    "afl": lambda o, lr: algorithms.AFL(lambda_lr=o["lambda_lr"]),
    "median": lambda o, lr: FedAvg(aggregator=Median()),
    "trimmed_mean": lambda o, lr: FedAvg(aggregator=TrimmedMean(o["trim_fraction"])),
    "krum": lambda o, lr: FedAvg(aggregator=Krum(int(o["num_byzantine"]), int(o["num_selected"]))),
    "ditto": lambda o, lr: algorithms.Ditto(lambda_=o["lam"]),
    "fine_tuned": lambda o, lr: algorithms.FedAvgFineTuning(),
    "pfedme": lambda o, lr: algorithms.PFedMe(Sgd(o["beta"]), lambda_=o["lam"], personal_lr=o["eta"], inner_steps=int(o["inner"])),
    "lora": lambda o, lr: FedAvg(),
    "ffa": lambda o, lr: FedAvg(aggregator=FFALoRA()),
    "rolora": lambda o, lr: FedAvg(aggregator=RoLoRA()),
    "fedex": lambda o, lr: FedAvg(aggregator=FedEx()),
    "flora": lambda o, lr: FedAvg(aggregator=FLoRA()),
    "svd": lambda o, lr: FedAvg(aggregator=FlexLoRA()),
    "fedper": lambda o, lr: algorithms.FedPer(),
}


@dataclass(frozen=True)
class FedriftSubject:
    """Run one of fedrift's algorithms on the problems.

    Attributes:
        algorithm: Name of the algorithm, as in ``REFERENCES``.
        build: Function that builds the algorithm from a problem's options and learning rate.
        name: Name of the implementation.
        version: Its version.
    """

    algorithm: str
    build: Callable[[Options, float], FedAvg]
    name: str = "fedrift"
    version: str = __version__

    def run(self, problem: Problem) -> list[float]:
        """Return the solution of a problem after every round."""
        algorithm = self.build(problem.options, problem.lr)
        simulator = ClientSimulator(
            problem.num_clients, adapter_loss if problem.adapters else quadratic_loss, ProblemBatches(problem), Sgd(problem.lr)
        )
        state = init_state(algorithm, initial_params(problem), problem.num_clients)
        path = []
        for round, cohort in enumerate(problem.cohorts):
            clients = torch.tensor(sorted(cohort))
            update = simulator.train(state, algorithm, clients)
            state = replace(
                state,
                round=round + 1,
                server=algorithm.server_update(state.server, update),
                client_states=state.client_states.update(clients, update.client_state),
            )
            params = state.server.params
            if problem.evaluated_client >= 0:
                client = torch.tensor([problem.evaluated_client])
                params = algorithm.personalized_params(params.take(state.cluster_ids[client]), state.client_states.gather(client))
            path.append(solution_of(problem, Tree({**params, **state.server.merged_base})))
        return path


def initial_params(problem: Problem) -> Tree:
    """Return the initial parameters of a problem: x, or the factors of the adapter."""
    if problem.adapters is None:
        return Tree(x=torch.full((1, 1), problem.x0, dtype=torch.float64))
    return Tree({"m.B": to_tensor(problem.adapters.up), "m.A": to_tensor(problem.adapters.down)})


def to_tensor(rows: Matrix) -> Tensor:
    """Return a matrix as a tensor, [1, O, R] or [1, R, I]."""
    return torch.tensor([rows], dtype=torch.float64)


def solution_of(problem: Problem, params: Tree) -> float:
    """Return x, or the output of the module."""
    adapters = problem.adapters
    if adapters is None:
        return params["x"].item()
    u, v = (torch.tensor(vector, dtype=torch.float64) for vector in (adapters.u, adapters.v))
    return (u @ (adapters.scale * adapter_product(params))[0] @ v).item()


def adapter_product(params: Tree) -> Tensor:
    """Return base + B A of the module without its scale, [C, O, I]."""
    product = params["m.B"] @ params["m.A"]
    return product + params["m.base"] if "m.base" in params else product


def quadratic_loss(params: Tree, batch: dict[str, Tensor]) -> Tensor:
    """Return the loss of each client of a quadratic problem, [C]."""
    x = params["x"][:, 0]
    return batch["a"] / 2 * (x - batch["b"]) ** 2 + batch["slope"] * x


def adapter_loss(params: Tree, batch: dict[str, Tensor]) -> Tensor:
    """Return the loss of each client of an adapter problem, [C]."""
    error = batch["scale"].view(-1, 1, 1) * adapter_product(params) - batch["target"]
    return batch["a"] / 2 * error.square().flatten(1).sum(1)


@dataclass(frozen=True)
class ProblemBatches:
    """Provide the full-batch steps of a problem. The n_k examples of a client are spread over its steps."""

    problem: Problem

    def __call__(self, round: int, cohort: Tensor) -> Iterator[dict[str, Tensor]]:
        """Yield the batches of a cohort, one dictionary per local step."""
        p = self.problem
        columns: dict[str, tuple[Any, ...]] = {
            "a": p.a,
            "b": p.b,
            "slope": p.slope or (0.0,) * p.num_clients,
            "weight": tuple(p.weight_of(k) / max(p.steps[k], 1) for k in range(p.num_clients)),
        }
        if p.adapters:
            columns |= {"target": p.adapters.targets, "scale": (p.adapters.scale,) * p.num_clients}
        steps = torch.tensor(p.steps)[cohort]
        for step in range(int(steps.max())):
            rows = (steps > step).nonzero().flatten()
            yield {"rows": rows, **{name: torch.tensor(values, dtype=torch.float64)[cohort[rows]] for name, values in columns.items()}}


FEDRIFT_SUBJECTS = tuple(FedriftSubject(name, build) for name, build in ALGORITHM_FACTORIES.items())


def load_subjects(path: str) -> list[Subject]:
    """Load implementations to judge.

    Args:
        path: ``package.module:NAME`` or ``file.py:NAME``. The name refers to one subject or to several. The module may be in the working
            directory.

    Raises:
        UserError: There is no such object, or it lacks the interface of ``Subject``.
    """
    if not is_import_path(path):
        raise UserError(
            f"{path!r} does not refer to a subject; write package.module:NAME or file.py:NAME, e.g. benchmarks.peers.flower:FLOWER"
        )
    loaded = import_object(path)
    subjects = list(loaded) if isinstance(loaded, Iterable) else [loaded]
    for subject in subjects:
        missing = [part for part in ("name", "version", "algorithm", "run") if not hasattr(subject, part)]
        if missing:
            raise UserError(
                f"{path} is not a subject because its {type(subject).__name__} lacks {', '.join(missing)}; "
                "implement the interface of fedrift.conformance.Subject"
            )
        if subject.algorithm not in REFERENCES:
            raise unknown_name_error("reference algorithm", subject.algorithm, REFERENCES)
    return subjects
