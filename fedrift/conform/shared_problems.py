"""Problems of one model for all, each made to show what public implementations have got wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .problem import Problem

FIVE: dict[str, Any] = {"a": (1.0, 4.0, 2.0, 3.0, 5.0), "b": (0.0, 1.0, -2.0, 3.0, 7.0)}


def everybody(size: int, rounds: int) -> tuple[tuple[int, ...], ...]:
    return (tuple(range(size)),) * rounds


def pair(algorithm: str, catches: str, rounds: int = 6, steps: int = 10, **more: Any) -> Problem:
    """Two clients, a = (1, 4), b = (0, 1), optimum 0.8, all in every round."""
    return Problem("two clients", algorithm, catches, (1.0, 4.0), (0.0, 1.0), everybody(2, rounds), (steps, steps),
                   **more)


def some(algorithm: str, catches: str, rounds: int = 12, lr: float = 0.05, **more: Any) -> Problem:
    """Two of five clients a round, in turn."""
    turns = ((0, 1), (2, 3), (1, 4), (0, 3), (2, 4))
    return Problem("two of five take part", algorithm, catches, cohorts=tuple(turns[r % 5] for r in range(rounds)),
                   steps=(6,) * 5, lr=lr, **FIVE, **more)


def unequal(algorithm: str, catches: str, **more: Any) -> Problem:
    """Two clients with 2 and 20 steps and the same number of examples."""
    return replace(pair(algorithm, catches, lr=0.01, **more), name="2 and 20 local steps", steps=(2, 20))


def sized(algorithm: str, catches: str, **more: Any) -> Problem:
    """Clients with 1 to 30 examples."""
    return replace(some(algorithm, catches, **more), name="clients of unequal size", weight=(1.0, 30.0, 2.0, 5.0, 10.0))


def empty(algorithm: str, catches: str, **more: Any) -> Problem:
    """A client without data among three."""
    return Problem("a client without data", algorithm, catches, (1.0, 4.0, 2.0), (0.0, 1.0, 3.0), everybody(3, 4),
                   (5, 5, 0), **more)


def conflict(algorithm: str, catches: str, **more: Any) -> Problem:
    """x^2 + 100 x against -100 x: SCAFFOLD paper, section 7; the optimum is 0."""
    return Problem("two clients in conflict", algorithm, catches, (2.0, 0.0), (0.0, 0.0), everybody(2, 40), (10, 10),
                   x=1.0, slope=(100.0, -100.0), **more)


def liars(algorithm: str, **more: Any) -> Problem:
    """Seven clients of which two drag far away."""
    return Problem("two of seven lie", algorithm, "a liar that moves the server", (1.0,) * 7,
                   (1.0, 1.1, 0.9, 1.3, 1.0, 1.05, 0.8), everybody(7, 5), (3,) * 7,
                   slope=(0, 0, 500.0, 0, 0, -900.0, 0), **more)


ADAPTIVE = {"beta1": 0.9, "beta2": 0.99, "tau": 1e-3, "server_lr": 0.1}
MOMENTS = "momentum squared for the change; v that begins at 0; a bias correction the paper has not"

SHARED_PROBLEMS: tuple[Problem, ...] = (
    pair("fedavg", "a mean of weights, not of changes, with a server rate"),
    sized("fedavg", "a uniform mean for a weighted one; weights over the fleet, not the cohort"),
    unequal("fedavg", "steps for examples as weights"),
    empty("fedavg", "0/0, or a client that did nothing and counts"),
    pair("fedsgd", "clients that move before the server does", steps=1),
    sized("fedsgd", "a uniform mean for a weighted one", lr=0.05),
    pair("fedprox", "a norm that is not squared; mu for mu/2 twice", options={"mu": 1.0}),
    pair("fedprox", "an anchor that moves with the client or is last round's", options={"mu": 5.0}, rounds=10),
    some("fedprox", "an anchor of the wrong client", options={"mu": 0.5}),
    pair("scaffold", "a sign; controls that never come back or do not start at zero"),
    some("scaffold", "c divided by the cohort, not the fleet; controls by slot, not client; c that starts as weights"),
    unequal("scaffold", "K that is not the steps really taken", rounds=12),
    conflict("scaffold", "only the last client's change that counts"),
    empty("scaffold", "a division by no steps"),
    pair("fedavgm", "a damped mean for heavy ball", options={"momentum": 0.9, "server_lr": 0.5}),
    replace(pair("fedavgm", "a first change that is lost", options={"momentum": 0.9, "server_lr": 1.0}),
            name="two clients, a server rate of 1"),
    pair("fedadam", MOMENTS, options=ADAPTIVE),
    sized("fedadam", "a uniform mean", options=ADAPTIVE),
    pair("fedyogi", MOMENTS, options=ADAPTIVE, rounds=10),
    pair("fedadagrad", MOMENTS, options={**ADAPTIVE, "beta1": 0.0}),
    unequal("fednova", "no division by the steps, or no multiplication by their mean"),
    sized("fednova", "tau_eff without the weights"),
    pair("feddyn", "a sign; a pull to the wrong place", options={"alpha": 1.0}, rounds=8),
    some("feddyn", "h divided by the cohort; memories by slot", options={"alpha": 1.0}),
    pair("qfedavg", "weights without the bound on the step; the loss after training", steps=3, options={"q": 1.0}),
    pair("qfedavg", "q = 0 that is not FedAvg", options={"q": 0.0}),
    pair("afl", "no projection, or the new weights too early", steps=1, rounds=12, x=2.0, options={"rate": 0.3}),
    liars("median"),
    pair("median", "the lower of two for their mean"),
    liars("trimmed_mean", options={"share": 0.3}),
    liars("krum", options={"liars": 2, "keep": 1}),
    liars("krum", options={"liars": 2, "keep": 3}),
)
