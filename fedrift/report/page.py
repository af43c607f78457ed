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
from ..store.files import write_whole
from . import figures
from .exhibit import Exhibit, distinct
from .rows import Row, ceiling, client_rows, curve_rows, mean_rows, off_scale, span, spread_rows
from .tables import as_yaml, verdict_line

MANY = 12  # clients; above, their panels become one band
UPDATES = (  # metric, by client, panel title
    ("update.norm", True, "update norm, mean over clients"),
    ("update.cosine", True, "cosine of a client's update with the mean one, mean over clients"),
    ("update.consensus", False, "consensus: 1 if all updates agree"),
    ("update.divergence", False, "divergence: mean distance between updates over their mean norm"),
)


CROSS = "A cross at the upper edge: from there on the loss is no number, or over twice the highest start."


class Panel(NamedTuple):
    """A chart with the words above and below it."""

    title: str
    chart: figures.Chart
    note: str = ""


def write_report(runs: Iterable[Exhibit | tuple[Any, ...]], out: Path) -> Path:
    """Write the page of some runs to ``out`` (an .html file, or a folder for index.html); where it lies.

    A run may be unfinished, empty or diverged, and may have no twin: the page then says so.
    """
    exhibits = distinct(Exhibit(*run) for run in runs)
    out = Path(out)
    path = out if out.suffix.lower() in (".html", ".htm") else out / "index.html"
    write_whole(path, render(exhibits).encode())
    return path


def render(exhibits: list[Exhibit]) -> str:
    """The page as text."""
    colour = figures.colours([exhibit.name for exhibit in exhibits])
    specs: dict[str, dict[str, Any]] = {}

    def place(panel: Panel) -> str:
        """Keep a panel's chart for the script, under the name of its place."""
        name = f"chart-{len(specs)}"
        specs[name] = panel.chart.to_dict()
        return name

    template = _templates().get_template("page.html")
    return template.render(
        version=__version__, exhibits=exhibits, colour=colour, stages=figures.STAGES,
        place=place, specs=specs, twins=any(exhibit.twin for exhibit in exhibits),
        lines=[verdict_line(exhibit) for exhibit in exhibits],
        overall=overall(exhibits, colour), by_domain=by_domain(exhibits, colour),
        by_client=[(exhibit, by_client(exhibit)) for exhibit in exhibits], updates=updates(exhibits, colour),
        partitions=partitions(exhibits),
        as_yaml=as_yaml, bundle=bundle())


def overall(exhibits: list[Exhibit], colour: dict[str, str]) -> list[Panel]:
    """The loss on everything, of all runs in one chart."""
    rows = curve_rows(exhibits, "loss")
    note = CROSS if off_scale(rows, ceiling(rows))[1] else ""
    chart = figures.curves(rows, colour, height=320)
    return [Panel("test loss over all domains, weighted by tokens", chart, note)] if rows else []


def by_domain(exhibits: list[Exhibit], colour: dict[str, str]) -> list[Panel]:
    """One panel a domain, all with scales of the same length."""
    domains = sorted({domain for exhibit in exhibits for domain in exhibit.trajectory.domains_of("loss")})
    drawn = {domain: rows for domain in domains if (rows := curve_rows(exhibits, "loss", domain))}
    stretch = _stretch(list(drawn.values()))
    return [Panel(domain, figures.curves(rows, colour, stretch=stretch, height=180))
            for domain, rows in drawn.items()]


def by_client(exhibit: Exhibit) -> list[Panel]:
    """A run's clients before and after averaging: a panel each, or one band where they are many."""
    run = exhibit.trajectory
    if len(run.clients) > MANY:
        rows = spread_rows(run)
        title = f"{len(run.clients)} clients: median, and lowest to highest"
        return [Panel(title, figures.spread(rows))] if rows else []
    drawn = {client: rows for client in run.clients if (rows := client_rows(run, client))}
    stretch = _stretch(list(drawn.values()))
    return [Panel(f"client {client}", figures.stages(rows, stretch=stretch))
            for client, rows in drawn.items()]


def updates(exhibits: list[Exhibit], colour: dict[str, str]) -> list[Panel]:
    """What the clients' updates look like: length, direction, agreement."""
    panels = []
    for metric, of_clients, title in UPDATES:
        rows = mean_rows(exhibits, metric) if of_clients else curve_rows(exhibits, metric)
        if rows:
            panels.append(Panel(title, figures.curves(rows, colour, loss=False, height=180)))
    return panels


def partitions(exhibits: list[Exhibit]) -> list[tuple[str, Panel]]:
    """Who holds how much of what, where experiments carry it; equal deals share a figure."""
    dealt: dict[str, tuple[list[str], dict[str, Any]]] = {}
    for exhibit in exhibits:
        table = exhibit.experiment.get("partition_table")
        if table and table["tokens"]:
            dealt.setdefault(json.dumps(table), ([], table))[0].append(exhibit.name)
    return [(" · ".join(names), Panel("training tokens by client and domain",
                                      figures.heat_map(table["domains"], table["tokens"])))
            for names, table in dealt.values()]


def _stretch(panels: list[list[Row]]) -> float | None:
    """One length of scale for all panels; none where one of them leaves the scale and needs its own."""
    if any(ceiling(rows) for rows in panels):
        return None
    return span(panels) or None


@cache
def bundle() -> Markup:
    """Vega, Vega-Lite and vega-embed as one script, as it may stand inside a page."""
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return Markup(script.replace("</script", "<\\/script"))


@cache
def _templates() -> Environment:
    return Environment(loader=PackageLoader("fedrift.report", "."), autoescape=True,
                       undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
