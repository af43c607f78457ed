"""A problem: quadratic clients, who takes part when, and the hyperparameters. Plain numbers; no framework is needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class AdapterProblem:
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

    ``options`` are the hyperparameters by the names of ``reference.py``. ``detects``: which errors it was made to show.
    ``evaluated_client``: the client whose own model is the answer, -1 the server's. With ``adapters`` there is no x: the clients
    train the factors of ``AdapterProblem``, and the answer is that of the module.
    """

    name: str
    algorithm: str
    detects: str
    a: tuple[float, ...]
    b: tuple[float, ...]
    cohorts: tuple[tuple[int, ...], ...]  # who takes part in each round
    steps: tuple[int, ...]  # local steps of each client; 0 is a client without data
    lr: float = 0.1
    x0: float = 5.0
    slope: tuple[float, ...] = ()
    num_examples: tuple[float, ...] = ()  # n_k, examples; all alike if empty
    options: Mapping[str, float] = field(default_factory=dict)
    evaluated_client: int = -1
    adapters: AdapterProblem | None = None

    @property
    def num_clients(self) -> int:
        return len(self.a)

    def weight_of(self, client: int) -> float:
        """n_k; a client without steps has no data."""
        return (self.num_examples[client] if self.num_examples else 1.0) * (self.steps[client] > 0)

    def loss(self, client: int, x: float) -> float:
        return self.a[client] / 2 * (x - self.b[client]) ** 2 + self.slope_of(client) * x

    def gradient(self, client: int, x: float) -> float:
        return self.a[client] * (x - self.b[client]) + self.slope_of(client)

    def slope_of(self, client: int) -> float:
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


# Problems of one model for all, each made to show what public implementations have got wrong.

FIVE_CLIENTS: dict[str, Any] = {"a": (1.0, 4.0, 2.0, 3.0, 5.0), "b": (0.0, 1.0, -2.0, 3.0, 7.0)}


def full_participation(num_clients: int, num_rounds: int) -> tuple[tuple[int, ...], ...]:
    return (tuple(range(num_clients)),) * num_rounds


def two_clients(algorithm: str, detects: str, num_rounds: int = 6, steps: int = 10, **more: Any) -> Problem:
    """Two clients, a = (1, 4), b = (0, 1), optimum 0.8, all in every round."""
    return Problem("two clients", algorithm, detects, (1.0, 4.0), (0.0, 1.0), full_participation(2, num_rounds), (steps, steps), **more)


def two_of_five(algorithm: str, detects: str, num_rounds: int = 12, lr: float = 0.05, **more: Any) -> Problem:
    """Two of five clients a round, in turn."""
    turns = ((0, 1), (2, 3), (1, 4), (0, 3), (2, 4))
    return Problem(
        "two of five take part",
        algorithm,
        detects,
        cohorts=tuple(turns[r % 5] for r in range(num_rounds)),
        steps=(6,) * 5,
        lr=lr,
        **FIVE_CLIENTS,
        **more,
    )


def unequal_steps(algorithm: str, detects: str, **more: Any) -> Problem:
    """Two clients with 2 and 20 steps and the same number of examples."""
    return replace(two_clients(algorithm, detects, lr=0.01, **more), name="2 and 20 local steps", steps=(2, 20))


def unequal_sizes(algorithm: str, detects: str, **more: Any) -> Problem:
    """Clients with 1 to 30 examples."""
    return replace(two_of_five(algorithm, detects, **more), name="clients of unequal size", num_examples=(1.0, 30.0, 2.0, 5.0, 10.0))


def client_without_data(algorithm: str, detects: str, **more: Any) -> Problem:
    """A client without data among three."""
    return Problem(
        "a client without data", algorithm, detects, (1.0, 4.0, 2.0), (0.0, 1.0, 3.0), full_participation(3, 4), (5, 5, 0), **more
    )


def conflicting_clients(algorithm: str, detects: str, **more: Any) -> Problem:
    """x^2 + 100 x against -100 x: SCAFFOLD paper, section 7; the optimum is 0."""
    return Problem(
        "two clients in conflict",
        algorithm,
        detects,
        (2.0, 0.0),
        (0.0, 0.0),
        full_participation(2, 40),
        (10, 10),
        x0=1.0,
        slope=(100.0, -100.0),
        **more,
    )


def byzantine_clients(algorithm: str, **more: Any) -> Problem:
    """Seven clients of which two drag far away."""
    return Problem(
        "two of seven lie",
        algorithm,
        "a liar that moves the server",
        (1.0,) * 7,
        (1.0, 1.1, 0.9, 1.3, 1.0, 1.05, 0.8),
        full_participation(7, 5),
        (3,) * 7,
        slope=(0, 0, 500.0, 0, 0, -900.0, 0),
        **more,
    )


ADAPTIVE_OPTIONS = {"beta1": 0.9, "beta2": 0.99, "tau": 1e-3, "server_lr": 0.1}
MOMENT_ERRORS = "momentum squared for the change; v that begins at 0; a bias correction the paper has not"

SHARED_PROBLEMS: tuple[Problem, ...] = (
    two_clients("fedavg", "a mean of weights, not of changes, with a server rate"),
    unequal_sizes("fedavg", "a uniform mean for a weighted one; weights over the fleet, not the cohort"),
    unequal_steps("fedavg", "steps for examples as weights"),
    client_without_data("fedavg", "0/0, or a client that did nothing and counts"),
    two_clients("fedsgd", "clients that move before the server does", steps=1),
    unequal_sizes("fedsgd", "a uniform mean for a weighted one", lr=0.05),
    two_clients("fedprox", "a norm that is not squared; mu for mu/2 twice", options={"mu": 1.0}),
    two_clients("fedprox", "an anchor that moves with the client or is last round's", options={"mu": 5.0}, num_rounds=10),
    two_of_five("fedprox", "an anchor of the wrong client", options={"mu": 0.5}),
    two_clients("scaffold", "a sign; controls that never come back or do not start at zero"),
    two_of_five("scaffold", "c divided by the cohort, not the fleet; controls by slot, not client; c that starts as weights"),
    unequal_steps("scaffold", "K that is not the steps really taken", num_rounds=12),
    conflicting_clients("scaffold", "only the last client's change that counts"),
    client_without_data("scaffold", "a division by no steps"),
    two_clients("fedavgm", "a damped mean for heavy ball", options={"momentum": 0.9, "server_lr": 0.5}),
    replace(
        two_clients("fedavgm", "a first change that is lost", options={"momentum": 0.9, "server_lr": 1.0}),
        name="two clients, a server rate of 1",
    ),
    two_clients("fedadam", MOMENT_ERRORS, options=ADAPTIVE_OPTIONS),
    unequal_sizes("fedadam", "a uniform mean", options=ADAPTIVE_OPTIONS),
    two_clients("fedyogi", MOMENT_ERRORS, options=ADAPTIVE_OPTIONS, num_rounds=10),
    two_clients("fedadagrad", MOMENT_ERRORS, options={**ADAPTIVE_OPTIONS, "beta1": 0.0}),
    unequal_steps("fednova", "no division by the steps, or no multiplication by their mean"),
    unequal_sizes("fednova", "tau_eff without the weights"),
    two_clients("feddyn", "a sign; a pull to the wrong place", options={"alpha": 1.0}, num_rounds=8),
    two_of_five("feddyn", "h divided by the cohort; memories by slot", options={"alpha": 1.0}),
    two_clients("qfedavg", "weights without the bound on the step; the loss after training", steps=3, options={"q": 1.0}),
    two_clients("qfedavg", "q = 0 that is not FedAvg", options={"q": 0.0}),
    two_clients("afl", "no projection, or the new weights too early", steps=1, num_rounds=12, x0=2.0, options={"rate": 0.3}),
    byzantine_clients("median"),
    two_clients("median", "the lower of two for their mean"),
    byzantine_clients("trimmed_mean", options={"share": 0.3}),
    byzantine_clients("krum", options={"liars": 2, "keep": 1}),
    byzantine_clients("krum", options={"liars": 2, "keep": 3}),
)


# Problems of models of one's own and of adapters, each made to show what public implementations have got wrong.


def patterned_matrix(rows: int, columns: int, seed: int) -> Matrix:
    """Small numbers without a pattern that two mistakes could hide in."""
    return tuple(tuple(((7 * i + 11 * j + 13 * seed + 3 * i * j) % 17 - 8) / 8 for j in range(columns)) for i in range(rows))


def for_client(problem: Problem, client: int) -> Problem:
    return replace(problem, name=f"{problem.name}, client {client}'s own", evaluated_client=client)


def adapter_problem(algorithm: str, detects: str, cohorts: tuple[tuple[int, ...], ...], **more: Any) -> Problem:
    """Three clients of 1, 5 and 2 examples, rank 2, a module of 3 by 4: a transposed product has the wrong shape."""
    return Problem(
        "adapters of three clients",
        algorithm,
        detects,
        (1.0, 2.0, 1.5),
        (0.0,) * 3,
        cohorts,
        (4, 4, 4),
        lr=0.05,
        num_examples=(1.0, 5.0, 2.0),
        adapters=AdapterProblem(
            ((0.0, 0.0),) * 3,
            patterned_matrix(2, 4, 5),
            tuple(patterned_matrix(3, 4, k) for k in range(3)),
            (1.0, -0.5, 0.25),
            (0.5, 1.0, -1.0, 0.75),
        ),
        **more,
    )


def partial_participation(problem: Problem) -> Problem:
    return replace(problem, name="adapters, two of three take part", cohorts=tuple(((0, 1), (1, 2), (0, 2))[r % 3] for r in range(6)))


ALL_CLIENTS = full_participation(3, 5)
STATE_BY_SLOT = "a memory by slot, not by client; a client that sat out and was moved"

PERSONAL_PROBLEMS: tuple[Problem, ...] = (
    for_client(two_clients("ditto", "a pull to one's own start, not to the shared model", options={"lam": 1.0}), 0),
    for_client(two_clients("ditto", "no own model without a pull", options={"lam": 0.0}), 1),
    for_client(two_of_five("ditto", STATE_BY_SLOT, options={"lam": 0.5}), 2),
    for_client(two_clients("fine_tuned", "the shared model instead of the tuned one"), 1),
    for_client(two_of_five("fine_tuned", STATE_BY_SLOT), 4),
    two_clients("pfedme", "theta that is shared, not y", steps=15, options={"lam": 2.0, "eta": 0.3, "inner": 5, "beta": 1.0}),
    replace(
        two_clients("pfedme", "the server's beta left out", steps=10, options={"lam": 2.0, "eta": 0.3, "inner": 5, "beta": 0.5}),
        name="two clients, a server's beta of 1/2",
    ),
    for_client(two_of_five("pfedme", STATE_BY_SLOT, options={"lam": 2.0, "eta": 0.3, "inner": 3, "beta": 1.0}), 3),
    adapter_problem("lora", "plain means for weighted ones; alpha/r twice or not at all", ALL_CLIENTS),
    partial_participation(adapter_problem("lora", "weights over the fleet, not the cohort", ALL_CLIENTS)),
    adapter_problem("ffa", "an A that moves", ALL_CLIENTS),
    adapter_problem("rolora", "A trained first, where B = 0 gives it no gradient; both factors at once", ALL_CLIENTS),
    adapter_problem("fedex", "no residue; a residue with other weights than the means; a transposed residue", ALL_CLIENTS),
    partial_participation(adapter_problem("fedex", "a residue that is forgotten when another cohort comes", ALL_CLIENTS)),
    replace(adapter_problem("flora", "weights on both factors, which squares them", ALL_CLIENTS[:1]), name="adapters, one round"),
    adapter_problem("svd", "the singular values on one factor; factors cut one by one", ALL_CLIENTS),
    for_client(adapter_problem("fedper", "B that is shared after all; A that is not", ALL_CLIENTS), 0),
    for_client(partial_participation(adapter_problem("fedper", STATE_BY_SLOT, ALL_CLIENTS)), 2),
)


# All problems.

PROBLEMS = SHARED_PROBLEMS + PERSONAL_PROBLEMS


__all__ = ["PERSONAL_PROBLEMS", "PROBLEMS"]
