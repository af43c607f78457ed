"""Convert a run's trajectory to the rows that figures draw."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..core.records import Trajectory


class RunView(NamedTuple):
    """Hold one run in the form that the report shows.

    Attributes:
        name: Name of the run on the page.
        experiment: The experiment's configuration. ``experiment["partition_table"]`` may hold each client's training tokens per domain.
        trajectory: The recorded metrics of the run.
        iid_baseline: The metrics of its matched IID baseline, or None.
        status: The run's status, as in ``Run.status``.
        environment: Versions and machine of the run.
    """

    name: str
    experiment: dict[str, Any]
    trajectory: Trajectory
    iid_baseline: Trajectory | None
    status: str
    environment: dict[str, Any]

    @property
    def planned_rounds(self) -> int | None:
        """Return the number of rounds that the experiment plans, or None if it states none."""
        training = self.experiment.get("training")
        return training.get("num_rounds") if isinstance(training, dict) else None


def with_unique_names(views: Iterable[RunView]) -> list[RunView]:
    """Return the views with distinct names: a second "a" becomes "a (2)"."""
    taken: set[str] = set()
    named = []
    for view in views:
        name, number = view.name, 1
        while name in taken:
            number += 1
            name = f"{view.name} ({number})"
        taken.add(name)
        named.append(view._replace(name=name))
    return named


# Rows exist only for rounds with a recorded value. Values above the scale of a figure are marked separately.

Row = dict[str, Any]
RUN, IID_BASELINE = "run", "IID baseline"
BEFORE_AVERAGING, AFTER_AVERAGING = "own model, before averaging", "shared model, after averaging"
SIGNIFICANT_DIGITS = 6  # keeps the page small; the run directory holds full precision


def curve_rows(views: Iterable[RunView], metric: str, domain: str = "") -> list[Row]:
    """Return the rows of a metric for every run and its IID baseline.

    Args:
        views: The runs.
        metric: Name of a metric of the federation, such as ``loss``.
        domain: Domain of the metric; ``""`` means all domains.
    """
    rows = []
    for view, which, run in runs_with_baselines(views):
        if run.has_curve(metric, domain):
            observed = run.observed_mask(metric, domain)
            rows += to_rows(run.rounds[observed], run.curve(metric, domain)[observed], run=view.name, which=which)
    return rows


def mean_rows(views: Iterable[RunView], metric: str) -> list[Row]:
    """Return the rows of a per-client metric, averaged in each round over the clients that have a value."""
    rows = []
    for view, which, run in runs_with_baselines(views):
        if run.has_client_table(metric):
            table = run.client_table(metric)
            observed = np.isfinite(table).any(axis=1)
            rows += to_rows(run.rounds[observed], np.nanmean(table[observed], axis=1), run=view.name, which=which)
    return rows


def averaging_stages(run: Trajectory) -> tuple[tuple[str, str], ...]:
    """Return the metrics before and after averaging with their labels.

    ``loss.after`` is preferred because it is measured on the same blocks as ``loss.before``.
    """
    return ("loss.before", BEFORE_AVERAGING), ("loss.after" if run.has_client_table("loss.after") else "loss", AFTER_AVERAGING)


def client_rows(run: Trajectory, client: int) -> list[Row]:
    """Return one client's loss on its own distribution before and after averaging."""
    rows = []
    for metric, stage in averaging_stages(run):
        if run.has_client_table(metric):
            values = run.client_table(metric)[:, client]
            observed = ~np.isnan(values)
            rows += to_rows(run.rounds[observed], values[observed], stage=stage)
    return rows


def band_rows(run: Trajectory) -> list[Row]:
    """Return the median, lowest and highest client loss of each round, before and after averaging."""
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
    """Return (view, label, trajectory) for every run and for every IID baseline that exists."""
    trajectories = [(view, which, run) for view in views for which, run in ((RUN, view.trajectory), (IID_BASELINE, view.iid_baseline))]
    return [(view, which, run) for view, which, run in trajectories if run is not None]


def to_rows(rounds: np.ndarray, values: np.ndarray, **fields: str) -> list[Row]:
    """Return one row per round; a value that is not finite becomes None.

    Args:
        rounds: Round numbers, [R].
        values: Values of these rounds, [R].
        **fields: Further fields of every row.
    """
    return [{**fields, "round": int(number), "value": round_value(value)} for number, value in zip(rounds, values, strict=True)]


def round_value(value: float | None) -> float | None:
    """Round to ``SIGNIFICANT_DIGITS`` significant digits; return None if the value is None or not finite."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.{SIGNIFICANT_DIGITS}g}")


def loss_ceiling(rows: Sequence[Row]) -> float | None:
    """Return twice the highest initial loss, or None if no loss exceeds it. A loss above the ceiling is not drawn."""
    initial: dict[tuple[Any, ...], float] = {}
    for row in rows:
        if row["value"] is not None:
            initial.setdefault((row.get("run"), row.get("which"), row.get("stage")), row["value"])
    ceiling = 2 * max(initial.values(), default=0.0)
    return ceiling if any(row["value"] is not None and row["value"] > ceiling for row in rows) else None


def split_off_scale(rows: Sequence[Row], ceiling: float | None) -> tuple[list[Row], list[Row]]:
    """Blank the values above a ceiling and mark where a curve is interrupted.

    Args:
        rows: Rows of all curves, in order of rounds.
        ceiling: The ceiling; None means that there is none.

    Returns:
        The rows, with None for values above the ceiling, and one marker row at the start of each interruption.
    """
    highest = float("inf") if ceiling is None else ceiling
    inside = [{**row, "value": None} if row["value"] is not None and row["value"] > highest else row for row in rows]
    marks: list[Row] = []
    interrupted: dict[tuple[Any, ...], bool] = {}
    for row in inside:
        curve = row.get("run"), row.get("which"), row.get("stage")
        if row["value"] is None and not interrupted.get(curve):
            marks.append({**row, "note": "not a number, or off the scale"})
        interrupted[curve] = row["value"] is None
    return inside, marks


def value_span(panels: Iterable[Sequence[Row]]) -> float:
    """Return the largest range of values of any panel, so that all panels can share one length of scale."""
    spans = [max(values) - min(values) for rows in panels if (values := [row["value"] for row in rows if row["value"] is not None])]
    return max(spans, default=0.0)
