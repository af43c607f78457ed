"""Results of a comparison of clustering strategies.

All outcomes were fixed before the runs. They are measured at the end of training, on the larger test set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from ..core.records import Trajectory
from ..diagnosis import Diagnosis, diagnose
from ..diagnosis.cases import extract_run_info
from ..diagnosis.finding import RunEvidence
from ..stats import compare_to_reference, mean_ci, min_p, ratio_ci
from ..stats.significance import Interval
from ..storage import Run
from ..studies import ManifestEntry, StudyManifest
from ..studies.outcomes import has_diverged
from .comparison import CONDITIONS, parse_condition_label
from .comparison_metrics import COMPARISON_METRICS, first_assignment, measure_run

PRIMARY_METRIC, CONTRAST_REFERENCES = "own", ("random", "vanilla")
CONTRASTED_METRICS = ("own", "cross", "worst")
BEST_IFCA = "ifca best"  # the restart with the smallest training loss, at the cost of all restarts


@dataclass(frozen=True, eq=False)
class ComparisonResults:
    """Results of all conditions of a comparison.

    Attributes:
        name: Name of the study.
        rows: One row per run with the columns run, condition, number, seed, iid, diverged and those of ``COMPARISON_METRICS``.
        decisions: The first decision of the text clustering in each seed.
        diagnoses: Diagnoses of the failure detectors, by condition.
        stopped_runs: Descriptions of runs that did not finish, with the reason.
    """

    name: str
    rows: pd.DataFrame
    decisions: tuple[dict[str, object], ...]
    diagnoses: dict[str, list[Diagnosis]]
    stopped_runs: tuple[str, ...]

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
        """Return the share of the oracle's gain that a condition recovers: (vanilla - condition) / (vanilla - oracle) on own text.

        The interval is Fieller's. It has no bounds if the oracle's gain may be zero.
        """
        losses = self.seed_means(PRIMARY_METRIC).pivot(index="seed", columns="condition", values=PRIMARY_METRIC)
        if not {"vanilla", "oracle", condition} <= set(losses.columns):
            return Interval(math.nan, math.nan, math.nan, math.nan)
        losses = losses[["vanilla", "oracle", condition]].replace([np.inf, -np.inf], np.nan).dropna()
        return ratio_ci((losses["vanilla"] - losses[condition]).to_numpy(), (losses["vanilla"] - losses["oracle"]).to_numpy())

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
                f"{needed} seeds. The two primary comparisons, text with random and text with vanilla, are not corrected."
            )
        )
        return f"With {count} paired seeds the smallest possible exact p is {smallest:.3g}.{holm_note}"


def collect_results(manifest: StudyManifest) -> ComparisonResults:
    """Collect the results of a comparison study.

    Unfinished runs are left out and listed in ``stopped_runs``.
    """
    contents = manifest.read()
    entries = {(entry.seed, str(entry.factors["method"])): entry for entry in contents["runs"]}
    vanilla = {seed: manifest.get_run(entry) for (seed, label), entry in entries.items() if label == "vanilla"}
    rows: list[dict[str, Any]] = []
    evidence: dict[str, list[RunEvidence]] = {}
    decisions, stopped_runs = [], []
    load_trajectory = cache(Run.trajectory)  # the references of a seed belong to the evidence of all its conditions
    for (seed, label), entry in entries.items():
        run, (condition, number) = manifest.get_run(entry), parse_condition_label(label)
        if not run.is_finished or not vanilla[seed].is_finished:
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
                **measure_run(run, trajectory, vanilla[seed]),
            }
        )
        if condition == "text":
            decisions.append({"seed": seed, **{key: value for key, value in first_assignment(run).items() if key != "centroids"}})
        if number == 0 and condition not in ("iid", "pooled"):
            evidence.setdefault(condition, []).append(build_evidence(run, seed, entries, manifest, load_trajectory))
    frame = pd.DataFrame(rows, columns=["run", "condition", "number", "seed", "iid", "diverged", *COMPARISON_METRICS, "train"])
    if frame.loc[frame["condition"] == "ifca", "number"].nunique() > 1:  # with a single restart the best equals the mean
        frame = pd.concat([frame, best_ifca_restarts(frame)], ignore_index=True)
    vanilla_compute = frame[frame["condition"] == "vanilla"].set_index("seed")["compute"]
    frame["compute"] = frame["compute"] / frame["seed"].map(vanilla_compute)
    return ComparisonResults(
        manifest.name, frame, tuple(decisions), {condition: diagnose(runs) for condition, runs in evidence.items()}, tuple(stopped_runs)
    )


def best_ifca_restarts(frame: pd.DataFrame) -> pd.DataFrame:
    """Return IFCA's results as in its paper: for each seed the restart with the smallest training loss, at the cost of all restarts.

    Args:
        frame: Rows of all runs.
    """
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
        load_trajectory(other) if (other := finished_run(label)) else None for label in ("iid", "pooled", "local")
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


__all__ = [
    "BEST_IFCA",
    "CONTRASTED_METRICS",
    "CONTRAST_REFERENCES",
    "PRIMARY_METRIC",
    "ComparisonResults",
    "collect_results",
    "condition_title",
    "grade_table",
    "undetected_failures",
]
