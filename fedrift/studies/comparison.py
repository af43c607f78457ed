"""Comparison of clustering strategies: the conditions of one experiment, run over paired seeds as a study.

Each condition changes one thing in the experiment. All conditions start from the same initial weights, use the same partition for the
same seed, and train as many client steps per round as the condition ``unclustered``. Additional costs, such as IFCA's restarts and
its choice of models or rounds with all clients, are counted and reported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..config.schema import ExperimentConfig, parse_config
from ..core.errors import UserError, unknown_name_error
from ..engine.cache import ResourceCache
from . import Study, parse_study
from .spec import NAME_CHARACTERS

ConfigOverrides = dict[str, Any]  # configuration path -> value


@dataclass(frozen=True)
class ComparisonConfig:
    """Settings of the conditions."""

    encoder: str = "wordllama"  # encoder of the text clustering
    num_clusters: int | None = None  # number of clusters of the text and update clusterings; None estimates it
    ifca_clusters: int = 4  # J, IFCA's number of models
    ifca_restarts: int = 5  # number of IFCA runs per seed
    random_repeats: int = 1  # number of runs with random clusters per seed
    algorithm: Mapping[str, Any] = field(default_factory=lambda: {"type": "FedAvg"})  # the base experiment's algorithm as plain YAML

    @property
    def text_clustering(self) -> ConfigOverrides:
        """Return the text clustering as plain YAML."""
        num_clusters = {} if self.num_clusters is None else {"num_clusters": self.num_clusters}
        return {"type": "TextClustering", "encoder": self.encoder, **num_clusters}


@dataclass(frozen=True)
class Condition:
    """One condition of the comparison.

    Attributes:
        title: Description for tables.
        overrides: Function from the settings and the index of the repeat to the configuration overrides.
        num_repeats: Function from the settings to the number of runs per seed.
    """

    title: str
    overrides: Callable[[ComparisonConfig, int], ConfigOverrides]
    num_repeats: Callable[[ComparisonConfig], int] = lambda config: 1


def with_base_server(config: ComparisonConfig, algorithm_type: str) -> ConfigOverrides:
    """Return another algorithm with the server optimizer and aggregator of the base experiment, as plain YAML.

    Args:
        config: Settings of the conditions.
        algorithm_type: Name of the algorithm.
    """
    server_settings = {key: config.algorithm[key] for key in ("server_optimizer", "aggregator") if key in config.algorithm}
    return {"type": algorithm_type, **server_settings}


CONDITIONS: dict[str, Condition] = {
    "unclustered": Condition("one model for all", lambda config, _: {}),
    "text": Condition("k-means on text embeddings", lambda config, _: {"clustering": config.text_clustering}),
    "random": Condition(
        "random clusters of the same sizes",
        lambda config, repeat: {"clustering": {"type": "RandomClustering", "sizes_from": config.text_clustering, "repeat": repeat}},
        lambda config: config.random_repeats,
    ),
    "oracle": Condition("clusters of the true domains", lambda config, _: {"clustering": {"type": "OracleClustering"}}),
    "update": Condition(
        "clusters of the first updates",
        lambda config, _: {
            "clustering": {"type": "UpdateClustering", **({} if config.num_clusters is None else {"num_clusters": config.num_clusters})}
        },
    ),
    "ifca": Condition(
        "IFCA",
        lambda config, repeat: {"clustering": {"type": "IFCA", "num_clusters": config.ifca_clusters, "restart": repeat}},
        lambda config: config.ifca_restarts,
    ),
    "local-only": Condition("local training only", lambda config, _: {"algorithm": {"type": "LocalOnly"}}),
    "fine-tuned": Condition(
        "one model for all, then local steps", lambda config, _: {"algorithm": with_base_server(config, "FedAvgFineTuning")}
    ),
    "text+fine-tuned": Condition(
        "text clusters, then local steps",
        lambda config, _: {"clustering": config.text_clustering, "algorithm": with_base_server(config, "FedAvgFineTuning")},
    ),
    "centralized": Condition("centralized training on all text", lambda config, _: {"algorithm": {"type": "Centralized"}}),
    "cfl": Condition("CFL, recursive bipartition", lambda config, _: {"clustering": {"type": "CFL"}}),
    "soft": Condition(
        "soft mixtures of text clusters",
        lambda config, _: {
            "clustering": {"type": "SoftClustering", "text": config.text_clustering},
            "algorithm": {**config.algorithm, "aggregator": {"type": "FFALoRA"}},
        },
    ),
    "iid": Condition("one model for all, IID baseline", lambda config, _: {"partition.severity": 0.0}),
}
OPTIONAL_CONDITIONS = ("cfl", "soft")
REQUIRED_CONDITIONS = ("unclustered", "iid")  # the references of the other conditions
DEFAULT_CONDITIONS = tuple(name for name in CONDITIONS if name not in OPTIONAL_CONDITIONS)


def expand_conditions(conditions: tuple[str, ...], config: ComparisonConfig) -> dict[str, ConfigOverrides]:
    """Return the overrides of each run of one seed, by label.

    Labels are condition names such as ``unclustered``. The conditions ``random`` and ``ifca`` also have a number, as in ``ifca 1``. The
    order is that of ``CONDITIONS``.

    Args:
        conditions: Names of the conditions to include.
        config: Settings of the conditions.
    """
    runs = {}
    for name, condition in CONDITIONS.items():
        if name in conditions:
            for repeat in range(condition.num_repeats(config)):
                runs[f"{name} {repeat + 1}" if name in ("random", "ifca") else name] = condition.overrides(config, repeat)
    return runs


EARLIER_LABELS = {
    "vanilla": "unclustered",
    "local": "local-only",
    "tuned": "fine-tuned",
    "text+tuned": "text+fine-tuned",
    "pooled": "centralized",
}


def current_label(stored_label: str) -> str:
    """Return the present label of a stored run, because studies of earlier versions have other names of some conditions."""
    return EARLIER_LABELS.get(stored_label, stored_label)


def parse_condition_label(label: str) -> tuple[str, int]:
    """Return the condition name of a run's label and the index of the repeat, from 0."""
    name, _, number = label.partition(" ")
    return name, int(number or 1) - 1


COMPARISON_PROBES = ["updates", "fairness", "cost", "general", "syntax"]


@dataclass(frozen=True)
class ClusteringComparison:
    """A comparison of conditions over paired seeds. As a study it can be resumed, and no run is repeated."""

    raw_config: dict[str, Any]  # the base experiment as plain YAML, without a clustering
    config: ComparisonConfig  # settings of the conditions
    conditions: tuple[str, ...]  # names of the conditions
    seeds: tuple[int, ...]

    @property
    def base_config(self) -> ExperimentConfig:
        """Return the parsed base experiment."""
        return parse_config(self.raw_config)

    def build_study(self, name: str = "") -> Study:
        """Return the study, whose only factor is ``method``, the condition.

        Args:
            name: Name of the study. By default it is derived from the experiment, so the same comparison resumes the same study.
        """
        base = self.base_config
        dataset_name = "".join(character if character in NAME_CHARACTERS else "-" for character in Path(base.dataset.name).stem)
        name = name or f"clustering-{dataset_name}-{base.partition.num_clients}-{replace(base, seed=0).id[:6]}"
        return parse_study(
            {
                "name": name,
                "base": self.raw_config,
                "question": "Does it help to cluster the clients?",
                "factors": {"method": expand_conditions(self.conditions, self.config)},
                "seeds": list(self.seeds),
                "iid_baselines": False,
                "metrics": ["final.loss", "loss"],
            }
        )


def build_comparison(
    raw_config: dict[str, Any],
    *,
    conditions: Sequence[str] = (),
    seeds: Sequence[int] = (),
    encoder: str = "wordllama",
    num_clusters: int | None = None,
    ifca_restarts: int = 5,
    random_repeats: int = 1,
    cache: ResourceCache | None = None,
) -> ClusteringComparison:
    """Build the comparison of clustering strategies for an experiment.

    Args:
        raw_config: The experiment as plain YAML.
        conditions: Names of the conditions; ``unclustered`` and ``iid`` are always included. Empty means all but the optional ones.
        seeds: The seeds; empty means 0 to 5.
        encoder: Encoder of the text clustering.
        num_clusters: Number of clusters of the text and update clusterings and of IFCA. None estimates it for the former. IFCA then
            uses the number of the corpus's domains, but at most half the number of clients.
        ifca_restarts: Number of IFCA runs per seed.
        random_repeats: Number of runs with random clusters per seed.
        cache: Cache of loaded corpora and models.

    Raises:
        UserError: A condition is unknown, the experiment already has a clustering, has fewer than 4 clients, or is IID.
    """
    for name in conditions:
        if name not in CONDITIONS:
            raise unknown_name_error("condition", name, CONDITIONS)
    experiment = parse_config(raw_config)
    if type(experiment.clustering).__name__ != "NoClustering":
        raise UserError(
            f"The experiment sets clustering to {type(experiment.clustering).__name__}, but each condition of the comparison sets its own. "
            "Remove clustering from the experiment."
        )
    if experiment.partition.num_clients < 4:
        raise UserError(
            f"partition.num_clients is {experiment.partition.num_clients}, but clustering needs at least 4 clients. Increase it."
        )
    if experiment.partition.severity == 0:
        raise UserError(
            "partition.severity is 0, so the clients are IID and clustering has no effect to measure. Set partition.severity=1.0, or use "
            "--map, which varies the severity."
        )
    raw_config = {key: value for key, value in raw_config.items() if key not in ("clustering", "seed")}
    evaluation = {
        "probes": COMPARISON_PROBES,
        "expensive_interval": max(experiment.training.num_rounds, 1),
        **raw_config.get("evaluation", {}),
    }
    raw_config = {**raw_config, "evaluation": evaluation}
    default_config = parse_config(raw_config).to_dict()
    num_domains = len((cache or ResourceCache()).get_corpus(replace(experiment.dataset, fingerprint=""), experiment.model).domains)
    ifca_clusters = num_clusters or min(num_domains if num_domains > 1 else 4, experiment.partition.num_clients // 2)
    config = ComparisonConfig(encoder, num_clusters, ifca_clusters, ifca_restarts, random_repeats, default_config["algorithm"])
    included = tuple(dict.fromkeys([*REQUIRED_CONDITIONS, *(conditions or DEFAULT_CONDITIONS)]))
    return ClusteringComparison(raw_config, config, included, tuple(seeds) or (0, 1, 2, 3, 4, 5))
