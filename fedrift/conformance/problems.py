"""Small problems with known solutions: quadratic clients, cohorts and hyperparameters in plain numbers. This module needs no framework."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class AdapterProblem:
    """Describe a module W = scale (base + B A) of which only the adapter is trained; base is 0 initially.

    Client k minimizes a_k/2 |W - T_k|^2. The solution is u^T W v, which does not depend on the basis in which B and A are stored.

    Attributes:
        up: Initial B, [O, R].
        down: Initial A, [R, I].
        targets: T_k of each client, [O, I].
        u: Row vector of the solution, [O].
        v: Column vector of the solution, [I].
        scale: Scale of the module's weights.
    """

    up: Matrix
    down: Matrix
    targets: tuple[Matrix, ...]
    u: tuple[float, ...]
    v: tuple[float, ...]
    scale: float = 2.0


@dataclass(frozen=True)
class Problem:
    """Describe a problem in which client k minimizes a_k/2 (x - b_k)^2 + slope_k x.

    Each client takes full-batch gradient steps from the server's x. The solution is x after every round.

    Attributes:
        name: Name of the problem.
        algorithm: Name of the algorithm, as in ``reference.py``.
        detects: The errors that the problem detects.
        a: Curvature of each client, [N].
        b: Minimum of each client's quadratic term, [N].
        cohorts: The clients of each round.
        steps: Local steps of each client, [N]; 0 means a client without data.
        lr: Learning rate of the clients.
        x0: Initial x.
        slope: Linear term of each client, [N]; empty means 0.
        num_examples: Number of examples n_k of each client, [N]; empty means that all are equal.
        options: Hyperparameters, with the names in ``reference.py``.
        evaluated_client: The client whose personalized model is the solution; -1 means the server's model.
        adapters: If it is set, the clients train the factors of an adapter instead of x, and the solution is that of the module.
    """

    name: str
    algorithm: str
    detects: str
    a: tuple[float, ...]
    b: tuple[float, ...]
    cohorts: tuple[tuple[int, ...], ...]
    steps: tuple[int, ...]
    lr: float = 0.1
    x0: float = 5.0
    slope: tuple[float, ...] = ()
    num_examples: tuple[float, ...] = ()
    options: Mapping[str, float] = field(default_factory=dict)
    evaluated_client: int = -1
    adapters: AdapterProblem | None = None

    @property
    def num_clients(self) -> int:
        """Return the number of clients N."""
        return len(self.a)

    def weight_of(self, client: int) -> float:
        """Return the number of examples n_k of a client; a client without local steps has none."""
        return (self.num_examples[client] if self.num_examples else 1.0) * (self.steps[client] > 0)

    def loss(self, client: int, x: float) -> float:
        """Return the loss of a client at x."""
        return self.a[client] / 2 * (x - self.b[client]) ** 2 + self.slope_of(client) * x

    def gradient(self, client: int, x: float) -> float:
        """Return the gradient of a client's loss at x."""
        return self.a[client] * (x - self.b[client]) + self.slope_of(client)

    def slope_of(self, client: int) -> float:
        """Return the linear term of a client's loss."""
        return self.slope[client] if self.slope else 0.0


class Unsupported(Exception):
    """Signal that an implementation cannot express a problem, which then gets no verdict."""


class Subject(Protocol):
    """Define the interface of an implementation that is judged.

    Attributes:
        name: Name of the implementation.
        version: Its version.
        algorithm: Name of the algorithm that it implements, as in ``reference.py``.

    Example:
        ```python
        @dataclass(frozen=True)
        class MyFedSGD:
            name: str = "my framework"
            version: str = "1.0"
            algorithm: str = "fedsgd"

            def run(self, problem: Problem) -> list[float]:
                x, path = problem.x0, []
                for cohort in problem.cohorts:
                    total = sum(problem.weight_of(k) for k in cohort)
                    x -= problem.lr * sum(problem.weight_of(k) * problem.gradient(k, x) for k in cohort) / total
                    path.append(x)
                return path
        ```
    """

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def algorithm(self) -> str: ...
    def run(self, problem: Problem) -> list[float]:
        """Solve a problem.

        Args:
            problem: A problem of the algorithm.

        Returns:
            x after every round: the server's, or that of the client ``problem.evaluated_client``.

        Raises:
            Unsupported: The implementation cannot express the problem; the message gives the reason.
        """
        ...


# Each problem detects an error that was found in a public implementation.

FIVE_CLIENTS: dict[str, Any] = {"a": (1.0, 4.0, 2.0, 3.0, 5.0), "b": (0.0, 1.0, -2.0, 3.0, 7.0)}


def full_participation(num_clients: int, num_rounds: int) -> tuple[tuple[int, ...], ...]:
    """Return cohorts in which all clients participate."""
    return (tuple(range(num_clients)),) * num_rounds


def two_clients(algorithm: str, detects: str, num_rounds: int = 6, steps: int = 10, **fields: Any) -> Problem:
    """Return a problem of two clients with a = (1, 4), b = (0, 1) and optimum 0.8, which participate in every round."""
    return Problem("two clients", algorithm, detects, (1.0, 4.0), (0.0, 1.0), full_participation(2, num_rounds), (steps, steps), **fields)


def two_of_five(algorithm: str, detects: str, num_rounds: int = 12, lr: float = 0.05, **fields: Any) -> Problem:
    """Return a problem of five clients, two of which participate in each round, in a fixed order."""
    cohorts = ((0, 1), (2, 3), (1, 4), (0, 3), (2, 4))
    return Problem(
        "two of five participate",
        algorithm,
        detects,
        cohorts=tuple(cohorts[r % 5] for r in range(num_rounds)),
        steps=(6,) * 5,
        lr=lr,
        **FIVE_CLIENTS,
        **fields,
    )


def unequal_steps(algorithm: str, detects: str, **fields: Any) -> Problem:
    """Return a problem of two clients with 2 and 20 local steps and equal numbers of examples."""
    return replace(two_clients(algorithm, detects, lr=0.01, **fields), name="2 and 20 local steps", steps=(2, 20))


def unequal_sizes(algorithm: str, detects: str, **fields: Any) -> Problem:
    """Return a problem of clients with 1 to 30 examples."""
    return replace(two_of_five(algorithm, detects, **fields), name="clients of unequal size", num_examples=(1.0, 30.0, 2.0, 5.0, 10.0))


def client_without_data(algorithm: str, detects: str, **fields: Any) -> Problem:
    """Return a problem of three clients, one of which has no data."""
    return Problem(
        "a client without data", algorithm, detects, (1.0, 4.0, 2.0), (0.0, 1.0, 3.0), full_participation(3, 4), (5, 5, 0), **fields
    )


def conflicting_clients(algorithm: str, detects: str, **fields: Any) -> Problem:
    """Return a problem of two clients with the losses x^2 + 100 x and -100 x (SCAFFOLD paper, section 7); the optimum is 0."""
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
        **fields,
    )


def byzantine_clients(algorithm: str, **fields: Any) -> Problem:
    """Return a problem of seven clients, two of which are Byzantine and send updates far from the others."""
    return Problem(
        "two Byzantine clients of seven",
        algorithm,
        "Byzantine clients that move the server",
        (1.0,) * 7,
        (1.0, 1.1, 0.9, 1.3, 1.0, 1.05, 0.8),
        full_participation(7, 5),
        (3,) * 7,
        slope=(0, 0, 500.0, 0, 0, -900.0, 0),
        **fields,
    )


ADAPTIVE_OPTIONS = {"beta1": 0.9, "beta2": 0.99, "tau": 1e-3, "server_lr": 0.1}
MOMENT_ERRORS = "a second moment of the momentum instead of the update; v initialized with 0; a bias correction that is not in the paper"

SHARED_PROBLEMS: tuple[Problem, ...] = (
    two_clients("fedavg", "averaging weights instead of updates with a server learning rate"),
    unequal_sizes("fedavg", "a uniform mean instead of a weighted one; weights normalized over all clients instead of the cohort"),
    unequal_steps("fedavg", "weights by local steps instead of examples"),
    client_without_data("fedavg", "0/0, or counting a client that did not train"),
    two_clients("fedsgd", "clients that step before the server does", steps=1),
    unequal_sizes("fedsgd", "a uniform mean instead of a weighted one", lr=0.05),
    two_clients("fedprox", "a norm that is not squared; mu instead of mu/2", options={"mu": 1.0}),
    two_clients(
        "fedprox", "an anchor that moves with the client, or that is the model of the previous round", options={"mu": 5.0}, num_rounds=10
    ),
    two_of_five("fedprox", "an anchor of the wrong client", options={"mu": 0.5}),
    two_clients("scaffold", "a wrong sign; control variates that are not sent back or do not start at zero"),
    two_of_five(
        "scaffold", "c divided by the cohort size; control variates by cohort position instead of client; c initialized with the weights"
    ),
    unequal_steps("scaffold", "K that is not the number of steps taken", num_rounds=12),
    conflicting_clients("scaffold", "counting only the update of the last client"),
    client_without_data("scaffold", "a division by zero steps"),
    two_clients("fedavgm", "a damped mean instead of heavy-ball momentum", options={"momentum": 0.9, "server_lr": 0.5}),
    replace(
        two_clients("fedavgm", "dropping the first update", options={"momentum": 0.9, "server_lr": 1.0}),
        name="two clients, server learning rate 1",
    ),
    two_clients("fedadam", MOMENT_ERRORS, options=ADAPTIVE_OPTIONS),
    unequal_sizes("fedadam", "a uniform mean", options=ADAPTIVE_OPTIONS),
    two_clients("fedyogi", MOMENT_ERRORS, options=ADAPTIVE_OPTIONS, num_rounds=10),
    two_clients("fedadagrad", MOMENT_ERRORS, options={**ADAPTIVE_OPTIONS, "beta1": 0.0}),
    unequal_steps("fednova", "no division by the local steps, or no multiplication by their mean"),
    unequal_sizes("fednova", "tau_eff without the client weights"),
    two_clients("feddyn", "a wrong sign; a proximal term with the wrong anchor", options={"alpha": 1.0}, num_rounds=8),
    two_of_five("feddyn", "h divided by the cohort size; client state by cohort position instead of client", options={"alpha": 1.0}),
    two_clients(
        "qfedavg", "a denominator without the bound on the step; the loss after training instead of before", steps=3, options={"q": 1.0}
    ),
    two_clients("qfedavg", "a result for q = 0 that differs from FedAvg", options={"q": 0.0}),
    two_clients(
        "afl",
        "no projection onto the simplex, or using the new client weights one round too early",
        steps=1,
        num_rounds=12,
        x0=2.0,
        options={"lambda_lr": 0.3},
    ),
    byzantine_clients("median"),
    two_clients("median", "the lower of two values instead of their mean"),
    byzantine_clients("trimmed_mean", options={"trim_fraction": 0.3}),
    byzantine_clients("krum", options={"num_byzantine": 2, "num_selected": 1}),
    byzantine_clients("krum", options={"num_byzantine": 2, "num_selected": 3}),
)


def patterned_matrix(rows: int, columns: int, seed: int) -> Matrix:
    """Return a matrix of small numbers without symmetry, so that two errors cannot cancel."""
    return tuple(tuple(((7 * i + 11 * j + 13 * seed + 3 * i * j) % 17 - 8) / 8 for j in range(columns)) for i in range(rows))


def for_client(problem: Problem, client: int) -> Problem:
    """Return the problem with the personalized model of one client as its solution."""
    return replace(problem, name=f"{problem.name}, model of client {client}", evaluated_client=client)


def adapter_problem(algorithm: str, detects: str, cohorts: tuple[tuple[int, ...], ...], **fields: Any) -> Problem:
    """Return a problem of three clients with 1, 5 and 2 examples and a rank-2 adapter of a 3 x 4 module.

    The module is not square, so a transposed product has the wrong shape.
    """
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
        **fields,
    )


def partial_participation(problem: Problem) -> Problem:
    """Return the adapter problem with two of three clients in each round."""
    return replace(problem, name="adapters, two of three participate", cohorts=tuple(((0, 1), (1, 2), (0, 2))[r % 3] for r in range(6)))


ALL_CLIENTS = full_participation(3, 5)
STATE_BY_POSITION = "client state by cohort position instead of client; a changed state of an absent client"

PERSONAL_PROBLEMS: tuple[Problem, ...] = (
    for_client(
        two_clients("ditto", "a proximal term toward the client's initial model instead of the shared model", options={"lam": 1.0}), 0
    ),
    for_client(two_clients("ditto", "no personalized model for lambda = 0", options={"lam": 0.0}), 1),
    for_client(two_of_five("ditto", STATE_BY_POSITION, options={"lam": 0.5}), 2),
    for_client(two_clients("fine_tuned", "the shared model instead of the fine-tuned one"), 1),
    for_client(two_of_five("fine_tuned", STATE_BY_POSITION), 4),
    two_clients("pfedme", "averaging theta instead of y", steps=15, options={"lam": 2.0, "eta": 0.3, "inner": 5, "beta": 1.0}),
    replace(
        two_clients("pfedme", "a missing server beta", steps=10, options={"lam": 2.0, "eta": 0.3, "inner": 5, "beta": 0.5}),
        name="two clients, server beta 1/2",
    ),
    for_client(two_of_five("pfedme", STATE_BY_POSITION, options={"lam": 2.0, "eta": 0.3, "inner": 3, "beta": 1.0}), 3),
    adapter_problem("lora", "uniform means instead of weighted ones; alpha/r applied twice or not at all", ALL_CLIENTS),
    partial_participation(adapter_problem("lora", "weights normalized over all clients instead of the cohort", ALL_CLIENTS)),
    adapter_problem("ffa", "training A", ALL_CLIENTS),
    adapter_problem("rolora", "training A first, where B = 0 gives it no gradient; training both factors at once", ALL_CLIENTS),
    adapter_problem("fedex", "no residual; a residual with other weights than the means; a transposed residual", ALL_CLIENTS),
    partial_participation(adapter_problem("fedex", "dropping the residual when the cohort changes", ALL_CLIENTS)),
    replace(adapter_problem("flora", "weights on both factors, which squares them", ALL_CLIENTS[:1]), name="adapters, one round"),
    adapter_problem("svd", "all singular values on one factor; truncating the factors separately", ALL_CLIENTS),
    for_client(adapter_problem("fedper", "averaging B; not averaging A", ALL_CLIENTS), 0),
    for_client(partial_participation(adapter_problem("fedper", STATE_BY_POSITION, ALL_CLIENTS)), 2),
)


PROBLEMS = SHARED_PROBLEMS + PERSONAL_PROBLEMS
