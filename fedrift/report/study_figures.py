"""What several sections are made of: curves by panel, dials, strips and the legends that belong to them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from . import charts
from .data import IID_BASELINE, RUN, Row
from .document import Figure, LegendKey, Panel
from .format import seed_mean_ci
from .study_data import Condition, FactorAxis, StageView, StudyData, condition_label, iter_rows

MAX_PANELS = 24  # panels of one figure; what is above is told
KIND_LABELS = {"run": RUN, "iid_baseline": IID_BASELINE}
LOST_NOTE = "no finite number in every seed from here on"
CEILING_RATIO = 1.5  # times the highest start, above which a loss is off the scale


def stage_legend(stage: StageView, has_baselines: bool = False, mark: str = "line") -> tuple[LegendKey, ...]:
    keys = [LegendKey(level, colour, mark) for level, colour in stage.colors.items() if stage.color_axis]  # type: ignore[arg-type]
    return (*keys, LegendKey("its IID baseline", "", "dash")) if has_baselines else tuple(keys)


def curve_figures(
    study_data: StudyData,
    key: str,
    metric: str,
    caption: str,
    *,
    title: str,
    clients: bool = False,
    is_gap: bool = False,
    is_loss: bool = False,
) -> list[Figure]:
    """A metric against the round, beside the twin or less it: a figure for each stage, a panel for each cell of the rest."""
    frame = study_data.gap_curves(metric, clients) if is_gap else study_data.mean_curves(metric, clients)
    domains = tuple(sorted(frame["domain"].unique())) if is_loss else ("",)
    frame = frame[frame["domain"].isin(domains)]
    if not len(frame):
        return []
    found = []
    for stage in study_data.stages:
        panels, twins = [], False
        there = set(frame["condition"])
        cells = {name: arms for name, arms in stage.group_by_panel().items() if there & {arm.index for arm in arms}}
        for name, arms in list(cells.items())[:MAX_PANELS]:
            rows, lost = condition_curve_rows(frame, stage, arms, is_loss and not is_gap)
            twins |= any(row["which"] == IID_BASELINE for row in rows)
            panels.append(Panel(name, charts.curve_chart(rows, lost, stage.colors, title=title, zero=is_gap, domain=is_loss)))
        if panels:
            found.append(
                Figure(
                    f"{key}-{stage.name}",
                    stage_caption(study_data, stage, caption),
                    tuple(panels),
                    stage_legend(stage, twins),
                    columns=min(3, len(panels)),
                    note=panel_limit_note(len(cells)),
                    domains=domains if is_loss else (),
                )
            )
    return found


def condition_curve_rows(
    frame: pd.DataFrame, stage: StageView, conditions: Sequence[Condition], is_capped: bool
) -> tuple[list[Row], list[Row]]:
    """The rows of some arms, and where each curve is lost: no finite number, or far above where it began."""
    rows: list[Row] = []
    lost: list[Row] = []
    by_place = {arm.index: arm for arm in conditions}
    chosen = frame[frame["condition"].isin(list(by_place))]
    keys = [name for name in ("condition", "kind", "domain") if name in chosen]
    for group, part in chosen.groupby(keys, sort=False):
        told: dict[str, Any] = dict(zip(keys, group, strict=True))
        known = part["mean"].dropna()
        top = CEILING_RATIO * float(known.iloc[0]) if is_capped and len(known) else math.inf
        gone = False
        common = {
            "condition": int(told["condition"]),
            "of": stage.color_level(by_place[told["condition"]]),
            "which": KIND_LABELS[told.get("kind", "run")],
            "domain": told["domain"],
        }
        for each in iter_rows(part):
            off = math.isnan(each.mean) or each.mean > top
            if off and not gone:
                lost.append({**common, "round": int(each.round), "note": LOST_NOTE if math.isnan(each.mean) else "off the scale"})
            gone = off
            rows.append(
                {
                    **common,
                    "round": int(each.round),
                    "value": None if off else charts.to_plot_value(each.mean),
                    "low": None if off else charts.to_plot_value(each.low),
                    "high": None if off else charts.to_plot_value(min(each.high, top)),
                    "seeds": int(each.seeds),
                }
            )
    return rows, lost


def parameter_figure(
    study_data: StudyData,
    stage: StageView,
    axis: FactorAxis,
    key: str,
    outcomes: Mapping[str, Mapping[str, float]],
    caption: str,
    zero: bool = True,
) -> Figure | None:
    """Numbers of runs along a dial; ``outcomes``: title -> run -> number. A panel for each cell of the rest, and each outcome."""
    colour = None if stage.color_axis == axis else stage.color_axis
    shades = stage.colors if colour else {"all": charts.GRADE_MARKS["none"][0]}
    panels = []
    cells = stage.group_by_panel(exclude=[axis])
    for title, numbers in outcomes.items():
        for name, arms in cells.items():
            dots: list[Row] = []
            means: list[Row] = []
            for arm in arms:
                of = stage.color_level(arm) if colour else "all"
                seeds = {seed: numbers.get(run, math.nan) for seed, run in arm.runs.items()}
                common = {"condition": arm.index, "of": of, "x": float(arm.values[axis.name])}
                dots += [
                    {**common, "seed": seed, "value": charts.to_plot_value(value)} for seed, value in seeds.items() if math.isfinite(value)
                ]
                middle, low, high, count = seed_mean_ci(seeds.values())
                if count:
                    means.append(
                        {
                            **common,
                            "value": charts.to_plot_value(middle),
                            "low": charts.to_plot_value(low),
                            "high": charts.to_plot_value(high),
                            "seeds": count,
                        }
                    )
            if dots:
                means.sort(key=lambda row: float(row["x"]))
                panels.append(
                    Panel(name if len(cells) > 1 else title, charts.parameter_chart(dots, means, shades, x=axis.label, y=title, zero=zero))
                )
    keys = stage_legend(stage, mark="dot") if colour else ()
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
    """Numbers of runs, arm below arm; a panel for each cell of what does not colour."""
    panels = []
    cells = stage.group_by_panel()
    for name, arms in cells.items():
        dots: list[Row] = []
        means: list[Row] = []
        for arm in arms:
            common = {"condition": arm.index, "of": stage.color_level(arm), "row": stage.color_level(arm) if stage.color_axis else "all"}
            seeds = {seed: numbers.get(run, math.nan) for seed, run in arm.runs.items()}
            dots += [
                {**common, "seed": seed, "value": charts.to_plot_value(value)} for seed, value in seeds.items() if math.isfinite(value)
            ]
            middle, low, high, count = seed_mean_ci(seeds.values())
            if count and not math.isnan(middle):
                means.append(
                    {
                        **common,
                        "value": charts.to_plot_value(middle),
                        "low": charts.to_plot_value(low),
                        "high": charts.to_plot_value(high),
                        "seeds": count,
                    }
                )
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


def condition_name(stage: StageView, condition: Condition) -> str:
    return condition_label(condition, stage.axes) or "all"


def stage_caption(study_data: StudyData, stage: StageView, caption: str) -> str:
    return caption if len(study_data.stages) == 1 else f"Stage {stage.name}. {caption}"


def panel_limit_note(num_panels: int) -> str:
    return f"The first {MAX_PANELS} of {num_panels} panels; the tables have all conditions." if num_panels > MAX_PANELS else ""


def join_values(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values))
