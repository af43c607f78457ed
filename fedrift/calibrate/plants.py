"""Failures planted on purpose, each exact or nearly so: what must be found, and what may be found beside it.

Where the skew is the plant, the control is the same world dealt IID; where something else is (a mistake, a learning rate), the
control is the same world without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..algorithms import FedAvg, FedProx, FedSGD, LocalOnly, Scaffold
from ..conform.planted import DividedByCohort
from ..detectors.divergence import runaway
from ..detectors.finding import LIMITS, Case, Facts
from ..optimizers import Sgd
from ..values import State
from . import adapters, states
from .quadratics import World, carry_out, deal


@dataclass(frozen=True)
class Plant:
    """``case(seed)`` holds the failure ``failure``; ``beside`` are the failures that come with it and are no false alarms."""

    name: str
    failure: str
    case: Callable[[int], Case]
    beside: frozenset[str] = frozenset()
    onset: int = 0  # the round from which on it is there


def iid(world: World) -> World:
    """The same documents, dealt alike."""
    pool = np.asarray(world.mix).mean(axis=0)
    return replace(world, mix=(tuple(pool.tolist()),) * world.clients)


def case(world: World, control: World | None = None, seed: int = 0, **anchors: World) -> Case:
    """A world beside its control, and anchors by their field in ``Case``."""
    worlds = {"run": world, "twin": control or iid(world), **anchors}
    runs = {field: carry_out(replace(each, seed=seed)) for field, each in worlds.items()}
    return Case(**runs, facts=Facts(world.steps, world.names, world.mix), seed=seed)  # type: ignore[arg-type]


def divergence(seed: int) -> Case:
    """Mean factor of a round 1.225 with the curvatures 1 and 9.5 apart, 8e-9 with them mixed: only the skewed run diverges."""
    return case(World(a=(1.0, 9.5), lr=0.22, wander=0.3), seed=seed)


def breaks(skewed: bool, seed: int, lr: float) -> bool:
    """Whether curvatures 1 and 9.5 diverge at a rate, apart or mixed: the boundaries are .2176 and 2 / 5.25 = .381."""
    world = World(a=(1.0, 9.5), lr=lr, wander=0.3, rounds=60, seed=seed)
    return bool(runaway(carry_out(world if skewed else iid(world)), LIMITS)[0])


def oscillation(seed: int) -> Case:
    """One of two clients a round: x has a standard deviation of .406 about its mean, and comes to rest if dealt IID."""
    return case(World(x=2.0, cohort=1, wander=0.1, rounds=80), seed=seed)


def drift(seed: int) -> Case:
    """f1 = x^2 + G x, f2 = -G x: FedAvg ends G K lr / (1 - r) - G / 2 off the optimum 0 (SCAFFOLD, section 7)."""
    world = World(a=(2.0, 0.0), b=(0.0, 0.0), slope=(2.0, -2.0), x=5.0, noise=0.1)
    made = case(world, seed=seed, fedsgd=replace(world, algorithm=FedSGD(Sgd(0.1)), steps=10))
    return replace(made, ladder={steps: carry_out(replace(world, steps=steps, seed=seed)) for steps in (2, 5)})


def prox(seed: int) -> Case:
    """Solved exactly, mu = 100 leaves 97.6 % of the way after each round."""
    world = World(wander=0.1, rounds=60, noise=0.05)
    control = iid(world)
    return case(replace(world, algorithm=FedProx(mu=100.0, form="decoupled")), control, seed, best=world)


def slow(seed: int) -> Case:
    """A thousandth of the learning rate."""
    world = World(wander=0.1, noise=0.05)
    return case(replace(world, lr=world.lr / 1000), iid(world), seed, best=world)


def wrong_controls(seed: int) -> Case:
    """SCAFFOLD's c divided by the cohort, not by the fleet: a mistake of public code."""
    world = World(a=(1.0, 2.0, 3.0, 4.0), b=(-1.0, 0.0, 1.0, 2.0), mix=deal(4, 8, 0.5), cohort=2, noise=0.2, lr=0.02,
                  algorithm=DividedByCohort())
    return case(world, replace(world, algorithm=Scaffold()), seed)


def stale(seed: int) -> Case:
    """SCAFFOLD far from its goal, two of 24 a round: by the time c_k is used again the gradient is a fraction of it. The
    control is the same with sixteen.

    (Where the run has come to rest a c_k lasts, the longer the more the clients differ: age is harmless there.)
    """
    world = World(a=(1.0, 2.0, 3.0, 4.0), b=(-1.0, 0.0, 1.0, 2.0), mix=deal(4, 24, 0.1), cohort=2, noise=0.1, wander=0.2, width=4,
                  x=20.0, lr=0.01, rounds=36, algorithm=Scaffold())
    return case(world, replace(world, cohort=16), seed)


def overshoot(seed: int) -> Case:
    """Heavy ball on the server, just past its stable rate 2 (1 + beta) / (1 - r) = 4.62: every step throws it further back.

    (FedDyn with a tiny alpha overshoots too, but once: |h| / alpha is largest after the first round and never grows.)
    """
    world = World(wander=0.1, noise=0.05, algorithm=FedAvg(server=Sgd(4.65, momentum=0.9)), rounds=30, x=2.0)
    return case(world, replace(world, algorithm=FedAvg(server=Sgd(0.5, momentum=0.9))), seed)


def factors(seed: int) -> Case:
    """Adapters after 50 local steps: the mean of the factors is far from the mean of the products."""
    run, twin = (adapters.carry_out(adapters.Adapters(apart, rounds=6, lr=0.02, seed=seed)) for apart in (1.0, 0.0))
    return Case(run, twin, facts=Facts(50), seed=seed)


def nine_to_one(seed: int) -> Case:
    """Nine clients hold one domain, the tenth another: the model is the nine's."""
    world = World(a=(1.0, 1.0), b=(0.0, 2.0), mix=((1.0, 0.0),) * 9 + ((0.0, 1.0),), noise=0.1, wander=0.1)
    return case(world, seed=seed, local=replace(world, algorithm=LocalOnly()))


def not_a_number(seed: int) -> Case:
    """One client's gradients are not numbers; the server must leave it out and say so."""
    world = World(wander=0.1, mix=deal(2, 6, 0.0), noise=0.1)
    return case(replace(world, broken=(3,)), world, seed)


def absent(state: State, count: int, seed: int) -> Tensor:
    """In turn, all holders of one of four domains sit out for three rounds."""
    away = state.round // 3 % 4
    return torch.tensor([client for client in range(len(state.group)) if client % 4 != away])


def scheduled(seed: int) -> Case:
    """Each of four domains sits out for three rounds in twelve: what it taught is unlearned meanwhile."""
    world = World(a=(1.0, 1.0, 1.0, 1.0), b=(-2.0, -1.0, 1.0, 2.0), mix=deal(4, 8, 1.0), lr=0.05, steps=5, noise=0.1, wander=0.1,
                  x=0.5, rounds=96, draw=absent)
    return case(world, seed=seed)


def only_first(state: State, count: int, seed: int) -> Tensor:
    """Nobody but the holders of domain 0."""
    return torch.arange(0, len(state.group), 2)


def one_domain(seed: int) -> Case:
    """Only one of two domains is ever trained on: the model leaves the middle, where general text is, for that domain."""
    world = World(a=(1.0, 1.0), b=(-1.0, 1.0), mix=deal(2, 8, 1.0), x=0.0, noise=0.1, general=0.0, draw=only_first)
    return case(world, seed=seed)


def projected(seed: int) -> Case:
    """States drawn onto one direction, nearly all of the way."""
    run, twin = (states.carry_out(states.States(strength, seed=seed)) for strength in (0.98, 0.0))
    return Case(run, twin, seed=seed)


SWINGS = frozenset({"domain swings", "loss gap", "domain gap", "forgetting of absent domains", "oscillation"})
APART = frozenset({"client drift", "unfairness", "loss gap", "domain gap", "stall"})

PLANTS = (
    Plant("curvatures 1 and 9.5", "divergence", divergence, frozenset({"client drift"})),
    Plant("one of two a round", "oscillation", oscillation, SWINGS),
    Plant("lower-bound pair", "client drift", drift, APART),
    Plant("mu = 100, exact", "stall", prox, APART),
    Plant("lr / 1000", "stall", slow, APART),
    Plant("c divided by the cohort", "broken controls", wrong_controls, SWINGS | {"stale controls", "divergence"}),
    Plant("two of 24 a round", "stale controls", stale, SWINGS | APART),
    Plant("server rate 4.65, momentum .9", "server overshoot", overshoot, SWINGS | APART | {"divergence"}),
    Plant("adapters, 50 steps", "aggregation error", factors, APART),
    Plant("nine to one", "unfairness", nine_to_one, APART),
    Plant("a client that is NaN", "left out", not_a_number),
    Plant("scheduled absence", "forgetting of absent domains", scheduled, SWINGS),
    Plant("one domain only", "forgetting of general text", one_domain, APART | {"forgetting of syntax", "stall"}),
    Plant("one domain only", "forgetting of syntax", one_domain, APART | {"forgetting of general text", "stall"}),
    Plant("onto one direction", "collapse of the representation", projected, onset=5),
)
