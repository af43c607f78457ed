"""An experiment: everything that can change a result, and an id made of just that."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import product
from math import cos, pi
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval, Le, MinLen

from . import algorithms, mitigation, optimizers, partition
from .algorithms import FedAvg, aggregates
from .algorithms.aggregates import Mean
from .config import Rooms, canonical, correct_fields, edit, load_yaml, overridden, read, write
from .corpus import Source
from .corpus.source import Digest
from .errors import UserError, unknown
from .fleet.simulated import Weighting
from .fleet.stragglers import Late
from .mitigation import Vanilla
from .models import tune
from .models.tune import Lora, Tune
from .optimizers import AdamW, Optimizer
from .partition import Partitioner, TopicMix
from .partition.partition import called
from .seeds import Seed

SCHEMA = 2  # part of every id. Raise it when a default or the numerics change, so that no stored run answers for a new one
STORED = ("id", "schema", "partition_table")  # what experiment.json holds beside the experiment

ROOMS = Rooms({FedAvg: algorithms, Mean: aggregates, Optimizer: optimizers, Partitioner: partition, Tune: tune,
               Vanilla: mitigation})
Share = Annotated[float, Gt(0), Le(1)]
Name = Annotated[str, MinLen(1)]
Count = Annotated[int, Ge(1)]
GROUPS = ("language", "updates", "fairness", "cost", "hidden", "attention", "barriers", "adapters", "general", "syntax", "text")


@dataclass(frozen=True)
class Plan:
    """How the training goes. ``steps`` local steps a round for every client or, with ``epochs``, as many as its
    data makes. ``schedule`` moves the clients' learning rate from round to round, never inside one. ``stragglers`` is
    the share of clients that do not finish a round's steps; ``late`` keeps the steps they did, or drops them. ``weighting``: a
    client counts with the ``tokens`` that it learnt from in the round (nearly equal for all where ``steps`` are fixed), with
    the ``examples`` (blocks) that it holds, n_k of McMahan et al. (arXiv:1602.05629), or as much as any other (``uniform``)."""

    rounds: Annotated[int, Ge(0)] = 30
    participation: Share = 1.0
    steps: Count = 5
    epochs: Annotated[float, Interval(ge=0.001, le=10_000)] | None = None
    batch: Annotated[int, Interval(ge=1, le=16_384)] = 4
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
    general_tokens: Annotated[int, Interval(ge=1, le=10**9)] = 4096
    pairs: Count = 100


@dataclass(frozen=True)
class Fork:
    """The ``run`` that this one parts from (``fedrift replay``) and the first ``round`` that may differ; those before are that
    run's own. What ``drop_client`` send counts for nothing from there on, up to and including ``drop_until``."""

    run: Name
    round: Count
    drop_client: tuple[Annotated[int, Ge(0)], ...] = ()
    drop_until: Count | None = None

    def dropped(self, round: int) -> tuple[int, ...]:
        """Who is left out in a round."""
        return self.drop_client if self.round <= round <= (self.drop_until or round) else ()


@dataclass(frozen=True)
class Experiment:
    """One run. Device, paths, threads and the like are a ``Runtime``'s and not part of it."""

    corpus: Source
    model: Name = "pocket"
    tune: Tune = Lora()
    partition: Partitioner = TopicMix()
    algorithm: FedAvg = FedAvg()
    plan: Plan = Plan()
    evaluate: Evaluate = Evaluate()
    seed: Seed = 0
    mitigation: Vanilla = Vanilla()
    model_content: Digest = ""  # of a local folder; filled when resolved, so that changed weights are another experiment
    fork: Fork | None = None

    def __post_init__(self) -> None:
        """Check everything, however the experiment was made, and give each value the type of its field."""
        for name, value in correct_fields(self, ROOMS).items():
            object.__setattr__(self, name, value)
        self.plan.cohort(self.partition.clients)
        for name in self.evaluate.panel:
            if name not in GROUPS:  # one of somebody's own: worth loading the probes for
                from .probes import GROUPS as ALL

                if name not in ALL:
                    raise unknown("group of probes in evaluate.panel", name, ALL)

    @cached_property
    def id(self) -> str:
        """12 hex digits of all that can change a result: every field's value, and the schema version."""
        return identify(self.stored())

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

    def stored(self) -> dict[str, Any]:
        """The experiment as ``experiment.json`` holds it, but for its id and the partition's table."""
        return {**self.written(), "schema": SCHEMA}


def parse(said: dict[str, Any], overrides: Iterable[str] = ()) -> Experiment:
    """An experiment from plain YAML and ``a.b=c`` overrides; what cannot work together is refused."""
    experiment: Experiment = read(Experiment, overridden(said, overrides), ROOMS)
    return experiment


def parse_stored(stored: Mapping[str, Any]) -> Experiment:
    """The experiment that an ``experiment.json`` holds."""
    return parse({key: value for key, value in stored.items() if key not in STORED})


def identify(stored: Mapping[str, Any]) -> str:
    """The id of what an ``experiment.json`` holds, by the schema version that it records.

    Equal numbers give equal ids: 1, 1.0 and a scalar of numpy's; 0 and -0.0. A run from before ids had a version is identified as
    it was then, from what differs from the defaults.
    """
    if "schema" in stored:
        return _digest(_plain({key: value for key, value in stored.items() if key not in ("id", "partition_table")}))
    return _digest(canonical(parse_stored(stored)))


def _digest(said: Any) -> str:
    return sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]


def _plain(value: Any, where: str = "") -> Any:
    """A value as JSON in which equal numbers are written alike."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(part, f"{where}.{key}" if where else str(key)) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part, where) for part in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise UserError(f"{where} is a {type(value).__name__}, which cannot be stored: use numbers, texts, lists, or a dataclass of "
                    "these")


def differences(asked: Mapping[str, Any], stored: Mapping[str, Any]) -> list[str]:
    """Where two contents of ``experiment.json`` ask for different runs, a line for each field."""
    one, other = (_flat(_plain({key: value for key, value in said.items() if key not in ("id", "partition_table")}))
                  for said in (asked, stored))
    return [f"{path} is {_short(other[path]) if path in other else 'not there'} in the stored run and "
            f"{_short(one[path]) if path in one else 'not there'} in what is asked"
            for path in {**one, **other} if path not in one or path not in other or one[path] != other[path]]


def _flat(said: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in said.items():
        path = f"{at}.{key}" if at else key
        found |= _flat(value, path) if isinstance(value, Mapping) and value else {path: value}
    return found


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


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


__all__ = ["ROOMS", "SCHEMA", "STORED", "Evaluate", "Experiment", "Fork", "Plan", "differences", "edit", "grid", "identify",
           "load_experiment", "parse", "parse_stored", "twin"]
