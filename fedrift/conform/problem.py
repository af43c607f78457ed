"""A problem: quadratic clients, who takes part when, and the hyperparameters. Plain numbers; no framework is needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Adapters:
    """A module of which only an adapter is trained, W = scale (base + B A), base = 0 at first.

    Client k minimises a_k/2 |W - T_k|^2, and what is asked is u^T W v: the module's answer to v along u.
    """

    up: Matrix  # B [O, R]
    down: Matrix  # A [R, I]
    targets: tuple[Matrix, ...]  # T_k [O, I], one a client
    u: tuple[float, ...]  # [O]
    v: tuple[float, ...]  # [I]
    scale: float = 2.0


@dataclass(frozen=True)
class Problem:
    """Client k minimises a_k/2 (x - b_k)^2 + slope_k x by full-batch gradient steps, from the server's x.

    ``options`` are the hyperparameters by the names of ``reference``. ``catches``: which errors it was made to show.
    ``asks``: the client whose own model is the answer, -1 the server's. With ``adapters`` there is no x: the clients
    train the factors of ``Adapters``, and the answer is that of the module.
    """

    name: str
    algorithm: str
    catches: str
    a: tuple[float, ...]
    b: tuple[float, ...]
    cohorts: tuple[tuple[int, ...], ...]  # who takes part in each round
    steps: tuple[int, ...]  # local steps of each client; 0 is a client without data
    lr: float = 0.1
    x: float = 5.0
    slope: tuple[float, ...] = ()
    weight: tuple[float, ...] = ()  # n_k, examples; all alike if empty
    options: Mapping[str, float] = field(default_factory=dict)
    asks: int = -1
    adapters: Adapters | None = None

    @property
    def size(self) -> int:
        return len(self.a)

    def count(self, client: int) -> float:
        """n_k; a client without steps has no data."""
        return (self.weight[client] if self.weight else 1.0) * (self.steps[client] > 0)

    def loss(self, client: int, x: float) -> float:
        return self.a[client] / 2 * (x - self.b[client]) ** 2 + self.lean(client) * x

    def gradient(self, client: int, x: float) -> float:
        return self.a[client] * (x - self.b[client]) + self.lean(client)

    def lean(self, client: int) -> float:
        return self.slope[client] if self.slope else 0.0


class Unsupported(Exception):
    """Raised by a subject that cannot be asked this: no verdict is given."""


class Subject(Protocol):
    """An implementation to judge: fedrift's, another framework's, yours.

    ``run`` answers a problem of the algorithm ``algorithm`` with x after every round (the server's, or that of the
    client the problem asks for), or raises ``Unsupported`` with the reason.
    """

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def algorithm(self) -> str: ...
    def run(self, problem: Problem) -> list[float]: ...
