"""What one run of a contest came to: fixed before it is run, all at the end of training, on the larger test set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ..core.errors import UserError, unknown_name_error
from ..core.records import Trajectory
from ..diagnosis import Diagnosis, diagnose
from ..diagnosis.cases import extract_run_info
from ..diagnosis.finding import RunEvidence
from ..stats import compare_to_reference, mean_ci, min_p, perplexity_change_percent, ratio_ci
from ..stats.significance import Interval
from ..storage import Run
from ..studies import ManifestEntry, Study, StudyManifest, parse_study
from ..studies.outcomes import has_diverged
from .comparison import CONDITIONS, ClusteringComparison, parse_condition_label

NUM_NEXT_ROUNDS = 3  # rounds of which the next batches are averaged
NUM_LAST_ROUNDS = 5  # rounds whose mean training loss chooses among IFCA's starts
COMPARISON_METRICS = {  # column: what it is, in words, and its unit
    "own": ("own text", "mean over the clients of the loss on text mixed as their own, nats per token"),
    "worst": ("worst client", "the highest of those losses"),
    "cross": ("other text", "mean over the clients of the loss on the domains that they lack, nats per token"),
    "next": (
        "next batch",
        "mean over the clients of the loss on the training text that comes next, under the model that they "
        "receive, last three rounds, nats per token",
    ),
    "general": ("general text", "loss on text that no client has, less what it was before training, nats per token"),
    "syntax": ("syntax", "share of minimal pairs whose right sentence is preferred, less what it was before training"),
    "compute": ("compute", "tokens trained on; reading alone counts a third; as a share of vanilla's"),
    "traffic": ("traffic", "MB sent to clients and from them, in the whole run"),
    "models": ("models", "that the server keeps"),
    "ari": ("agreement", "adjusted Rand index of the groups and the clients' main domains"),
}


def measure_run(run: Run, vanilla: Run) -> dict[str, float]:
    """Every column of ``COMPARISON_METRICS`` but that compute is in tokens, and ``train``, the loss that IFCA's starts are chosen by."""
    asked, seen = run.config, run.trajectory()
    own, cross = client_losses(seen, vanilla)
    table = seen.client_table("train.loss")[1:][-NUM_LAST_ROUNDS:] if seen.has_client_table("train.loss") else np.full((1, 1), math.nan)
    return {
        "own": mean_or_nan(own),
        "worst": float(own.max()) if len(own) else math.nan,
        "cross": mean_or_nan(cross),
        "next": next_batch_loss(seen),
        "general": net_change(seen, "general.loss"),
        "syntax": net_change(seen, "syntax.accuracy"),
        "compute": training_compute(run, seen, asked),
        "traffic": communication_bytes(run, seen, asked) / 1e6,
        "models": count_models(run, seen, asked),
        "ari": last_value(seen, "cluster.ari"),
        "train": float(np.nanmean(table)) if np.isfinite(table).any() else math.nan,
    }


def client_losses(trajectory: Trajectory, vanilla: Run) -> tuple[np.ndarray, np.ndarray]:
    """Loss on own and on other text, ``[N]`` each. A pooled run has no clients: its one model is asked for vanilla's."""
    mix = client_domain_tokens(vanilla)
    if not trajectory.has_client_table("final.loss.own"):
        return np.zeros(0), np.zeros(0)
    if len(trajectory.clients) == len(mix):
        return trajectory.client_table("final.loss.own")[-1], trajectory.client_table("final.loss.cross")[-1]
    domains = vanilla.config["partition_table"]["domains"]
    loss = np.array([last_value(trajectory, "final.loss", domain) for domain in domains])
    there = np.isfinite(loss) & (mix.sum(axis=0) > 0)
    q = mix * there / (mix * there).sum(axis=1, keepdims=True)
    lacks = np.clip(1 - q, 0, None) * there
    loss = np.where(there, loss, 0.0)
    with np.errstate(invalid="ignore"):
        return q @ loss, lacks @ loss / lacks.sum(axis=1)


def next_batch_loss(trajectory: Trajectory) -> float:
    """Loss on the batches that clients are about to train on: their own text, rewritten and tilted as it is. The arms of a seed
    read the same batches."""
    if not trajectory.has_client_table("train.loss.start"):
        return math.nan
    table = trajectory.client_table("train.loss.start")[-NUM_NEXT_ROUNDS:]
    return float(np.nanmean(table)) if np.isfinite(table).any() else math.nan


def client_domain_tokens(run: Run) -> np.ndarray:
    """Training tokens of each client in each domain, ``[N, J]``."""
    return np.asarray(run.config["partition_table"]["tokens"], dtype=np.float64)


def mean_or_nan(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan


def last_value(trajectory: Trajectory, metric: str, domain: str = "") -> float:
    """The latest written number; NaN where there is none."""
    if metric not in trajectory.metrics or not trajectory.has_curve(metric, domain):
        return math.nan
    return float(trajectory.curve(metric, domain)[trajectory.observed_mask(metric, domain)][-1])


def net_change(trajectory: Trajectory, metric: str) -> float:
    """The end above the beginning."""
    if metric not in trajectory.metrics or not trajectory.has_curve(metric):
        return math.nan
    values = trajectory.curve(metric)[trajectory.observed_mask(metric)]
    return float(values[-1] - values[0]) if len(values) > 1 else math.nan


def training_compute(run: Run, trajectory: Trajectory, config: dict[str, Any]) -> float:
    """Tokens trained on, and a third for each that is only read: IFCA's clients read batches with all models, every round."""
    trained = float(run.read_json("finished")["train_tokens"])
    mitigation = config["clustering"]
    if mitigation["type"] != "IFCA":
        return trained
    plan = config["training"]
    looks = plan["num_rounds"] + (mitigation["symmetry_breaking"] == "noise")
    read = mitigation["num_batches"] * plan["batch_size"] * (plan["max_seq_length"] - 1)
    return trained + looks * config["partition"]["num_clients"] * mitigation["num_clusters"] * read / 3


def communication_bytes(run: Run, trajectory: Trajectory, config: dict[str, Any]) -> float:
    """Bytes between server and clients: every round's model and change, descriptors, and all of IFCA's models to everybody."""
    kind = config["algorithm"]["type"]
    if kind == "LocalOnly":
        return 0.0
    if kind == "Centralized" or "cost.up" not in trajectory.metrics:
        return math.nan
    took = np.isfinite(trajectory.client_table("weight")).sum(axis=1)  # [rounds] clients that trained
    down, up = (np.nan_to_num(trajectory.curve(metric)) for metric in ("cost.down", "cost.up"))
    sent = float((took * (down + up)).sum())
    said = config["clustering"]
    if said["type"] == "IFCA":
        model, clients = float(down.max()), config["partition"]["num_clients"]
        sent += float(((took > 0) * (clients * said["num_clusters"] - took) * model).sum())
    return sent + config["partition"]["num_clients"] * embedding_bytes(run)


def embedding_bytes(run: Run) -> float:
    """Bytes that each client sends once so that it can be grouped."""
    return float(first_assignment(run).get("bytes") or 0)


def first_assignment(run: Run) -> dict[str, Any]:
    """What the clustering decided at first; empty where there is none."""
    if not (run.folder / "clustering.json").exists():
        return {}
    said: list[dict[str, Any]] = run.read_json("clustering")
    return said[0] if said else {}


def count_models(run: Run, trajectory: Trajectory, config: dict[str, Any]) -> float:
    """Models that clients use at the end."""
    if config["algorithm"]["type"] == "LocalOnly":
        return float(config["partition"]["num_clients"])
    if trajectory.has_client_table("group"):
        return float(len(np.unique(trajectory.client_table("group")[-1])))
    return 1.0


# What the arms came to: means over paired seeds, each arm less random clusters and less vanilla, the share of the oracle's
# gain, and what the failure detectors say before and after.

PRIMARY_METRIC, CONTRAST_REFERENCES = "own", ("random", "vanilla")
CONTRASTED_METRICS = ("own", "cross", "worst")
BEST_IFCA = "ifca best"  # of the starts by training loss, all starts paid for


@dataclass(frozen=True, eq=False)
class ComparisonResults:
    """``rows``: one a run, with its numbers. ``decisions``: what text k-means decided in each seed."""

    name: str
    rows: pd.DataFrame  # run, condition, number, seed, iid, diverged, and COMPARISON_METRICS
    decisions: tuple[dict[str, object], ...]
    diagnoses: dict[str, list[Diagnosis]]  # by arm
    stopped_runs: tuple[str, ...]  # runs that stopped, and why

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(sorted(set(self.rows["seed"])))

    @property
    def conditions(self) -> list[str]:
        """In the order of the table."""
        order = [*(name for name in CONDITIONS if name != "ifca"), "ifca", BEST_IFCA]
        return [name for name in order if name in set(self.rows["condition"])]

    def means(self) -> pd.DataFrame:
        """One row an arm: each metric's mean over seeds (repeats of a seed first averaged), its t-interval, diverged runs.

        An arm of which a run diverged has no mean: one over the runs that are left would hide it.
        """
        every = []
        for arm in self.conditions:
            mine = self.rows[self.rows["condition"] == arm]
            row: dict[str, object] = {
                "condition": arm,
                "title": condition_title(arm),
                "seeds": mine["seed"].nunique(),
                "diverged": int(mine["diverged"].sum()),
            }
            for metric in COMPARISON_METRICS:
                values = mine.groupby("seed")[metric].mean().to_numpy(dtype=np.float64)
                found = mean_ci(values[~np.isnan(values)] if not row["diverged"] else np.full(1, math.nan))
                row |= {metric: found.estimate, f"{metric}.low": found.low, f"{metric}.high": found.high}
            every.append(row)
        return pd.DataFrame(every)

    def contrasts(self, metric: str, reference: str) -> pd.DataFrame:
        """Each arm less a reference, paired by seed; the repeats of a seed averaged. Holm over the rows of the table."""
        averaged = self.seed_means(metric)
        if reference not in set(averaged["condition"]):
            return pd.DataFrame()
        order = {arm: place for place, arm in enumerate(self.conditions)}
        told = compare_to_reference(averaged, metric, "condition", reference, ["condition"])
        return told.sort_values("condition", key=lambda names: names.map(order), ignore_index=True)

    def seed_means(self, metric: str) -> pd.DataFrame:
        """One row an arm and seed; diverged if one of its runs did."""
        found = (
            self.rows[self.rows["condition"] != "iid"]
            .groupby(["condition", "seed"], as_index=False)
            .agg(run=("run", "first"), diverged=("diverged", "any"), value=(metric, "mean"))
        )
        return found.rename(columns={"value": metric}).assign(iid=False, iid_baseline="")

    def recovered_gain(self, condition: str = "text") -> Interval:
        """(vanilla - arm) / (vanilla - oracle) on own text, with Fieller's interval: without bounds where the oracle may gain
        nothing."""
        wide = self.seed_means(PRIMARY_METRIC).pivot(index="seed", columns="condition", values=PRIMARY_METRIC)
        if not {"vanilla", "oracle", condition} <= set(wide.columns):
            return Interval(math.nan, math.nan, math.nan, math.nan)
        wide = wide[["vanilla", "oracle", condition]].replace([np.inf, -np.inf], np.nan).dropna()
        return ratio_ci((wide["vanilla"] - wide[condition]).to_numpy(), (wide["vanilla"] - wide["oracle"]).to_numpy())

    def power_statement(self) -> str:
        """What so many seeds can show."""
        least, count = min_p(len(self.seeds)), len(self.seeds)
        if least > 0.05:
            return (
                f"{count} paired seed{'s' if count > 1 else ''}: no exact p below {least:.3g} is possible, whatever the "
                "effect. Read the intervals; nothing here is significant at .05, nor could it be."
            )
        arms = len(self.conditions) - 2
        needed = math.ceil(1 - math.log2(0.05 / max(arms, 1)))
        more = (
            ""
            if count >= needed
            else (
                f" Corrected for all {arms} conditions of a table (Holm) nothing can be: that takes "
                f"{needed} seeds. The two primary comparisons, text against random and against "
                "vanilla, stand by themselves."
            )
        )
        return f"{count} paired seeds: the smallest exact p is {least:.3g}.{more}"


def collect_results(manifest: StudyManifest) -> ComparisonResults:
    """Everything that the runs of a contest say; runs that are not finished are left out and named."""
    said = manifest.read()
    entries = {(entry.seed, str(entry.factors["method"])): entry for entry in said["runs"]}
    vanilla = {seed: manifest.get_run(entry) for (seed, label), entry in entries.items() if label == "vanilla"}
    rows: list[dict[str, Any]] = []
    cases: dict[str, list[RunEvidence]] = {}
    decisions, failures = [], []
    for (seed, label), entry in entries.items():
        run, (arm, number) = manifest.get_run(entry), parse_condition_label(label)
        if not run.is_finished or not vanilla[seed].is_finished:
            failures.append(f"{label}, seed {seed}: {manifest.get_failure(entry.run) or manifest.get_status(entry.run)}".splitlines()[0])
            continue
        seen = run.trajectory()
        rows.append(
            {
                "run": run.id,
                "condition": arm,
                "number": number,
                "seed": seed,
                "iid": False,
                "diverged": has_diverged(seen),
                **measure_run(run, vanilla[seed]),
            }
        )
        if arm == "text":
            decisions.append({"seed": seed, **{key: value for key, value in first_assignment(run).items() if key != "centroids"}})
        if number == 0 and arm not in ("iid", "pooled"):
            cases.setdefault(arm, []).append(build_evidence(run, seed, entries, manifest))
    frame = pd.DataFrame(rows, columns=["run", "condition", "number", "seed", "iid", "diverged", *COMPARISON_METRICS, "train"])
    if frame.loc[frame["condition"] == "ifca", "number"].nunique() > 1:  # of one start the best is the mean
        frame = pd.concat([frame, best_ifca_starts(frame)], ignore_index=True)
    base = frame[frame["condition"] == "vanilla"].set_index("seed")["compute"]
    frame["compute"] = frame["compute"] / frame["seed"].map(base)
    return ComparisonResults(
        manifest.name, frame, tuple(decisions), {arm: diagnose(every) for arm, every in cases.items()}, tuple(failures)
    )


def best_ifca_starts(frame: pd.DataFrame) -> pd.DataFrame:
    """IFCA as its paper runs it: of all starts of a seed the one of least training loss, and the cost of all of them."""
    chosen = []
    for _, starts in frame[frame["condition"] == "ifca"].groupby("seed"):
        least = int(starts["train"].fillna(np.inf).to_numpy(dtype=np.float64).argmin())
        chosen.append(
            starts.iloc[least].to_dict() | {"condition": BEST_IFCA, "compute": starts["compute"].sum(), "traffic": starts["traffic"].sum()}
        )
    return pd.DataFrame(chosen)


def build_evidence(run: Run, seed: int, entries: dict[tuple[int, str], ManifestEntry], manifest: StudyManifest) -> RunEvidence:
    """A run beside vanilla's IID baseline, everybody alone, and the pooled run of its seed."""

    def beside(label: str) -> Run | None:
        entry = entries.get((seed, label))
        other = manifest.get_run(entry) if entry is not None else None
        return other if other and other.is_finished and other.id != run.id else None

    twin, central, local = (other.trajectory() if (other := beside(label)) else None for label in ("iid", "pooled", "local"))
    return RunEvidence(run.trajectory(), twin, central, local, info=extract_run_info(run.config), seed=seed)


def condition_title(condition: str) -> str:
    """An arm in words."""
    return (
        "IFCA, best of its starts"
        if condition == BEST_IFCA
        else "IFCA, mean of its starts"
        if condition == "ifca"
        else CONDITIONS[condition].title
    )


def grade_table(diagnoses: dict[str, list[Diagnosis]]) -> pd.DataFrame:
    """Failure by arm: what was found. Failures that no arm shows, and that were measured nowhere, are left out."""
    by_arm = {arm: {each.failure: each for each in every} for arm, every in diagnoses.items()}
    names = list(dict.fromkeys(name for every in by_arm.values() for name in every))
    rows = []
    for name in names:
        row = {arm: every[name].grade if name in every else "not measured" for arm, every in by_arm.items()}
        if set(row.values()) - {"none", "not measured"}:
            rows.append({"failure": name, **row})
    return pd.DataFrame(rows)


def perplexity_change(nats: float) -> float:
    """A difference of losses as a change of perplexity, %."""
    return perplexity_change_percent(nats)


def undetected_failures(diagnoses: Sequence[Diagnosis]) -> tuple[list[str], list[str]]:
    """Failures looked for and not found; failures not measured."""
    return (
        [each.failure for each in diagnoses if each.grade == "none"],
        [each.failure for each in diagnoses if each.grade == "not measured"],
    )


# Where clustering cannot help: regimes and severities, each with vanilla, clusters of like text and random ones; and what
# smaller clusters cost where all clients are alike.
#
# The clusters are forced (k is said), for where they would not be chosen their gain is zero by definition; whether they would
# have been, and whether the descriptors can tell the clients apart at all, stands beside the gain.

REGIMES = {"topic": "TopicMix", "style": "Style", "token": "TokenTilt", "quantity": "Quantity"}
SEVERITIES = (0.0, 0.5, 1.0)
GAIN_METRIC = "next"  # token skew is in the clients' own text alone: held-out text is drawn by domain


@dataclass(frozen=True)
class ClusteringMap:
    """``comparison`` has the base experiment, the encoder and the seeds."""

    comparison: ClusteringComparison
    regimes: tuple[str, ...] = tuple(REGIMES)
    severities: tuple[float, ...] = SEVERITIES

    def build_study(self) -> Study:
        """Two stages: ``map``, and ``starved``, random clusters of ever fewer clients on IID deals."""
        base, asked = self.comparison.base_config, self.comparison.config
        clients, k = base.partition.num_clients, asked.num_clusters or min(4, base.partition.num_clients // 2)
        text = {"type": "TextClustering", "encoder": asked.encoder, "num_clusters": k}
        regimes: dict[str, dict[str, Any]] = {}
        for name in self.regimes:
            if name not in REGIMES:
                raise unknown_name_error("regime", name, REGIMES)
            regimes[name] = {"partition": {"type": REGIMES[name], "num_clients": clients}}
        arms: dict[str, dict[str, Any]] = {
            "vanilla": {},
            "text": {"clustering": text},
            "random": {"clustering": {"type": "RandomClustering", "like": text}},
        }
        counts = [k for k in (2, 3, 5, 10, 20, 50) if k < clients] + [clients]
        starved: dict[str, Any] = {"1 cluster": {}}
        starved |= {f"{k} clusters": {"clustering": {"type": "RandomClustering", "cluster_sizes": equal_sizes(clients, k)}} for k in counts}
        name = self.comparison.build_study().name.replace("clustering-", "clustering-map-", 1)
        if not self.severities:
            raise UserError("no severity to go through")
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
                    "evaluation.interval": max(base.training.num_rounds, 1),
                    "partition.severity": 0.0,
                },
                "stages": [
                    {
                        "name": "map",
                        "factors": {"regime": regimes, "partition.severity": list(self.severities), "method": arms},
                        "overrides": {"partition": {"type": "TopicMix", "num_clients": clients}},
                    },
                    {"name": "starved", "factors": {"method": starved}},
                ],
            }
        )


def equal_sizes(num_clients: int, k: int) -> list[int]:
    """k sizes as equal as can be."""
    return [num_clients // k + (place < num_clients % k) for place in range(k)]


def summarize_map(manifest: StudyManifest) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The map, one row a regime and severity, and the cost of starvation, one row a number of clusters.

    ``gain``: loss of text clusters less that of random ones of the same sizes, on the text that clients train on next; its
    t-interval and exact p. ``p``: of the permutation of documents, the median over seeds; ``identified``: how often a document
    is nearest to its own client's mean; ``counted``: how many clusters would have been chosen.
    """
    rows = []
    for entry in manifest.read()["runs"]:
        run = manifest.get_run(entry)
        if run.is_finished:
            told, level = first_assignment(run), entry.factors
            rows.append(
                {
                    "run": run.id,
                    "stage": entry.stage,
                    "condition": level["method"],
                    "regime": level.get("regime"),
                    "severity": level.get("partition.severity"),
                    "seed": entry.seed,
                    "iid": False,
                    "iid_baseline": "",
                    "diverged": has_diverged(run.trajectory()),
                    **measure_run(run, run),
                    **{name: told.get(name) for name in ("p_value", "identified", "chance", "counted")},
                }
            )
    frame = pd.DataFrame(rows)
    if frame.empty:
        return frame, frame
    return clustering_gains(frame[frame["stage"] == "map"]), small_cluster_cost(frame[frame["stage"] == "starved"])


def clustering_gains(frame: pd.DataFrame) -> pd.DataFrame:
    found = []
    for (regime, severity), cell in frame.groupby(["regime", "severity"], sort=False):
        row: dict[str, Any] = {"regime": regime, "severity": severity}
        for reference in ("random", "vanilla"):
            table = compare_to_reference(cell, GAIN_METRIC, "condition", reference, ["condition"]).set_index("condition")
            if "text" in table.index:
                told = table.loc["text"]
                row |= {f"{reference}.{name}": told[name] for name in ("effect", "low", "high", "p", "attainable", "seeds")}
        own = compare_to_reference(cell, "own", "condition", "random", ["condition"]).set_index("condition")
        row["own"] = own.loc["text", "effect"] if "text" in own.index else float("nan")
        text = cell[cell["condition"] == "text"].astype(dict.fromkeys(("p_value", "identified", "chance", "counted"), float))
        row |= {
            "p": text["p_value"].median(),
            "identified": text["identified"].mean(),
            "chance": text["chance"].mean(),
            "counted": text["counted"].median(),
        }
        found.append(row)
    return pd.DataFrame(found)


def small_cluster_cost(frame: pd.DataFrame) -> pd.DataFrame:
    """What each number of random clusters loses against one, on IID deals."""
    if frame.empty:
        return frame
    table = compare_to_reference(frame, "own", "condition", "1 cluster", ["condition"])
    table["k"] = [int(str(arm).split(" ", 1)[0]) for arm in table["condition"]]
    return table.sort_values("k", ignore_index=True)[["k", "effect", "low", "high", "p", "attainable", "seeds"]]


__all__ = [
    "BEST_IFCA",
    "COMPARISON_METRICS",
    "CONTRASTED_METRICS",
    "CONTRAST_REFERENCES",
    "PRIMARY_METRIC",
    "REGIMES",
    "SEVERITIES",
    "ClusteringMap",
    "ComparisonResults",
    "client_domain_tokens",
    "client_losses",
    "collect_results",
    "condition_title",
    "equal_sizes",
    "first_assignment",
    "grade_table",
    "measure_run",
    "summarize_map",
    "undetected_failures",
]
