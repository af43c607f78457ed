"""What the report shows of one run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..core.records import Trajectory


class RunView(NamedTuple):
    """One run, ready to be shown; ``experiment["partition_table"]`` may hold the dealt tokens."""

    name: str
    experiment: dict[str, Any]
    trajectory: Trajectory
    iid_baseline: Trajectory | None
    status: str  # as ``Run.status`` says it
    environment: dict[str, Any]

    @property
    def planned_rounds(self) -> int | None:
        """How many rounds the experiment plans, where it says so."""
        training = self.experiment.get("training")
        return training.get("num_rounds") if isinstance(training, dict) else None


def with_unique_names(views: Iterable[RunView]) -> list[RunView]:
    """The same exhibits with names that differ: a second "a" is "a (2)"."""
    taken: set[str] = set()
    named = []
    for exhibit in views:
        name, again = exhibit.name, 1
        while name in taken:
            again += 1
            name = f"{exhibit.name} ({again})"
        taken.add(name)
        named.append(exhibit._replace(name=name))
    return named


# From trajectories to the rows that a figure draws: only what was written, and what left the scale apart.

Row = dict[str, Any]
RUN, IID_BASELINE = "run", "IID baseline"
BEFORE_AVERAGING, AFTER_AVERAGING = "own model, before averaging", "shared model, after averaging"
SIGNIFICANT_DIGITS = 6  # of a number on the page; the run's own files hold them all


def curve_rows(views: Iterable[RunView], metric: str, domain: str = "") -> list[Row]:
    """A metric of the federation or of a domain, of every run and its twin."""
    rows = []
    for exhibit, arm, run in runs_with_baselines(views):
        if run.has_curve(metric, domain):
            seen = run.observed_mask(metric, domain)
            rows += to_rows(run.rounds[seen], run.curve(metric, domain)[seen], run=exhibit.name, which=arm)
    return rows


def mean_rows(views: Iterable[RunView], metric: str) -> list[Row]:
    """A metric by client as the mean over the clients that have it in a round."""
    rows = []
    for exhibit, arm, run in runs_with_baselines(views):
        if run.has_client_table(metric):
            table = run.client_table(metric)
            seen = np.isfinite(table).any(axis=1)
            rows += to_rows(run.rounds[seen], np.nanmean(table[seen], axis=1), run=exhibit.name, which=arm)
    return rows


def averaging_stages(run: Trajectory) -> tuple[tuple[str, str], ...]:
    """Which metrics are before and after averaging: both on the same blocks where the run has that."""
    return ("loss.before", BEFORE_AVERAGING), ("loss.after" if run.has_client_table("loss.after") else "loss", AFTER_AVERAGING)


def client_rows(run: Trajectory, client: int) -> list[Row]:
    """One client's loss on its own distribution before and after averaging."""
    rows = []
    for metric, stage in averaging_stages(run):
        if run.has_client_table(metric):
            values = run.client_table(metric)[:, client]
            seen = ~np.isnan(values)
            rows += to_rows(run.rounds[seen], values[seen], stage=stage)
    return rows


def band_rows(run: Trajectory) -> list[Row]:
    """All clients' losses before and after averaging as median, lowest and highest of each round."""
    rows: list[Row] = []
    for metric, stage in averaging_stages(run):
        if not run.has_client_table(metric):
            continue
        table = run.client_table(metric)
        table = np.where(np.isfinite(table), table, np.nan)
        for number, row in zip(run.rounds, table, strict=True):
            if not np.isnan(row).all():
                low, middle, high = np.nanquantile(row, [0, 0.5, 1])
                rows.append(
                    {"stage": stage, "round": int(number), "value": round_value(middle), "low": round_value(low), "high": round_value(high)}
                )
    return rows


def runs_with_baselines(views: Iterable[RunView]) -> list[tuple[RunView, str, Trajectory]]:
    """Every run, and its twin where there is one."""
    both = [(exhibit, arm, run) for exhibit in views for arm, run in ((RUN, exhibit.trajectory), (IID_BASELINE, exhibit.iid_baseline))]
    return [(exhibit, arm, run) for exhibit, arm, run in both if run is not None]


def to_rows(rounds: np.ndarray, values: np.ndarray, **said: str) -> list[Row]:
    """One row a number; ``None`` where it is not finite."""
    return [{**said, "round": int(number), "value": round_value(value)} for number, value in zip(rounds, values, strict=True)]


def round_value(value: float) -> float | None:
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}") if np.isfinite(value) else None


def loss_ceiling(rows: Sequence[Row]) -> float | None:
    """The highest loss worth drawing, twice the highest first one; None if all are below."""
    first: dict[tuple[Any, ...], float] = {}
    for row in rows:
        if row["value"] is not None:
            first.setdefault((row.get("run"), row.get("which"), row.get("stage")), row["value"])
    top = 2 * max(first.values(), default=0.0)
    return top if any(row["value"] is not None and row["value"] > top for row in rows) else None


def split_off_scale(rows: Sequence[Row], top: float | None) -> tuple[list[Row], list[Row]]:
    """The rows with what is above ``top`` blanked out, and a mark wherever a curve goes blank."""
    highest = float("inf") if top is None else top
    inside = [{**row, "value": None} if row["value"] is not None and row["value"] > highest else row for row in rows]
    marks: list[Row] = []
    gone: dict[tuple[Any, ...], bool] = {}
    for row in inside:
        curve = row.get("run"), row.get("which"), row.get("stage")
        if row["value"] is None and not gone.get(curve):
            marks.append({**row, "note": "not a number, or off the scale"})
        gone[curve] = row["value"] is None
    return inside, marks


def value_span(panels: Iterable[Sequence[Row]]) -> float:
    """The longest stretch of values that a panel needs, for panels that must be compared by eye."""
    lengths = [max(values) - min(values) for rows in panels if (values := [row["value"] for row in rows if row["value"] is not None])]
    return max(lengths, default=0.0)
