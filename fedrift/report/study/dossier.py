"""All that a report asks of the store, opened once: runs by arm, and their numbers thinned and averaged by DuckDB.

Records are never taken to the page one by one. ``thin`` holds of every run the numbers of the federation and of its
domains, and of what only clients have the mean over the clients that have it, in at most so many rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from ...statistics import Verdict, bad_end, worst_rank
from ...store import Run, connected, read_each
from ...store.query import find_faults, flat
from ...study import Book, Entry, judged
from .arms import Arm, Stage, stages

POINTS, FEWEST, MOST = 25_000, 12, 60  # rows of one figure on the page; rounds that a curve is thinned to
LEVEL = 0.95

THIN = """
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
class Dossier:
    """A study as it stands."""

    book: Book
    said: dict[str, Any]  # the book
    frame: pd.DataFrame  # one row a run or twin, as ``fedrift.study.table`` makes it
    verdicts: tuple[Verdict, ...]
    stages: tuple[Stage, ...]
    experiments: dict[str, dict[str, Any]]  # of every run that has begun, trials among them
    endings: dict[str, dict[str, Any]]  # of every run that is over
    places: dict[str, dict[str, Any]]  # environment by run
    say: Callable[[str], None] = lambda message: None

    @property
    def study(self) -> dict[str, Any]:
        return dict(self.said["study"])

    @property
    def arms(self) -> list[Arm]:
        return [arm for stage in self.stages for arm in stage.arms]

    @cached_property
    def connection(self) -> Any:
        """DuckDB with ``thin`` and ``cells``; trials are not among its runs."""
        wanted = {run for arm in self.arms for run in (*arm.runs.values(), *arm.twins.values())}
        found = connected(Path(self.book.root), [self.book.run(run) for run in sorted(wanted) if run in self.experiments])
        found.execute("SET enable_progress_bar = false")
        found.register(
            "cells",
            pd.DataFrame(
                [
                    (arm.place, seed, kind, run)
                    for arm in self.arms
                    for kind, runs in (("run", arm.runs), ("twin", arm.twins))
                    for seed, run in runs.items()
                ],
                columns=["arm", "seed", "kind", "run"],
            ).astype({"kind": "str", "run": "str"}),
        )
        domains = found.execute("SELECT DISTINCT domain FROM records WHERE metric = 'loss'").fetchall()
        rounds = int(np.clip(POINTS / max(1, 2 * len(self.arms) * len(domains)), FEWEST, MOST))
        found.execute(THIN, {"rounds": rounds})
        return found

    @cached_property
    def metrics(self) -> dict[str, tuple[str, ...]]:
        """What is recorded, and for which domains: ``{"loss": ("", "business", ...)}``."""
        rows = self.connection.execute("SELECT metric, domain FROM thin GROUP BY ALL ORDER BY ALL").fetchall()
        found: dict[str, list[str]] = {}
        for metric, domain in rows:
            found.setdefault(metric, []).append(domain)
        return {metric: tuple(domains) for metric, domains in found.items()}

    def has(self, metric: str, domains: bool = False) -> bool:
        return any(bool(domain) == domains for domain in self.metrics.get(metric, ()))

    @cached_property
    def thinned(self) -> bool:
        """Whether there are rounds with a loss that are not drawn."""
        kept, every = self.connection.execute(
            "SELECT (SELECT count(DISTINCT round) FROM thin WHERE metric = 'loss'), "
            "(SELECT count(DISTINCT round) FROM records WHERE metric = 'loss')"
        ).fetchone()
        return bool(kept < every)

    def curves(self, metric: str, clients: bool = False) -> pd.DataFrame:
        """``arm, kind, domain, round``: mean over seeds and its t-interval; NaN where a seed has no finite number, or none at
        all: a mean over the seeds that are left would jump where one stops."""
        return self._over_seeds(
            "SELECT arm, kind, domain, round, avg(value) FILTER (WHERE isfinite(value)) AS mean, "
            "stddev_samp(value) FILTER (WHERE isfinite(value)) AS sd, count(*) AS seeds, "
            "count(*) FILTER (WHERE value IS NULL OR NOT isfinite(value)) AS lost "
            "FROM thin JOIN cells USING (run) WHERE metric = $metric AND clients = $clients GROUP BY ALL ORDER BY ALL",
            metric,
            clients,
        )

    def gaps(self, metric: str, clients: bool = False) -> pd.DataFrame:
        """``arm, domain, round``: the same of each run less its own IID twin, paired by seed."""
        return self._over_seeds(
            "WITH of AS (SELECT * FROM thin JOIN cells USING (run) WHERE metric = $metric AND clients = $clients), pairs AS"
            " (SELECT a.arm, a.domain, a.round, a.seed, a.value - b.value AS value FROM of a JOIN of b ON a.kind = 'run' AND"
            " b.kind = 'twin' AND a.arm = b.arm AND a.seed = b.seed AND a.domain = b.domain AND a.round = b.round) SELECT arm,"
            " domain, round, avg(value) FILTER (WHERE isfinite(value)) AS mean, stddev_samp(value) FILTER (WHERE isfinite(value))"
            " AS sd, count(*) AS seeds, count(*) FILTER (WHERE value IS NULL OR NOT isfinite(value)) AS lost FROM pairs GROUP BY"
            " ALL ORDER BY ALL",
            metric,
            clients,
        )

    def per_run(self, metric: str, clients: bool = False, last: bool = False) -> dict[str, float]:
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

    def _over_seeds(self, query: str, metric: str, clients: bool) -> pd.DataFrame:
        frame: pd.DataFrame = self.connection.execute(query, {"metric": metric, "clients": clients}).df()
        every = frame.groupby([name for name in ("arm", "kind", "domain") if name in frame])["seeds"].transform("max")
        frame["mean"] = frame["mean"].where((frame["lost"] == 0) & (frame["seeds"] == every))
        seeds = frame["seeds"].to_numpy(dtype=np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            half = stats.t.ppf((1 + LEVEL) / 2, np.where(seeds > 1, seeds - 1, np.nan)) * frame["sd"] / np.sqrt(seeds)
        frame["low"], frame["high"] = frame["mean"] - half, frame["mean"] + half
        return frame

    def outcome(self, name: str) -> dict[str, float]:
        """An outcome of the study by run; NaN where there is none yet, infinite at the bad end where the run diverged."""
        if name not in self.frame:
            return {}
        numbers = worst_rank(self.frame[name].to_numpy(), self.frame["diverged"].to_numpy(), bad_end(name))
        return dict(zip(self.frame["run"], numbers.tolist(), strict=True))

    def of_stage(self, stage: Stage) -> pd.DataFrame:
        """The rows of a stage's runs and of their twins."""
        wanted = {run for arm in stage.arms for run in arm.runs.values()}
        twins = {run for arm in stage.arms for run in arm.twins.values()}
        frame = self.frame
        return frame[
            ((frame["role"] == "run") & frame["run"].isin(wanted) & (frame["stage"] == stage.name))
            | ((frame["role"] == "twin") & frame["run"].isin(twins))
        ]


def opened(book: Book, say: Callable[[str], None] = lambda message: None) -> Dossier:
    """What is there of a study, finished or not."""
    said = book.read()
    entries: Sequence[Entry] = said["runs"]
    frame, verdicts = judged(book)
    runs = {entry.run: book.run(entry) for entry in entries}
    there = [run for run in runs.values() if (run.folder / "experiment.json").exists()]
    faults = find_faults(there)  # the frame says why
    read = read_each([run for run in there if run.id not in faults], _stored)[0]
    experiments = {run.id: experiment for run, (experiment, _, _) in read}
    endings = {run.id: ending for run, (_, ending, _) in read if run.finished}
    places = {run.id: environment for run, (_, _, environment) in read if environment}
    flattened = {
        id: flat({key: value for key, value in asked.items() if key != "partition_table"}) for id, asked in experiments.items()
    }
    return Dossier(book, said, frame, verdicts, stages(entries, said["factors"], flattened), experiments, endings, places, say)


def each_row(frame: pd.DataFrame) -> Iterator[Any]:
    """Its rows, whose columns are attributes."""
    return frame.itertuples()


def _stored(run: Run) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    return run.experiment, dict(run.read_json("finished")) if run.finished else {}, run.environment
