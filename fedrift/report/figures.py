"""The figures, as Altair charts; colours of Okabe and Ito, which the colour-blind tell apart.

A chart carries axes and marks only: titles and legends are the page's, so that nothing overlaps at any
width. ``loss_figure`` is the exception: it stands alone, as a file. (One chart a panel and no facets:
layered facets cannot be joined in Altair 6.3.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import altair as alt
import vl_convert

from ..errors import UserError
from ..store.files import write_whole
from .exhibit import Exhibit
from .rows import AFTER, BEFORE, RUN, TWIN, Row, ceiling, curve_rows, off_scale

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES: dict[str, list[int]] = {RUN: [1, 0], TWIN: [5, 4]}
STAGES = {BEFORE: OKABE_ITO[4], AFTER: OKABE_ITO[0]}
WIDE = 100  # times the median: from there on a positive scale is logarithmic
Width = int | Literal["container"]
Chart = alt.LayerChart | alt.FacetChart  # what ``alt.layer`` says it makes; it is always the former


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each run; from the seventh on they repeat, and the tooltip tells."""
    return {name: OKABE_ITO[place % len(OKABE_ITO)] for place, name in enumerate(names)}


def curves(rows: Sequence[Row], colour: dict[str, str], *, loss: bool = True, stretch: float | None = None,
           width: Width = "container", height: int = 240, legend: bool = False) -> Chart:
    """Values against rounds: a colour for each run, solid for itself and dashed for its twin."""
    key = alt.Legend(title=None, orient="top", labelLimit=400, symbolType="stroke", symbolStrokeWidth=2.5,
                     symbolSize=250) if legend else None
    shade = alt.Color("run:N", scale=_named(colour), legend=key)
    dash = alt.StrokeDash("arm:N", scale=_named(DASHES), legend=key)
    return _lines(rows, shade, dash, [alt.Tooltip("run:N"), alt.Tooltip("arm:N", title="which")],
                  loss=loss, stretch=stretch, width=width, height=height)


def stages(rows: Sequence[Row], *, stretch: float | None = None, width: Width = "container",
           height: int = 160) -> Chart:
    """One client's loss before and after averaging."""
    shade = alt.Color("stage:N", scale=_named(STAGES), legend=None)
    return _lines(rows, shade, alt.StrokeDash(), [alt.Tooltip("stage:N", title="which")],
                  loss=True, stretch=stretch, width=width, height=height)


def spread(rows: Sequence[Row], *, width: Width = "container", height: int = 240) -> Chart:
    """All clients' losses before and after averaging: the median, and the band from lowest to highest."""
    top = ceiling([{**row, "value": row["high"]} for row in rows])
    scale = alt.Scale(zero=False, clamp=True, domainMax=top if top else alt.Undefined)
    shade = alt.Color("stage:N", scale=_named(STAGES), legend=None)
    base = alt.Chart(alt.InlineData(values=list(rows))).encode(x=_rounds(), color=shade)
    band = base.mark_area(opacity=0.2).encode(y=alt.Y("low:Q", title=None, scale=scale), y2="high:Q")
    tips = [alt.Tooltip("stage:N", title="which"), alt.Tooltip("round:Q"),
            *(alt.Tooltip(f"{name}:Q", title=title, format=".4f")
              for name, title in (("low", "lowest"), ("value", "median"), ("high", "highest")))]
    y = alt.Y("value:Q", title=None, scale=scale)
    line = base.mark_line(strokeWidth=2).encode(y=y)
    touch = base.mark_point(filled=True, size=150, opacity=0).encode(y=y, tooltip=tips)
    return alt.layer(band, line, touch).properties(width=width, height=height)


def heat_map(domains: Sequence[str], tokens: Sequence[Sequence[float]], *,
             width: Width = "container") -> Chart:
    """Who holds how much of what: clients by domains, [N, domains] training tokens."""
    rows: list[Row] = [{"client": client, "domain": domain, "tokens": float(amount)}
                       for client, held in enumerate(tokens)
                       for domain, amount in zip(domains, held, strict=True)]
    most = max((row["tokens"] for row in rows), default=0.0)
    step = 24 if len(tokens) <= 40 else 9
    below = alt.Axis(labelAngle=-40, labelLimit=140)
    beside = alt.Axis(labelOverlap=True, titleAngle=0, titleAlign="right")
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X("domain:N", title=None, sort=list(domains), axis=below),
        y=alt.Y("client:O", title="client", axis=beside))
    cells = base.mark_rect().encode(
        color=alt.Color("tokens:Q", scale=alt.Scale(scheme="viridis", domainMin=0), legend=None),
        tooltip=[alt.Tooltip("client:O"), alt.Tooltip("domain:N"), alt.Tooltip("tokens:Q", format=",.0f")])
    shown = base.transform_filter("datum.tokens > 0").mark_text(fontSize=10).encode(
        text=alt.Text("tokens:Q", format=".2~s"),
        color=alt.condition(f"datum.tokens > {0.6 * most}", alt.value("black"), alt.value("white")))
    layers = [cells, shown] if len(domains) <= 12 and len(tokens) <= 40 else [cells]
    return alt.layer(*layers).properties(width=width, height=max(step * len(tokens), step))


def loss_figure(exhibits: Sequence[Exhibit], domain: str = "", *, width: int = 640,
                height: int = 320) -> Chart:
    """The loss against the round with its own titles and legend, to be saved and put into a document."""
    colour = colours([exhibit.name for exhibit in exhibits])
    chart = curves(curve_rows(exhibits, "loss", domain), colour, width=width, height=height, legend=True)
    title = f"test loss of {domain}, nats per token" if domain else "test loss, nats per token"
    return chart.properties(title=alt.TitleParams(title, anchor="start", fontWeight="normal"))


def save_figure(chart: alt.TopLevelMixin, path: Path) -> Path:
    """Write a chart as .svg or .png (three times its size in pixels); no browser and no network.

    Raises UserError for any other ending.
    """
    path = Path(path)
    spec = chart.to_dict()
    if path.suffix == ".svg":
        content = vl_convert.vegalite_to_svg(spec).encode()
    elif path.suffix == ".png":
        content = vl_convert.vegalite_to_png({**spec, "background": "white"}, scale=3)
    else:
        raise UserError(f"a figure is saved as .svg or .png, not as {path.name!r}")
    write_whole(path, content)
    return path


def _lines(rows: Sequence[Row], shade: alt.Color, dash: alt.StrokeDash, tips: list[alt.Tooltip], *,
           loss: bool, stretch: float | None, width: Width, height: int) -> Chart:
    top = ceiling(rows) if loss else None
    inside, lost = off_scale(rows, top)
    base = alt.Chart(alt.InlineData(values=inside)).encode(x=_rounds(), color=shade)
    tips = [*tips, alt.Tooltip("round:Q"), alt.Tooltip("value:Q", format=".4f" if loss else ".4~g")]
    seen = tips
    if loss:
        base = base.transform_calculate(perplexity="exp(datum.value)")
        seen = [*tips, alt.Tooltip("perplexity:Q", format=".2f")]
    scale = _scale(inside, loss, stretch)
    y = alt.Y("value:Q", title=None, scale=scale, axis=alt.Axis(tickCount=height // 40))
    line = base.mark_line().encode(y=y, strokeDash=dash, strokeWidth=_unless_twin(2, 1.5))
    dots = base.mark_point(filled=True, size=14).encode(y=y, opacity=_unless_twin(1, 0))
    touch = base.mark_point(filled=True, size=150, opacity=0).encode(y=y, tooltip=seen)
    told = [*tips[:-1], alt.Tooltip("note:N", title="value")]
    cross = alt.Chart(alt.InlineData(values=lost)).mark_point(
        shape="cross", angle=45, size=70, filled=True, opacity=1).encode(
        x=_rounds(), y=alt.value(4), color=shade, tooltip=told)
    layers = [line, dots, touch, cross] if lost else [line, dots, touch]
    return alt.layer(*layers).properties(width=width, height=height)


def _named(shown: Mapping[str, Any]) -> alt.Scale:
    return alt.Scale(domain=list(shown), range=list(shown.values()))


def _unless_twin(own: float, twin: float) -> Any:
    """A twin stays behind its run: thinner, and without dots."""
    return alt.condition(f"datum.arm === {TWIN!r}", alt.value(twin), alt.value(own))


def _rounds() -> alt.X:
    return alt.X("round:Q", title="round", axis=alt.Axis(tickMinStep=1, tickCount=8, grid=False, format="d"),
                 scale=alt.Scale(nice=False, zero=False))


def _scale(rows: Sequence[Row], loss: bool, stretch: float | None) -> alt.Scale:
    values = sorted(row["value"] for row in rows if row["value"] is not None)
    said: dict[str, Any] = {"zero": False}
    if stretch and values:
        middle, half = (values[0] + values[-1]) / 2, 0.55 * stretch
        said |= {"domain": [middle - half, middle + half], "nice": False}
    elif not loss and values and values[0] > 0 and values[-1] > WIDE * values[len(values) // 2]:
        said |= {"type": "log"}
    return alt.Scale(**said)
