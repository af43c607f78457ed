"""The map of a clustering comparison: gains over partitions and severities, and the cost of smaller clusters.

The map varies the partition and its severity, each with vanilla, text clusters and random clusters, and measures the cost of smaller
clusters with IID clients. The number of clusters is fixed, because the gain would be zero by definition where the strategy selects one
cluster. The report shows the number that would have been selected and how well the embeddings separate the clients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from ..core.errors import UserError, unknown_name_error
from ..stats import compare_to_reference
from ..studies import Study, StudyManifest, parse_study
from ..studies.outcomes import has_diverged
from .comparison import ClusteringComparison
from .comparison_metrics import first_assignment, measure_run

PARTITIONS = {"topic": "TopicMix", "style": "Style", "token": "TokenTilt", "quantity": "Quantity"}
SEVERITIES = (0.0, 0.5, 1.0)
GAIN_METRIC = "next"  # token skew is present only in training text, because held-out text is drawn by domain


@dataclass(frozen=True)
class ClusteringMap:
    """The map of where clustering helps: several partitions and severities.

    Attributes:
        comparison: Provides the base experiment, the settings and the seeds.
        partitions: Names of partitions, keys of ``PARTITIONS``.
        severities: Severities of each partition.
    """

    comparison: ClusteringComparison
    partitions: tuple[str, ...] = tuple(PARTITIONS)
    severities: tuple[float, ...] = SEVERITIES

    def build_study(self) -> Study:
        """Return a study with two stages.

        The stage ``map`` varies partition, severity and method. The stage ``cluster_size`` has increasingly many random clusters, and
        therefore fewer clients per cluster, with IID clients.

        Raises:
            UserError: A partition name is unknown, or there is no severity.
        """
        base_config, config = self.comparison.base_config, self.comparison.config
        num_clients, k = base_config.partition.num_clients, config.num_clusters or min(4, base_config.partition.num_clients // 2)
        text = {"type": "TextClustering", "encoder": config.encoder, "num_clusters": k}
        partition_levels: dict[str, dict[str, Any]] = {}
        for name in self.partitions:
            if name not in PARTITIONS:
                raise unknown_name_error("partition", name, PARTITIONS)
            partition_levels[name] = {"partition": {"type": PARTITIONS[name], "num_clients": num_clients}}
        methods: dict[str, dict[str, Any]] = {
            "vanilla": {},
            "text": {"clustering": text},
            "random": {"clustering": {"type": "RandomClustering", "sizes_from": text}},
        }
        counts = [k for k in (2, 3, 5, 10, 20, 50) if k < num_clients] + [num_clients]
        cluster_counts: dict[str, Any] = {"1 cluster": {}}
        cluster_counts |= {
            f"{k} clusters": {"clustering": {"type": "RandomClustering", "cluster_sizes": equal_sizes(num_clients, k)}} for k in counts
        }
        name = self.comparison.build_study().name.replace("clustering-", "clustering-map-", 1)
        if not self.severities:
            raise UserError("severities is empty. Give at least one severity, for example 1.0.")
        return parse_study(
            {
                "name": name,
                "base": self.comparison.raw_config,
                "question": "Where does clustering clients by their text help?",
                "seeds": list(self.comparison.seeds),
                "iid_baselines": False,
                "metrics": ["final.loss", "loss"],
                "overrides": {
                    "evaluation.probes": ["updates"],
                    "evaluation.interval": max(base_config.training.num_rounds, 1),
                    "partition.severity": 0.0,
                },
                "stages": [
                    {
                        "name": "map",
                        "factors": {"partition": partition_levels, "partition.severity": list(self.severities), "method": methods},
                        "overrides": {"partition": {"type": "TopicMix", "num_clients": num_clients}},
                    },
                    {"name": "cluster_size", "factors": {"method": cluster_counts}},
                ],
            }
        )


def equal_sizes(num_clients: int, k: int) -> list[int]:
    """Return k cluster sizes that are as equal as possible and sum to the number of clients."""
    return [num_clients // k + (cluster < num_clients % k) for cluster in range(k)]


def summarize_map(manifest: StudyManifest) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the two tables of the map.

    The first table has one row per partition and severity. Its columns ``random.*`` and ``vanilla.*`` compare the loss of text clusters
    with that of random clusters of the same sizes and of vanilla, on each client's next training batches: effect, t-interval and
    exact p value. ``own`` is the effect relative to random clusters on own text. ``p`` is the median over seeds of the permutation test's p
    value. ``identification_rate`` is the rate at which documents are closest to their own client's mean. ``estimated_k`` is the number of
    clusters that would have been selected.

    The second table has the cost of smaller clusters, one row per number of random clusters.

    Args:
        manifest: Manifest of the study.
    """
    rows = []
    for entry in manifest.read()["runs"]:
        run = manifest.get_run(entry)
        if run.is_finished:
            decision, levels, trajectory = first_assignment(run), entry.factors, run.trajectory()
            rows.append(
                {
                    "run": run.id,
                    "stage": entry.stage,
                    "condition": levels["method"],
                    "partition": levels.get("partition"),
                    "severity": levels.get("partition.severity"),
                    "seed": entry.seed,
                    "iid": False,
                    "iid_baseline": "",
                    "diverged": has_diverged(trajectory),
                    **measure_run(run, trajectory, run),
                    **{name: decision.get(name) for name in ("p_value", "identification_rate", "chance", "estimated_k")},
                }
            )
    frame = pd.DataFrame(rows)
    if frame.empty:
        return frame, frame
    return clustering_gains(frame[frame["stage"] == "map"]), small_cluster_cost(frame[frame["stage"] == "cluster_size"])


def clustering_gains(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the first table of ``summarize_map`` from the rows of the runs."""
    rows = []
    for (partition, severity), cell in frame.groupby(["partition", "severity"], sort=False):
        row: dict[str, Any] = {"partition": partition, "severity": severity}
        for reference in ("random", "vanilla"):
            table = compare_to_reference(cell, GAIN_METRIC, "condition", reference, ["condition"]).set_index("condition")
            if "text" in table.index:
                text_row = table.loc["text"]
                row |= {f"{reference}.{name}": text_row[name] for name in ("effect", "low", "high", "p", "min_attainable_p", "seeds")}
        own = compare_to_reference(cell, "own", "condition", "random", ["condition"]).set_index("condition")
        row["own"] = own.loc["text", "effect"] if "text" in own.index else float("nan")
        text = cell[cell["condition"] == "text"].astype(dict.fromkeys(("p_value", "identification_rate", "chance", "estimated_k"), float))
        row |= {
            "p": text["p_value"].median(),
            "identification_rate": text["identification_rate"].mean(),
            "chance": text["chance"].mean(),
            "estimated_k": text["estimated_k"].median(),
        }
        rows.append(row)
    return pd.DataFrame(rows)


def small_cluster_cost(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the second table of ``summarize_map``: the loss of each number of random clusters relative to one cluster."""
    if frame.empty:
        return frame
    table = compare_to_reference(frame, "own", "condition", "1 cluster", ["condition"])
    table["k"] = [int(str(label).split(" ", 1)[0]) for label in table["condition"]]
    return table.sort_values("k", ignore_index=True)[["k", "effect", "low", "high", "p", "min_attainable_p", "seeds"]]
