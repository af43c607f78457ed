"""The charts of runs and partitions, drawn with Altair in the color-blind-safe palette of Okabe and Ito.

A chart carries only axes and marks. The page adds titles and legends, so that nothing overlaps at any width. ``loss_figure`` is the
exception because it is saved as a file of its own. Each panel is a separate chart without facets, because Altair 6.3 cannot concatenate
layered facets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
LOG_SCALE_RATIO = 100  # a positive scale is logarithmic if its maximum exceeds this multiple of its median
Width = int | Literal["container"]
Chart = alt.LayerChart | alt.FacetChart  # the declared result of ``alt.layer``; at run time it is always a LayerChart


class SharedRows(alt.InlineData):
    """The rows of a chart. Altair copies a chart at each step of its construction; the copies share the rows, which nothing changes."""

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> SharedRows:
        return type(self)(values=self.values)


@contextmanager
def skip_validation() -> Iterator[None]:
    """Draw charts without validation, which takes longer than the drawing; the tests validate the charts."""
    with alt.utils.schemapi.debug_mode(False):
        yield


def assign_colors(names: Sequence[str]) -> dict[str, str]:
    """Assign a color to each run or level of a factor. The colors repeat from the seventh one on; the tooltip names it."""
    return {name: OKABE_ITO[index % len(OKABE_ITO)] for index, name in enumerate(names)}


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
    """Draw values against rounds, with one color per run, solid for runs and dashed for IID baselines.

    Args:
        rows: Rows with ``run``, ``which``, ``round`` and ``value``.
        color_by_run: Color of each run.
        loss: Whether the values are losses, which are capped and get a perplexity in the tooltip.
        value_range: Length of the value axis; None fits the data.
        width: Width in pixels, or ``"container"``.
        height: Height in pixels.
        legend: Whether the chart carries its own legend.
    """
    # The columns are far apart because a viewer's font may be wider than the one that the layout was computed with.
    legend_spec = (
        alt.Legend(
            title=None,
            orient="bottom",
            columns=2,
            columnPadding=45,
            padding=6,
            labelLimit=400,
            symbolType="stroke",
            symbolStrokeWidth=2.5,
            symbolSize=250,
        )
        if legend
        else None
    )
    color = alt.Color("run:N", scale=categorical_scale(color_by_run), legend=legend_spec)
    dash = alt.StrokeDash("which:N", scale=categorical_scale(LINE_DASHES), legend=legend_spec)
    return _line_layers(
        rows,
        color,
        dash,
        [alt.Tooltip("run:N"), alt.Tooltip("which:N", title="which")],
        loss=loss,
        value_range=value_range,
        width=width,
        height=height,
    )


def before_after_chart(rows: Sequence[Row], *, value_range: float | None = None, width: Width = "container") -> Chart:
    """Draw one client's loss before and after averaging. ``value_range`` is the length of the value axis."""
    color = alt.Color("stage:N", scale=categorical_scale(STAGE_COLORS), legend=None)
    return _line_layers(
        rows, color, alt.Undefined, [alt.Tooltip("stage:N", title="which")], loss=True, value_range=value_range, width=width, height=160
    )


def client_band_chart(rows: Sequence[Row], *, width: Width = "container") -> Chart:
    """Draw the losses of all clients before and after averaging: the median, and the band from the lowest to the highest."""
    ceiling = loss_ceiling([{**row, "value": row["high"]} for row in rows])
    scale = alt.Scale(zero=False, clamp=True, domainMax=ceiling if ceiling else alt.Undefined)
    color = alt.Color("stage:N", scale=categorical_scale(STAGE_COLORS), legend=None)
    base = alt.Chart(SharedRows(values=list(rows))).encode(x=round_axis(), color=color)
    band = base.mark_area(opacity=0.2).encode(y=alt.Y("low:Q", title=None, scale=scale), y2="high:Q")
    tooltips = [
        alt.Tooltip("stage:N", title="which"),
        alt.Tooltip("round:Q"),
        *(
            alt.Tooltip(f"{name}:Q", title=title, format=".4f")
            for name, title in (("low", "lowest"), ("value", "median"), ("high", "highest"))
        ),
    ]
    y = alt.Y("value:Q", title=None, scale=scale)
    line = base.mark_line(strokeWidth=2).encode(y=y)
    hover_points = base.mark_point(filled=True, size=150, opacity=0).encode(y=y, tooltip=tooltips)
    return alt.layer(band, line, hover_points).properties(width=width, height=240)


def partition_heatmap(domains: Sequence[str], tokens: Sequence[Sequence[float]], *, width: Width = "container") -> Chart:
    """Draw the training tokens of each client in each domain.

    Args:
        domains: Names of the D domains.
        tokens: Training tokens, [N, D].
        width: Width in pixels, or ``"container"``.
    """
    rows: list[Row] = [
        {"client": client, "domain": domain, "tokens": float(amount)}
        for client, client_tokens in enumerate(tokens)
        for domain, amount in zip(domains, client_tokens, strict=True)
    ]
    largest = max((row["tokens"] for row in rows), default=0.0)
    step = 24 if len(tokens) <= 40 else 9
    x_axis = alt.Axis(labelAngle=-40, labelLimit=140)
    base = alt.Chart(SharedRows(values=rows)).encode(x=alt.X("domain:N", title=None, sort=list(domains), axis=x_axis), y=client_axis())
    cells = base.mark_rect().encode(
        color=alt.Color("tokens:Q", scale=alt.Scale(scheme="viridis", domainMin=0), legend=None),
        tooltip=[alt.Tooltip("client:O"), alt.Tooltip("domain:N"), alt.Tooltip("tokens:Q", format=",.0f")],
    )
    numbers = (
        base.transform_filter("datum.tokens > 0")
        .mark_text(fontSize=10)
        .encode(text=alt.Text("tokens:Q", format=".2~s"), color=conditional_color(f"datum.tokens > {0.6 * largest}", "black", "white"))
    )
    layers = [cells, numbers] if len(domains) <= 12 and len(tokens) <= 40 else [cells]
    return alt.layer(*layers).properties(width=width, height=max(step * len(tokens), step))


def loss_figure(views: Sequence[RunView], domain: str = "", *, width: int = 640, height: int = 320) -> Chart:
    """Draw the loss against rounds with its own title and legend, for use outside the page.

    Args:
        views: The runs.
        domain: Domain of the held-out text; ``""`` means all domains.
        width: Width in pixels.
        height: Height in pixels.
    """
    title = f"test loss of {domain}, nats per token" if domain else "test loss, nats per token"
    return curves_figure(curve_rows(views, "loss", domain), [view.name for view in views], title, True, width=width, height=height)


def curves_figure(rows: Sequence[Row], names: Sequence[str], title: str, is_loss: bool, *, width: int = 640, height: int = 320) -> Chart:
    """Draw named curves against rounds with a title and a legend, IID baselines dashed.

    Args:
        rows: Rows with ``run`` (the name of the curve), ``which``, ``round`` and ``value``.
        names: The names of the curves, in the order of the legend.
        title: The title.
        is_loss: Whether all curves are losses.
        width: Width in pixels.
        height: Height in pixels.
    """
    chart = line_chart(rows, assign_colors(names), loss=is_loss, width=width, height=height, legend=True)
    return chart.properties(title=alt.TitleParams(title, anchor="start", fontWeight="normal"))


def save_figure(chart: alt.TopLevelMixin, path: Path) -> Path:
    """Write a chart as an SVG or PNG file; this needs neither a browser nor a network.

    Args:
        chart: The chart.
        path: A path that ends in ``.svg`` or ``.png``. A PNG has three times the chart's size in pixels.

    Returns:
        The path.

    Raises:
        UserError: The path has another suffix.
    """
    path = Path(path)
    spec = chart.to_dict()
    if path.suffix == ".svg":
        content = vl_convert.vegalite_to_svg(spec).encode()
    elif path.suffix == ".png":
        content = vl_convert.vegalite_to_png({**spec, "background": "white"}, scale=3)
    else:
        raise UserError(f"a figure is saved as .svg or .png, not as {path.name!r}; change the file name")
    write_atomically(path, content)
    return path


def _line_layers(
    rows: Sequence[Row],
    shade: alt.Color,
    dash: alt.StrokeDash | alt.UndefinedType,
    tooltips: list[alt.Tooltip],
    *,
    loss: bool,
    value_range: float | None,
    width: Width,
    height: int,
) -> Chart:
    ceiling = loss_ceiling(rows) if loss else None
    inside, interruptions = split_off_scale(rows, ceiling)
    base = alt.Chart(SharedRows(values=inside)).encode(x=round_axis(), color=shade)
    tooltips = [*tooltips, alt.Tooltip("round:Q"), alt.Tooltip("value:Q", format=".4f" if loss else ".4~g")]
    point_tooltips = tooltips
    if loss:
        base = base.transform_calculate(perplexity="exp(datum.value)")
        point_tooltips = [*tooltips, alt.Tooltip("perplexity:Q", format=".2f")]
    scale = _value_scale(inside, loss, value_range)
    y = alt.Y("value:Q", title=None, scale=scale, axis=alt.Axis(tickCount=height // 40))
    line = base.mark_line().encode(y=y, strokeDash=dash, strokeWidth=_unless_baseline(alt.StrokeWidthValue, 2, 1.5))
    dots = base.mark_point(filled=True, size=14).encode(y=y, opacity=_unless_baseline(alt.OpacityValue, 1, 0))
    hover_points = base.mark_point(filled=True, size=150, opacity=0).encode(y=y, tooltip=point_tooltips)
    cross_tooltips = [*tooltips[:-1], alt.Tooltip("note:N", title="value")]
    cross = (
        alt.Chart(SharedRows(values=interruptions))
        .mark_point(shape="cross", angle=45, size=70, filled=True, opacity=1)
        .encode(x=round_axis(), y=alt.value(4), color=shade, tooltip=cross_tooltips)
    )
    layers = [line, dots, hover_points, cross] if interruptions else [line, dots, hover_points]
    return alt.layer(*layers).properties(width=width, height=height)


def categorical_scale(mapping: Mapping[str, Any]) -> alt.Scale:
    """Return the scale that maps each key to its color or dash pattern."""
    return alt.Scale(domain=list(mapping), range=list(mapping.values()))


def conditional_color(test: str, color: str, other_color: str) -> alt.ColorValue:
    """Return a color for marks that pass a Vega expression, and another for the rest.

    ``alt.condition`` gives the same chart, but Altair takes longer to parse its result than to draw the chart.
    """
    return alt.ColorValue(other_color, condition={"test": test, "value": color})


def _unless_baseline(channel: Any, run_value: float, baseline_value: float) -> Any:
    """Return one value for runs and another for IID baselines, which are drawn thinner and without dots."""
    return channel(run_value, condition={"test": f"datum.which === {IID_BASELINE!r}", "value": baseline_value})


def round_axis(num_ticks: int = 8) -> alt.X:
    """Return the horizontal axis of rounds."""
    return alt.X(
        "round:Q",
        title="round",
        # Vega also draws ticks between the integers of a short axis, whose rounded labels would repeat.
        axis=alt.Axis(
            tickMinStep=1, tickCount=num_ticks, grid=False, labelExpr="datum.value == floor(datum.value) ? format(datum.value, 'd') : ''"
        ),
        scale=alt.Scale(nice=False, zero=False),
    )


def client_axis() -> alt.Y:
    """Return the vertical axis of clients. Each label names its client, because a title has no room beside a few rows."""
    return alt.Y("client:O", title=None, axis=alt.Axis(labelOverlap=True, labelExpr="'client ' + datum.label"))


def _value_scale(rows: Sequence[Row], loss: bool, value_range: float | None) -> alt.Scale:
    values = sorted(row["value"] for row in rows if row["value"] is not None)
    options: dict[str, Any] = {"zero": False}
    if value_range and values:
        middle, half = (values[0] + values[-1]) / 2, 0.55 * value_range
        options |= {"domain": [middle - half, middle + half], "nice": False}
    elif not loss and values and values[0] > 0 and values[-1] > LOG_SCALE_RATIO * values[len(values) // 2]:
        options |= {"type": "log"}
    return alt.Scale(**options)


MAX_LABELED_CLIENTS = 12  # with more clients, cells are too small for numbers


def divergence_matrix(pairwise: np.ndarray) -> Chart:
    """Draw the divergence between the word distributions of every pair of clients.

    Args:
        pairwise: Divergences in bits, [N, N].
    """
    count = len(pairwise)
    rows = [
        {"client": client, "other": other, "bits": float(f"{pairwise[client, other]:.3g}")}
        for client in range(count)
        for other in range(count)
        if client != other
    ]
    largest = max((row["bits"] for row in rows), default=0.0)
    step = 30 if count <= MAX_LABELED_CLIENTS else 18 if count <= 30 else max(4, 540 // count)
    axis = alt.Axis(labelOverlap="greedy", labelSeparation=8, labelAngle=0)
    base = alt.Chart(SharedRows(values=rows)).encode(x=alt.X("other:O", title="client", axis=axis), y=client_axis())
    cells = base.mark_rect().encode(
        color=alt.Color("bits:Q", scale=alt.Scale(scheme="viridis", domain=[0, largest or 1]), legend=None),
        tooltip=[alt.Tooltip("client:O"), alt.Tooltip("other:O", title="other client"), alt.Tooltip("bits:Q", format=".3f")],
    )
    layers = [cells]
    if count <= MAX_LABELED_CLIENTS:
        layers.append(
            base.mark_text(fontSize=10).encode(
                text=alt.Text("bits:Q", format=".2f"), color=conditional_color(f"datum.bits > {0.6 * largest}", "black", "white")
            )
        )
    return alt.layer(*layers).properties(width="container", height=max(step * count, 60))


def distinctive_words_chart(words: Sequence[tuple[str, float]], max_z: float, chance_z: float) -> Chart:
    """Draw one client's most distinctive words as bars of their z-scores.

    Args:
        words: Words with their z-scores, highest first.
        max_z: End of the axis, which all clients share.
        chance_z: The z-score that a random partition reaches; bars up to it are gray.
    """
    rows = [{"word": word, "z": round(z, 2)} for word, z in words]
    color = conditional_color(f"datum.z > {chance_z}", OKABE_ITO[0], "#9aa5b0")
    bars = (
        alt.Chart(SharedRows(values=rows))
        .mark_bar(height=11)
        .encode(
            x=alt.X("z:Q", title=None, scale=alt.Scale(domain=[0, max_z], nice=False), axis=alt.Axis(tickCount=3, grid=False)),
            y=alt.Y("word:N", title=None, sort=None, axis=alt.Axis(labelLimit=110, ticks=False, domain=False)),
            color=color,
            tooltip=[alt.Tooltip("word:N"), alt.Tooltip("z:Q", format=".1f")],
        )
    )
    return alt.layer(bars).properties(width="container", height=17 * max(len(rows), 1))


def budget_bars(amounts: np.ndarray, unit: str) -> Chart:
    """Draw the amount of training data of each client.

    Args:
        amounts: Amount of each client, [N].
        unit: Unit of the amounts.
    """
    rows = [{"client": client, "amount": float(amount)} for client, amount in enumerate(amounts)]
    step = 24 if len(rows) <= 40 else 9
    bars = (
        alt.Chart(SharedRows(values=rows))
        .mark_bar(color=OKABE_ITO[0])
        .encode(
            x=alt.X("amount:Q", title=unit, axis=alt.Axis(tickCount=4, grid=False, format="~s")),
            y=client_axis(),
            tooltip=[alt.Tooltip("client:O"), alt.Tooltip("amount:Q", format=",.0f", title=unit)],
        )
    )
    return alt.layer(bars).properties(width="container", height=step * len(rows))
