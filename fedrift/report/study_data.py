"""The arms of a study, and which of its factors colour a figure, which make panels, and which are dials."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from ..stats import Verdict, assign_worst_rank, default_worst_end
from ..storage import Run, connect, read_each
from ..storage.query import find_faults, flatten
from ..studies import ManifestEntry, StudyManifest, judge_hypotheses
from .figures import OKABE_ITO

PRIMARY_FACTORS = ("algorithm", "clustering", "algorithm.aggregator")  # what is compared, where it is varied
FLAT_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Condition:
    """One cell of the design over its seeds. ``place``: its number among all arms of the study."""

    index: int
    stage: str
    name: str
    levels: Mapping[str, str]  # of every factor of the study; what the arm does not vary as its runs have it
    values: Mapping[str, Any]
    runs: Mapping[int, str]
    baselines: Mapping[int, str]


@dataclass(frozen=True)
class FactorAxis:
    """A factor that takes several levels. ``numbers``: its levels are numbers, so it is a dial."""

    name: str
    levels: tuple[str, ...]
    is_numeric: bool

    @property
    def label(self) -> str:
        return short_name(self.name)


@dataclass(frozen=True)
class StageView:
    """Arms that make a whole. ``colour``: the axis that is compared inside a panel; ``rest``: those that make panels."""

    name: str
    conditions: tuple[Condition, ...]
    axes: tuple[FactorAxis, ...]

    @property
    def color_axis(self) -> FactorAxis | None:
        named = {axis.name: axis for axis in self.axes}
        words = [axis for axis in self.axes if not axis.is_numeric]
        return next((named[name] for name in PRIMARY_FACTORS if name in named), None) or next(iter([*words, *self.axes]), None)

    @property
    def panel_axes(self) -> tuple[FactorAxis, ...]:
        return tuple(axis for axis in self.axes if axis != self.color_axis)

    @property
    def numeric_axes(self) -> tuple[FactorAxis, ...]:
        return tuple(axis for axis in self.axes if axis.is_numeric)

    def find_axis(self, *names: str) -> FactorAxis | None:
        return next((axis for axis in self.axes if axis.name in names), None)

    @property
    def colors(self) -> dict[str, str]:
        return assign_level_colors(self.color_axis.levels) if self.color_axis else {"all": OKABE_ITO[0]}

    def color_level(self, condition: Condition) -> str:
        """The level that colours an arm."""
        return condition.levels[self.color_axis.name] if self.color_axis else "all"

    def group_by_panel(self, exclude: Sequence[FactorAxis | None] = ()) -> dict[str, list[Condition]]:
        """The arms by their levels of all axes but the one that colours, and but some."""
        axes = [axis for axis in self.panel_axes if axis not in exclude]
        found: dict[str, list[Condition]] = {}
        for arm in self.conditions:
            found.setdefault(condition_label(arm, axes), []).append(arm)
        return found


def build_stages(
    entries: Sequence[ManifestEntry], factors: Sequence[str], configs: Mapping[str, Mapping[str, Any]]
) -> tuple[StageView, ...]:
    """The stages of a study in its order; ``asked``: the experiment of each run that has begun, flat."""
    cells: dict[tuple[str, str], list[ManifestEntry]] = {}
    for entry in entries:
        if entry.role == "run":
            cells.setdefault((entry.stage, entry.condition), []).append(entry)
    arms = []
    for place, ((stage, name), members) in enumerate(cells.items()):
        known = next((configs[entry.run] for entry in members if entry.run in configs), {})
        values = {factor: members[0].factors[factor] if factor in members[0].factors else known.get(factor) for factor in factors}
        arms.append(
            Condition(
                place,
                stage,
                name,
                {factor: format_level(value) for factor, value in values.items()},
                values,
                {entry.seed: entry.run for entry in members},
                {entry.seed: entry.iid_baseline for entry in members if entry.iid_baseline and entry.iid_baseline != entry.run},
            )
        )
    return tuple(
        build_stage(name, [arm for arm in arms if arm.stage == name], factors) for name in dict.fromkeys(arm.stage for arm in arms)
    )


def build_stage(name: str, conditions: Sequence[Condition], factors: Sequence[str]) -> StageView:
    axes = []
    for factor in factors:
        levels = {arm.levels[factor]: arm.values[factor] for arm in conditions}
        if len(levels) > 1:
            numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in levels.values())
            order = sorted(levels, key=lambda level: levels[level]) if numbers else list(levels)
            axes.append(FactorAxis(factor, tuple(order), numbers))
    return StageView(name, tuple(conditions), tuple(axes))


def merge_axes(stages: Sequence[StageView]) -> list[FactorAxis]:
    """The axes of all stages, each once with all its levels."""
    axes: dict[str, list[FactorAxis]] = {}
    for each in stages:
        for axis in each.axes:
            axes.setdefault(axis.name, []).append(axis)
    merged = []
    for name, same in axes.items():
        levels = dict.fromkeys(arm.levels[name] for each in stages for arm in each.conditions)
        numbers = all(axis.is_numeric for axis in same)
        merged.append(FactorAxis(name, tuple(sorted(levels, key=float) if numbers and all(map(_is_number, levels)) else levels), numbers))
    return merged


def condition_label(condition: Condition, axes: Sequence[FactorAxis]) -> str:
    """An arm by its levels of some axes: ``topic, severity 0.5``."""
    return ", ".join(condition.levels[axis.name] if not axis.is_numeric else f"{axis.label} {condition.levels[axis.name]}" for axis in axes)


def assign_level_colors(levels: Sequence[str]) -> dict[str, str]:
    """A colour for each level; from the seventh on they repeat."""
    return {level: OKABE_ITO[place % len(OKABE_ITO)] for place, level in enumerate(levels)}


def format_level(value: Any) -> str:
    """A level in words."""
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def short_name(factor: str) -> str:
    """The last part of a path: ``severity`` for ``partition.severity``."""
    return factor.rsplit(".", 1)[-1].replace("_", " ")


def ambiguous_names(factors: Sequence[str]) -> set[str]:
    """Short names that two factors share."""
    return {name for name, count in Counter(map(short_name, factors)).items() if count > 1}


def _is_number(level: str) -> bool:
    try:
        float(level)
    except ValueError:
        return False
    return True


# All that a report asks of the store, opened once: runs by arm, and their numbers thinned and averaged by DuckDB.
#
# Records are never taken to the page one by one. ``thin`` holds of every run the numbers of the federation and of its
# domains, and of what only clients have the mean over the clients that have it, in at most so many rounds.

MAX_POINTS, MIN_ROUNDS, MAX_ROUNDS = 25_000, 12, 60  # rows of one figure on the page; rounds that a curve is thinned to
CONFIDENCE = 0.95

THIN_SQL = """
CREATE TEMP TABLE thin AS
WITH kept AS (
    SELECT metric, round FROM (
        SELECT metric, round, row_number() OVER (PARTITION BY metric ORDER BY round) - 1 AS place,
               count(*) OVER (PARTITION BY metric) AS every
        FROM (SELECT DISTINCT metric, round FROM records))
    WHERE every <= $rounds OR place = 0
          OR floor(place * ($rounds - 1) / (every - 1)) > floor((place - 1) * ($rounds - 1) / (every - 1)))
SELECT run, metric, domain, round, client >= 0 AS clients, avg(value) FILTER (WHERE NOT isnan(value)) AS value
FROM records JOIN kept USING (metric, round) WHERE domain NOT LIKE '%head%' GROUP BY ALL
"""


@dataclass(frozen=True, eq=False)
class StudyData:
    """A study as it stands."""

    manifest: StudyManifest
    manifest_values: dict[str, Any]  # the book
    frame: pd.DataFrame  # one row a run or twin, as ``fedrift.studies.outcomes`` makes it
    verdicts: tuple[Verdict, ...]
    stages: tuple[StageView, ...]
    experiments: dict[str, dict[str, Any]]  # of every run that has begun, trials among them
    finished: dict[str, dict[str, Any]]  # of every run that is over
    environments: dict[str, dict[str, Any]]  # environment by run
    on_progress: Callable[[str], None] = lambda message: None

    @property
    def study_config(self) -> dict[str, Any]:
        return dict(self.manifest_values["study"])

    @property
    def conditions(self) -> list[Condition]:
        return [arm for stage in self.stages for arm in stage.conditions]

    @cached_property
    def connection(self) -> Any:
        """DuckDB with ``thin`` and ``cells``; trials are not among its runs."""
        wanted = {run for arm in self.conditions for run in (*arm.runs.values(), *arm.baselines.values())}
        found = connect(Path(self.manifest.root), [self.manifest.get_run(run) for run in sorted(wanted) if run in self.experiments])
        found.execute("SET enable_progress_bar = false")
        found.register(
            "cells",
            pd.DataFrame(
                [
                    (arm.index, seed, kind, run)
                    for arm in self.conditions
                    for kind, runs in (("run", arm.runs), ("iid_baseline", arm.baselines))
                    for seed, run in runs.items()
                ],
                columns=["condition", "seed", "kind", "run"],
            ).astype({"kind": "str", "run": "str"}),
        )
        domains = found.execute("SELECT DISTINCT domain FROM records WHERE metric = 'loss'").fetchall()
        rounds = int(np.clip(MAX_POINTS / max(1, 2 * len(self.conditions) * len(domains)), MIN_ROUNDS, MAX_ROUNDS))
        found.execute(THIN_SQL, {"rounds": rounds})
        return found

    @cached_property
    def metrics(self) -> dict[str, tuple[str, ...]]:
        """What is recorded, and for which domains: ``{"loss": ("", "business", ...)}``."""
        rows = self.connection.execute("SELECT metric, domain FROM thin GROUP BY ALL ORDER BY ALL").fetchall()
        found: dict[str, list[str]] = {}
        for metric, domain in rows:
            found.setdefault(metric, []).append(domain)
        return {metric: tuple(domains) for metric, domains in found.items()}

    def has_metric(self, metric: str, domains: bool = False) -> bool:
        return any(bool(domain) == domains for domain in self.metrics.get(metric, ()))

    @cached_property
    def is_thinned(self) -> bool:
        """Whether there are rounds with a loss that are not drawn."""
        kept, every = self.connection.execute(
            "SELECT (SELECT count(DISTINCT round) FROM thin WHERE metric = 'loss'), "
            "(SELECT count(DISTINCT round) FROM records WHERE metric = 'loss')"
        ).fetchone()
        return bool(kept < every)

    def mean_curves(self, metric: str, clients: bool = False) -> pd.DataFrame:
        """``condition, kind, domain, round``: mean over seeds and its t-interval; NaN where a seed has no finite number, or none
        at all: a mean over the seeds that are left would jump where one stops."""
        return self._aggregate_seeds(
            "SELECT condition, kind, domain, round, avg(value) FILTER (WHERE isfinite(value)) AS mean, "
            "stddev_samp(value) FILTER (WHERE isfinite(value)) AS sd, count(*) AS seeds, "
            "count(*) FILTER (WHERE value IS NULL OR NOT isfinite(value)) AS lost "
            "FROM thin JOIN cells USING (run) WHERE metric = $metric AND clients = $clients GROUP BY ALL ORDER BY ALL",
            metric,
            clients,
        )

    def gap_curves(self, metric: str, clients: bool = False) -> pd.DataFrame:
        """``condition, domain, round``: the same of each run less its own IID baseline, paired by seed."""
        return self._aggregate_seeds(
            "WITH of AS (SELECT * FROM thin JOIN cells USING (run) WHERE metric = $metric AND clients = $clients), pairs AS"
            " (SELECT a.condition, a.domain, a.round, a.seed, a.value - b.value AS value FROM of a JOIN of b"
            " ON a.kind = 'run' AND b.kind = 'iid_baseline' AND a.condition = b.condition AND a.seed = b.seed"
            " AND a.domain = b.domain AND a.round = b.round) SELECT condition, domain, round,"
            " avg(value) FILTER (WHERE isfinite(value)) AS mean, stddev_samp(value) FILTER (WHERE isfinite(value))"
            " AS sd, count(*) AS seeds, count(*) FILTER (WHERE value IS NULL OR NOT isfinite(value)) AS lost FROM pairs GROUP BY"
            " ALL ORDER BY ALL",
            metric,
            clients,
        )

    def metric_by_run(self, metric: str, clients: bool = False, last: bool = False) -> dict[str, float]:
        """A metric of each run as its mean over all rounds of training, thinned or not, or in the last one that has it.

        Round 0 counts only where there is no other. A round whose number is not finite makes the mean NaN.
        """
        what = "arg_max(value, round)" if last else "avg(value)"
        rows = self.connection.execute(
            f"SELECT run, CASE WHEN bool_and(isfinite(value)) THEN {what} ELSE 'nan'::DOUBLE END FROM (SELECT run, round,"
            " coalesce(avg(value) FILTER (WHERE NOT isnan(value)), 'nan'::DOUBLE) AS value FROM records WHERE metric = $metric"
            " AND domain = '' AND (client >= 0) = $clients GROUP BY run, round QUALIFY round > 0 OR max(round) OVER"
            " (PARTITION BY run) = 0) GROUP BY run",
            {"metric": metric, "clients": clients},
        ).fetchall()
        return dict(rows)

    def _aggregate_seeds(self, query: str, metric: str, clients: bool) -> pd.DataFrame:
        frame: pd.DataFrame = self.connection.execute(query, {"metric": metric, "clients": clients}).df()
        every = frame.groupby([name for name in ("condition", "kind", "domain") if name in frame])["seeds"].transform("max")
        frame["mean"] = frame["mean"].where((frame["lost"] == 0) & (frame["seeds"] == every))
        seeds = frame["seeds"].to_numpy(dtype=np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            half = stats.t.ppf((1 + CONFIDENCE) / 2, np.where(seeds > 1, seeds - 1, np.nan)) * frame["sd"] / np.sqrt(seeds)
        frame["low"], frame["high"] = frame["mean"] - half, frame["mean"] + half
        return frame

    def outcome_by_run(self, name: str) -> dict[str, float]:
        """An outcome of the study by run; NaN where there is none yet, infinite at the bad end where the run diverged."""
        if name not in self.frame:
            return {}
        numbers = assign_worst_rank(self.frame[name].to_numpy(), self.frame["diverged"].to_numpy(), default_worst_end(name))
        return dict(zip(self.frame["run"], numbers.tolist(), strict=True))

    def stage_frame(self, stage: StageView) -> pd.DataFrame:
        """The rows of a stage's runs and of their twins."""
        wanted = {run for arm in stage.conditions for run in arm.runs.values()}
        twins = {run for arm in stage.conditions for run in arm.baselines.values()}
        frame = self.frame
        return frame[
            ((frame["role"] == "run") & frame["run"].isin(wanted) & (frame["stage"] == stage.name))
            | ((frame["role"] == "iid_baseline") & frame["run"].isin(twins))
        ]


def load_study_data(manifest: StudyManifest, on_progress: Callable[[str], None] = lambda message: None) -> StudyData:
    """What is there of a study, finished or not."""
    said = manifest.read()
    entries: Sequence[ManifestEntry] = said["runs"]
    frame, verdicts = judge_hypotheses(manifest)
    runs = {entry.run: manifest.get_run(entry) for entry in entries}
    there = [run for run in runs.values() if (run.folder / "experiment.json").exists()]
    faults = find_faults(there)  # the frame says why
    read = read_each([run for run in there if run.id not in faults], _read_stored)[0]
    experiments = {run.id: experiment for run, (experiment, _, _) in read}
    endings = {run.id: ending for run, (_, ending, _) in read if run.is_finished}
    places = {run.id: environment for run, (_, _, environment) in read if environment}
    flattened = {id: flatten({key: value for key, value in asked.items() if key != "partition_table"}) for id, asked in experiments.items()}
    return StudyData(
        manifest, said, frame, verdicts, build_stages(entries, said["factors"], flattened), experiments, endings, places, on_progress
    )


def iter_rows(frame: pd.DataFrame) -> Iterator[Any]:
    """Its rows, whose columns are attributes."""
    return frame.itertuples()


def _read_stored(run: Run) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    return run.config, dict(run.read_json("finished")) if run.is_finished else {}, run.environment
