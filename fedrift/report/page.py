"""The report of one or more runs as a single HTML file. The page loads nothing from the network, and this module does not import torch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from .. import __version__
from ..core.errors import UserError, default_cache_dir
from ..storage.files import write_atomically
from . import figures
from .data import Row, RunView, band_rows, client_rows, curve_rows, loss_ceiling, mean_rows, split_off_scale, value_span, with_unique_names
from .format import to_yaml, verdict_line

MAX_CLIENT_PANELS = 12  # with more clients, one band replaces the panels
UPDATE_METRICS = (  # metric, whether it is recorded per client, panel title
    ("update.norm", True, "update norm, mean over clients"),
    ("update.cosine", True, "cosine between a client's update and the mean update, mean over clients"),
    ("update.consensus", False, "consensus: 1 if all updates are equal"),
    ("update.divergence", False, "divergence: mean distance between updates, divided by their mean norm"),
)
CROSS_NOTE = "A cross at the upper edge marks the round from which the loss is not finite or exceeds twice the highest initial loss."


class ChartSpecs(dict[str, dict[str, Any]]):
    """The Vega-Lite specifications of a page, by the id of their element."""

    def add(self, panel: ChartPanel) -> str:
        """Register a panel's chart for the page's script, and return the id of its element."""
        name = f"chart-{len(self)}"
        self[name] = panel.chart.to_dict(validate=False)
        return name


class ChartPanel(NamedTuple):
    """Hold a chart with its title and an optional note below it."""

    title: str
    chart: figures.Chart
    note: str = ""


def write_report(runs: Iterable[RunView | tuple[Any, ...]], output: Path) -> Path:
    """Write a page that shows some runs.

    Args:
        runs: The runs, as ``RunView`` or as tuples of its fields. A run may be unfinished, empty or diverged, and may lack an IID baseline.
        output: An ``.html`` file, or a directory, in which ``index.html`` is written.

    Returns:
        The path of the page.
    """
    views = with_unique_names(RunView(*run) for run in runs)
    path = page_path(Path(output))
    write_atomically(path, render_runs(views).encode())
    return path


def page_path(output: Path) -> Path:
    """Return ``output`` if it is an HTML file, else ``index.html`` in it."""
    return output if output.suffix.lower() in (".html", ".htm") else output / "index.html"


@figures.skip_validation()
def render_runs(views: list[RunView]) -> str:
    """Return the page as HTML."""
    color_by_run = figures.assign_colors([view.name for view in views])
    specs = ChartSpecs()
    template = template_environment().get_template("page.html")
    return template.render(
        version=__version__,
        views=views,
        color_by_run=color_by_run,
        stages=figures.STAGE_COLORS,
        add_chart=specs.add,
        specs=specs,
        has_baselines=any(view.iid_baseline for view in views),
        lines=[verdict_line(view) for view in views],
        overall=overall_panels(views, color_by_run),
        by_domain=domain_panels(views, color_by_run),
        by_client=[(view, client_panels(view)) for view in views],
        updates=update_panels(views, color_by_run),
        partitions=partition_panels(views),
        as_yaml=to_yaml,
        bundle=vega_script(),
    )


def overall_panels(views: list[RunView], color_by_run: dict[str, str]) -> list[ChartPanel]:
    """Draw the loss over all domains, with all runs in one chart."""
    rows = curve_rows(views, "loss")
    note = CROSS_NOTE if split_off_scale(rows, loss_ceiling(rows))[1] else ""
    chart = figures.line_chart(rows, color_by_run, height=320)
    return [ChartPanel("test loss over all domains, weighted by tokens", chart, note)] if rows else []


def domain_panels(views: list[RunView], color_by_run: dict[str, str]) -> list[ChartPanel]:
    """Draw one panel per domain. All panels have scales of the same length."""
    domains = sorted({domain for view in views for domain in view.trajectory.domains_of("loss")})
    rows_by_domain = {domain: rows for domain in domains if (rows := curve_rows(views, "loss", domain))}
    shared_range = _shared_range(list(rows_by_domain.values()))
    return [
        ChartPanel(domain, figures.line_chart(rows, color_by_run, value_range=shared_range, height=180))
        for domain, rows in rows_by_domain.items()
    ]


def client_panels(view: RunView) -> list[ChartPanel]:
    """Draw one panel per client with its loss before and after averaging, or one band if there are many clients."""
    run = view.trajectory
    if len(run.clients) > MAX_CLIENT_PANELS:
        rows = band_rows(run)
        title = f"{len(run.clients)} clients: median, and lowest to highest"
        return [ChartPanel(title, figures.client_band_chart(rows))] if rows else []
    rows_by_client = {client: rows for client in run.clients if (rows := client_rows(run, client))}
    shared_range = _shared_range(list(rows_by_client.values()))
    return [
        ChartPanel(f"client {client}", figures.before_after_chart(rows, value_range=shared_range))
        for client, rows in rows_by_client.items()
    ]


def update_panels(views: list[RunView], color_by_run: dict[str, str]) -> list[ChartPanel]:
    """Draw the norm, the direction and the agreement of the clients' updates."""
    panels = []
    for metric, is_per_client, title in UPDATE_METRICS:
        rows = mean_rows(views, metric) if is_per_client else curve_rows(views, metric)
        # With one client per round each update is the mean update, and cosine and consensus are 1 by definition.
        if any(row["value"] not in (None, 1.0) for row in rows):
            panels.append(ChartPanel(title, figures.line_chart(rows, color_by_run, loss=False, height=180)))
    return panels


def partition_panels(views: list[RunView]) -> list[tuple[str, ChartPanel]]:
    """Draw the training tokens per client and domain. Runs with equal partitions share a figure."""
    by_table: dict[str, tuple[list[str], dict[str, Any]]] = {}
    for view in views:
        table = view.experiment.get("partition_table")
        if table and table["tokens"]:
            by_table.setdefault(json.dumps(table), ([], table))[0].append(view.name)
    return [
        (
            " · ".join(names),
            ChartPanel("training tokens by client and domain", figures.partition_heatmap(table["domains"], table["tokens"])),
        )
        for names, table in by_table.values()
    ]


def _shared_range(panels: list[list[Row]]) -> float | None:
    """Return one length of scale for all panels, or None if a curve leaves its scale and needs its own."""
    if any(loss_ceiling(rows) for rows in panels):
        return None
    return value_span(panels) or None


@cache
def vega_script() -> Markup:
    """Return Vega, Vega-Lite and vega-embed as one script that may be embedded in a page.

    The script takes seconds to build and depends only on the version of vl-convert, so it is stored in the cache folder.
    """
    path = default_cache_dir() / "report" / f"vega-{version('vl-convert-python')}.js"
    try:
        digest, _, script = path.read_bytes().decode().partition("\n")
    except (OSError, UnicodeError):
        digest = script = ""
    if not script or digest != _script_digest(script):
        script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
        with suppress(UserError):  # the page does not need the cache
            write_atomically(path, f"{_script_digest(script)}\n{script}".encode())
    return Markup(script.replace("</script", "<\\/script"))


def _script_digest(script: str) -> str:
    return sha256(script.encode()).hexdigest()


@cache
def template_environment() -> Environment:
    """Return the Jinja environment of the page templates, which escapes HTML."""
    return Environment(
        loader=PackageLoader("fedrift.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
