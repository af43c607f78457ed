"""The section about the two cost protocols of EdgeFlowerTune (arXiv:2605.08636): quality under a budget, and cost to a target."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from ..core.records import Trajectory
from ..studies.costs import COST_RECORDS, COSTS, Cost, CostMetric, cumulative_cost, summarize_cost
from ..studies.outcomes import load_trajectories
from .document import MissingSection, Section, Table
from .format import DASH, format_bytes, format_number
from .study_data import Condition, StageView, StudyData
from .study_figures import condition_name

Timings = dict[str, list[dict[str, float]]]


def cost_protocols_section(study_data: StudyData) -> Section | MissingSection:
    """Every condition at one budget and to one target, so that methods of different cost can be compared."""
    title = "Quality under a budget, cost to a target"
    runs = finished_runs(study_data, study_data.conditions)
    if not runs:
        return MissingSection(title, "no run has ended yet")
    entries = [entry for entry in study_data.manifest_values["runs"] if entry.run in runs]
    trajectories = load_trajectories(study_data.manifest, entries, COST_RECORDS)
    timings: Timings = {run: study_data.manifest.get_run(run).timings() for run in trajectories}
    known = [cost for cost in COSTS if any(cumulative_cost(run, cost, timings[name]) is not None for name, run in trajectories.items())]
    tables = [protocol_table(study_data, stage, trajectories, timings, known) for stage in study_data.stages]
    found = tuple(table for table in tables if table)
    if not found:
        return MissingSection(title, "add `cost` to `evaluation.probes`, and evaluate the loss")
    text = (
        "Protocols of EdgeFlowerTune (arXiv:2605.08636). The budget of a stage is the least that one of its runs spent in all, so that "
        "every run has a loss within it. The target is the highest mean final loss of the stage's conditions, so that most runs reach "
        "it. Seconds are those of training as measured, on the machine that simulated the clients."
    )
    return Section("cost-protocols", title, (text,), found)


def finished_runs(study_data: StudyData, conditions: Iterable[Condition]) -> set[str]:
    return {run for condition in conditions for run in condition.runs.values() if run in study_data.finished}


def protocol_table(
    study_data: StudyData, stage: StageView, trajectories: dict[str, Trajectory], timings: Timings, costs: list[Cost]
) -> Table | None:
    """One row per condition: its loss within the budget and its cost to the target, for each cost; None where nothing is known."""
    runs = [run for run in sorted(finished_runs(study_data, stage.conditions)) if run in trajectories]
    budgets = {cost: smallest_total(cost, [(trajectories[run], timings[run]) for run in runs]) for cost in costs}
    budgets = {cost: value for cost, value in budgets.items() if value > 0}
    target = highest_mean_loss(study_data, stage)
    if not budgets or not math.isfinite(target):
        return None
    rows = []
    for condition in stage.conditions:
        own = [run for run in condition.runs.values() if run in trajectories]
        cells = []
        for cost, budget in budgets.items():
            for metric in (CostMetric(cost, budget, True), CostMetric(cost, target, False)):
                values = [summarize_cost(metric, trajectories[run], timings[run]) for run in own]
                cells.append(format_outcome(metric, values))
        rows.append((condition_name(stage, condition), *cells, f"{len(own)}/{len(condition.runs)}"))
    titles = [
        title for cost, budget in budgets.items() for title in (f"loss within {format_cost(cost, budget)}", f"{cost} to {target:.3f}")
    ]
    return Table(
        f"cost-protocols-{stage.name}",
        "Loss within the budget (nats per token, mean over seeds) and cost to the target loss (median over seeds that reach it; in "
        "brackets how many did).",
        ("condition", *titles, "runs"),
        tuple(rows),
        frozenset(range(1, len(titles) + 2)),
        tuple(condition.index for condition in stage.conditions),
        is_long=len(rows) > 30,
    )


def smallest_total(cost: Cost, runs: Iterable[tuple[Trajectory, list[dict[str, float]]]]) -> float:
    """The least that a run spent in all; NaN if no run recorded it."""
    spent = [curve[-1] for run, timings in runs if (curve := cumulative_cost(run, cost, timings)) is not None and len(curve)]
    return float(min(spent)) if spent else math.nan


def highest_mean_loss(study_data: StudyData, stage: StageView) -> float:
    """The highest mean final loss of the stage's conditions; NaN if there is none."""
    losses = study_data.outcome_by_run("loss")
    means = [np.mean(own) for arm in stage.conditions if (own := [losses[run] for run in arm.runs.values() if run in losses])]
    return float(max((mean for mean in means if math.isfinite(mean)), default=math.nan))


def format_outcome(metric: CostMetric, values: list[float]) -> str:
    """The mean loss, or the median cost and how many seeds reached the target."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return DASH
    if metric.is_budget:
        return format_number(float(np.mean(known)))
    reached = [value for value in known if math.isfinite(value)]
    return (
        f"{format_cost(metric.cost, float(np.median(reached)))} ({len(reached)}/{len(known)})"
        if reached
        else f"not reached (0/{len(known)})"
    )


def format_cost(cost: Cost, value: float) -> str:
    """A cost with its unit."""
    return {"bytes": format_bytes(value), "tokens": f"{value:,.0f} tokens", "seconds": f"{format_number(value, 1)} s"}[cost]


__all__ = ["cost_protocols_section"]
