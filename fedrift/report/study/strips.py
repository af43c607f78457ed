"""Arms below one another, each over its seeds; and one comparison over its seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import altair as alt

from ..figures import Chart, Width
from ..rows import Row
from .charts import QUIET, base, scale_of, small, whole


def strip(
    rows: Sequence[Row], means: Sequence[Row], colours: Mapping[str, str], order: Sequence[str], *, x: str, zero: bool = False
) -> Callable[[Width], Chart]:
    """Arms below one another: every seed a dot, the mean and its interval."""

    def draw(width: Width) -> Chart:
        shade = alt.Color("of:N", scale=scale_of(colours), legend=None)
        beside = alt.Y("row:N", title=None, sort=list(order), axis=alt.Axis(labelLimit=190, ticks=False, domain=False, grid=True))
        along = alt.Scale(zero=False)
        ticks = alt.Axis(tickCount=5, grid=False)
        dots = (
            base(rows)
            .mark_point(filled=True, size=26, opacity=0.45)
            .encode(
                x=alt.X("value:Q", title=x, scale=along, axis=ticks),
                y=beside,
                color=shade,
                tooltip=[alt.Tooltip("row:N", title=" "), alt.Tooltip("seed:N"), alt.Tooltip("value:Q", format=".4~g")],
            )
        )
        bar = (
            base(means)
            .transform_filter("datum.low !== null")
            .mark_rule(strokeWidth=2)
            .encode(x=alt.X("low:Q", title=x, scale=along, axis=ticks), x2="high:Q", y=beside, color=shade)
        )
        point = (
            base(means)
            .mark_point(filled=True, size=75, opacity=1, shape="diamond")
            .encode(
                x=alt.X("value:Q", title=x, scale=along, axis=ticks),
                y=beside,
                color=shade,
                tooltip=[
                    alt.Tooltip("row:N", title=" "),
                    alt.Tooltip("value:Q", title="mean", format=".4~g"),
                    alt.Tooltip("low:Q", format=".4~g"),
                    alt.Tooltip("high:Q", format=".4~g"),
                    alt.Tooltip("seeds:Q"),
                ],
            )
        )
        null = alt.Chart(alt.InlineData(values=[{"arm": -1}])).mark_rule(color=QUIET).encode(x=alt.datum(0))
        bars = [bar] if any(row["low"] is not None for row in means) else []
        return whole(*([null] if zero else []), dots, *bars, point, width=width, height=max(26 * len(order), 40))

    return draw


def forest(
    points: Iterable[tuple[int, float]], low: float, high: float, estimate: float, *, colour: str, unit: str, zero: float = 0.0
) -> Callable[[Width], Chart]:
    """One comparison: every seed a ring, the estimate and its interval a line, the value of no effect a rule."""
    seeds = [{"arm": -1, "seed": seed, "value": small(value)} for seed, value in points]
    said = {"arm": -1, "value": small(estimate), "low": small(low), "high": small(high)}

    def draw(width: Width) -> Chart:
        finite = [
            value
            for value in (zero, estimate, low, high, *(row["value"] for row in seeds))
            if value is not None and math.isfinite(value)
        ]
        reach = max(finite) - min(finite) or 1.0
        scale = alt.Scale(domain=[min(finite) - 0.06 * reach, max(finite) + 0.06 * reach], nice=False)
        axis = alt.Axis(tickCount=5, grid=False)
        x = alt.X("value:Q", title=unit, scale=scale, axis=axis)
        null = (
            alt.Chart(alt.InlineData(values=[{"arm": -1}]))
            .mark_rule(color=QUIET)
            .encode(x=alt.datum(zero, scale=scale, title=unit))
        )
        rings = (
            base(seeds)
            .mark_point(size=45, color=colour, opacity=0.8)
            .encode(x=x, y=alt.value(12), tooltip=[alt.Tooltip("seed:N"), alt.Tooltip("value:Q", format=".4~g")])
        )
        one = base([said])
        bar = (
            one.transform_filter("datum.low !== null && datum.high !== null")
            .mark_rule(strokeWidth=3, color=colour)
            .encode(x=alt.X("low:Q", title=unit, scale=scale, axis=axis), x2="high:Q", y=alt.value(30))
        )
        mark = one.mark_point(filled=True, size=90, shape="diamond", color=colour, opacity=1).encode(
            x=x,
            y=alt.value(30),
            tooltip=[
                alt.Tooltip("value:Q", title="estimate", format=".4~g"),
                alt.Tooltip("low:Q", format=".4~g"),
                alt.Tooltip("high:Q", format=".4~g"),
            ],
        )
        return whole(null, rings, bar, mark, width=width, height=42)

    return draw
