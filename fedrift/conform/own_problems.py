"""Problems of models of one's own and of adapters, each made to show what public implementations have got wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .problem import Adapters, Matrix, Problem
from .shared_problems import everybody, pair, some


def matrix(rows: int, columns: int, seed: int) -> Matrix:
    """Small numbers without a pattern that two mistakes could hide in."""
    return tuple(tuple(((7 * i + 11 * j + 13 * seed + 3 * i * j) % 17 - 8) / 8 for j in range(columns)) for i in range(rows))


def own(problem: Problem, client: int) -> Problem:
    return replace(problem, name=f"{problem.name}, client {client}'s own", asks=client)


def adapted(algorithm: str, catches: str, cohorts: tuple[tuple[int, ...], ...], **more: Any) -> Problem:
    """Three clients of 1, 5 and 2 examples, rank 2, a module of 3 by 4: a transposed product has the wrong shape."""
    return Problem("adapters of three clients", algorithm, catches, (1.0, 2.0, 1.5), (0.0,) * 3, cohorts, (4, 4, 4),
                   lr=0.05, weight=(1.0, 5.0, 2.0), adapters=Adapters(
                       ((0.0, 0.0),) * 3, matrix(2, 4, 5), tuple(matrix(3, 4, k) for k in range(3)),
                       (1.0, -0.5, 0.25), (0.5, 1.0, -1.0, 0.75)), **more)


def fewer(problem: Problem) -> Problem:
    return replace(problem, name="adapters, two of three take part",
                   cohorts=tuple(((0, 1), (1, 2), (0, 2))[r % 3] for r in range(6)))


ALL = everybody(3, 5)
TURNS = "a memory by slot, not by client; a client that sat out and was moved"

OWN_PROBLEMS: tuple[Problem, ...] = (
    own(pair("ditto", "a pull to one's own start, not to the shared model", options={"lam": 1.0}), 0),
    own(pair("ditto", "no own model without a pull", options={"lam": 0.0}), 1),
    own(some("ditto", TURNS, options={"lam": 0.5}), 2),
    own(pair("fine_tuned", "the shared model instead of the tuned one"), 1),
    own(some("fine_tuned", TURNS), 4),
    pair("pfedme", "theta that is shared, not y", steps=15, options={"lam": 2.0, "eta": 0.3, "inner": 5, "beta": 1.0}),
    replace(pair("pfedme", "the server's beta left out", steps=10,
                 options={"lam": 2.0, "eta": 0.3, "inner": 5, "beta": 0.5}), name="two clients, a server's beta of 1/2"),
    own(some("pfedme", TURNS, options={"lam": 2.0, "eta": 0.3, "inner": 3, "beta": 1.0}), 3),
    adapted("lora", "plain means for weighted ones; alpha/r twice or not at all", ALL),
    fewer(adapted("lora", "weights over the fleet, not the cohort", ALL)),
    adapted("ffa", "an A that moves", ALL),
    adapted("rolora", "A trained first, where B = 0 gives it no gradient; both factors at once", ALL),
    adapted("fedex", "no residue; a residue with other weights than the means; a transposed residue", ALL),
    fewer(adapted("fedex", "a residue that is forgotten when another cohort comes", ALL)),
    replace(adapted("flora", "weights on both factors, which squares them", ALL[:1]), name="adapters, one round"),
    adapted("svd", "the singular values on one factor; factors cut one by one", ALL),
    own(adapted("fedper", "B that is shared after all; A that is not", ALL), 0),
    own(fewer(adapted("fedper", TURNS, ALL)), 2),
)

__all__ = ["OWN_PROBLEMS"]
