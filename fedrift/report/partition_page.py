"""The page of one partition: one HTML file, made and drawn as the report of runs is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..store.files import write_whole
from . import deal_figures, figures
from .page import Panel, _templates, bundle
from .sheet import TITLES, Sheet, line, plain_number, verdict
from .tables import as_yaml

SHOWN = 24  # clients whose words and samples are shown
DRAWN = 120  # clients whose rows are drawn in matrices
DOMAINS = 40


def write_partition_page(sheet: Sheet, out: Path) -> Path:
    """Write the page to ``out`` (an .html file, or a folder for index.html); where it lies."""
    path = out if out.suffix.lower() in (".html", ".htm") else out / "index.html"
    write_whole(path, render(sheet).encode())
    return path


def render(sheet: Sheet) -> str:
    """The page as text."""
    specs: dict[str, dict[str, Any]] = {}

    def place(panel: Panel) -> str:
        name = f"chart-{len(specs)}"
        specs[name] = panel.chart.to_dict()
        return name

    measured = sheet.measured
    return _templates().get_template("partition_page.html").render(
        version=__version__, sheet=sheet, verdict=verdict(measured), as_yaml=as_yaml, titles=TITLES, number=plain_number,
        lines=[(*line(number), number.beyond) for number in measured.numbers],
        holding=holding(sheet), words=words(sheet), chance=plain_number(sheet.chance),
        samples=list(enumerate(sheet.samples))[:SHOWN], more=max(0, measured.clients - SHOWN),
        total=float(measured.budgets.sum()), place=place, specs=specs, bundle=bundle())


def holding(sheet: Sheet) -> list[Panel]:
    """Who holds what, how much, and who differs from whom."""
    measured, first = sheet.measured, slice(0, DRAWN)
    some = f" (first {DRAWN} clients)" if measured.clients > DRAWN else ""
    panels = []
    if measured.table.sum() > 0:
        domains = np.argsort(-measured.table.sum(axis=0), kind="stable")[:DOMAINS]
        domains = np.sort(domains)
        few = f", the {DOMAINS} largest domains" if len(measured.domains) > DOMAINS else ""
        panels.append(Panel(f"{sheet.unit} by client and domain{few}{some}", figures.heat_map(
            [measured.domains[d] for d in domains], np.round(measured.table[first][:, domains]).tolist())))
    else:
        panels.append(Panel(f"{sheet.unit} by client{some}", deal_figures.budgets(measured.budgets[first], sheet.unit)))
    if measured.clients > 1:
        panels.append(Panel(f"divergence of two clients' words, bits{some}",
                            deal_figures.divergence(measured.pairwise[first, first])))
    return panels


def words(sheet: Sheet) -> list[Panel]:
    """The words of each client, all on one scale."""
    longest = max((z for client in sheet.words for _, z in client), default=1.0)
    longest = max(longest, sheet.chance)
    return [Panel(f"client {client}{mostly(sheet, client)}", deal_figures.telling(found, longest, sheet.chance))
            for client, found in list(enumerate(sheet.words))[:SHOWN] if found]


def mostly(sheet: Sheet, client: int) -> str:
    """A client's main domain and its share, where it is more than half."""
    row = sheet.measured.table[client]
    if row.sum() <= 0 or row.max() / row.sum() <= 0.5:
        return ""
    return f", {row.max() / row.sum():.0%} {sheet.measured.domains[int(row.argmax())]}"
