"""Clients with quadratic losses, whose results have closed forms.

Client k minimizes a_k/2 (x - b_k)^2 in each coordinate. ``Q2`` has a = (1, 4) and b = (0, 1); the optimum of the mean is 0.8.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedrift.core.optimizers import Optimizer, Sgd
from fedrift.core.tree import Tree
from fedrift.core.types import FederatedState, LocalState, RoundResult
from fedrift.engine.loop import init_state, run_rounds
from fedrift.simulation import ClientSimulator

DOUBLE = torch.float64


def loss(params: Tree, batch: dict[str, Tensor]) -> Tensor:
    """Return the loss of each client, ``[C]``; b shifts the minimum, and ``slope`` adds a linear term."""
    x = params["x"]
    value = batch["a"] / 2 * (x - batch["b"]) ** 2 + batch["slope"] * x
    return value.flatten(1).sum(1)


@dataclass(frozen=True, eq=False)
class Clients:
    """N quadratic clients with ``steps[k]`` full-batch steps per round; tensors are ``[N, width]``."""

    a: Tensor
    b: Tensor
    steps: tuple[int, ...]
    slope: Tensor
    weight: Tensor

    def __call__(self, round: int, cohort: Tensor):
        count = torch.tensor(self.steps)[cohort]
        for step in range(int(count.max())):
            rows = (count > step).nonzero().flatten()
            who = cohort[rows]
            yield {"rows": rows, "a": self.a[who], "b": self.b[who], "slope": self.slope[who], "weight": self.weight[who]}

    @property
    def size(self) -> int:
        return len(self.a)


def clients(a, b, steps: int | tuple[int, ...] = 10, slope=None, weight=None) -> Clients:
    a, b = (torch.tensor(v, dtype=DOUBLE).view(len(a), -1) for v in (a, b))
    size = len(a)
    return Clients(
        a,
        b,
        (steps,) * size if isinstance(steps, int) else steps,
        torch.zeros_like(a) if slope is None else torch.tensor(slope, dtype=DOUBLE).view(size, -1),
        torch.ones(size, dtype=DOUBLE) if weight is None else torch.tensor(weight, dtype=DOUBLE),
    )


def make_simulator(group: Clients, optimizer: Optimizer = Sgd(0.1), **options) -> ClientSimulator:
    return ClientSimulator(group.size, loss, group, optimizer, **options)


def params(x: float, width: int = 1, dtype=DOUBLE) -> Tree:
    return Tree(x=torch.full((1, width), x, dtype=dtype))


def train(
    algorithm,
    group: Clients,
    *,
    until: int,
    x: float = 5.0,
    cohort: int | None = None,
    seed: int = 0,
    optimizer: Optimizer = Sgd(0.1),
    state: FederatedState | None = None,
    **options,
) -> list[RoundResult]:
    simulator = make_simulator(group, optimizer, **options)
    state = state or init_state(algorithm, params(x, group.a.shape[1]), simulator.size)
    return list(run_rounds(state, simulator, algorithm, num_rounds=until, cohort_size=cohort or simulator.size, seed=seed))


def path(done: list[RoundResult]) -> list[float]:
    """Return the server's x after every round."""
    return [round.after.server.params["x"][0, 0].item() for round in done]


def make_local_state(params: Tree, start: Tree, lr: float = 0.1) -> LocalState:
    """Return the state of a client during its steps, with only its current and its initial parameters."""
    none = torch.zeros(len(next(iter(params.values()))))
    return LocalState(params, start, Tree(), Tree(), Tree(), steps=none, loss=none, weight=none, lr=lr)


def fixed_point(algorithm, group: Clients, lr: float) -> float:
    """Return the limit of an algorithm without state on quadratics with equal client weights: a round is x <- m x + c."""

    def after(x: float) -> float:
        return path(train(algorithm, group, until=1, x=x, optimizer=Sgd(lr), client_weighting="uniform"))[0]

    c, sum_ = after(0.0), after(1.0)
    return c / (1 - (sum_ - c))


def Q2(steps: int = 10) -> Clients:
    return clients((1, 4), (0, 1), steps)
