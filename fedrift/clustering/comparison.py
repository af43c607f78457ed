"""Mitigations beside each other: every arm of one experiment over paired seeds, and where clustering cannot help."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..config.loader import apply_overrides
from ..config.schema import ExperimentConfig, parse_config
from ..core.errors import UserError, unknown_name_error
from ..engine.cache import ResourceCache
from ..studies import Study, parse_study
from ..studies.spec import NAME_CHARACTERS

# The arms that a clustering is held against, each the same experiment with one thing changed.
#
# All train as many client steps a round as vanilla does, from the same first weights, on the same deal of the same seed; what
# an arm costs beside that (IFCA's restarts and choices, a fleet that is called whole) is counted and told.

ConfigOverrides = dict[str, Any]  # path in the experiment -> value


@dataclass(frozen=True)
class ComparisonConfig:
    """What the conditions are made of. ``num_clusters``: of text and updates, None counts them; ``ifca_clusters``: IFCA's J."""

    encoder: str = "wordllama"
    num_clusters: int | None = None
    ifca_clusters: int = 4
    ifca_restarts: int = 5  # of IFCA
    random_repeats: int = 1  # of the random clusters
    algorithm: Mapping[str, Any] = field(default_factory=lambda: {"type": "FedAvg"})  # the base experiment's

    @property
    def text_clustering(self) -> ConfigOverrides:
        counted = {} if self.num_clusters is None else {"num_clusters": self.num_clusters}
        return {"type": "TextClustering", "encoder": self.encoder, **counted}


@dataclass(frozen=True)
class Condition:
    """``num_repeats``: how many runs a seed it takes, each with the overrides of its number."""

    title: str
    overrides: Callable[[ComparisonConfig, int], ConfigOverrides]
    num_repeats: Callable[[ComparisonConfig], int] = lambda asked: 1
    has_clusters: bool = True  # whether its clients share models in groups that can be held against the true domains


def with_base_server(config: ComparisonConfig, algorithm_type: str) -> ConfigOverrides:
    """The base's server and aggregate under another algorithm."""
    kept = {key: config.algorithm[key] for key in ("server_optimizer", "aggregator") if key in config.algorithm}
    return {"type": algorithm_type, **kept}


CONDITIONS: dict[str, Condition] = {
    "vanilla": Condition("one model for all", lambda asked, _: {}, has_clusters=False),
    "text": Condition("k-means on text embeddings", lambda asked, _: {"clustering": asked.text_clustering}),
    "random": Condition(
        "random clusters of the same sizes",
        lambda asked, draw: {"clustering": {"type": "RandomClustering", "like": asked.text_clustering, "repeat": draw}},
        lambda asked: asked.random_repeats,
    ),
    "oracle": Condition("the true domains", lambda asked, _: {"clustering": {"type": "OracleClustering"}}),
    "update": Condition(
        "clusters of the first updates",
        lambda asked, _: {
            "clustering": {"type": "UpdateClustering", **({} if asked.num_clusters is None else {"num_clusters": asked.num_clusters})}
        },
    ),
    "ifca": Condition(
        "IFCA",
        lambda asked, start: {"clustering": {"type": "IFCA", "num_clusters": asked.ifca_clusters, "restart": start}},
        lambda asked: asked.ifca_restarts,
    ),
    "local": Condition("everybody alone", lambda asked, _: {"algorithm": {"type": "LocalOnly"}}, has_clusters=False),
    "tuned": Condition(
        "vanilla, then local steps", lambda asked, _: {"algorithm": with_base_server(asked, "FedAvgFineTuning")}, has_clusters=False
    ),
    "text+tuned": Condition(
        "text clusters, then local steps",
        lambda asked, _: {"clustering": asked.text_clustering, "algorithm": with_base_server(asked, "FedAvgFineTuning")},
    ),
    "pooled": Condition("all text in one place, centralised", lambda asked, _: {"algorithm": {"type": "Centralized"}}, has_clusters=False),
    "cfl": Condition("recursive bipartition, CFL", lambda asked, _: {"clustering": {"type": "CFL"}}),
    "soft": Condition(
        "soft mixtures of text clusters",
        lambda asked, _: {
            "clustering": {"type": "SoftClustering", "text": asked.text_clustering},
            "algorithm": {**asked.algorithm, "aggregator": {"type": "FFALoRA"}},
        },
    ),
    "iid": Condition("vanilla, the documents dealt IID", lambda asked, _: {"partition.severity": 0.0}, has_clusters=False),
}
OPTIONAL_CONDITIONS = ("cfl", "soft")
REQUIRED_CONDITIONS = ("vanilla", "iid")  # what the others are read against: nothing is told without them
DEFAULT_CONDITIONS = tuple(name for name in CONDITIONS if name not in OPTIONAL_CONDITIONS)


def expand_conditions(conditions: tuple[str, ...], config: ComparisonConfig) -> dict[str, ConfigOverrides]:
    """The runs of a seed, by label: ``vanilla``, ``random 1``, ``ifca 1`` ... in the order of the table above."""
    found = {}
    for name, arm in CONDITIONS.items():
        if name in conditions:
            for number in range(arm.num_repeats(config)):
                found[f"{name} {number + 1}" if name in ("random", "ifca") else name] = arm.overrides(config, number)
    return found


def parse_condition_label(label: str) -> tuple[str, int]:
    """A label taken apart: the arm, and its number from 0 on."""
    name, _, number = label.partition(" ")
    return name, int(number or 1) - 1


# All arms of one experiment over paired seeds, as a study: resumable, one run once, on any executor.

COMPARISON_PROBES = ["updates", "fairness", "cost", "general", "syntax"]


@dataclass(frozen=True)
class ClusteringComparison:
    """``raw_config``: the base experiment as plain YAML, without a clustering of its own."""

    raw_config: dict[str, Any]
    config: ComparisonConfig
    conditions: tuple[str, ...]
    seeds: tuple[int, ...]

    @property
    def base_config(self) -> ExperimentConfig:
        return parse_config(self.raw_config)

    def build_study(self, name: str = "") -> Study:
        """The study whose one factor is the method. Its name is made of the experiment, so that the same question finds it."""
        base = self.base_config
        plain = "".join(letter if letter in NAME_CHARACTERS else "-" for letter in Path(base.dataset.name).stem)
        name = name or f"clustering-{plain}-{base.partition.num_clients}-{replace(base, seed=0).id[:6]}"
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
    overrides: Iterable[str] = (),
    *,
    conditions: Sequence[str] = (),
    seeds: Sequence[int] = (),
    encoder: str = "wordllama",
    num_clusters: int | None = None,
    ifca_restarts: int = 5,
    random_repeats: int = 1,
    cache: ResourceCache | None = None,
) -> ClusteringComparison:
    """The comparison of an experiment's YAML. ``conditions``: some of them (``vanilla`` and ``iid`` are always there).

    IFCA must be told how many models: ``num_clusters``, or as many as the corpus has domains, at most half as many as clients.
    """
    raw_config = apply_overrides(raw_config, overrides)
    for name in conditions:
        if name not in CONDITIONS:
            raise unknown_name_error("condition", name, CONDITIONS)
    experiment = parse_config(raw_config)
    if type(experiment.clustering).__name__ != "NoClustering":
        raise UserError(
            f"clustering: the experiment has {type(experiment.clustering).__name__} already; leave it out, the conditions bring their own"
        )
    if experiment.partition.num_clients < 4:
        raise UserError(f"partition.num_clients: {experiment.partition.num_clients}; clusters of clients take 4 clients or more")
    if experiment.partition.severity == 0:
        raise UserError(
            "partition.severity: 0 deals IID, and every condition would be its own control; say partition.severity=1.0, or "
            "ask for the map (--map), which goes through severities"
        )
    raw_config = {key: value for key, value in raw_config.items() if key not in ("clustering", "seed")}
    watched = {
        "probes": COMPARISON_PROBES,
        "expensive_interval": max(experiment.training.num_rounds, 1),
        **raw_config.get("evaluation", {}),
    }
    raw_config = {**raw_config, "evaluation": watched}
    plain = parse_config(raw_config).to_dict()
    domains = len((cache or ResourceCache()).get_corpus(replace(experiment.dataset, fingerprint=""), experiment.model).domains)
    guess = num_clusters or min(domains if domains > 1 else 4, experiment.partition.num_clients // 2)
    asked = ComparisonConfig(encoder, num_clusters, guess, ifca_restarts, random_repeats, plain["algorithm"])
    chosen = tuple(dict.fromkeys([*REQUIRED_CONDITIONS, *(conditions or DEFAULT_CONDITIONS)]))
    return ClusteringComparison(raw_config, asked, chosen, tuple(seeds) or (0, 1, 2, 3, 4, 5))


__all__ = [
    "COMPARISON_PROBES",
    "CONDITIONS",
    "DEFAULT_CONDITIONS",
    "REQUIRED_CONDITIONS",
    "ClusteringComparison",
    "ComparisonConfig",
    "Condition",
    "build_comparison",
    "expand_conditions",
    "parse_condition_label",
]
