"""The report as one HTML file: figures that filters act on, tables, nothing fetched from anywhere."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import altair as alt
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..page import bundle
from .document import Document, Figure, Panel, Table


def render(document: Document) -> str:
    """The page as text."""
    specs: dict[str, dict[str, Any]] = {}

    def place(panel: Panel, figure: Figure) -> str:
        name = f"{figure.key}-{len(specs)}"
        label = f"{panel.title}. {figure.caption}" if panel.title else figure.caption
        specs[name] = packed({**spec(panel), "description": label})
        return name

    return (
        _templates()
        .get_template("study.html")
        .render(
            document=document,
            place=place,
            specs=specs,
            bundle=bundle(),
            figures=numbered(document.figures),
            tables=numbered(document.tables),
            ticked=ticked,
            is_figure=lambda block: isinstance(block, Figure),
            arms=[dict(arm) for arm in document.arms],
        )
    )


def spec(panel: Panel, width: Any = "container") -> dict[str, Any]:
    """A panel's chart as Vega-Lite; its schema is checked by the tests, not for every reader."""
    with alt.utils.schemapi.debug_mode(False):
        said: dict[str, Any] = panel.draw(width).to_dict(validate=False)
    return said


def ticked(said: str) -> Markup:
    """Text with what stands between backticks as code."""
    parts = said.split("`")
    return Markup("").join(Markup("<code>{}</code>").format(part) if place % 2 else part for place, part in enumerate(parts))


def numbered(blocks: Iterable[Figure | Table]) -> dict[str, int]:
    return {block.key: number for number, block in enumerate(blocks, 1)}


def packed(said: dict[str, Any]) -> dict[str, Any]:
    """The same with its rows as one list of names and lists of values: half the size. ``study.js`` unpacks it."""
    datasets = {}
    for name, rows in said.get("datasets", {}).items():
        names = list(dict.fromkeys(key for row in rows for key in row))
        datasets[name] = {"names": names, "rows": [[row.get(key) for key in names] for row in rows]}
    return {**said, "datasets": datasets}


@cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("fedrift.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
