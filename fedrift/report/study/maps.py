"""Heat maps, and the atlas of failures."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import altair as alt

from ..figures import Chart, Width
from ..rows import Row
from .charts import DIVERGING, GRADES, QUIET, SEQUENTIAL, base, whole


def matrix(
    rows: Sequence[Row],
    *,
    x: Sequence[str],
    y: Sequence[str],
    xtitle: str = "",
    ytitle: str = "",
    value: str,
    scheme: str = SEQUENTIAL,
    extent: tuple[float, float] | None = None,
    form: str = ".3~g",
    text: bool = True,
    step: int = 24,
    angle: int = 0,
) -> Callable[[Width], Chart]:
    """A heat map with its numbers; ``DIVERGING`` has its middle at 0. Where there is no number there is a cross."""
    known = [row["value"] for row in rows if row["value"] is not None]
    low, high = extent or (min(known, default=0.0), max(known, default=1.0))
    if scheme == DIVERGING:
        most = max(abs(low), abs(high)) or 1.0
        low, high = -most, most
    elif not high > low:
        high = low + (abs(low) or 1.0)

    def draw(width: Width) -> Chart:
        across = alt.X(
            "x:N",
            title=xtitle or None,
            sort=list(x),
            axis=alt.Axis(
                labelAngle=angle, labelOverlap=False if angle else "greedy", labelLimit=130, grid=False, ticks=False, domain=False
            ),
        )
        beside = alt.Y(
            "y:N",
            title=ytitle or None,
            sort=list(y),
            axis=alt.Axis(labelLimit=170, labelOverlap="greedy", grid=False, ticks=False, domain=False),
        )
        cells = base(rows).transform_filter("datum.value !== null")
        shades = alt.Scale(scheme=scheme, domain=[low, high], clamp=True)  # type: ignore[arg-type]
        filled = cells.mark_rect().encode(
            x=across,
            y=beside,
            color=alt.Color("value:Q", legend=None, scale=shades),
            tooltip=[
                alt.Tooltip("x:N", title=xtitle or " "),
                alt.Tooltip("y:N", title=ytitle or "of"),
                alt.Tooltip("value:Q", title=value, format=".4~g"),
            ],
        )
        gone = (
            base(rows)
            .transform_filter("datum.value === null")
            .mark_point(shape="cross", angle=45, size=40, color=QUIET)
            .encode(
                x=across,
                y=beside,
                tooltip=[
                    alt.Tooltip("x:N", title=xtitle or " "),
                    alt.Tooltip("y:N", title=ytitle or "of"),
                    alt.Tooltip("note:N", title=value),
                ],
            )
        )
        layers = [filled, gone]
        if text:
            dark = f"abs(datum.value) > {0.6 * high}" if scheme == DIVERGING else f"datum.value < {low + 0.6 * (high - low)}"
            layers.append(
                cells.mark_text(fontSize=10).encode(
                    x=across,
                    y=beside,
                    text=alt.Text("value:Q", format=form),
                    color=alt.condition(dark, alt.value("white"), alt.value("black")),
                )
            )
        return whole(*layers, width=width, height=max(step * len(y), step))

    return draw


def atlas(rows: Sequence[Row], *, x: Sequence[str], y: Sequence[str], angle: int = -40) -> Callable[[Width], Chart]:
    """Failures by arms: a mark that grows and reddens with the grade."""

    def draw(width: Width) -> Chart:
        across = alt.X("x:N", title=None, sort=list(x), axis=alt.Axis(labelAngle=angle, labelLimit=150, grid=True, ticks=False))
        beside = alt.Y("y:N", title=None, sort=list(y), axis=alt.Axis(labelLimit=170, grid=True, ticks=False))
        marks = (
            base(rows)
            .mark_point(filled=True, opacity=1)
            .encode(
                x=across,
                y=beside,
                color=alt.Color(
                    "grade:O", legend=None, scale=alt.Scale(domain=list(GRADES), range=[c for c, _ in GRADES.values()])
                ),
                size=alt.Size(
                    "grade:O",
                    legend=None,
                    sort=list(GRADES),
                    scale=alt.Scale(domain=list(GRADES), range=[s for _, s in GRADES.values()]),
                ),
                shape=alt.Shape(
                    "grade:N", legend=None, scale=alt.Scale(domain=list(GRADES), range=["circle", "circle", "square", "diamond"])
                ),
                tooltip=[
                    alt.Tooltip("y:N", title="failure"),
                    alt.Tooltip("x:N", title="arm"),
                    alt.Tooltip("grade:N"),
                    alt.Tooltip("said:N", title="what"),
                ],
            )
        )
        return whole(marks, width=width, height=22 * len(y) + 4)

    return draw
