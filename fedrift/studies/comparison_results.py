"""Results of a comparison of clustering strategies.

All outcomes were fixed before the runs. They are measured at the end of training, on the larger test set.

The map varies the partition and its severity, each without clusters, with text clusters and with random clusters. It also measures the
cost of smaller clusters with IID clients. The number of clusters is fixed, because the gain would be zero by definition where the strategy
selects one cluster. The report shows the number that would have been selected and how well the embeddings separate the clients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from ..core.errors import UserError, unknown_name_error
from ..core.records import Trajectory
from ..diagnosis import Diagnosis, diagnose
from ..diagnosis.cases import extract_run_info
from ..diagnosis.finding import RunEvidence
from ..stats import compare_to_reference, mean_ci, min_p, ratio_ci
from ..stats.significance import Interval
from ..storage import Run
from . import ManifestEntry, Study, StudyManifest, parse_study
from .comparison import CONDITIONS, ClusteringComparison, current_label, parse_condition_label
from .outcomes import has_diverged

NUM_NEXT_ROUNDS = 3  # number of last rounds over which the loss on the next batches is averaged
NUM_LAST_ROUNDS = 5  # number of last rounds whose mean training loss selects among IFCA's restarts
COMPARISON_METRICS = {  # column: (title, description with unit)
    "own": (
        "own text",
        "mean over clients of the loss on held-out text with the client's own mixture of domains and rewrites, nats per token",
    ),
    "worst": ("worst client", "largest of these losses over clients, nats per token"),
    "cross": ("other text", "mean over clients of the loss on held-out text of the domains that the client lacks, nats per token"),
    "next": (
        "next batch",
        "mean over clients of the loss of the received model on the client's next training batches, averaged over the last "
        "three rounds, nats per token",
    ),
    "general": ("general text", "change during training of the loss on text that no client holds, nats per token"),
    "syntax": ("syntax", "change during training of the share of minimal pairs whose correct sentence has the higher probability"),
    "compute": ("compute", "number of trained tokens, plus a third for each token that is only evaluated, relative to `unclustered`"),
    "traffic": ("traffic", "data sent to and from clients in the whole run, MB"),
    "models": ("models", "number of models that clients use at the end"),
    "ari": ("agreement", "adjusted Rand index of the clusters and the clients' main domains"),
}


def measure_run(run: Run, trajectory: Trajectory, unclustered: Run) -> dict[str, float]:
    """Measure all columns of ``COMPARISON_METRICS`` for one run.

    ``compute`` is the number of tokens and not yet relative to ``unclustered``. The additional key ``train`` is the training loss that
    selects among IFCA's restarts.

    Args:
        run: The run.
        trajectory: Records of the run.
        unclustered: The run of the condition ``unclustered`` with the same seed.
    """
    config = run.config
    own_losses, cross_losses = client_losses(trajectory, unclustered)
    train_losses = (
        trajectory.client_table("train.loss")[1:][-NUM_LAST_ROUNDS:]
        if trajectory.has_client_table("train.loss")
        else np.full((1, 1), math.nan)
    )
    return {
        "own": mean_or_nan(own_losses),
        "worst": float(own_losses.max()) if len(own_losses) else math.nan,
        "cross": mean_or_nan(cross_losses),
        "next": next_batch_loss(trajectory),
        "general": net_change(trajectory, "general.loss"),
        "syntax": net_change(trajectory, "syntax.accuracy"),
        "compute": training_compute(run, trajectory, config),
        "traffic": communication_bytes(run, trajectory, config) / 1e6,
        "models": count_models(run, trajectory, config),
        "ari": last_value(trajectory, "cluster.ari"),
        "train": float(np.nanmean(train_losses)) if np.isfinite(train_losses).any() else math.nan,
    }


def client_losses(trajectory: Trajectory, unclustered: Run) -> tuple[np.ndarray, np.ndarray]:
    """Return each client's loss on text like its own and on text of the domains that it lacks, [N] each, in nats per token.

    A centralized run has no clients. Its single model is evaluated on the domain mixtures of the clients of ``unclustered``.

    Args:
        trajectory: Records of the run.
        unclustered: The run of the condition ``unclustered`` with the same seed.
    """
    domain_tokens = client_domain_tokens(unclustered)
    if not trajectory.has_client_table("final.loss.own"):
        return np.zeros(0), np.zeros(0)
    if len(trajectory.clients) == len(domain_tokens):
        return trajectory.client_table("final.loss.own")[-1], trajectory.client_table("final.loss.cross")[-1]
    domains = unclustered.config["partition_table"]["domains"]
    loss = np.array([last_value(trajectory, "final.loss", domain) for domain in domains])
    is_available = np.isfinite(loss) & (domain_tokens.sum(axis=0) > 0)
    own_share = domain_tokens * is_available / (domain_tokens * is_available).sum(axis=1, keepdims=True)
    missing_share = np.clip(1 - own_share, 0, None) * is_available
    loss = np.where(is_available, loss, 0.0)
    with np.errstate(invalid="ignore"):
        return own_share @ loss, missing_share @ loss / missing_share.sum(axis=1)


def next_batch_loss(trajectory: Trajectory) -> float:
    """Return the mean loss of the received model on the batches that clients train on next.

    These batches are the clients' own text, with all rewrites and token skew. All conditions of a seed have the same batches.
    """
    if not trajectory.has_client_table("train.loss.start"):
        return math.nan
    losses = trajectory.client_table("train.loss.start")[-NUM_NEXT_ROUNDS:]
    return float(np.nanmean(losses)) if np.isfinite(losses).any() else math.nan


def client_domain_tokens(run: Run) -> np.ndarray:
    """Return the number of training tokens of each client in each domain, [N, J]."""
    return np.asarray(run.config["partition_table"]["tokens"], dtype=np.float64)


def mean_or_nan(values: np.ndarray) -> float:
    """Return the mean, or NaN if there are no values."""
    return float(values.mean()) if len(values) else math.nan


def last_value(trajectory: Trajectory, metric: str, domain: str = "") -> float:
    """Return the last recorded value of a metric, or NaN if there is none."""
    if metric not in trajectory.metrics or not trajectory.has_curve(metric, domain):
        return math.nan
    return float(trajectory.curve(metric, domain)[trajectory.observed_mask(metric, domain)][-1])


def net_change(trajectory: Trajectory, metric: str) -> float:
    """Return the last recorded value of a metric minus the first one, or NaN if there are fewer than two."""
    if metric not in trajectory.metrics or not trajectory.has_curve(metric):
        return math.nan
    values = trajectory.curve(metric)[trajectory.observed_mask(metric)]
    return float(values[-1] - values[0]) if len(values) > 1 else math.nan


def training_compute(run: Run, trajectory: Trajectory, config: dict[str, Any]) -> float:
    """Return the number of trained tokens, plus a third for each token that is only evaluated.

    Only IFCA has such tokens: in every round all clients evaluate all models on their next batches.
    """
    trained_tokens = float(run.read_json("finished")["train_tokens"])
    clustering = config["clustering"]
    if clustering["type"] != "IFCA":
        return trained_tokens
    training = config["training"]
    num_evaluations = training["num_rounds"] + (clustering["symmetry_breaking"] == "noise")
    tokens_per_model = clustering["num_batches"] * training["batch_size"] * (training["max_seq_length"] - 1)
    return trained_tokens + num_evaluations * config["partition"]["num_clients"] * clustering["num_clusters"] * tokens_per_model / 3


def communication_bytes(run: Run, trajectory: Trajectory, config: dict[str, Any]) -> float:
    """Return the number of bytes between server and clients in the whole run.

    It includes the models and updates of every round, the embeddings, and all of IFCA's models for all clients.
    """
    algorithm_type = config["algorithm"]["type"]
    if algorithm_type == "LocalOnly":
        return 0.0
    if algorithm_type == "Centralized" or "cost.up" not in trajectory.metrics:
        return math.nan
    num_trained = np.isfinite(trajectory.client_table("weight")).sum(axis=1)  # [rounds] number of clients that trained
    down, up = (np.nan_to_num(trajectory.curve(metric)) for metric in ("cost.down", "cost.up"))
    total = float((num_trained * (down + up)).sum())
    clustering = config["clustering"]
    if clustering["type"] == "IFCA":
        model_bytes, num_clients = float(down.max()), config["partition"]["num_clients"]
        total += float(((num_trained > 0) * (num_clients * clustering["num_clusters"] - num_trained) * model_bytes).sum())
    return total + config["partition"]["num_clients"] * embedding_bytes(run)


def embedding_bytes(run: Run) -> float:
    """Return the number of bytes that each client sends once for the clustering."""
    return float(first_assignment(run).get("bytes") or 0)


def first_assignment(run: Run) -> dict[str, Any]:
    """Return the first decision of the clustering as JSON; empty for a run without clustering."""
    entries = run.cluster_assignments()
    return entries[0] if entries else {}


def count_models(run: Run, trajectory: Trajectory, config: dict[str, Any]) -> float:
    """Return the number of models that clients use at the end of the run."""
    if config["algorithm"]["type"] == "LocalOnly":
        return float(config["partition"]["num_clients"])
    if trajectory.has_client_table("cluster.id"):
        return float(len(np.unique(trajectory.client_table("cluster.id")[-1])))
    return 1.0


PRIMARY_METRIC, CONTRAST_REFERENCES = "own", ("random", "unclustered")
CONTRASTED_METRICS = ("own", "cross", "worst")
BEST_IFCA = "ifca best"  # the restart with the smallest training loss, at the cost of all restarts


@dataclass(frozen=True, eq=False)
class ComparisonResults:
    """Results of all conditions of a comparison."""

    name: str  # name of the study
    rows: pd.DataFrame  # one row per run with the columns run, condition, number, seed, iid, diverged and those of ``COMPARISON_METRICS``
    decisions: tuple[dict[str, Any], ...]  # the first decision of the text clustering in each seed
    diagnoses: dict[str, list[Diagnosis]]  # diagnoses of the failure detectors, by condition
    stopped_runs: tuple[str, ...]  # descriptions of runs that did not finish, with the reason

    @property
    def seeds(self) -> tuple[int, ...]:
        """Return the seeds in ascending order."""
        return tuple(sorted(set(self.rows["seed"])))

    @property
    def conditions(self) -> list[str]:
        """Return the names of the conditions that have runs, in the order of ``CONDITIONS``."""
        order = [*(name for name in CONDITIONS if name != "ifca"), "ifca", BEST_IFCA]
        return [name for name in order if name in set(self.rows["condition"])]

    def means(self) -> pd.DataFrame:
        """Return one row per condition with the mean of each metric over seeds, its t-interval and the number of diverged runs.

        Repeats of a seed are averaged first. A condition with a diverged run has no mean, because a mean over the other runs would
        hide the divergence.
        """
        rows = []
        for condition in self.conditions:
            condition_rows = self.rows[self.rows["condition"] == condition]
            row: dict[str, object] = {
                "condition": condition,
                "title": condition_title(condition),
                "seeds": condition_rows["seed"].nunique(),
                "diverged": int(condition_rows["diverged"].sum()),
            }
            for metric in COMPARISON_METRICS:
                values = condition_rows.groupby("seed")[metric].mean().to_numpy(dtype=np.float64)
                interval = mean_ci(values[~np.isnan(values)] if not row["diverged"] else np.full(1, math.nan))
                row |= {metric: interval.estimate, f"{metric}.low": interval.low, f"{metric}.high": interval.high}
            rows.append(row)
        return pd.DataFrame(rows)

    def contrasts(self, metric: str, reference: str) -> pd.DataFrame:
        """Compare each condition with a reference condition, paired by seed.

        Repeats of a seed are averaged first. The Holm correction covers all rows of the table.

        Args:
            metric: Column of ``COMPARISON_METRICS``.
            reference: Name of the reference condition.

        Returns:
            One row per condition with the columns of ``compare_to_reference``; empty if the reference has no runs.
        """
        seed_means = self.seed_means(metric)
        if reference not in set(seed_means["condition"]):
            return pd.DataFrame()
        order = {condition: position for position, condition in enumerate(self.conditions)}
        table = compare_to_reference(seed_means, metric, "condition", reference, ["condition"])
        return table.sort_values("condition", key=lambda names: names.map(order), ignore_index=True)

    def seed_means(self, metric: str) -> pd.DataFrame:
        """Return the mean of a metric for each condition and seed.

        A row is marked as diverged if one of its runs diverged. The condition ``iid`` is left out.
        """
        means = (
            self.rows[self.rows["condition"] != "iid"]
            .groupby(["condition", "seed"], as_index=False)
            .agg(run=("run", "first"), diverged=("diverged", "any"), value=(metric, "mean"))
        )
        return means.rename(columns={"value": metric}).assign(iid=False, iid_baseline="")

    def recovered_gain(self, condition: str = "text") -> Interval:
        """Return the share of the oracle's gain that a condition recovers: (unclustered - condition) / (unclustered - oracle) on own text.

        The interval is Fieller's. It has no bounds if the oracle's gain may be zero.
        """
        losses = self.seed_means(PRIMARY_METRIC).pivot(index="seed", columns="condition", values=PRIMARY_METRIC)
        if not {"unclustered", "oracle", condition} <= set(losses.columns):
            return Interval(math.nan, math.nan, math.nan, math.nan)
        losses = losses[["unclustered", "oracle", condition]].replace([np.inf, -np.inf], np.nan).dropna()
        return ratio_ci((losses["unclustered"] - losses[condition]).to_numpy(), (losses["unclustered"] - losses["oracle"]).to_numpy())

    def power_statement(self) -> str:
        """Return a sentence about the smallest p value that the number of seeds permits."""
        smallest, count = min_p(len(self.seeds)), len(self.seeds)
        if smallest > 0.05:
            return (
                f"With {count} paired seed{'s' if count > 1 else ''} no exact p below {smallest:.3g} is possible, regardless of the "
                "effect. No result can be significant at 0.05, so read the intervals instead."
            )
        num_conditions = len(self.conditions) - 2
        needed = math.ceil(1 - math.log2(0.05 / max(num_conditions, 1)))
        holm_note = (
            ""
            if count >= needed
            else (
                f" After correction for all {num_conditions} conditions of a table (Holm) no result can be significant with fewer than "
                f"{needed} seeds. The two primary comparisons, text with random and text with unclustered, are not corrected."
            )
        )
        return f"With {count} paired seeds the smallest possible exact p is {smallest:.3g}.{holm_note}"


def collect_results(manifest: StudyManifest) -> ComparisonResults:
    """Collect the results of a comparison study.

    Unfinished runs are left out and listed in ``stopped_runs``.
    """
    contents = manifest.read()
    entries = {(entry.seed, current_label(str(entry.factors["method"]))): entry for entry in contents["runs"]}
    unclustered = {seed: manifest.get_run(entry) for (seed, label), entry in entries.items() if label == "unclustered"}
    rows: list[dict[str, Any]] = []
    evidence: dict[str, list[RunEvidence]] = {}
    decisions, stopped_runs = [], []
    load_trajectory = cache(Run.trajectory)  # the references of a seed belong to the evidence of all its conditions
    for (seed, label), entry in entries.items():
        run, (condition, number) = manifest.get_run(entry), parse_condition_label(label)
        if not run.is_finished or not unclustered[seed].is_finished:
            stopped_runs.append(
                f"{label}, seed {seed}: {manifest.get_failure(entry.run) or manifest.get_status(entry.run)}".splitlines()[0]
            )
            continue
        trajectory = load_trajectory(run)
        rows.append(
            {
                "run": run.id,
                "condition": condition,
                "number": number,
                "seed": seed,
                "iid": False,
                "diverged": has_diverged(trajectory),
                **measure_run(run, trajectory, unclustered[seed]),
            }
        )
        if condition == "text":
            decisions.append({"seed": seed, **{key: value for key, value in first_assignment(run).items() if key != "centroids"}})
        if number == 0 and condition not in ("iid", "centralized"):
            evidence.setdefault(condition, []).append(build_evidence(run, seed, entries, manifest, load_trajectory))
    frame = pd.DataFrame(rows, columns=["run", "condition", "number", "seed", "iid", "diverged", *COMPARISON_METRICS, "train"])
    if frame.loc[frame["condition"] == "ifca", "number"].nunique() > 1:  # with a single restart the best equals the mean
        frame = pd.concat([frame, best_ifca_restarts(frame)], ignore_index=True)
    unclustered_compute = frame[frame["condition"] == "unclustered"].set_index("seed")["compute"]
    frame["compute"] = frame["compute"] / frame["seed"].map(unclustered_compute)
    return ComparisonResults(
        manifest.name, frame, tuple(decisions), {condition: diagnose(runs) for condition, runs in evidence.items()}, tuple(stopped_runs)
    )


def best_ifca_restarts(frame: pd.DataFrame) -> pd.DataFrame:
    """Return IFCA's results as in its paper: for each seed the restart with the smallest training loss, at the cost of all restarts."""
    rows = []
    for _, restarts in frame[frame["condition"] == "ifca"].groupby("seed"):
        best = int(restarts["train"].fillna(np.inf).to_numpy(dtype=np.float64).argmin())
        rows.append(
            restarts.iloc[best].to_dict()
            | {"condition": BEST_IFCA, "compute": restarts["compute"].sum(), "traffic": restarts["traffic"].sum()}
        )
    return pd.DataFrame(rows)


def build_evidence(
    run: Run,
    seed: int,
    entries: dict[tuple[int, str], ManifestEntry],
    manifest: StudyManifest,
    load_trajectory: Callable[[Run], Trajectory],
) -> RunEvidence:
    """Return a run together with the IID baseline, the centralized run and the local-training run of its seed, for the failure detectors.

    Args:
        run: The run.
        seed: Its seed.
        entries: Manifest entries by seed and label.
        manifest: Manifest of the study.
        load_trajectory: Returns the records of a run.
    """

    def finished_run(label: str) -> Run | None:
        entry = entries.get((seed, label))
        other = manifest.get_run(entry) if entry is not None else None
        return other if other and other.is_finished and other.id != run.id else None

    iid_baseline, centralized, local = (
        load_trajectory(other) if (other := finished_run(label)) else None for label in ("iid", "centralized", "local-only")
    )
    return RunEvidence(load_trajectory(run), iid_baseline, centralized, local, info=extract_run_info(run.config), seed=seed)


def condition_title(condition: str) -> str:
    """Return the description of a condition."""
    return (
        "IFCA, best restart"
        if condition == BEST_IFCA
        else "IFCA, mean of the restarts"
        if condition == "ifca"
        else CONDITIONS[condition].title
    )


def grade_table(diagnoses: dict[str, list[Diagnosis]]) -> pd.DataFrame:
    """Return a table of the detectors' grades with one row per failure and one column per condition.

    Failures that no condition shows are left out.
    """
    by_condition = {condition: {diagnosis.failure: diagnosis for diagnosis in found} for condition, found in diagnoses.items()}
    names = list(dict.fromkeys(name for found in by_condition.values() for name in found))
    rows = []
    for name in names:
        row = {condition: found[name].grade if name in found else "not measured" for condition, found in by_condition.items()}
        if set(row.values()) - {"none", "not measured"}:
            rows.append({"failure": name, **row})
    return pd.DataFrame(rows)


def undetected_failures(diagnoses: Sequence[Diagnosis]) -> tuple[list[str], list[str]]:
    """Return the failures that were measured but not found, and the failures that were not measured."""
    return (
        [diagnosis.failure for diagnosis in diagnoses if diagnosis.grade == "none"],
        [diagnosis.failure for diagnosis in diagnoses if diagnosis.grade == "not measured"],
    )


PARTITIONS = {"topic": "TopicMix", "style": "Style", "token": "TokenTilt", "quantity": "Quantity"}
SEVERITIES = (0.0, 0.5, 1.0)
GAIN_METRIC = "next"  # token skew is present only in training text, because held-out text is drawn by domain


@dataclass(frozen=True)
class ClusteringMap:
    """The map of where clustering helps: several partitions and severities."""

    comparison: ClusteringComparison  # provides the base experiment, the settings and the seeds
    partitions: tuple[str, ...] = tuple(PARTITIONS)  # names of partitions, keys of ``PARTITIONS``
    severities: tuple[float, ...] = SEVERITIES  # severities of each partition

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
            "unclustered": {},
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

    The first table has one row per partition and severity. Its columns ``random.*`` and ``unclustered.*`` compare the loss of text clusters
    with that of random clusters of the same sizes and of one model for all, on each client's next training batches: effect, t-interval and
    exact p value. ``own`` is the effect relative to random clusters on own text. ``p`` is the median over seeds of the permutation test's p
    value. ``identification_rate`` is the rate at which documents are closest to their own client's mean. ``estimated_k`` is the number of
    clusters that would have been selected.

    The second table has the cost of smaller clusters, one row per number of random clusters.
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
                    "condition": current_label(levels["method"]),
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
        for reference in ("random", "unclustered"):
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
