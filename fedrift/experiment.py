"""An experiment: everything that can change a result, and an id made of just that."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from itertools import product
from math import cos, pi
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval, Le

from . import algorithms, mitigation, optimizers, partition
from .algorithms import FedAvg, aggregates
from .algorithms.aggregates import Mean
from .config import Rooms, canonical, edit, load_yaml, overridden, read, write
from .corpus import Source
from .errors import UserError, unknown
from .fleet.simulated import Weighting
from .fleet.stragglers import Late
from .mitigation import Vanilla
from .models import tune
from .models.tune import Lora, Tune
from .optimizers import AdamW, Optimizer
from .partition import Partitioner, TopicMix
from .partition.partition import called

ROOMS = Rooms({FedAvg: algorithms, Mean: aggregates, Optimizer: optimizers, Partitioner: partition, Tune: tune,
               Vanilla: mitigation})
Share = Annotated[float, Gt(0), Le(1)]
Count = Annotated[int, Ge(1)]
GROUPS = ("language", "updates", "fairness", "cost", "hidden", "attention", "barriers", "adapters", "general", "syntax", "text")


@dataclass(frozen=True)
class Plan:
    """How the training goes. ``steps`` local steps a round for every client or, with ``epochs``, as many as its
    data makes. ``schedule`` moves the clients' learning rate from round to round, never inside one. ``stragglers`` is
    the share of clients that do not finish a round's steps; ``late`` keeps the steps they did, or drops them."""

    rounds: Annotated[int, Ge(0)] = 30
    participation: Share = 1.0
    steps: Count = 5
    epochs: Annotated[float, Gt(0)] | None = None
    batch: Count = 4
    seq_len: Annotated[int, Interval(ge=8, le=8192)] = 64
    optimizer: Optimizer = AdamW()
    clip: Annotated[float, Gt(0)] | None = 1.0
    schedule: Literal["constant", "cosine"] = "constant"
    weighting: Weighting = "tokens"
    stragglers: Annotated[float, Interval(ge=0, le=1)] = 0.0
    late: Late = "partial"

    def cohort(self, clients: int) -> int:
        """How many of the clients take part in a round."""
        count = round(self.participation * clients)
        if count < 1:
            raise UserError(f"plan.participation: {self.participation} of {clients} clients rounds to no client; "
                            f"the least that takes one is {0.5 / clients + 0.005:.2f}")
        return count

    def factor(self, round: int) -> float:
        """What the learning rate is multiplied by in a round."""
        return 1.0 if self.schedule == "constant" else 0.5 * (1 + cos(pi * round / max(self.rounds, 1)))


@dataclass(frozen=True)
class Evaluate:
    """What is measured on, when. ``blocks`` of each domain every ``every`` rounds, ``final`` of each at the end;
    ``own`` blocks of each client of the cohort for its loss before and after aggregation.

    ``panel``: which groups of probes look beside the losses (``docs/probes.md``). Those that cost look every ``deep``
    rounds; None: as often as keeps all that is measured within ``budget``, the share of a run that it may take.
    ``general``: the corpus of the panel's general text; the first that is at hand, if none is named, and
    ``general_tokens`` of it. ``pairs``: minimal pairs of each phenomenon of syntax."""

    split: Literal["validation", "test"] = "test"
    every: Count = 1
    blocks: Count = 6
    own: Annotated[int, Ge(0)] = 2
    final: Annotated[int, Ge(0)] = 40
    panel: tuple[str, ...] = ("language", "updates", "fairness", "cost")
    deep: Count | None = None
    budget: Annotated[float, Interval(gt=0, lt=1)] = 0.2
    general: str = ""
    general_tokens: Count = 4096
    pairs: Count = 100


@dataclass(frozen=True)
class Fork:
    """The ``run`` that this one parts from (``fedrift replay``) and the first ``round`` that may differ; those before are that
    run's own. What ``drop_client`` send counts for nothing from there on, up to and including ``drop_until``."""

    run: str
    round: Count
    drop_client: tuple[int, ...] = ()
    drop_until: Count | None = None

    def dropped(self, round: int) -> tuple[int, ...]:
        """Who is left out in a round."""
        return self.drop_client if self.round <= round <= (self.drop_until or round) else ()


@dataclass(frozen=True)
class Experiment:
    """One run. Device, paths, threads and the like are a ``Runtime``'s and not part of it."""

    corpus: Source
    model: str = "pocket"
    tune: Tune = Lora()
    partition: Partitioner = TopicMix()
    algorithm: FedAvg = FedAvg()
    plan: Plan = Plan()
    evaluate: Evaluate = Evaluate()
    seed: int = 0
    mitigation: Vanilla = Vanilla()
    model_content: str = ""  # of a local folder; filled when resolved, so that changed weights are another experiment
    fork: Fork | None = None

    @property
    def id(self) -> str:
        """12 hex digits of what can change a result."""
        return sha256(json.dumps(canonical(self), sort_keys=True).encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        """A short name for tables and legends."""
        groups = "" if self.mitigation == Vanilla() else f" {type(self.mitigation).__name__}"
        fork = f", parting from {self.fork.run[:6]} in round {self.fork.round}" if self.fork else ""
        return (f"{type(self.algorithm).__name__}{groups} {self.corpus.name} {called(self.partition)} "
                f"{self.partition.severity:g} seed {self.seed}{fork}")

    def written(self) -> dict[str, Any]:
        """The whole experiment as plain YAML, defaults included; a fork, where it is one."""
        said = {**write(self, ROOMS), "corpus": self.corpus.written()}
        return said if self.fork else {key: value for key, value in said.items() if key != "fork"}


def parse(said: dict[str, Any], overrides: Iterable[str] = ()) -> Experiment:
    """An experiment from plain YAML and ``a.b=c`` overrides; what cannot work together is refused."""
    experiment: Experiment = read(Experiment, overridden(said, overrides), ROOMS)
    experiment.plan.cohort(experiment.partition.clients)
    for name in experiment.evaluate.panel:
        if name not in GROUPS:  # one of somebody's own: worth loading the probes for
            from .probes import GROUPS as ALL

            if name not in ALL:
                raise unknown("group of probes in evaluate.panel", name, ALL)
    return experiment


def load_experiment(path: Path, overrides: Iterable[str] = ()) -> Experiment:
    """The experiment in a YAML file."""
    return parse(load_yaml(path), overrides)


def twin(experiment: Experiment) -> Experiment:
    """The same experiment dealt IID, from its beginning: what is not in it too, heterogeneity did not cause."""
    iid: Experiment = edit(experiment, {"partition__severity": 0.0, "fork": None})
    return iid


def grid(base: Experiment, **axes: Iterable[Any]) -> list[Experiment]:
    """Every combination: ``grid(e, partition__severity=[0, 1], seed=range(3))``."""
    return [edit(base, dict(zip(axes, values, strict=True))) for values in product(*axes.values())]


__all__ = ["ROOMS", "Evaluate", "Experiment", "Fork", "Plan", "edit", "grid", "load_experiment", "parse", "twin"]
