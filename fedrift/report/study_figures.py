"""Figures that several sections of a study's report share: curves, outcomes against numeric factors, and outcomes per condition."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from . import charts
from .data import IID_BASELINE, RUN, Row, round_value
from .document import Figure, LegendKey, Panel
from .format import seed_mean_ci
from .study_data import Condition, FactorAxis, StageView, StudyData, condition_label, iter_rows

MAX_PANELS = 24  # panels per figure; a note states how many are left out
KIND_LABELS = {"run": RUN, "iid_baseline": IID_BASELINE}
LOST_NOTE = "from this round on, a seed has no finite value"
CEILING_RATIO = 1.5  # a loss above this multiple of its initial value is off the scale


def stage_legend(stage: StageView, has_baselines: bool = False, mark: str = "line") -> tuple[LegendKey, ...]:
    """Return one legend entry per color, and with ``has_baselines`` one for the IID baselines."""
    keys = [LegendKey(level, color, mark) for level, color in stage.colors.items() if stage.color_axis]  # type: ignore[arg-type]
    return (*keys, LegendKey("IID baseline", "", "dash")) if has_baselines else tuple(keys)


def curve_figures(
    study_data: StudyData,
    key: str,
    metric: str,
    caption: str,
    *,
    title: str,
    is_gap: bool = False,
    is_loss: bool = False,
    trivial: float | None = None,
) -> list[Figure]:
    """Draw a metric against rounds: one figure per stage, with one panel per combination of the factors that are not compared by color.

    Args:
        study_data: The study.
        key: Prefix of the keys of the figures.
        metric: Name of the metric.
        caption: Caption of the figures.
        title: Title of the value axis.
        is_gap: Whether to draw the difference to the IID baseline instead of both curves.
        is_loss: Whether the metric is a loss, which has a domain selector and a ceiling.
        trivial: A value that says nothing; a figure in which all values equal it is left out.
    """
    frame = study_data.gap_curves(metric) if is_gap else study_data.mean_curves(metric)
    domains = tuple(sorted(frame["domain"].unique())) if is_loss else ("",)
    frame = frame[frame["domain"].isin(domains)]
    if not len(frame):
        return []
    figures = []
    for stage in study_data.stages:
        panels, has_baselines, is_trivial = [], False, trivial is not None
        recorded = set(frame["condition"])
        groups = {
            name: conditions
            for name, conditions in stage.group_by_panel().items()
            if recorded & {condition.index for condition in conditions}
        }
        for name, conditions in list(groups.items())[:MAX_PANELS]:
            rows, interruptions = condition_curve_rows(frame, stage, conditions, is_loss and not is_gap)
            is_trivial = is_trivial and all(row["value"] in (None, trivial) for row in rows)  # values have six digits
            has_baselines |= any(row["which"] == IID_BASELINE for row in rows)
            panels.append(Panel(name, charts.curve_chart(rows, interruptions, stage.colors, title=title, zero=is_gap, domain=is_loss)))
        if panels and not is_trivial:
            figures.append(
                Figure(
                    f"{key}-{stage.name}",
                    stage_caption(study_data, stage, caption),
                    tuple(panels),
                    stage_legend(stage, has_baselines),
                    columns=min(3, len(panels)),
                    note=panel_limit_note(len(groups)),
                    domains=domains if is_loss else (),
                )
            )
    return figures


def condition_curve_rows(
    frame: pd.DataFrame, stage: StageView, conditions: Sequence[Condition], is_capped: bool
) -> tuple[list[Row], list[Row]]:
    """Return the curves of some conditions, and the points at which a curve is interrupted.

    A curve is interrupted where it is not finite, or with ``is_capped`` where it exceeds ``CEILING_RATIO`` times its initial value.
    """
    rows: list[Row] = []
    interruptions: list[Row] = []
    by_index = {condition.index: condition for condition in conditions}
    selected = frame[frame["condition"].isin(list(by_index))]
    keys = [name for name in ("condition", "kind", "domain") if name in selected]
    for values, part in selected.groupby(keys, sort=False):
        group: dict[str, Any] = dict(zip(keys, values, strict=True))
        known = part["mean"].dropna()
        ceiling = CEILING_RATIO * float(known.iloc[0]) if is_capped and len(known) else math.inf
        interrupted = False
        common = {
            "condition": int(group["condition"]),
            "level": stage.color_level(by_index[group["condition"]]),
            "which": KIND_LABELS[group.get("kind", "run")],
            "domain": group["domain"],
        }
        for point in iter_rows(part):
            is_off = math.isnan(point.mean) or point.mean > ceiling
            if is_off and not interrupted:
                interruptions.append(
                    {**common, "round": int(point.round), "note": LOST_NOTE if math.isnan(point.mean) else "off the scale"}
                )
            interrupted = is_off
            rows.append(
                {
                    **common,
                    "round": int(point.round),
                    "value": None if is_off else round_value(point.mean),
                    "low": None if is_off else round_value(point.low),
                    "high": None if is_off else round_value(min(point.high, ceiling)),
                    "seeds": int(point.seeds),
                }
            )
    return rows, interruptions


def parameter_figure(
    study_data: StudyData,
    stage: StageView,
    axis: FactorAxis,
    key: str,
    outcomes: Mapping[str, Mapping[str, float]],
    caption: str,
    zero: bool = True,
) -> Figure | None:
    """Draw outcomes against a numeric factor, with one panel per outcome and combination of the other factors.

    Args:
        study_data: The study.
        stage: The stage.
        axis: The numeric factor.
        key: Prefix of the key of the figure.
        outcomes: Outcome of each run, by title of the outcome and run id.
        caption: Caption of the figure.
        zero: Whether to draw a line at zero.

    Returns:
        The figure, or None if no run has an outcome.
    """
    color_axis = None if stage.color_axis == axis else stage.color_axis
    colors = stage.colors if color_axis else {"all": charts.GRADE_MARKS["none"][0]}
    panels = []
    groups = stage.group_by_panel(exclude=[axis])
    for title, numbers in outcomes.items():
        for name, conditions in groups.items():
            dots: list[Row] = []
            means: list[Row] = []
            for condition in conditions:
                level = stage.color_level(condition) if color_axis else "all"
                common = {"condition": condition.index, "level": level, "x": float(condition.values[axis.name])}
                seed_rows, mean_row = outcome_rows(condition, numbers, common)
                dots += seed_rows
                means += [mean_row] if mean_row else []
            if dots:
                means.sort(key=lambda row: float(row["x"]))
                panels.append(
                    Panel(name if len(groups) > 1 else title, charts.parameter_chart(dots, means, colors, x=axis.label, y=title, zero=zero))
                )
    keys = stage_legend(stage, mark="dot") if color_axis else ()
    return (
        Figure(
            f"{key}-{stage.name}-{axis.label}",
            stage_caption(study_data, stage, caption),
            tuple(panels[:MAX_PANELS]),
            keys,
            columns=min(3, len(panels)),
            note=panel_limit_note(len(panels)),
        )
        if panels
        else None
    )


def strip_figure(
    study_data: StudyData, stage: StageView, key: str, numbers: Mapping[str, float], caption: str, *, x: str, zero: bool = False
) -> Figure | None:
    """Draw the outcome of every run, one line per condition, with one panel per combination of the factors that are not compared by color.

    Args:
        study_data: The study.
        stage: The stage.
        key: Prefix of the key of the figure.
        numbers: Outcome by run id.
        caption: Caption of the figure.
        x: Title of the outcome's axis.
        zero: Whether to draw a line at zero.

    Returns:
        The figure, or None if no run has an outcome.
    """
    panels = []
    groups = stage.group_by_panel()
    for name, conditions in groups.items():
        dots: list[Row] = []
        means: list[Row] = []
        for condition in conditions:
            common = {
                "condition": condition.index,
                "level": stage.color_level(condition),
                "row": stage.color_level(condition) if stage.color_axis else "all",
            }
            seed_rows, mean_row = outcome_rows(condition, numbers, common)
            dots += seed_rows
            means += [mean_row] if mean_row and mean_row["value"] is not None else []
        if dots:
            panels.append(
                Panel(
                    name,
                    charts.strip_chart(
                        dots, means, stage.colors, [row for row in stage.colors if row in {dot["row"] for dot in dots}], x=x, zero=zero
                    ),
                )
            )
    return (
        Figure(
            f"{key}-{stage.name}",
            stage_caption(study_data, stage, caption),
            tuple(panels[:MAX_PANELS]),
            columns=min(2, len(panels)),
            note=panel_limit_note(len(panels)),
        )
        if panels
        else None
    )


def outcome_rows(condition: Condition, numbers: Mapping[str, float], common: Row) -> tuple[list[Row], Row | None]:
    """Return one row per seed with a finite outcome, and the row of their mean; all have the fields ``common``."""
    seeds = {seed: numbers.get(run, math.nan) for seed, run in condition.runs.items()}
    rows = [{**common, "seed": seed, "value": round_value(value)} for seed, value in seeds.items() if math.isfinite(value)]
    mean, low, high, count = seed_mean_ci(seeds.values())
    bounds = {"value": round_value(mean), "low": round_value(low), "high": round_value(high), "seeds": count}
    return rows, {**common, **bounds} if count else None


def condition_name(stage: StageView, condition: Condition) -> str:
    """Describe a condition by its levels of all factors that vary in its stage."""
    return condition_label(condition, stage.axes) or "all"


def stage_caption(study_data: StudyData, stage: StageView, caption: str) -> str:
    """Return a caption that names the stage if the study has several."""
    return caption if len(study_data.stages) == 1 else f"Stage {stage.name}. {caption}"


def panel_limit_note(num_panels: int) -> str:
    """Return a note that panels were left out, or an empty string."""
    return (
        f"Only the first {MAX_PANELS} of {num_panels} panels are shown; the tables contain all conditions."
        if num_panels > MAX_PANELS
        else ""
    )
