"""Healthy runs: every client holds the same, so whatever a detector says of the skew is a false alarm.

The control of each is the same world with other draws of noise and cohorts: a placebo, as if tags of skewed and IID had been
given at random. Who holds which domain is made up, so that detectors which ask for it are asked too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from ..algorithms import FedAvg, FedDyn, FedProx, Scaffold
from ..detectors.finding import Case, Facts
from ..optimizers import Sgd
from . import adapters, states
from .quadratics import World, carry_out, deal

BASE = World(a=(1.0, 2.0, 3.0, 4.0), b=(-1.0, 0.0, 1.0, 2.0), mix=deal(4, 8, 0.0), noise=0.3, wander=0.2, width=4, x=3.0, lr=0.05,
             steps=5, rounds=50, cohort=4, general=2.5)

WORLDS = {
    "FedAvg": replace(BASE, cohort=0),
    "FedAvg, half take part": BASE,
    "FedAvgM": replace(BASE, algorithm=FedAvg(server=Sgd(0.5, momentum=0.9))),
    "FedProx": replace(BASE, algorithm=FedProx(mu=1.0)),
    "SCAFFOLD": replace(BASE, algorithm=Scaffold()),
    "FedDyn": replace(BASE, algorithm=FedDyn(alpha=1.0)),
}


def pair(name: str, seed: int) -> Case:
    """A healthy world and its placebo."""
    world = replace(WORLDS[name], seed=seed)
    facts = Facts(world.steps, world.names, deal(4, 8, 1.0))
    return Case(carry_out(world), carry_out(replace(world, again=1)), facts=facts, seed=seed)


def adapted(seed: int) -> Case:
    """Adapters of clients with one map, few local steps."""
    run, twin = (adapters.carry_out(adapters.Adapters(0.0, steps=5, seed=each)) for each in (seed, seed + 5000))
    return Case(run, twin, facts=Facts(5), seed=seed)


def still(seed: int) -> Case:
    """Hidden states that jitter and stay."""
    run, twin = (states.carry_out(states.States(0.0, seed=each)) for each in (seed, seed + 5000))
    return Case(run, twin, seed=seed)


COLLECTIONS: dict[str, Callable[[int], Case]] = {
    **{name: partial(pair, name) for name in WORLDS}, "adapters": adapted, "hidden states": still}
