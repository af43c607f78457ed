"""The report as a PDF that looks like a paper: ``study.typ`` sets the document, which it reads as JSON; figures are vectors."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import typst
import vl_convert

from .document import Document, Figure, Panel, Table
from .page import numbered, spec

TEXT = 642  # pixels of the text's width: 17 cm
GAP = 14
CONFIG = {
    "background": "white",
    "font": "Liberation Sans",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "#333",
        "titleColor": "#333",
        "gridColor": "#ddd",
        "domainColor": "#999",
        "tickColor": "#999",
        "labelFontSize": 11,
        "titleFontSize": 11,
        "titleFontWeight": "normal",
    },
    "text": {"font": "Liberation Sans"},
}
PANELS = 12  # of one figure on paper


def paper(document: Document, say: Callable[[str], None] = lambda message: None) -> tuple[bytes, dict[str, str]]:
    """The PDF, and its figures as SVG by name."""
    drawings: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        said = {
            "name": document.name,
            "question": document.question,
            "state": document.state,
            "abstract": document.abstract,
            "version": document.version,
            "claims": [vars(claim) for claim in document.claims],
            "missing": [vars(each) for each in document.missing],
            "source": document.source,
            "sections": [
                {
                    "key": section.key,
                    "title": section.title,
                    "text": section.text,
                    "blocks": [shown(block, document, drawings, say) for block in section.blocks],
                }
                for section in document.sections
            ],
        }
        for name, drawing in drawings.items():
            (root / name).write_text(drawing)
        (root / "document.json").write_text(json.dumps(said, default=list))
        (root / "study.typ").write_text((files("fedrift.report") / "study.typ").read_text())
        return bytes(typst.compile(root / "study.typ", root=root)), drawings


def shown(block: Figure | Table, document: Document, drawings: dict[str, str], say: Callable[[str], None]) -> dict[str, Any]:
    """A block as ``study.typ`` reads it; its charts are drawn into ``drawings``."""
    if isinstance(block, Table):
        return {
            "is": "table",
            "caption": f"{block.caption} {block.note}".strip(),
            "columns": block.columns,
            "numbers": sorted(block.numbers),
            "rows": block.rows,
            "long": block.long,
        }
    number = numbered(document.figures)[block.key]
    say(f"drawing figure {number} of {len(document.figures)}")
    columns = min(block.columns, len(block.panels))
    panels = []
    for place, panel in enumerate(block.panels[:PANELS]):
        name = f"figure-{number:02d}-{place + 1:02d}.svg"
        drawings[name] = drawn(panel, (TEXT - GAP * (columns - 1)) // columns)
        panels.append({"title": panel.title, "file": name})
    more = f" {len(block.panels) - PANELS} more panels are on the page." if len(block.panels) > PANELS else ""
    return {
        "is": "figure",
        "caption": f"{block.caption} {block.note}".strip() + more,
        "columns": columns,
        "panels": panels,
        "legend": [vars(key) for key in block.legend],
    }


def drawn(panel: Panel, width: int) -> str:
    """A panel as SVG, its axes inside ``width`` pixels."""
    said = spec(panel, width) | {"autosize": {"type": "fit-x", "contains": "padding"}}
    return vl_convert.vegalite_to_svg(said, config=CONFIG)
