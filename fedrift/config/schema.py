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

from .. import algorithms, clustering, partition
from ..algorithms import FedAvg, aggregators
from ..algorithms.aggregators import Mean
from ..clustering import NoClustering
from ..core import optimizers
from ..core.errors import UserError
from ..core.optimizers import AdamW, Optimizer
from ..core.random import Seed
from ..data import DatasetConfig
from ..data.dataset import Fingerprint
from ..models import trainable
from ..models.trainable import Lora, Trainable
from ..partition import Partitioner, TopicMix
from ..partition.base import display_name
from ..simulation.batches import StragglerPolicy
from ..simulation.simulator import ClientWeighting
from .loader import Registry, apply_overrides, dump_value, edit_config, load_yaml, parse_value, validate_fields

# Part of every id. Raise it when a key, a default or the numerics change, so that no stored run answers for a new one.
SCHEMA_VERSION = 4
METADATA_KEYS = ("id", "schema", "partition_table")  # what experiment.json holds beside the experiment

REGISTRY = Registry(
    {FedAvg: algorithms, Mean: aggregators, Optimizer: optimizers, Partitioner: partition, Trainable: trainable, NoClustering: clustering},
    {
        FedAvg: "algorithm",
        Mean: "aggregator",
        Optimizer: "optimizer",
        Partitioner: "partition",
        Trainable: "trainable",
        NoClustering: "clustering",
    },
)
Fraction = Annotated[float, Gt(0), Le(1)]
NonEmptyStr = Annotated[str, MinLen(1)]
PositiveInt = Annotated[int, Ge(1)]
PROBE_GROUPS = ("language", "updates", "fairness", "cost", "hidden", "attention", "barriers", "adapters", "general", "syntax", "text")


@dataclass(frozen=True)
class TrainingConfig:
    """How an experiment trains.

    Args:
        num_rounds: Communication rounds.
        participation_rate: Share of the clients that take part in each round.
        num_clients_per_round: Number of clients that take part in each round; takes the place of ``participation_rate``.
        local_steps: Optimizer steps of each client in a round.
        local_epochs: Passes of each client over its data in a round; takes the place of ``local_steps``.
        batch_size: Sequences per step.
        max_seq_length: Tokens per sequence.
        client_optimizer: Optimizer of the local steps, made anew in each round.
        max_grad_norm: Largest norm of a client's gradient; longer ones are scaled down. None: no limit.
        lr_schedule: How the learning rate changes from round to round; it is constant within a round.
        client_weighting: Weight of a client in the mean: ``tokens`` trained in the round, ``examples`` (sequences) held, which is
            n_k of McMahan et al. (arXiv:1602.05629), or ``uniform``. Fixed ``local_steps`` make ``tokens`` nearly equal.
        straggler_fraction: Share of the clients that do not finish a round's steps.
        straggler_policy: ``partial`` keeps the steps that a straggler did, ``drop`` leaves the straggler out.
    """

    num_rounds: Annotated[int, Ge(0)] = 30
    participation_rate: Fraction = 1.0
    num_clients_per_round: PositiveInt | None = None
    local_steps: PositiveInt = 5
    local_epochs: Annotated[float, Interval(ge=0.001, le=10_000)] | None = None
    batch_size: Annotated[int, Interval(ge=1, le=16_384)] = 4
    max_seq_length: Annotated[int, Interval(ge=8, le=8192)] = 64
    client_optimizer: Optimizer = AdamW()
    max_grad_norm: Annotated[float, Gt(0)] | None = 1.0
    lr_schedule: Literal["constant", "cosine"] = "constant"
    client_weighting: ClientWeighting = "tokens"
    straggler_fraction: Annotated[float, Interval(ge=0, le=1)] = 0.0
    straggler_policy: StragglerPolicy = "partial"

    def cohort_size(self, num_clients: int) -> int:
        """Return how many of ``num_clients`` clients take part in a round.

        Raises:
            UserError: It would be none of them, or more than there are.
        """
        count = self.num_clients_per_round
        if count is not None:
            if self.participation_rate != 1.0:
                raise UserError(
                    f"training.num_clients_per_round: {count} beside training.participation_rate: "
                    f"{self.participation_rate}: give one of the two"
                )
            if count > num_clients:
                raise UserError(f"training.num_clients_per_round: {count} of {num_clients} clients; allowed: 1 to {num_clients}")
            return count
        count = round(self.participation_rate * num_clients)
        if count < 1:
            raise UserError(
                f"training.participation_rate: {self.participation_rate} of {num_clients} clients rounds to no client; "
                f"the least that takes one is {0.5 / num_clients + 0.005:.2f}"
            )
        return count

    def lr_factor(self, round: int) -> float:
        """What the learning rate is multiplied by in a round."""
        return 1.0 if self.lr_schedule == "constant" else 0.5 * (1 + cos(pi * round / max(self.num_rounds, 1)))


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured on, when. ``blocks`` of each domain every ``every`` rounds, ``final`` of each at the end;
    ``own`` blocks of each client of the cohort for its loss before and after aggregation.

    ``panel``: which groups of probes look beside the losses (``docs/probes.md``). Those that cost look every ``deep``
    rounds; None: as often as keeps all that is measured within ``budget``, the share of a run that it may take.
    ``general``: the corpus of the panel's general text; the first that is at hand, if none is named, and
    ``general_tokens`` of it. ``pairs``: minimal pairs of each phenomenon of syntax."""

    split: Literal["validation", "test"] = "test"
    interval: PositiveInt = 1
    blocks_per_domain: PositiveInt = 6
    blocks_per_client: Annotated[int, Ge(0)] = 2
    final_blocks_per_domain: Annotated[int, Ge(0)] = 40
    probes: tuple[str, ...] = ("language", "updates", "fairness", "cost")
    expensive_interval: PositiveInt | None = None
    max_overhead: Annotated[float, Interval(gt=0, lt=1)] = 0.2
    general_dataset: str = ""
    general_tokens: Annotated[int, Interval(ge=1, le=10**9)] = 4096
    minimal_pairs: PositiveInt = 100


@dataclass(frozen=True)
class ForkConfig:
    """The ``run`` that this one parts from (``fedrift fork``) and the first ``round`` that may differ; those before are that
    run's own. What ``exclude_clients`` send counts for nothing from there on, up to and including ``exclude_until``."""

    run: NonEmptyStr
    from_round: PositiveInt
    exclude_clients: tuple[Annotated[int, Ge(0)], ...] = ()
    exclude_until: PositiveInt | None = None

    def excluded_clients(self, round: int) -> tuple[int, ...]:
        """Who is left out in a round."""
        return self.exclude_clients if self.from_round <= round <= (self.exclude_until or round) else ()


@dataclass(frozen=True)
class ExperimentConfig:
    """One run. Device, paths, threads and the like are a ``Runtime``'s and not part of it."""

    dataset: DatasetConfig
    model: NonEmptyStr = "pocket"
    trainable: Trainable = Lora()
    partition: Partitioner = TopicMix()
    algorithm: FedAvg = FedAvg()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    seed: Seed = 0
    clustering: NoClustering = NoClustering()
    model_fingerprint: Fingerprint = ""  # of a local folder; filled when resolved, so that changed weights are another experiment
    fork: ForkConfig | None = None

    def __post_init__(self) -> None:
        """Check everything, however the experiment was made, and give each value the type of its field."""
        for name, value in validate_fields(self, REGISTRY).items():
            object.__setattr__(self, name, value)
        self.training.cohort_size(self.partition.num_clients)
        for name in self.evaluation.probes:
            if name not in PROBE_GROUPS:  # an extension is worth loading the probes for
                from ..probes import find_probe_group

                find_probe_group(name)

    @cached_property
    def id(self) -> str:
        """12 hex digits of all that can change a result: every field's value, and the schema version."""
        return compute_id(self.to_stored_dict())

    @property
    def name(self) -> str:
        """A short name for tables and legends."""
        groups = "" if self.clustering == NoClustering() else f" {type(self.clustering).__name__}"
        fork = f", parting from {self.fork.run[:6]} in round {self.fork.from_round}" if self.fork else ""
        return (
            f"{type(self.algorithm).__name__}{groups} {self.dataset.name} {display_name(self.partition)} "
            f"{self.partition.severity:g} seed {self.seed}{fork}"
        )

    def iid_baseline(self) -> ExperimentConfig:
        """Return the same experiment with IID partitioning and no fork; an effect that it shows too is not caused by heterogeneity."""
        return iid_baseline(self)

    def to_dict(self) -> dict[str, Any]:
        """The whole experiment as plain YAML, defaults included; a fork, where it is one."""
        said = {**dump_value(self, REGISTRY), "dataset": self.dataset.to_dict()}
        return said if self.fork else {key: value for key, value in said.items() if key != "fork"}

    def to_stored_dict(self) -> dict[str, Any]:
        """The experiment as ``experiment.json`` holds it, but for its id and the partition's table."""
        return {**self.to_dict(), "schema": SCHEMA_VERSION}


def parse_config(raw: dict[str, Any], overrides: Iterable[str] = ()) -> ExperimentConfig:
    """An experiment from plain YAML and ``a.b=c`` overrides; what cannot work together is refused."""
    experiment: ExperimentConfig = parse_value(ExperimentConfig, apply_overrides(raw, overrides), REGISTRY)
    return experiment


def parse_stored_config(stored: Mapping[str, Any]) -> ExperimentConfig:
    """The experiment that an ``experiment.json`` holds."""
    return parse_config({key: value for key, value in stored.items() if key not in METADATA_KEYS})


def compute_id(stored: Mapping[str, Any]) -> str:
    """The id of what an ``experiment.json`` holds, the schema version included.

    Equal numbers give equal ids: 1, 1.0 and a scalar of numpy's; 0 and -0.0.
    """
    plain = _to_plain({key: value for key, value in stored.items() if key not in ("id", "partition_table")})
    return sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]


def _to_plain(value: Any, key_path: str = "") -> Any:
    """A value as JSON in which equal numbers are written alike."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _to_plain(part, f"{key_path}.{key}" if key_path else str(key)) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_plain(part, key_path) for part in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise UserError(f"{key_path} is a {type(value).__name__}, which cannot be stored: use numbers, texts, lists, or a dataclass of these")


def diff_stored_configs(requested: Mapping[str, Any], stored: Mapping[str, Any]) -> list[str]:
    """Where two contents of ``experiment.json`` ask for different runs, a line for each field."""
    one, other = (
        _flatten(_to_plain({key: value for key, value in said.items() if key not in ("id", "partition_table")}))
        for said in (requested, stored)
    )
    return [
        f"{path} is {_shorten(other[path]) if path in other else 'not there'} in the stored run and "
        f"{_shorten(one[path]) if path in one else 'not there'} in what is asked"
        for path in {**one, **other}
        if path not in one or path not in other or one[path] != other[path]
    ]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{prefix}.{key}" if prefix else key
        found |= _flatten(value, path) if isinstance(value, Mapping) and value else {path: value}
    return found


def _shorten(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def load_config(path: Path, overrides: Iterable[str] = ()) -> ExperimentConfig:
    """The experiment in a YAML file."""
    return parse_config(load_yaml(path), overrides)


def iid_baseline(config: ExperimentConfig) -> ExperimentConfig:
    """Return the same experiment with IID partitioning and no fork."""
    changes: dict[str, Any] = {"partition__severity": 0.0, "fork": None}
    if hasattr(config.partition, "alpha"):  # all values of alpha share one baseline
        changes["partition__alpha"] = None
    iid: ExperimentConfig = edit_config(config, changes)
    return iid


def expand_grid(base: ExperimentConfig, **axes: Iterable[Any]) -> list[ExperimentConfig]:
    """Every combination: ``grid(e, partition__severity=[0, 1], seed=range(3))``."""
    return [edit_config(base, dict(zip(axes, values, strict=True))) for values in product(*axes.values())]


__all__ = [
    "METADATA_KEYS",
    "REGISTRY",
    "SCHEMA_VERSION",
    "EvaluationConfig",
    "ExperimentConfig",
    "ForkConfig",
    "TrainingConfig",
    "compute_id",
    "diff_stored_configs",
    "edit_config",
    "expand_grid",
    "iid_baseline",
    "load_config",
    "parse_config",
    "parse_stored_config",
]
