"""The charts of a study. Each takes rows that carry ``arm``; on the page the signal ``arms`` says which are shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import altair as alt

from ..figures import DASHES, Chart, Width
from ..rows import RUN, Row, brief

SHOWN = "arms === null || datum.arm < 0 || indexof(arms, datum.arm) >= 0"
ONE_DOMAIN = "datum.domain === domain"
QUIET = "#6b7580"
DODGE = 0.018  # of the length of a dial, between arms
DIVERGING, SEQUENTIAL = "blueorange", "viridis"
GRADES: dict[str, tuple[str, int]] = {  # colour, size of the mark
    "not measured": ("#9aa5b0", 12),
    "none": ("#009E73", 60),
    "suspected": ("#E69F00", 130),
    "confirmed": ("#D55E00", 210),
}


def small(value: Any) -> float | None:
    return None if value is None else brief(float(value))


def base(rows: Sequence[Row], domain: bool = False) -> alt.Chart:
    """Rows that the page's filters act on."""
    chart = alt.Chart(alt.InlineData(values=list(rows))).transform_filter(SHOWN)
    return chart.transform_filter(ONE_DOMAIN) if domain else chart


def whole(*layers: alt.Chart, width: Width, height: int, domain: bool = False) -> Chart:
    """Layers as one chart with the page's signals."""
    signals = [alt.param(name="arms", value=None), *([alt.param(name="domain", value="")] if domain else [])]
    return alt.layer(*layers).add_params(*signals).properties(width=width, height=height)


def scale_of(colours: Mapping[str, str]) -> alt.Scale:
    return alt.Scale(domain=list(colours), range=list(colours.values()))


def rounds() -> alt.X:
    return alt.X(
        "round:Q",
        title="round",
        scale=alt.Scale(nice=False, zero=False),
        axis=alt.Axis(tickMinStep=1, tickCount=6, grid=False, format="d"),
    )


def lines(
    rows: Sequence[Row],
    lost: Sequence[Row],
    colours: Mapping[str, str],
    *,
    title: str,
    zero: bool = False,
    domain: bool = False,
    extent: Sequence[float] | None = None,
    height: int = 190,
) -> Callable[[Width], Chart]:
    """Curves with their band: solid for runs, dashed for twins; a cross where a seed stops having a finite number."""

    def draw(width: Width) -> Chart:
        shade = alt.Color("of:N", scale=scale_of(colours), legend=None)
        dash = alt.StrokeDash("which:N", scale=alt.Scale(domain=list(DASHES), range=list(DASHES.values())), legend=None)
        scale = alt.Scale(zero=zero, clamp=True) if extent is None else alt.Scale(domain=list(extent), nice=False, clamp=True)
        y = alt.Y("value:Q", title=title, scale=scale, axis=alt.Axis(tickCount=5))
        chart = base(rows, domain)
        band = (
            chart.transform_filter(f"datum.low !== null && datum.which === {RUN!r}")
            .mark_area(opacity=0.15)
            .encode(x=rounds(), y=alt.Y("low:Q", title=title, scale=scale), y2="high:Q", color=shade, detail=["arm:N", "which:N"])
        )
        line = chart.mark_line(strokeWidth=1.8).encode(x=rounds(), y=y, color=shade, strokeDash=dash, detail="arm:N")
        tips = [
            alt.Tooltip("of:N", title=" "),
            alt.Tooltip("which:N"),
            alt.Tooltip("round:Q"),
            *(
                alt.Tooltip(f"{name}:Q", title=said, format=".4~g")
                for name, said in (("value", "mean"), ("low", "low"), ("high", "high"))
            ),
            alt.Tooltip("seeds:Q"),
        ]
        touch = chart.mark_point(filled=True, size=110, opacity=0).encode(x=rounds(), y=y, tooltip=tips)
        layers = [band, line, touch]
        if zero:
            layers.insert(0, alt.Chart(alt.InlineData(values=[{"arm": -1}])).mark_rule(color=QUIET).encode(y=alt.datum(0)))
        if lost:
            layers.append(
                base(lost, domain)
                .mark_point(shape="cross", angle=45, size=60, filled=True)
                .encode(x=rounds(), y=alt.value(4), color=shade, tooltip=[*tips[:3], alt.Tooltip("note:N")])
            )
        return whole(*layers, width=width, height=height, domain=domain)

    return draw


def dial(
    plain_rows: Sequence[Row],
    plain_means: Sequence[Row],
    colours: Mapping[str, str],
    *,
    x: str,
    y: str,
    zero: bool = True,
    height: int = 200,
) -> Callable[[Width], Chart]:
    """An outcome along a dial: every seed a dot, the mean with its interval a line through the levels."""

    def draw(width: Width) -> Chart:
        shade = alt.Color("of:N", scale=scale_of(colours), legend=None)
        levels = sorted({row["x"] for row in [*plain_rows, *plain_means]})
        step = DODGE * (levels[-1] - levels[0])
        beside = {
            of: step * (place - (len(colours) - 1) / 2) for place, of in enumerate(colours)
        }  # so that arms do not hide each other
        rows, means = ([{**row, "at": row["x"] + beside[row["of"]]} for row in each] for each in (plain_rows, plain_means))
        across = alt.X("at:Q", title=x, scale=alt.Scale(zero=False, padding=18), axis=alt.Axis(grid=False, values=levels[:12]))
        up = alt.Scale(zero=False)
        dots = (
            base(rows)
            .mark_point(filled=True, size=22, opacity=0.45)
            .encode(
                x=across,
                y=alt.Y("value:Q", title=y, scale=up),
                color=shade,
                tooltip=[
                    alt.Tooltip("of:N", title=" "),
                    alt.Tooltip("x:Q", title=x),
                    alt.Tooltip("seed:N"),
                    alt.Tooltip("value:Q", title=y, format=".4~g"),
                ],
            )
        )
        mean = base(means)
        line = mean.mark_line(strokeWidth=1.8).encode(x=across, y=alt.Y("value:Q", title=y, scale=up), color=shade)
        bar = (
            mean.transform_filter("datum.low !== null")
            .mark_rule(strokeWidth=1.5)
            .encode(x=across, y=alt.Y("low:Q", title=y, scale=up), y2="high:Q", color=shade)
        )
        point = mean.mark_point(filled=True, size=60, opacity=1).encode(
            x=across,
            y=alt.Y("value:Q", title=y, scale=up),
            color=shade,
            tooltip=[
                alt.Tooltip("of:N", title=" "),
                alt.Tooltip("x:Q", title=x),
                alt.Tooltip("value:Q", title="mean", format=".4~g"),
                alt.Tooltip("low:Q", format=".4~g"),
                alt.Tooltip("high:Q", format=".4~g"),
                alt.Tooltip("seeds:Q"),
            ],
        )
        null = alt.Chart(alt.InlineData(values=[{"arm": -1}])).mark_rule(color=QUIET).encode(y=alt.datum(0))
        return whole(*([null] if zero else []), dots, line, bar, point, width=width, height=height)

    return draw
