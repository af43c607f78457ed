"""The data of a study's report: its conditions, its factors and its metrics.

Each figure compares the levels of one factor by color. Further factors give one panel per level, and numeric factors can serve as axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from ..stats import HypothesisVerdict, outcome_values
from ..storage import Run, connect, try_read_each
from ..storage.query import flatten, get_read_errors
from ..studies import ManifestEntry, StudyManifest, evaluate_study_hypotheses
from .document import is_number
from .figures import OKABE_ITO, assign_colors

PRIMARY_FACTORS = ("algorithm", "clustering", "algorithm.aggregator")  # compared by color if they are varied


@dataclass(frozen=True)
class Condition:
    """Describe one condition of the design over its seeds.

    Attributes:
        index: Number of the condition among all conditions of the study.
        levels: Formatted level of every factor of the study. A factor that the stage does not vary has the level of the condition's runs.
        values: The same levels as values.
        runs: Run id by seed.
        baselines: Id of the IID baseline by seed.
    """

    index: int
    stage: str
    name: str
    levels: Mapping[str, str]
    values: Mapping[str, Any]
    runs: Mapping[int, str]
    baselines: Mapping[int, str]


@dataclass(frozen=True)
class FactorAxis:
    """Describe a factor with several levels. ``is_numeric`` means that all levels are numbers."""

    name: str
    levels: tuple[str, ...]
    is_numeric: bool

    @property
    def label(self) -> str:
        """Return the short name of the factor."""
        return short_name(self.name)


@dataclass(frozen=True)
class StageView:
    """Group the conditions of one stage with the factors that vary in it."""

    name: str
    conditions: tuple[Condition, ...]
    axes: tuple[FactorAxis, ...]

    @property
    def color_axis(self) -> FactorAxis | None:
        """Return the factor that is compared by color inside a panel, or None if no factor varies.

        A factor of ``PRIMARY_FACTORS`` is preferred, then a factor whose levels are not numbers.
        """
        by_name = {axis.name: axis for axis in self.axes}
        categorical = [axis for axis in self.axes if not axis.is_numeric]
        return next((by_name[name] for name in PRIMARY_FACTORS if name in by_name), None) or next(iter([*categorical, *self.axes]), None)

    @property
    def panel_axes(self) -> tuple[FactorAxis, ...]:
        """Return the factors that are not compared by color."""
        return tuple(axis for axis in self.axes if axis != self.color_axis)

    @property
    def numeric_axes(self) -> tuple[FactorAxis, ...]:
        """Return the factors whose levels are numbers."""
        return tuple(axis for axis in self.axes if axis.is_numeric)

    def find_axis(self, *names: str) -> FactorAxis | None:
        """Return the first factor with one of these names, or None."""
        return next((axis for axis in self.axes if axis.name in names), None)

    @property
    def colors(self) -> dict[str, str]:
        """Return the color of each level of the compared factor."""
        return assign_colors(self.color_axis.levels) if self.color_axis else {"all": OKABE_ITO[0]}

    def color_level(self, condition: Condition) -> str:
        """Return the level that determines a condition's color."""
        return condition.levels[self.color_axis.name] if self.color_axis else "all"

    def group_by_panel(self, exclude: Sequence[FactorAxis | None] = ()) -> dict[str, list[Condition]]:
        """Group the conditions by their levels of all panel factors except ``exclude``."""
        axes = [axis for axis in self.panel_axes if axis not in exclude]
        groups: dict[str, list[Condition]] = {}
        for condition in self.conditions:
            groups.setdefault(condition_label(condition, axes), []).append(condition)
        return groups


def build_stages(
    entries: Sequence[ManifestEntry], factors: Sequence[str], configs: Mapping[str, Mapping[str, Any]]
) -> tuple[StageView, ...]:
    """Return the stages of a study in the order of its manifest.

    Args:
        entries: Entries of the manifest.
        factors: Names of the study's factors.
        configs: Flat configuration of every run that has started.
    """
    groups: dict[tuple[str, str], list[ManifestEntry]] = {}
    for entry in entries:
        if entry.role == "run":
            groups.setdefault((entry.stage, entry.condition), []).append(entry)
    conditions = []
    for index, ((stage, name), members) in enumerate(groups.items()):
        config = next((configs[entry.run] for entry in members if entry.run in configs), {})
        values = {factor: members[0].factors[factor] if factor in members[0].factors else config.get(factor) for factor in factors}
        conditions.append(
            Condition(
                index,
                stage,
                name,
                {factor: format_level(value) for factor, value in values.items()},
                values,
                {entry.seed: entry.run for entry in members},
                {entry.seed: entry.iid_baseline for entry in members if entry.iid_baseline and entry.iid_baseline != entry.run},
            )
        )
    return tuple(
        build_stage(name, [condition for condition in conditions if condition.stage == name], factors)
        for name in dict.fromkeys(condition.stage for condition in conditions)
    )


def build_stage(name: str, conditions: Sequence[Condition], factors: Sequence[str]) -> StageView:
    """Return one stage with the factors that have several levels in it."""
    axes = []
    for factor in factors:
        levels = {condition.levels[factor]: condition.values[factor] for condition in conditions}
        if len(levels) > 1:
            is_numeric = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in levels.values())
            order = sorted(levels, key=lambda level: levels[level]) if is_numeric else list(levels)
            axes.append(FactorAxis(factor, tuple(order), is_numeric))
    return StageView(name, tuple(conditions), tuple(axes))


def merge_axes(stages: Sequence[StageView]) -> list[FactorAxis]:
    """Return the factors that vary in any stage, each with its levels from all stages."""
    axes: dict[str, list[FactorAxis]] = {}
    for stage in stages:
        for axis in stage.axes:
            axes.setdefault(axis.name, []).append(axis)
    merged = []
    for name, axes_of_factor in axes.items():
        levels = dict.fromkeys(condition.levels[name] for stage in stages for condition in stage.conditions)
        is_numeric = all(axis.is_numeric for axis in axes_of_factor)
        merged.append(
            FactorAxis(name, tuple(sorted(levels, key=float) if is_numeric and all(map(is_number, levels)) else levels), is_numeric)
        )
    return merged


def condition_label(condition: Condition, axes: Sequence[FactorAxis]) -> str:
    """Describe a condition by its levels of some factors, such as ``topic, severity 0.5``."""
    return ", ".join(condition.levels[axis.name] if not axis.is_numeric else f"{axis.label} {condition.levels[axis.name]}" for axis in axes)


def format_level(value: Any) -> str:
    """Format a level as text."""
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def short_name(factor: str) -> str:
    """Return the last part of a configuration path: ``severity`` for ``partition.severity``."""
    return factor.rsplit(".", 1)[-1].replace("_", " ")


# DuckDB averages the records over seeds, because a page with all records would be too large. The table ``thin`` holds a limited number
# of rounds per run, and the last round of each: the metrics of the federation and of its domains, and the means of per-client metrics.

MAX_POINTS, MIN_ROUNDS, MAX_ROUNDS = 25_000, 12, 60  # points per figure; bounds of the number of rounds per curve
CONFIDENCE = 0.95

THIN_SQL = """
CREATE TEMP TABLE thin AS
WITH selected_rounds AS (
    SELECT metric, round FROM (
        SELECT metric, round, row_number() OVER (PARTITION BY metric ORDER BY round) - 1 AS round_index,
               count(*) OVER (PARTITION BY metric) AS num_rounds
        FROM (SELECT DISTINCT metric, round FROM records))
    WHERE num_rounds <= $rounds OR round_index = 0
          OR floor(round_index * ($rounds - 1) / (num_rounds - 1)) > floor((round_index - 1) * ($rounds - 1) / (num_rounds - 1))),
last_rounds AS (SELECT run, metric, max(round) AS round FROM records GROUP BY ALL)
SELECT run, metric, domain, round, client >= 0 AS clients, avg(value) FILTER (WHERE NOT isnan(value)) AS value
FROM records WHERE domain NOT LIKE '%head%'
    AND ((metric, round) IN (SELECT (metric, round) FROM selected_rounds)
         OR (run, metric, round) IN (SELECT (run, metric, round) FROM last_rounds))
GROUP BY ALL
"""


@dataclass(frozen=True, eq=False)
class StudyData:
    """Hold everything that the sections of a study's report read."""

    manifest: StudyManifest
    manifest_values: dict[str, Any]  # the content of the manifest
    frame: pd.DataFrame  # one row per run or IID baseline, as in ``fedrift.studies.outcomes``
    verdicts: tuple[HypothesisVerdict, ...]  # verdicts of the hypotheses
    stages: tuple[StageView, ...]  # the stages of the study
    experiments: dict[str, dict[str, Any]]  # configuration of every run that has started, tuning trials included
    finished: dict[str, dict[str, Any]]  # final results of every finished run
    environments: dict[str, dict[str, Any]]  # environment of every run
    on_progress: Callable[[str], None] = lambda message: None  # function that receives progress messages

    @property
    def study_config(self) -> dict[str, Any]:
        """Return the study's own configuration."""
        return dict(self.manifest_values["study"])

    @property
    def conditions(self) -> list[Condition]:
        """Return the conditions of all stages."""
        return [condition for stage in self.stages for condition in stage.conditions]

    @cached_property
    def connection(self) -> Any:
        """Return a DuckDB connection with the tables ``thin`` and ``cells``. Tuning trials are not included."""
        run_ids = {run for condition in self.conditions for run in (*condition.runs.values(), *condition.baselines.values())}
        connection = connect(Path(self.manifest.root), [self.manifest.get_run(run) for run in sorted(run_ids) if run in self.experiments])
        connection.execute("SET enable_progress_bar = false")
        connection.register(
            "cells",
            pd.DataFrame(
                [
                    (condition.index, seed, kind, run)
                    for condition in self.conditions
                    for kind, runs in (("run", condition.runs), ("iid_baseline", condition.baselines))
                    for seed, run in runs.items()
                ],
                columns=["condition", "seed", "kind", "run"],
            ).astype({"kind": "str", "run": "str"}),
        )
        domains = connection.execute("SELECT DISTINCT domain FROM records WHERE metric = 'loss'").fetchall()
        rounds = int(np.clip(MAX_POINTS / max(1, 2 * len(self.conditions) * len(domains)), MIN_ROUNDS, MAX_ROUNDS))
        connection.execute(THIN_SQL, {"rounds": rounds})
        return connection

    @cached_property
    def metrics(self) -> dict[str, tuple[str, ...]]:
        """Return the domains of each recorded metric: ``{"loss": ("", "business", ...)}``."""
        rows = self.connection.execute("SELECT metric, domain FROM thin GROUP BY ALL ORDER BY ALL").fetchall()
        metrics: dict[str, list[str]] = {}
        for metric, domain in rows:
            metrics.setdefault(metric, []).append(domain)
        return {metric: tuple(domains) for metric, domains in metrics.items()}

    def has_metric(self, metric: str, domains: bool = False) -> bool:
        """Return whether a metric is recorded for the federation, or with ``domains`` for single domains."""
        return any(bool(domain) == domains for domain in self.metrics.get(metric, ()))

    @cached_property
    def is_thinned(self) -> bool:
        """Return whether some evaluated rounds are missing from the curves."""
        drawn, evaluated = self.connection.execute(
            "SELECT (SELECT count(DISTINCT round) FROM thin WHERE metric = 'loss'), "
            "(SELECT count(DISTINCT round) FROM records WHERE metric = 'loss')"
        ).fetchone()
        return bool(drawn < evaluated)

    def mean_curves(self, metric: str) -> pd.DataFrame:
        """Return mean curves over seeds with their t-intervals, by ``condition``, ``kind``, ``domain`` and ``round``.

        The mean is NaN in a round in which a seed has no finite value, because a mean over the remaining seeds would jump there.

        Args:
            metric: Name of the metric.
        """
        return self._aggregate_seeds(
            "SELECT condition, kind, domain, round, avg(value) FILTER (WHERE isfinite(value)) AS mean, "
            "stddev_samp(value) FILTER (WHERE isfinite(value)) AS sd, count(*) AS seeds, "
            "count(*) FILTER (WHERE value IS NULL OR NOT isfinite(value)) AS num_missing "
            "FROM thin JOIN cells USING (run) WHERE metric = $metric AND NOT clients GROUP BY ALL ORDER BY ALL",
            metric,
        )

    def gap_curves(self, metric: str) -> pd.DataFrame:
        """Return mean curves of each run minus its own IID baseline, paired by seed, by ``condition``, ``domain`` and ``round``.

        Args:
            metric: Name of the metric.
        """
        return self._aggregate_seeds(
            "WITH seed_values AS (SELECT * FROM thin JOIN cells USING (run) WHERE metric = $metric AND NOT clients), pairs AS"
            " (SELECT a.condition, a.domain, a.round, a.seed, a.value - b.value AS value FROM seed_values a JOIN seed_values b"
            " ON a.kind = 'run' AND b.kind = 'iid_baseline' AND a.condition = b.condition AND a.seed = b.seed"
            " AND a.domain = b.domain AND a.round = b.round) SELECT condition, domain, round,"
            " avg(value) FILTER (WHERE isfinite(value)) AS mean, stddev_samp(value) FILTER (WHERE isfinite(value))"
            " AS sd, count(*) AS seeds, count(*) FILTER (WHERE value IS NULL OR NOT isfinite(value)) AS num_missing FROM pairs GROUP BY"
            " ALL ORDER BY ALL",
            metric,
        )

    def metric_by_run(self, metric: str, clients: bool = False, last: bool = False) -> dict[str, float]:
        """Return one value of a metric per run.

        All rounds count, even those that the curves leave out. Round 0 counts only if there is no other round. A value that is not finite
        makes the result NaN.

        Args:
            metric: Name of the metric.
            clients: Whether the metric is recorded per client; its mean over clients is used.
            last: Whether to return the value of the last round instead of the mean over rounds.
        """
        aggregate = "arg_max(value, round)" if last else "avg(value)"
        rows = self.connection.execute(
            f"SELECT run, CASE WHEN bool_and(isfinite(value)) THEN {aggregate} ELSE 'nan'::DOUBLE END FROM (SELECT run, round,"
            " coalesce(avg(value) FILTER (WHERE NOT isnan(value)), 'nan'::DOUBLE) AS value FROM records WHERE metric = $metric"
            " AND domain = '' AND (client >= 0) = $clients GROUP BY run, round QUALIFY round > 0 OR max(round) OVER"
            " (PARTITION BY run) = 0) GROUP BY run",
            {"metric": metric, "clients": clients},
        ).fetchall()
        return dict(rows)

    def _aggregate_seeds(self, query: str, metric: str) -> pd.DataFrame:
        frame: pd.DataFrame = self.connection.execute(query, {"metric": metric}).df()
        most_seeds = frame.groupby([name for name in ("condition", "kind", "domain") if name in frame])["seeds"].transform("max")
        frame["mean"] = frame["mean"].where((frame["num_missing"] == 0) & (frame["seeds"] == most_seeds))
        seeds = frame["seeds"].to_numpy(dtype=np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            half_width = stats.t.ppf((1 + CONFIDENCE) / 2, np.where(seeds > 1, seeds - 1, np.nan)) * frame["sd"] / np.sqrt(seeds)
        frame["low"], frame["high"] = frame["mean"] - half_width, frame["mean"] + half_width
        return frame

    def outcome_by_run(self, name: str) -> dict[str, float]:
        """Return an outcome of the study per run: NaN if it is missing, and infinite on the worse side if the run diverged.

        A run of several stages may have an outcome in one of them only, such as a gap in a stage with IID baselines.
        """
        if name not in self.frame:
            return {}
        values = outcome_values(self.frame, name, include_baselines=True)["value"]
        outcomes: dict[str, float] = {}
        for run, value in zip(self.frame["run"], values.tolist(), strict=True):
            if run not in outcomes or not math.isnan(value):
                outcomes[run] = value
        return outcomes

    def stage_frame(self, stage: StageView) -> pd.DataFrame:
        """Return the rows of a stage's runs and of their IID baselines."""
        runs = {run for condition in stage.conditions for run in condition.runs.values()}
        baselines = {run for condition in stage.conditions for run in condition.baselines.values()}
        frame = self.frame
        return frame[
            ((frame["role"] == "run") & frame["run"].isin(runs) & (frame["stage"] == stage.name))
            | ((frame["role"] == "iid_baseline") & frame["run"].isin(baselines))
        ]


def load_study_data(manifest: StudyManifest, on_progress: Callable[[str], None] = lambda message: None) -> StudyData:
    """Load the data of a study, which may be unfinished."""
    manifest_values = manifest.read()
    entries: Sequence[ManifestEntry] = manifest_values["runs"]
    frame, verdicts = evaluate_study_hypotheses(manifest)
    runs = {entry.run: manifest.get_run(entry) for entry in entries}
    started = [run for run in runs.values() if (run.folder / "experiment.json").exists()]
    unreadable = get_read_errors(started)  # the frame gives the reason
    contents = try_read_each([run for run in started if run.id not in unreadable], _read_stored)[0]
    experiments = {run.id: experiment for run, (experiment, _, _) in contents}
    finished = {run.id: ending for run, (_, ending, _) in contents if run.is_finished}
    environments = {run.id: environment for run, (_, _, environment) in contents if environment}
    flattened = {
        id: flatten({key: value for key, value in config.items() if key != "partition_table"}) for id, config in experiments.items()
    }
    return StudyData(
        manifest,
        manifest_values,
        frame,
        verdicts,
        build_stages(entries, manifest_values["factors"], flattened),
        experiments,
        finished,
        environments,
        on_progress,
    )


def iter_rows(frame: pd.DataFrame) -> Iterator[Any]:
    """Iterate over the rows of a frame; the columns are attributes of a row."""
    return frame.itertuples()


def _read_stored(run: Run) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    return run.config, run.summary(), run.environment
