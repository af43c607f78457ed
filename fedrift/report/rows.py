"""From trajectories to the rows that a figure draws: only what was written, and what left the scale apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..records import Trajectory
from .exhibit import Exhibit

Row = dict[str, Any]
RUN, TWIN = "run", "IID twin"
BEFORE, AFTER = "own model, before averaging", "shared model, after averaging"
DIGITS = 6  # of a number on the page; the run's own files hold them all


def curve_rows(exhibits: Iterable[Exhibit], metric: str, domain: str = "") -> list[Row]:
    """A metric of the federation or of a domain, of every run and its twin."""
    rows = []
    for exhibit, arm, run in arms(exhibits):
        if run.has(metric, domain):
            seen = run.seen(metric, domain)
            rows += points(run.rounds[seen], run.curve(metric, domain)[seen], run=exhibit.name, arm=arm)
    return rows


def mean_rows(exhibits: Iterable[Exhibit], metric: str) -> list[Row]:
    """A metric by client as the mean over the clients that have it in a round."""
    rows = []
    for exhibit, arm, run in arms(exhibits):
        if run.has_table(metric):
            table = run.table(metric)
            seen = np.isfinite(table).any(axis=1)
            rows += points(run.rounds[seen], np.nanmean(table[seen], axis=1), run=exhibit.name, arm=arm)
    return rows


def stages_of(run: Trajectory) -> tuple[tuple[str, str], ...]:
    """Which metrics are before and after averaging: both on the same blocks where the run has that."""
    return ("loss.before", BEFORE), ("loss.after" if run.has_table("loss.after") else "loss", AFTER)


def client_rows(run: Trajectory, client: int) -> list[Row]:
    """One client's loss on its own distribution before and after averaging."""
    rows = []
    for metric, stage in stages_of(run):
        if run.has_table(metric):
            values = run.table(metric)[:, client]
            seen = ~np.isnan(values)
            rows += points(run.rounds[seen], values[seen], stage=stage)
    return rows


def spread_rows(run: Trajectory) -> list[Row]:
    """All clients' losses before and after averaging as median, lowest and highest of each round."""
    rows: list[Row] = []
    for metric, stage in stages_of(run):
        if not run.has_table(metric):
            continue
        table = run.table(metric)
        table = np.where(np.isfinite(table), table, np.nan)
        for number, row in zip(run.rounds, table, strict=True):
            if not np.isnan(row).all():
                low, middle, high = np.nanquantile(row, [0, 0.5, 1])
                rows.append({"stage": stage, "round": int(number), "value": brief(middle), "low": brief(low),
                             "high": brief(high)})
    return rows


def arms(exhibits: Iterable[Exhibit]) -> list[tuple[Exhibit, str, Trajectory]]:
    """Every run, and its twin where there is one."""
    both = [(exhibit, arm, run) for exhibit in exhibits
            for arm, run in ((RUN, exhibit.trajectory), (TWIN, exhibit.twin))]
    return [(exhibit, arm, run) for exhibit, arm, run in both if run is not None]


def points(rounds: np.ndarray, values: np.ndarray, **said: str) -> list[Row]:
    """One row a number; ``None`` where it is not finite."""
    return [{**said, "round": int(number), "value": brief(value)}
            for number, value in zip(rounds, values, strict=True)]


def brief(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None


def ceiling(rows: Sequence[Row]) -> float | None:
    """The highest loss worth drawing, twice the highest first one; None if all are below."""
    first: dict[tuple[Any, ...], float] = {}
    for row in rows:
        if row["value"] is not None:
            first.setdefault((row.get("run"), row.get("arm"), row.get("stage")), row["value"])
    top = 2 * max(first.values(), default=0.0)
    return top if any(row["value"] is not None and row["value"] > top for row in rows) else None


def off_scale(rows: Sequence[Row], top: float | None) -> tuple[list[Row], list[Row]]:
    """The rows with what is above ``top`` blanked out, and a mark wherever a curve goes blank."""
    highest = float("inf") if top is None else top
    inside = [{**row, "value": None} if row["value"] is not None and row["value"] > highest else row
              for row in rows]
    marks: list[Row] = []
    gone: dict[tuple[Any, ...], bool] = {}
    for row in inside:
        curve = row.get("run"), row.get("arm"), row.get("stage")
        if row["value"] is None and not gone.get(curve):
            marks.append({**row, "note": "not a number, or off the scale"})
        gone[curve] = row["value"] is None
    return inside, marks


def span(panels: Iterable[Sequence[Row]]) -> float:
    """The longest stretch of values that a panel needs, for panels that must be compared by eye."""
    lengths = [max(values) - min(values) for rows in panels
               if (values := [row["value"] for row in rows if row["value"] is not None])]
    return max(lengths, default=0.0)
