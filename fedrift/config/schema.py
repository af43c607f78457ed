"""The configuration of an experiment, which contains everything that can change a result, and the id that is derived from it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from math import cos, pi
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval, Le, MinLen

from .. import algorithms, clustering, partition
from ..algorithms import FedAvg, aggregators
from ..algorithms.aggregators.base import Aggregator
from ..clustering import NoClustering
from ..core import optimizers
from ..core.errors import UserError
from ..core.optimizers import AdamW, Optimizer
from ..core.random import Seed
from ..core.types import ClientWeighting, StragglerPolicy
from ..data import DatasetConfig
from ..data.dataset import Fingerprint
from ..models import trainable
from ..models.trainable import Lora, Trainable
from ..partition import Partitioner, TopicMix
from ..partition.base import display_name
from .loader import Registry, apply_overrides, dump_value, edit_config, parse_value, validate_fields

# The version is part of every id. Increase it when a key, a default or the numerics change, so that stored runs are not reused.
SCHEMA_VERSION = 4
# Keys that were added without a new version, with the default that keeps the earlier behavior. An id does not depend on them while they
# have this default, so that stored runs keep their ids.
ADDED_KEYS: Mapping[str, Any] = {
    "dataset.format": "auto",
    "dataset.train_on": "answer",
    "dataset.chat_template": "auto",
    "dataset.config": "",
    "dataset.revision": "",
    "dataset.split": "",
    "dataset.source_fingerprint": "",
    "model_init": "pretrained",
    "evaluation.label_prompt": " Topic: {label}",
    "evaluation.labeled_documents": 16,
    "evaluation.fingerprint": "",
    "evaluation.max_blocks_per_document": None,
}
METADATA_KEYS = ("id", "schema", "partition_table")  # keys of experiment.json that are not part of the experiment

REGISTRY = Registry(
    {
        FedAvg: algorithms,
        Aggregator: aggregators,
        Optimizer: optimizers,
        Partitioner: partition,
        Trainable: trainable,
        NoClustering: clustering,
    },
    {
        FedAvg: "algorithm",
        Aggregator: "aggregator",
        Optimizer: "optimizer",
        Partitioner: "partition",
        Trainable: "trainable",
        NoClustering: "clustering",
    },
)
Fraction = Annotated[float, Gt(0), Le(1)]
NonEmptyStr = Annotated[str, MinLen(1)]
PositiveInt = Annotated[int, Ge(1)]
PROBE_GROUPS = (
    "language",
    "updates",
    "fairness",
    "cost",
    "hidden",
    "attention",
    "barriers",
    "adapters",
    "general",
    "syntax",
    "text",
    "classification",
)


@dataclass(frozen=True)
class TrainingConfig:
    """How an experiment trains.

    Args:
        num_rounds: Communication rounds.
        participation_rate: Fraction of the clients that participate in each round.
        num_clients_per_round: Number of clients that participate in each round. Replaces ``participation_rate``.
        local_steps: Optimizer steps of each client per round.
        local_epochs: Passes of each client over its data per round; replaces ``local_steps``. A client with n blocks trains on
            b = ceil(``local_epochs`` n) blocks, in ceil(b / ``batch_size``) steps. Batches run across passes: all are full, except the
            last one of the round if b is no multiple of ``batch_size``.
        batch_size: Sequences per step.
        max_seq_length: Tokens per sequence.
        client_optimizer: Optimizer of the local steps. It is initialized again in each round.
        max_grad_norm: Largest norm of the gradient of a client; gradients with a larger norm are scaled down. None: no limit.
        lr_schedule: How the learning rate changes from round to round. It is constant within a round.
        client_weighting: Weight of a client in the mean: ``tokens`` trained in the round, ``examples`` (sequences) in the data of the
            client, which is n_k of McMahan et al. (arXiv:1602.05629), or ``uniform``. With ``local_steps``, the trained tokens of all
            clients are nearly equal.
        straggler_fraction: Probability that a client does not finish its local steps in a round.
        straggler_policy: ``partial`` uses the finished steps of a straggler, ``drop`` discards them.

    Example:
        >>> TrainingConfig(participation_rate=0.5).cohort_size(num_clients=10)
        5
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
        """Return how many of ``num_clients`` clients participate in a round.

        Raises:
            UserError: The number would be 0 or larger than ``num_clients``, or both keys that define it are set.
        """
        count = self.num_clients_per_round
        if count is not None:
            if self.participation_rate != 1.0:
                raise UserError(
                    f"training.num_clients_per_round is {count} and training.participation_rate is "
                    f"{self.participation_rate}; give one of the two"
                )
            if count > num_clients:
                raise UserError(f"training.num_clients_per_round: {count} of {num_clients} clients; allowed: 1 to {num_clients}")
            return count
        count = round(self.participation_rate * num_clients)
        if count < 1:
            raise UserError(
                f"training.participation_rate: {self.participation_rate} of {num_clients} clients rounds to no client; "
                f"use at least {0.5 / num_clients + 0.005:.2f}"
            )
        return count

    def lr_factor(self, round: int) -> float:
        """Return the factor of the learning rate in a round.

        Args:
            round: Number of completed rounds; 0 in the first round.
        """
        return 1.0 if self.lr_schedule == "constant" else 0.5 * (1 + cos(pi * round / max(self.num_rounds, 1)))


@dataclass(frozen=True)
class EvaluationConfig:
    """How an experiment is evaluated.

    Args:
        split: The split of the dataset on which losses are measured.
        interval: Rounds between two evaluations.
        blocks_per_domain: Held-out blocks per domain in each evaluation. A block has ``training.max_seq_length`` tokens.
        blocks_per_client: Held-out blocks per client of the cohort, for its loss before and after aggregation.
        final_blocks_per_domain: Held-out blocks per domain in the evaluation after the last round; 0: no such evaluation.
        max_blocks_per_document: Only the first so many block lengths of a held-out document are read. None: documents are read whole, so
            that a few blocks may come from one long document; 1 gives blocks from as many documents as possible.
        probes: Groups of probes that run in addition to the losses (``docs/probes.md``), by name or import path.
        expensive_interval: Rounds between two runs of expensive probes. None: the smallest interval that keeps the evaluation within
            ``max_overhead``.
        max_overhead: Largest fraction of the time of a run that evaluation may take.
        general_dataset: The dataset of the probe group ``general``. "": the first of its default datasets that is available.
        general_tokens: Tokens of this dataset that are used.
        minimal_pairs: Minimal pairs per phenomenon of the probe group ``syntax``.
        label_prompt: The text from which the probe group ``classification`` reads the label of a document; it follows the document and
            contains ``{label}``.
        labeled_documents: Held-out documents per domain of this probe group.
        fingerprint: Hash of the text of the group ``general`` and of the source of probes from outside fedrift, so that a change gives
            another id. It is filled automatically.

    Example:
        >>> fedrift.load_config(config, ["evaluation.interval=5"]).evaluation.interval
        5
    """

    split: Literal["validation", "test"] = "test"
    interval: PositiveInt = 1
    blocks_per_domain: PositiveInt = 6
    blocks_per_client: Annotated[int, Ge(0)] = 2
    final_blocks_per_domain: Annotated[int, Ge(0)] = 40
    max_blocks_per_document: PositiveInt | None = None
    probes: tuple[str, ...] = ("language", "updates", "fairness", "cost")
    expensive_interval: PositiveInt | None = None
    max_overhead: Annotated[float, Interval(gt=0, lt=1)] = 0.2
    general_dataset: str = ""
    general_tokens: Annotated[int, Interval(ge=1, le=10**9)] = 4096
    minimal_pairs: PositiveInt = 100
    label_prompt: NonEmptyStr = " Topic: {label}"
    labeled_documents: PositiveInt = 16
    fingerprint: Fingerprint = ""


@dataclass(frozen=True)
class ForkConfig:
    """How a run forks from another run (``fedrift fork``).

    Args:
        run: The id of the original run, whose rounds before ``from_round`` are reused.
        from_round: The first round that can differ from the original run.
        exclude_clients: Clients whose updates are ignored from ``from_round`` on.
        exclude_until: The last round in which they are ignored. None: the last round of the run.
    """

    run: NonEmptyStr
    from_round: PositiveInt
    exclude_clients: tuple[Annotated[int, Ge(0)], ...] = ()
    exclude_until: PositiveInt | None = None

    def excluded_clients(self, round: int) -> tuple[int, ...]:
        """Return the clients whose updates are ignored in a round."""
        return self.exclude_clients if self.from_round <= round <= (self.exclude_until or round) else ()


@dataclass(frozen=True)
class ExperimentConfig:
    """The configuration of one run.

    Options that do not change what is computed, such as device, paths and threads, belong to ``Runtime``.

    Args:
        dataset: The text that clients train on.
        model: A preset, a model id of the Hugging Face hub, or a local folder.
        trainable: Which parameters are trained.
        partition: How documents are assigned to clients.
        algorithm: The federated algorithm.
        training: How clients train.
        evaluation: How the run is evaluated.
        seed: The seed of all random streams.
        clustering: How clients are assigned to models.
        model_fingerprint: Hash of the files of a local model, so that changed weights give another id. It is filled automatically.
        fork: The run from which this run forks; None if it does not fork.
        model_init: ``pretrained`` starts from the weights of the model. ``random`` starts from random weights, which depend on ``seed``,
            and trains on the same data with the same tokenizer.

    Example:
        >>> import fedrift
        >>> config = fedrift.load_config({"dataset": "bbc", "algorithm": "FedProx", "partition": {"num_clients": 5, "severity": 1.0}})
        >>> config.iid_baseline().partition.severity
        0.0
    """

    dataset: DatasetConfig
    model: NonEmptyStr = "pocket"
    trainable: Trainable = Lora()
    partition: Partitioner = TopicMix()
    algorithm: FedAvg = FedAvg()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    seed: Seed = 0
    clustering: NoClustering = NoClustering()
    model_fingerprint: Fingerprint = ""
    fork: ForkConfig | None = None
    model_init: Literal["pretrained", "random"] = "pretrained"

    def __post_init__(self) -> None:
        """Check all fields, and convert each value to the type of its field.

        Raises:
            UserError: A value is not allowed, or values are not compatible.
        """
        for name, value in validate_fields(self, REGISTRY).items():
            object.__setattr__(self, name, value)
        self.training.cohort_size(self.partition.num_clients)
        if "{label}" not in self.evaluation.label_prompt:
            raise UserError(
                f"evaluation.label_prompt is {self.evaluation.label_prompt!r}: it must contain {{label}}, as ' Topic: {{label}}' does"
            )
        if self.model_init == "random" and self.trainable.quantization != "none":
            raise UserError(
                f"model_init is 'random', but trainable.quantization is {self.trainable.quantization!r}: random weights are not quantized; "
                "use trainable.quantization=none"
            )
        for name in self.evaluation.probes:
            if name not in PROBE_GROUPS:  # importing the probes is slow, so it happens for extensions only
                from ..probes import find_probe_group

                find_probe_group(name)

    @property
    def random_weights_seed(self) -> int | None:
        """The seed of the random weights from which the run starts; None if it starts from pretrained weights."""
        return self.seed if self.model_init == "random" else None

    @cached_property
    def id(self) -> str:
        """The id of the experiment: 12 hexadecimal digits that depend on all fields and on the schema version."""
        return compute_id(self.to_stored_dict())

    @property
    def name(self) -> str:
        """A short name for tables and legends."""
        has_alpha = isinstance(self.partition, partition.Dirichlet) and self.partition.name_detail  # in place of the severity
        severity = "" if has_alpha else f" {self.partition.severity:g}"
        clustering = "" if self.clustering == NoClustering() else f" {type(self.clustering).__name__}"
        fork = f", fork of {self.fork.run[:6]} from round {self.fork.from_round}" if self.fork else ""
        return (
            f"{type(self.algorithm).__name__}{clustering} {self.dataset.name} {display_name(self.partition)}"
            f"{severity} seed {self.seed}{' random weights' if self.model_init == 'random' else ''}{fork}"
        )

    def iid_baseline(self) -> ExperimentConfig:
        """Return the same experiment with IID partitioning and no fork.

        An effect that the baseline shows too is not caused by heterogeneity.
        """
        return iid_baseline(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the experiment as a dictionary of plain values with all defaults; ``load_config`` reads it.

        The key ``fork`` is missing if the run does not fork from another run.
        """
        raw = {**dump_value(self, REGISTRY), "dataset": self.dataset.to_dict()}
        return raw if self.fork else {key: value for key, value in raw.items() if key != "fork"}

    def to_stored_dict(self) -> dict[str, Any]:
        """Return the content of ``experiment.json`` without the keys ``id`` and ``partition_table``.

        Keys of `ADDED_KEYS` that have their default are missing, as in runs that were stored before these keys existed.
        """
        return {**_drop_added_defaults(self.to_dict()), "schema": SCHEMA_VERSION}


def parse_config(raw: dict[str, Any], overrides: Iterable[str] = ()) -> ExperimentConfig:
    """Create an experiment from plain values and overrides.

    Args:
        raw: The keys and values of the configuration, as in YAML.
        overrides: Changes as ``"key.key=value"``.

    Raises:
        UserError: A key is unknown or a value is not allowed; the message has one line per mistake.
    """
    experiment: ExperimentConfig = parse_value(ExperimentConfig, apply_overrides(raw, overrides), REGISTRY)
    return experiment


def parse_stored_config(stored: Mapping[str, Any]) -> ExperimentConfig:
    """Create the experiment from the content of an ``experiment.json``."""
    return parse_config({key: value for key, value in stored.items() if key not in METADATA_KEYS})


def compute_id(stored: Mapping[str, Any]) -> str:
    """Compute the id from the content of an ``experiment.json``.

    Equal numbers give equal ids: 1, 1.0 and a numpy scalar do, and 0 and -0.0 do.
    """
    plain = _drop_added_defaults(_to_plain({key: value for key, value in stored.items() if key not in ("id", "partition_table")}))
    return sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]


def _drop_added_defaults(content: dict[str, Any]) -> dict[str, Any]:
    """Remove the keys of `ADDED_KEYS` that have their default."""
    result = dict(content)
    for path, default in ADDED_KEYS.items():
        *parents, key = path.split(".")
        holder = result
        for name in parents:
            if not isinstance(holder.get(name), dict):
                break
            holder[name] = dict(holder[name])
            holder = holder[name]
        else:
            if holder.get(key) == default:
                holder.pop(key, None)
    return result


def _to_plain(value: Any, key_path: str = "") -> Any:
    """Convert a value to JSON types, with one notation for equal numbers."""
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
    raise UserError(f"{key_path} is a {type(value).__name__}, which cannot be stored; use numbers, texts, lists, or a dataclass of these")


def diff_stored_configs(requested: Mapping[str, Any], stored: Mapping[str, Any]) -> list[str]:
    """Describe the differences between two contents of ``experiment.json``, with one line per field."""
    requested_flat, stored_flat = (
        _flatten(_drop_added_defaults(_to_plain({key: value for key, value in content.items() if key not in ("id", "partition_table")})))
        for content in (requested, stored)
    )
    return [
        f"{path} is {_shorten(stored_flat[path]) if path in stored_flat else 'missing'} in the stored run and "
        f"{_shorten(requested_flat[path]) if path in requested_flat else 'missing'} in the requested run"
        for path in {**requested_flat, **stored_flat}
        if path not in requested_flat or path not in stored_flat or requested_flat[path] != stored_flat[path]
    ]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{prefix}.{key}" if prefix else key
        flat |= _flatten(value, path) if isinstance(value, Mapping) and value else {path: value}
    return flat


def _shorten(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def iid_baseline(config: ExperimentConfig) -> ExperimentConfig:
    """Return the same experiment with IID partitioning and no fork."""
    changes: dict[str, Any] = {"partition__severity": 0.0, "fork": None}
    if isinstance(config.partition, partition.Dirichlet):  # runs with different values of alpha share one baseline
        changes["partition__alpha"] = None
    iid: ExperimentConfig = edit_config(config, changes)
    return iid
