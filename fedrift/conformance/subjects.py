"""fedrift's own algorithms, put to the problems."""

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
    "afl": lambda o, lr: algorithms.AFL(lambda_lr=o["rate"]),
    "median": lambda o, lr: FedAvg(aggregator=Median()),
    "trimmed_mean": lambda o, lr: FedAvg(aggregator=TrimmedMean(o["share"])),
    "krum": lambda o, lr: FedAvg(aggregator=Krum(int(o["liars"]), int(o["keep"]))),
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
    """One of fedrift's algorithms; ``build`` makes it from a problem's options and learning rate."""

    algorithm: str
    build: Callable[[Options, float], FedAvg]
    name: str = "fedrift"
    version: str = __version__

    def run(self, problem: Problem) -> list[float]:
        algorithm = self.build(problem.options, problem.lr)
        fleet = ClientSimulator(
            problem.num_clients, adapter_loss if problem.adapters else quadratic_loss, ProblemBatches(problem), Sgd(problem.lr)
        )
        state = init_state(algorithm, initial_params(problem), problem.num_clients)
        seen = []
        for round, cohort in enumerate(problem.cohorts):
            who = torch.tensor(sorted(cohort))
            report = fleet.train(state, algorithm, who)
            state = replace(
                state,
                round=round + 1,
                server=algorithm.server_update(state.server, report),
                client_states=state.client_states.update(who, report.client_state),
            )
            params = state.server.params
            if problem.evaluated_client >= 0:
                one = torch.tensor([problem.evaluated_client])
                params = algorithm.personalized_params(params.take(state.cluster_ids[one]), state.client_states.gather(one))
            seen.append(solution_of(problem, Tree({**params, **state.server.merged_base})))
        return seen


def initial_params(problem: Problem) -> Tree:
    if problem.adapters is None:
        return Tree(x=torch.full((1, 1), problem.x0, dtype=torch.float64))
    return Tree({"m.B": to_tensor(problem.adapters.up), "m.A": to_tensor(problem.adapters.down)})


def to_tensor(rows: Matrix) -> Tensor:
    """``[1, O, R]`` or ``[1, R, I]``."""
    return torch.tensor([rows], dtype=torch.float64)


def solution_of(problem: Problem, params: Tree) -> float:
    """x, or what the module answers."""
    asked = problem.adapters
    if asked is None:
        return params["x"].item()
    u, v = (torch.tensor(vector, dtype=torch.float64) for vector in (asked.u, asked.v))
    return (u @ (asked.scale * adapter_product(params))[0] @ v).item()


def adapter_product(params: Tree) -> Tensor:
    """What the adapters make of a module, below their scale, ``[C, O, I]``."""
    product = params["m.B"] @ params["m.A"]
    return product + params["m.base"] if "m.base" in params else product


def quadratic_loss(params: Tree, batch: dict[str, Tensor]) -> Tensor:
    x = params["x"][:, 0]
    return batch["a"] / 2 * (x - batch["b"]) ** 2 + batch["slope"] * x


def adapter_loss(params: Tree, batch: dict[str, Tensor]) -> Tensor:
    apart = batch["scale"].view(-1, 1, 1) * adapter_product(params) - batch["target"]
    return batch["a"] / 2 * apart.square().flatten(1).sum(1)


@dataclass(frozen=True)
class ProblemBatches:
    """The problem's full-batch steps; a client's n_k is spread over them."""

    problem: Problem

    def __call__(self, round: int, cohort: Tensor) -> Iterator[dict[str, Tensor]]:
        p = self.problem
        told: dict[str, tuple[Any, ...]] = {
            "a": p.a,
            "b": p.b,
            "slope": p.slope or (0.0,) * p.num_clients,
            "weight": tuple(p.weight_of(k) / max(p.steps[k], 1) for k in range(p.num_clients)),
        }
        if p.adapters:
            told |= {"target": p.adapters.targets, "scale": (p.adapters.scale,) * p.num_clients}
        count = torch.tensor(p.steps)[cohort]
        for step in range(int(count.max())):
            rows = (count > step).nonzero().flatten()
            yield {"rows": rows, **{name: torch.tensor(column, dtype=torch.float64)[cohort[rows]] for name, column in told.items()}}


FEDRIFT_SUBJECTS = tuple(FedriftSubject(name, build) for name, build in ALGORITHM_FACTORIES.items())


# Finding implementations to judge: ``package.module:NAME`` or ``file.py:NAME``, one subject or several.


def load_subjects(path: str) -> list[Subject]:
    """The subjects that a module or file calls NAME. A module may lie in the working directory.

    Raises:
        UserError: There is no such thing, or it is no subject.
    """
    if not is_import_path(path):
        raise UserError(f"{path!r}: a subject is written package.module:NAME or file.py:NAME, e.g. benchmarks.peers.flower:FLOWER")
    found = import_object(path)
    every = list(found) if isinstance(found, Iterable) else [found]
    for subject in every:
        lacks = [part for part in ("name", "version", "algorithm", "run") if not hasattr(subject, part)]
        if lacks:
            raise UserError(
                f"{path} is no subject: a {type(subject).__name__} without {', '.join(lacks)}; "
                "fedrift.conformance.Subject says what is asked of one"
            )
        if subject.algorithm not in REFERENCES:
            raise unknown_name_error("algorithm to be judged by", subject.algorithm, REFERENCES)
    return every


__all__ = ["FEDRIFT_SUBJECTS", "FedriftSubject", "load_subjects"]
