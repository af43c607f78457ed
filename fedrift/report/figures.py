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
import numpy as np
import vl_convert

from ..core.errors import UserError
from ..storage.files import write_atomically
from .data import AFTER_AVERAGING, BEFORE_AVERAGING, IID_BASELINE, RUN, Row, RunView, curve_rows, loss_ceiling, split_off_scale

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINE_DASHES: dict[str, list[int]] = {RUN: [1, 0], IID_BASELINE: [5, 4]}
STAGE_COLORS = {BEFORE_AVERAGING: OKABE_ITO[4], AFTER_AVERAGING: OKABE_ITO[0]}
LOG_SCALE_RATIO = 100  # times the median: from there on a positive scale is logarithmic
Width = int | Literal["container"]
Chart = alt.LayerChart | alt.FacetChart  # what ``alt.layer`` says it makes; it is always the former


def assign_colors(names: Sequence[str]) -> dict[str, str]:
    """A colour for each run; from the seventh on they repeat, and the tooltip tells."""
    return {name: OKABE_ITO[place % len(OKABE_ITO)] for place, name in enumerate(names)}


def line_chart(
    rows: Sequence[Row],
    color_by_run: dict[str, str],
    *,
    loss: bool = True,
    value_range: float | None = None,
    width: Width = "container",
    height: int = 240,
    legend: bool = False,
) -> Chart:
    """Values against rounds: a colour for each run, solid for itself and dashed for its twin."""
    key = (
        alt.Legend(title=None, orient="top", labelLimit=400, symbolType="stroke", symbolStrokeWidth=2.5, symbolSize=250) if legend else None
    )
    shade = alt.Color("run:N", scale=_categorical_scale(color_by_run), legend=key)
    dash = alt.StrokeDash("which:N", scale=_categorical_scale(LINE_DASHES), legend=key)
    return _line_layers(
        rows,
        shade,
        dash,
        [alt.Tooltip("run:N"), alt.Tooltip("which:N", title="which")],
        loss=loss,
        value_range=value_range,
        width=width,
        height=height,
    )


def before_after_chart(rows: Sequence[Row], *, value_range: float | None = None, width: Width = "container", height: int = 160) -> Chart:
    """One client's loss before and after averaging."""
    shade = alt.Color("stage:N", scale=_categorical_scale(STAGE_COLORS), legend=None)
    return _line_layers(
        rows,
        shade,
        alt.StrokeDash(),
        [alt.Tooltip("stage:N", title="which")],
        loss=True,
        value_range=value_range,
        width=width,
        height=height,
    )


def client_band_chart(rows: Sequence[Row], *, width: Width = "container", height: int = 240) -> Chart:
    """All clients' losses before and after averaging: the median, and the band from lowest to highest."""
    top = loss_ceiling([{**row, "value": row["high"]} for row in rows])
    scale = alt.Scale(zero=False, clamp=True, domainMax=top if top else alt.Undefined)
    shade = alt.Color("stage:N", scale=_categorical_scale(STAGE_COLORS), legend=None)
    base = alt.Chart(alt.InlineData(values=list(rows))).encode(x=_round_axis(), color=shade)
    band = base.mark_area(opacity=0.2).encode(y=alt.Y("low:Q", title=None, scale=scale), y2="high:Q")
    tips = [
        alt.Tooltip("stage:N", title="which"),
        alt.Tooltip("round:Q"),
        *(
            alt.Tooltip(f"{name}:Q", title=title, format=".4f")
            for name, title in (("low", "lowest"), ("value", "median"), ("high", "highest"))
        ),
    ]
    y = alt.Y("value:Q", title=None, scale=scale)
    line = base.mark_line(strokeWidth=2).encode(y=y)
    touch = base.mark_point(filled=True, size=150, opacity=0).encode(y=y, tooltip=tips)
    return alt.layer(band, line, touch).properties(width=width, height=height)


def partition_heatmap(domains: Sequence[str], tokens: Sequence[Sequence[float]], *, width: Width = "container") -> Chart:
    """Who holds how much of what: clients by domains, [N, domains] training tokens."""
    rows: list[Row] = [
        {"client": client, "domain": domain, "tokens": float(amount)}
        for client, held in enumerate(tokens)
        for domain, amount in zip(domains, held, strict=True)
    ]
    most = max((row["tokens"] for row in rows), default=0.0)
    step = 24 if len(tokens) <= 40 else 9
    below = alt.Axis(labelAngle=-40, labelLimit=140)
    beside = alt.Axis(labelOverlap=True, titleAngle=0, titleAlign="right")
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X("domain:N", title=None, sort=list(domains), axis=below), y=alt.Y("client:O", title="client", axis=beside)
    )
    cells = base.mark_rect().encode(
        color=alt.Color("tokens:Q", scale=alt.Scale(scheme="viridis", domainMin=0), legend=None),
        tooltip=[alt.Tooltip("client:O"), alt.Tooltip("domain:N"), alt.Tooltip("tokens:Q", format=",.0f")],
    )
    shown = (
        base.transform_filter("datum.tokens > 0")
        .mark_text(fontSize=10)
        .encode(
            text=alt.Text("tokens:Q", format=".2~s"),
            color=alt.condition(f"datum.tokens > {0.6 * most}", alt.value("black"), alt.value("white")),
        )
    )
    layers = [cells, shown] if len(domains) <= 12 and len(tokens) <= 40 else [cells]
    return alt.layer(*layers).properties(width=width, height=max(step * len(tokens), step))


def loss_figure(views: Sequence[RunView], domain: str = "", *, width: int = 640, height: int = 320) -> Chart:
    """The loss against the round with its own titles and legend, to be saved and put into a document."""
    colour = assign_colors([exhibit.name for exhibit in views])
    chart = line_chart(curve_rows(views, "loss", domain), colour, width=width, height=height, legend=True)
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
    write_atomically(path, content)
    return path


def _line_layers(
    rows: Sequence[Row],
    shade: alt.Color,
    dash: alt.StrokeDash,
    tooltips: list[alt.Tooltip],
    *,
    loss: bool,
    value_range: float | None,
    width: Width,
    height: int,
) -> Chart:
    top = loss_ceiling(rows) if loss else None
    inside, lost = split_off_scale(rows, top)
    base = alt.Chart(alt.InlineData(values=inside)).encode(x=_round_axis(), color=shade)
    tooltips = [*tooltips, alt.Tooltip("round:Q"), alt.Tooltip("value:Q", format=".4f" if loss else ".4~g")]
    seen = tooltips
    if loss:
        base = base.transform_calculate(perplexity="exp(datum.value)")
        seen = [*tooltips, alt.Tooltip("perplexity:Q", format=".2f")]
    scale = _value_scale(inside, loss, value_range)
    y = alt.Y("value:Q", title=None, scale=scale, axis=alt.Axis(tickCount=height // 40))
    line = base.mark_line().encode(y=y, strokeDash=dash, strokeWidth=_unless_baseline(2, 1.5))
    dots = base.mark_point(filled=True, size=14).encode(y=y, opacity=_unless_baseline(1, 0))
    touch = base.mark_point(filled=True, size=150, opacity=0).encode(y=y, tooltip=seen)
    told = [*tooltips[:-1], alt.Tooltip("note:N", title="value")]
    cross = (
        alt.Chart(alt.InlineData(values=lost))
        .mark_point(shape="cross", angle=45, size=70, filled=True, opacity=1)
        .encode(x=_round_axis(), y=alt.value(4), color=shade, tooltip=told)
    )
    layers = [line, dots, touch, cross] if lost else [line, dots, touch]
    return alt.layer(*layers).properties(width=width, height=height)


def _categorical_scale(mapping: Mapping[str, Any]) -> alt.Scale:
    return alt.Scale(domain=list(mapping), range=list(mapping.values()))


def _unless_baseline(run_value: float, baseline_value: float) -> Any:
    """A twin stays behind its run: thinner, and without dots."""
    return alt.condition(f"datum.which === {IID_BASELINE!r}", alt.value(baseline_value), alt.value(run_value))


def _round_axis() -> alt.X:
    return alt.X(
        "round:Q", title="round", axis=alt.Axis(tickMinStep=1, tickCount=8, grid=False, format="d"), scale=alt.Scale(nice=False, zero=False)
    )


def _value_scale(rows: Sequence[Row], loss: bool, value_range: float | None) -> alt.Scale:
    values = sorted(row["value"] for row in rows if row["value"] is not None)
    said: dict[str, Any] = {"zero": False}
    if value_range and values:
        middle, half = (values[0] + values[-1]) / 2, 0.55 * value_range
        said |= {"domain": [middle - half, middle + half], "nice": False}
    elif not loss and values and values[0] > 0 and values[-1] > LOG_SCALE_RATIO * values[len(values) // 2]:
        said |= {"type": "log"}
    return alt.Scale(**said)


# The figures of a partition: who differs from whom, and by which words.

MAX_LABELED_CLIENTS = 12  # clients up to which cells carry their numbers


def divergence_matrix(pairwise: np.ndarray, *, width: Width = "container") -> Chart:
    """Divergence of every two clients' words, [N, N] bits."""
    count = len(pairwise)
    rows = [
        {"one": one, "other": other, "bits": float(f"{pairwise[one, other]:.3g}")}
        for one in range(count)
        for other in range(count)
        if one != other
    ]
    most = max((row["bits"] for row in rows), default=0.0)
    step = 30 if count <= MAX_LABELED_CLIENTS else 18 if count <= 30 else max(4, 540 // count)
    axis = alt.Axis(labelOverlap="greedy", labelSeparation=8, labelAngle=0)
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X("other:O", title="client", axis=axis),
        y=alt.Y("one:O", title="client", axis=alt.Axis(labelOverlap=True, titleAngle=0, titleAlign="right")),
    )
    cells = base.mark_rect().encode(
        color=alt.Color("bits:Q", scale=alt.Scale(scheme="viridis", domain=[0, most or 1]), legend=None),
        tooltip=[alt.Tooltip("one:O", title="client"), alt.Tooltip("other:O", title="and client"), alt.Tooltip("bits:Q", format=".3f")],
    )
    layers = [cells]
    if count <= MAX_LABELED_CLIENTS:
        layers.append(
            base.mark_text(fontSize=10).encode(
                text=alt.Text("bits:Q", format=".2f"),
                color=alt.condition(f"datum.bits > {0.6 * most}", alt.value("black"), alt.value("white")),
            )
        )
    return alt.layer(*layers).properties(width=width, height=max(step * count, 60))


def distinctive_words_chart(words: Sequence[tuple[str, float]], max_z: float, chance_z: float, *, width: Width = "container") -> Chart:
    """One client's most characteristic words, bars of z on a scale that all clients share; grey up to ``chance``."""
    rows = [{"word": word, "z": round(z, 2)} for word, z in words]
    shade = alt.condition(f"datum.z > {chance_z}", alt.value(OKABE_ITO[0]), alt.value("#9aa5b0"))
    bars = (
        alt.Chart(alt.InlineData(values=rows))
        .mark_bar(height=11)
        .encode(
            x=alt.X("z:Q", title=None, scale=alt.Scale(domain=[0, max_z], nice=False), axis=alt.Axis(tickCount=3, grid=False)),
            y=alt.Y("word:N", title=None, sort=None, axis=alt.Axis(labelLimit=110, ticks=False, domain=False)),
            color=shade,
            tooltip=[alt.Tooltip("word:N"), alt.Tooltip("z:Q", format=".1f")],
        )
    )
    return alt.layer(bars).properties(width=width, height=17 * max(len(rows), 1))


def budget_bars(amounts: np.ndarray, unit: str, *, width: Width = "container") -> Chart:
    """How much each client holds, [N]."""
    rows = [{"client": client, "amount": float(amount)} for client, amount in enumerate(amounts)]
    step = 24 if len(rows) <= 40 else 9
    bars = (
        alt.Chart(alt.InlineData(values=rows))
        .mark_bar(color=OKABE_ITO[0])
        .encode(
            x=alt.X("amount:Q", title=unit, axis=alt.Axis(tickCount=4, grid=False, format="~s")),
            y=alt.Y("client:O", title="client", axis=alt.Axis(labelOverlap=True, titleAngle=0, titleAlign="right")),
            tooltip=[alt.Tooltip("client:O"), alt.Tooltip("amount:Q", format=",.0f", title=unit)],
        )
    )
    return alt.layer(bars).properties(width=width, height=step * len(rows))
