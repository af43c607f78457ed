"""The report: one HTML file that needs nothing beside it, neither network nor torch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from .. import __version__
from ..storage.files import write_atomically
from . import figures
from .data import Row, RunView, band_rows, client_rows, curve_rows, loss_ceiling, mean_rows, split_off_scale, value_span, with_unique_names
from .format import to_yaml, verdict_line

MAX_CLIENT_PANELS = 12  # clients; above, their panels become one band
UPDATE_METRICS = (  # metric, by client, panel title
    ("update.norm", True, "update norm, mean over clients"),
    ("update.cosine", True, "cosine of a client's update with the mean one, mean over clients"),
    ("update.consensus", False, "consensus: 1 if all updates agree"),
    ("update.divergence", False, "divergence: mean distance between updates over their mean norm"),
)


CROSS_NOTE = "A cross at the upper edge: from there on the loss is no number, or over twice the highest start."


class ChartPanel(NamedTuple):
    """A chart with the words above and below it."""

    title: str
    chart: figures.Chart
    note: str = ""


def write_report(runs: Iterable[RunView | tuple[Any, ...]], output: Path) -> Path:
    """Write the page of some runs to ``out`` (an .html file, or a folder for index.html); where it lies.

    A run may be unfinished, empty or diverged, and may have no twin: the page then says so.
    """
    exhibits = with_unique_names(RunView(*run) for run in runs)
    output = Path(output)
    path = output if output.suffix.lower() in (".html", ".htm") else output / "index.html"
    write_atomically(path, render_runs(exhibits).encode())
    return path


def render_runs(views: list[RunView]) -> str:
    """The page as text."""
    colour = figures.assign_colors([exhibit.name for exhibit in views])
    specs: dict[str, dict[str, Any]] = {}

    def place(panel: ChartPanel) -> str:
        """Keep a panel's chart for the script, under the name of its place."""
        name = f"chart-{len(specs)}"
        specs[name] = panel.chart.to_dict()
        return name

    template = template_environment().get_template("page.html")
    return template.render(
        version=__version__,
        exhibits=views,
        colour=colour,
        stages=figures.STAGE_COLORS,
        place=place,
        specs=specs,
        twins=any(exhibit.iid_baseline for exhibit in views),
        lines=[verdict_line(exhibit) for exhibit in views],
        overall=overall_panels(views, colour),
        by_domain=domain_panels(views, colour),
        by_client=[(exhibit, client_panels(exhibit)) for exhibit in views],
        updates=update_panels(views, colour),
        partitions=partition_panels(views),
        as_yaml=to_yaml,
        bundle=vega_script(),
    )


def overall_panels(views: list[RunView], color_by_run: dict[str, str]) -> list[ChartPanel]:
    """The loss on everything, of all runs in one chart."""
    rows = curve_rows(views, "loss")
    note = CROSS_NOTE if split_off_scale(rows, loss_ceiling(rows))[1] else ""
    chart = figures.line_chart(rows, color_by_run, height=320)
    return [ChartPanel("test loss over all domains, weighted by tokens", chart, note)] if rows else []


def domain_panels(views: list[RunView], color_by_run: dict[str, str]) -> list[ChartPanel]:
    """One panel a domain, all with scales of the same length."""
    domains = sorted({domain for exhibit in views for domain in exhibit.trajectory.domains_of("loss")})
    drawn = {domain: rows for domain in domains if (rows := curve_rows(views, "loss", domain))}
    stretch = _shared_range(list(drawn.values()))
    return [ChartPanel(domain, figures.line_chart(rows, color_by_run, value_range=stretch, height=180)) for domain, rows in drawn.items()]


def client_panels(view: RunView) -> list[ChartPanel]:
    """A run's clients before and after averaging: a panel each, or one band where they are many."""
    run = view.trajectory
    if len(run.clients) > MAX_CLIENT_PANELS:
        rows = band_rows(run)
        title = f"{len(run.clients)} clients: median, and lowest to highest"
        return [ChartPanel(title, figures.client_band_chart(rows))] if rows else []
    drawn = {client: rows for client in run.clients if (rows := client_rows(run, client))}
    stretch = _shared_range(list(drawn.values()))
    return [ChartPanel(f"client {client}", figures.before_after_chart(rows, value_range=stretch)) for client, rows in drawn.items()]


def update_panels(views: list[RunView], color_by_run: dict[str, str]) -> list[ChartPanel]:
    """What the clients' updates look like: length, direction, agreement."""
    panels = []
    for metric, of_clients, title in UPDATE_METRICS:
        rows = mean_rows(views, metric) if of_clients else curve_rows(views, metric)
        if rows:
            panels.append(ChartPanel(title, figures.line_chart(rows, color_by_run, loss=False, height=180)))
    return panels


def partition_panels(views: list[RunView]) -> list[tuple[str, ChartPanel]]:
    """Who holds how much of what, where experiments carry it; equal deals share a figure."""
    dealt: dict[str, tuple[list[str], dict[str, Any]]] = {}
    for exhibit in views:
        table = exhibit.experiment.get("partition_table")
        if table and table["tokens"]:
            dealt.setdefault(json.dumps(table), ([], table))[0].append(exhibit.name)
    return [
        (
            " · ".join(names),
            ChartPanel("training tokens by client and domain", figures.partition_heatmap(table["domains"], table["tokens"])),
        )
        for names, table in dealt.values()
    ]


def _shared_range(panels: list[list[Row]]) -> float | None:
    """One length of scale for all panels; none where one of them leaves the scale and needs its own."""
    if any(loss_ceiling(rows) for rows in panels):
        return None
    return value_span(panels) or None


@cache
def vega_script() -> Markup:
    """Vega, Vega-Lite and vega-embed as one script, as it may stand inside a page."""
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return Markup(script.replace("</script", "<\\/script"))


@cache
def template_environment() -> Environment:
    return Environment(
        loader=PackageLoader("fedrift.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
