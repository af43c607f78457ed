"""The charts of a study's report.

Every row carries the index of its ``condition``; -1 marks a row that is always shown. On the page, the Vega signal ``conditions`` holds
the indices that the reader's filters select.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import altair as alt

from .data import RUN, Row, round_value
from .figures import LINE_DASHES, Chart, SharedRows, categorical_scale, conditional_color, round_axis

CONDITION_FILTER = "conditions === null || datum.condition < 0 || indexof(conditions, datum.condition) >= 0"
DOMAIN_FILTER = "datum.domain === domain"
MUTED_COLOR = "#6b7580"
DODGE_WIDTH = 0.018  # horizontal offset between conditions, as a share of the axis
MAX_LABEL = 24  # characters of a row's label of a heat map in one line
LINE_HEIGHT = 13  # pixels between the lines of a label
MIN_CELL_WIDTH = 26  # pixels; narrower cells, as on a phone, show no number
DIVERGING, SEQUENTIAL = "blueorange", "viridis"
GRADE_MARKS: dict[str, tuple[str, int]] = {  # color and size of the mark
    "not measured": ("#9aa5b0", 12),
    "none": ("#009E73", 60),
    "suspected": ("#E69F00", 130),
    "confirmed": ("#D55E00", 210),
}


def filterable_chart(rows: Sequence[Row], domain: bool = False) -> alt.Chart:
    """Return a chart whose rows the page's filters select. ``domain`` also applies the page's domain selector."""
    chart = alt.Chart(SharedRows(values=list(rows))).transform_filter(CONDITION_FILTER)
    return chart.transform_filter(DOMAIN_FILTER) if domain else chart


def layer_with_signals(*layers: alt.Chart, height: int, domain: bool = False) -> Chart:
    """Combine layers into one chart that declares the page's signals."""
    signals = [alt.param(name="conditions", value=None), *([alt.param(name="domain", value="")] if domain else [])]
    return alt.layer(*layers).add_params(*signals).properties(width="container", height=height)


def curve_chart(
    rows: Sequence[Row],
    interruption_rows: Sequence[Row],
    colors: Mapping[str, str],
    *,
    title: str,
    zero: bool = False,
    domain: bool = False,
) -> Callable[[], Chart]:
    """Draw mean curves with their interval bands, solid for runs and dashed for IID baselines.

    Args:
        rows: Mean and interval bounds of each condition, domain and round.
        interruption_rows: Points at which a curve is interrupted; each is marked with a cross at the upper edge.
        colors: Color of each level of the factor that is compared.
        title: Title of the value axis.
        zero: Whether to draw a line at zero.
        domain: Whether the page's domain selector applies.

    Returns:
        A function that draws the chart at the width of its place on the page.
    """

    def draw() -> Chart:
        color = alt.Color("level:N", scale=categorical_scale(colors), legend=None)
        x_axis = round_axis(6)
        dash = alt.StrokeDash("which:N", scale=alt.Scale(domain=list(LINE_DASHES), range=list(LINE_DASHES.values())), legend=None)
        scale = alt.Scale(zero=zero, clamp=True)
        y = alt.Y("value:Q", title=title, scale=scale, axis=alt.Axis(tickCount=5))
        chart = filterable_chart(rows, domain)
        band = (
            chart.transform_filter(f"datum.low !== null && datum.which === {RUN!r}")
            .mark_area(opacity=0.15)
            .encode(x=x_axis, y=alt.Y("low:Q", title=title, scale=scale), y2="high:Q", color=color, detail=["condition:N", "which:N"])
        )
        line = chart.mark_line(strokeWidth=1.8).encode(x=x_axis, y=y, color=color, strokeDash=dash, detail="condition:N")
        tooltips = [
            alt.Tooltip("level:N", title=" "),
            alt.Tooltip("which:N"),
            alt.Tooltip("round:Q"),
            *(
                alt.Tooltip(f"{name}:Q", title=label, format=".4~g")
                for name, label in (("value", "mean"), ("low", "low"), ("high", "high"))
            ),
            alt.Tooltip("seeds:Q"),
        ]
        hover_points = chart.mark_point(filled=True, size=110, opacity=0).encode(x=x_axis, y=y, tooltip=tooltips)
        has_band = any(row["which"] == RUN and row["low"] is not None for row in rows)  # Vega warns about a mark without data
        layers = [*([band] if has_band else []), line, hover_points]
        if zero:
            null = alt.Chart(alt.InlineData(values=[{"condition": -1}])).mark_rule(color=MUTED_COLOR).encode(y=alt.datum(0))
            layers.insert(0, null)
        if interruption_rows:
            layers.append(
                filterable_chart(interruption_rows, domain)
                .mark_point(shape="cross", angle=45, size=120, filled=True, opacity=1)
                .encode(x=x_axis, y=alt.value(4), color=color, tooltip=[*tooltips[:3], alt.Tooltip("note:N")])
            )
        return layer_with_signals(*layers, height=190, domain=domain)

    return draw


def parameter_chart(
    seed_rows: Sequence[Row], mean_rows: Sequence[Row], colors: Mapping[str, str], *, x: str, y: str, zero: bool = True
) -> Callable[[], Chart]:
    """Draw an outcome against a numeric factor: one dot per seed, and a line through the means with their intervals.

    Args:
        seed_rows: One row per run, with the factor's value in ``x`` and the outcome in ``value``.
        mean_rows: One row per condition, with the mean and its interval bounds over seeds.
        colors: Color of each level of the factor that is compared.
        x: Title of the factor's axis.
        y: Title of the outcome's axis.
        zero: Whether to draw a line at zero.

    Returns:
        A function that draws the chart at the width of its place on the page.
    """

    def draw() -> Chart:
        color = alt.Color("level:N", scale=categorical_scale(colors), legend=None)
        levels = sorted({row["x"] for row in [*seed_rows, *mean_rows]})
        step = DODGE_WIDTH * (levels[-1] - levels[0])
        # Without offsets, the conditions at one value of the factor would overlap.
        offset = {level: step * (position - (len(colors) - 1) / 2) for position, level in enumerate(colors)}
        rows, means = ([{**row, "x_shifted": row["x"] + offset[row["level"]]} for row in group] for group in (seed_rows, mean_rows))
        x_axis = alt.X("x_shifted:Q", title=x, scale=alt.Scale(zero=False, padding=18), axis=alt.Axis(grid=False, values=levels[:12]))
        y_scale = alt.Scale(zero=False)
        dots = (
            filterable_chart(rows)
            .mark_point(filled=True, size=22, opacity=0.45)
            .encode(
                x=x_axis,
                y=alt.Y("value:Q", title=y, scale=y_scale),
                color=color,
                tooltip=[
                    alt.Tooltip("level:N", title=" "),
                    alt.Tooltip("x:Q", title=x),
                    alt.Tooltip("seed:N"),
                    alt.Tooltip("value:Q", title=y, format=".4~g"),
                ],
            )
        )
        mean = filterable_chart(means)
        line = mean.mark_line(strokeWidth=1.8).encode(x=x_axis, y=alt.Y("value:Q", title=y, scale=y_scale), color=color)
        bar = (
            mean.transform_filter("datum.low !== null")
            .mark_rule(strokeWidth=1.5)
            .encode(x=x_axis, y=alt.Y("low:Q", title=y, scale=y_scale), y2="high:Q", color=color)
        )
        point = mean.mark_point(filled=True, size=60, opacity=1).encode(
            x=x_axis,
            y=alt.Y("value:Q", title=y, scale=y_scale),
            color=color,
            tooltip=[
                alt.Tooltip("level:N", title=" "),
                alt.Tooltip("x:Q", title=x),
                alt.Tooltip("value:Q", title="mean", format=".4~g"),
                alt.Tooltip("low:Q", format=".4~g"),
                alt.Tooltip("high:Q", format=".4~g"),
                alt.Tooltip("seeds:Q"),
            ],
        )
        null = alt.Chart(alt.InlineData(values=[{"condition": -1}])).mark_rule(color=MUTED_COLOR).encode(y=alt.datum(0))
        # Vega warns about marks without data.
        bars = [bar] if any(row["low"] is not None for row in means) else []
        return layer_with_signals(*([null] if zero else []), dots, *([line, *bars, point] if means else []), height=200)

    return draw


@dataclass(frozen=True)
class HeatmapStyle:
    """How a heat map looks."""

    scheme: str = SEQUENTIAL  # ``SEQUENTIAL``, or ``DIVERGING`` with its middle at 0
    value_range: tuple[float, float] | None = None  # lowest and highest value of the color scale; None fits the data
    number_format: str = ".3~g"  # D3 format of the numbers in cells
    show_numbers: bool = True  # whether cells show their numbers
    step: int = 24  # height of a row in pixels
    label_angle: int = 0  # angle of the column labels in degrees

    def color_range(self, values: Sequence[float]) -> tuple[float, float]:
        """Return the lowest and the highest value of the color scale for some values."""
        low, high = self.value_range or (min(values, default=0.0), max(values, default=1.0))
        if self.scheme == DIVERGING:
            limit = max(abs(low), abs(high)) or 1.0
            return -limit, limit
        return (low, high) if high > low else (low, low + (abs(low) or 1.0))


def heatmap(
    rows: Sequence[Row],
    *,
    x: Sequence[str],
    y: Sequence[str],
    value: str,
    x_title: str = "",
    y_title: str = "",
    style: HeatmapStyle = HeatmapStyle(),
) -> Callable[[], Chart]:
    """Draw a heat map, optionally with its numbers; a cell without a number shows a cross.

    Args:
        rows: One row per cell with ``x``, ``y`` and ``value``.
        x: Columns, in order.
        y: Rows, in order.
        value: Name of the value in tooltips.
        x_title: Title of the horizontal axis.
        y_title: Title of the vertical axis.
        style: How the heat map looks.

    Returns:
        A function that draws the chart at the width of its place on the page.
    """
    low, high = style.color_range([row["value"] for row in rows if row["value"] is not None])
    # Long names of conditions have one line per factor, and the middle of the lines is at the middle of the row.
    num_lines = max(name.count(", ") + 1 for name in y) if any(len(name) > MAX_LABEL for name in y) else 1
    step = max(style.step, LINE_HEIGHT * num_lines + 4) if num_lines > 1 else style.step

    def draw() -> Chart:
        x_axis = alt.X(
            "x:N",
            title=x_title or None,
            sort=list(x),
            axis=alt.Axis(
                labelAngle=style.label_angle,
                labelOverlap=False if style.label_angle else "greedy",
                labelLimit=130,
                grid=False,
                ticks=False,
                domain=False,
            ),
        )
        y_axis = alt.Y(
            "y:N",
            title=y_title or None,
            sort=list(y),
            axis=alt.Axis(
                labelExpr="split(datum.label, ', ')" if num_lines > 1 else alt.Undefined,
                labelOffset=-LINE_HEIGHT * (num_lines - 1) / 2,
                labelLineHeight=LINE_HEIGHT,
                labelLimit=170,
                labelOverlap="greedy",
                grid=False,
                ticks=False,
                domain=False,
            ),
        )
        cells = filterable_chart(rows).transform_filter("datum.value !== null")
        color_values = alt.Scale(scheme=style.scheme, domain=[low, high], clamp=True)  # type: ignore[arg-type]
        filled = cells.mark_rect().encode(
            x=x_axis,
            y=y_axis,
            color=alt.Color("value:Q", legend=None, scale=color_values),
            tooltip=[
                alt.Tooltip("x:N", title=x_title or " "),
                alt.Tooltip("y:N", title=y_title or "row"),
                alt.Tooltip("value:Q", title=value, format=".4~g"),
            ],
        )
        missing = (
            filterable_chart(rows)
            .transform_filter("datum.value === null")
            .mark_point(shape="cross", angle=45, size=40, color=MUTED_COLOR)
            .encode(
                x=x_axis,
                y=y_axis,
                tooltip=[
                    alt.Tooltip("x:N", title=x_title or " "),
                    alt.Tooltip("y:N", title=y_title or "row"),
                    alt.Tooltip("note:N", title=value),
                ],
            )
        )
        layers = [filled, missing] if any(row["value"] is None for row in rows) else [filled]
        if style.show_numbers:
            dark = f"abs(datum.value) > {0.6 * high}" if style.scheme == DIVERGING else f"datum.value < {low + 0.6 * (high - low)}"
            layers.append(
                cells.mark_text(fontSize=10).encode(
                    x=x_axis,
                    y=y_axis,
                    text=alt.Text("value:Q", format=style.number_format),
                    color=conditional_color(dark, "white", "black"),
                    opacity=alt.OpacityValue(1, condition={"test": f"bandwidth('x') < {MIN_CELL_WIDTH}", "value": 0}),
                )
            )
        return layer_with_signals(*layers, height=max(step * len(y), step))

    return draw


def failure_heatmap(rows: Sequence[Row], *, x: Sequence[str], y: Sequence[str]) -> Callable[[], Chart]:
    """Draw the grade of every failure in every condition; a graver grade has a larger, redder mark.

    Args:
        rows: One row per failure and condition, with ``grade`` and the diagnosis in ``sentence``.
        x: Conditions, in order.
        y: Failures, in order.

    Returns:
        A function that draws the chart at the width of its place on the page.
    """

    def draw() -> Chart:
        x_axis = alt.X("x:N", title=None, sort=list(x), axis=alt.Axis(labelAngle=-40, labelLimit=150, grid=True, ticks=False))
        y_axis = alt.Y("y:N", title=None, sort=list(y), axis=alt.Axis(labelLimit=170, grid=True, ticks=False))
        marks = (
            filterable_chart(rows)
            .mark_point(filled=True, opacity=1)
            .encode(
                x=x_axis,
                y=y_axis,
                color=alt.Color(
                    "grade:O", legend=None, scale=alt.Scale(domain=list(GRADE_MARKS), range=[color for color, _ in GRADE_MARKS.values()])
                ),
                size=alt.Size(
                    "grade:O",
                    legend=None,
                    sort=list(GRADE_MARKS),
                    scale=alt.Scale(domain=list(GRADE_MARKS), range=[size for _, size in GRADE_MARKS.values()]),
                ),
                shape=alt.Shape(
                    "grade:N", legend=None, scale=alt.Scale(domain=list(GRADE_MARKS), range=["circle", "circle", "square", "diamond"])
                ),
                tooltip=[
                    alt.Tooltip("y:N", title="failure"),
                    alt.Tooltip("x:N", title="condition"),
                    alt.Tooltip("grade:N"),
                    alt.Tooltip("sentence:N", title="diagnosis"),
                ],
            )
        )
        return layer_with_signals(marks, height=22 * len(y) + 4)

    return draw


def strip_chart(
    seed_rows: Sequence[Row], mean_rows: Sequence[Row], colors: Mapping[str, str], order: Sequence[str], *, x: str, zero: bool = False
) -> Callable[[], Chart]:
    """Draw one line per condition: a dot per seed, and the mean with its interval.

    Args:
        seed_rows: One row per run with its outcome in ``value``.
        mean_rows: One row per condition, with the mean and its interval bounds over seeds.
        colors: Color of each level of the factor that is compared.
        order: The lines, from top to bottom.
        x: Title of the outcome's axis.
        zero: Whether to draw a line at zero.

    Returns:
        A function that draws the chart at the width of its place on the page.
    """

    def draw() -> Chart:
        color = alt.Color("level:N", scale=categorical_scale(colors), legend=None)
        y_axis = alt.Y("row:N", title=None, sort=list(order), axis=alt.Axis(labelLimit=190, ticks=False, domain=False, grid=True))
        x_scale = alt.Scale(zero=False)
        ticks = alt.Axis(tickCount=5, grid=False)
        dots = (
            filterable_chart(seed_rows)
            .mark_point(filled=True, size=26, opacity=0.45)
            .encode(
                x=alt.X("value:Q", title=x, scale=x_scale, axis=ticks),
                y=y_axis,
                color=color,
                tooltip=[alt.Tooltip("row:N", title=" "), alt.Tooltip("seed:N"), alt.Tooltip("value:Q", format=".4~g")],
            )
        )
        bar = (
            filterable_chart(mean_rows)
            .transform_filter("datum.low !== null")
            .mark_rule(strokeWidth=2)
            .encode(x=alt.X("low:Q", title=x, scale=x_scale, axis=ticks), x2="high:Q", y=y_axis, color=color)
        )
        point = (
            filterable_chart(mean_rows)
            .mark_point(filled=True, size=75, opacity=1, shape="diamond")
            .encode(
                x=alt.X("value:Q", title=x, scale=x_scale, axis=ticks),
                y=y_axis,
                color=color,
                tooltip=[
                    alt.Tooltip("row:N", title=" "),
                    alt.Tooltip("value:Q", title="mean", format=".4~g"),
                    alt.Tooltip("low:Q", format=".4~g"),
                    alt.Tooltip("high:Q", format=".4~g"),
                    alt.Tooltip("seeds:Q"),
                ],
            )
        )
        null = alt.Chart(alt.InlineData(values=[{"condition": -1}])).mark_rule(color=MUTED_COLOR).encode(x=alt.datum(0))
        bars = [bar] if any(row["low"] is not None for row in mean_rows) else []
        return layer_with_signals(*([null] if zero else []), dots, *bars, point, height=max(26 * len(order), 40))

    return draw


def forest_chart(
    points: Iterable[tuple[int, float]], low: float, high: float, estimate: float, *, color: str, unit: str, null_value: float = 0.0
) -> Callable[[], Chart]:
    """Draw one comparison: a ring per seed, the estimate with its interval, and a rule at no effect.

    Args:
        points: The seed and the effect of each pair of runs.
        low: Lower bound of the interval.
        high: Upper bound of the interval.
        estimate: The estimated effect.
        color: Color of the marks.
        unit: Title of the axis.
        null_value: The value that means no effect.

    Returns:
        A function that draws the chart at the width of its place on the page.
    """
    seeds = [{"condition": -1, "seed": seed, "value": round_value(value)} for seed, value in points]
    estimate_row = {"condition": -1, "value": round_value(estimate), "low": round_value(low), "high": round_value(high)}

    def draw() -> Chart:
        finite = [
            value
            for value in (null_value, estimate, low, high, *(row["value"] for row in seeds))
            if value is not None and math.isfinite(value)
        ]
        span = max(finite) - min(finite) or 1.0
        scale = alt.Scale(domain=[min(finite) - 0.06 * span, max(finite) + 0.06 * span], nice=False)
        axis = alt.Axis(tickCount=5, grid=False)
        x = alt.X("value:Q", title=unit, scale=scale, axis=axis)
        null = (
            alt.Chart(alt.InlineData(values=[{"condition": -1}]))
            .mark_rule(color=MUTED_COLOR)
            .encode(x=alt.datum(null_value, scale=scale, title=unit))
        )
        rings = (
            filterable_chart(seeds)
            .mark_point(size=45, color=color, opacity=0.8)
            .encode(x=x, y=alt.value(12), tooltip=[alt.Tooltip("seed:N"), alt.Tooltip("value:Q", format=".4~g")])
        )
        estimate_chart = filterable_chart([estimate_row])
        bar = (
            estimate_chart.transform_filter("datum.low !== null && datum.high !== null")
            .mark_rule(strokeWidth=3, color=color)
            .encode(x=alt.X("low:Q", title=unit, scale=scale, axis=axis), x2="high:Q", y=alt.value(30))
        )
        mark = estimate_chart.mark_point(filled=True, size=90, shape="diamond", color=color, opacity=1).encode(
            x=x,
            y=alt.value(30),
            tooltip=[
                alt.Tooltip("value:Q", title="estimate", format=".4~g"),
                alt.Tooltip("low:Q", format=".4~g"),
                alt.Tooltip("high:Q", format=".4~g"),
            ],
        )
        return layer_with_signals(null, rings, bar, mark, height=42)

    return draw


def forests_chart(rows: Sequence[Row], points: Sequence[Row], margins: Sequence[Row], *, unit: str) -> Callable[[], Chart]:
    """Draw several comparisons on one scale: an estimate with its interval per row, a ring per seed, and a stroke at each margin.

    Args:
        rows: ``name``, ``value``, ``low``, ``high`` and ``color`` of each comparison, in the order of the chart.
        points: ``name``, ``seed``, ``value`` and ``color`` of each seed.
        margins: ``name`` and ``value`` of each margin.
        unit: Title of the axis.

    Returns:
        A function that draws the chart at the width of its place on the page.
    """

    def draw() -> Chart:
        y = alt.Y("name:N", sort=[row["name"] for row in rows], title=None, axis=alt.Axis(labelLimit=190, ticks=False, grid=False))
        x = alt.X("value:Q", title=unit, scale=alt.Scale(zero=True, nice=False, padding=8), axis=alt.Axis(tickCount=6))
        color = alt.Color("color:N", scale=None)
        null = alt.Chart(alt.InlineData(values=[{"condition": -1}])).mark_rule(color=MUTED_COLOR).encode(x=alt.datum(0, title=unit))
        rings = (
            filterable_chart(points)
            .mark_point(size=18, opacity=0.55)
            .encode(x=x, y=y, color=color, tooltip=["name:N", "seed:N", "value:Q"])
        )
        strokes = filterable_chart(margins).mark_tick(color="black", thickness=2, size=16, orient="vertical").encode(x=x, y=y)
        bars = filterable_chart(rows).mark_rule(strokeWidth=2.5).encode(x=alt.X("low:Q", title=unit), x2="high:Q", y=y, color=color)
        marks = (
            filterable_chart(rows)
            .mark_point(filled=True, size=70, shape="diamond", opacity=1)
            .encode(x=x, y=y, color=color, tooltip=["name:N", "value:Q", "low:Q", "high:Q"])
        )
        return layer_with_signals(null, rings, bars, strokes, marks, height=24 * len(rows))

    return draw
