"""The report of a study as a PDF. The Typst template ``study.typ`` reads the document as JSON; all figures are vector graphics."""

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
from .study_report import number_blocks, panel_spec

TEXT_WIDTH = 642  # pixels; 17 cm on paper
PANEL_GAP = 14  # pixels
VEGA_CONFIG = {
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
MAX_PAPER_PANELS = 12  # panels per figure


def render_pdf(document: Document, on_progress: Callable[[str], None] = lambda message: None) -> tuple[bytes, dict[str, str]]:
    """Return the PDF and its figures.

    Args:
        document: The report.
        on_progress: Function that receives progress messages.

    Returns:
        The bytes of the PDF, and the SVG text of every figure panel by file name.
    """
    drawings: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        content = {
            "name": document.name,
            "question": document.question,
            "state": document.progress,
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
                    "blocks": [block_to_json(block, document, drawings, on_progress) for block in section.blocks],
                }
                for section in document.sections
            ],
        }
        for name, drawing in drawings.items():
            (root / name).write_text(drawing)
        (root / "document.json").write_text(json.dumps(content, default=list))
        (root / "study.typ").write_text((files("fedrift.report") / "study.typ").read_text())
        return bytes(typst.compile(root / "study.typ", root=root)), drawings


def block_to_json(
    block: Figure | Table, document: Document, drawings: dict[str, str], on_progress: Callable[[str], None]
) -> dict[str, Any]:
    """Convert a figure or table to the JSON that ``study.typ`` reads. The charts of a figure are added to ``drawings`` as SVG."""
    if isinstance(block, Table):
        return {
            "kind": "table",
            "caption": f"{block.caption} {block.note}".strip(),
            "columns": block.columns,
            "numbers": sorted(block.numeric_columns),
            "rows": block.rows,
            "long": block.is_long,
        }
    number = number_blocks(document.figures)[block.key]
    on_progress(f"drawing figure {number} of {len(document.figures)}")
    columns = min(block.columns, len(block.panels))
    panels = []
    for index, panel in enumerate(block.panels[:MAX_PAPER_PANELS]):
        name = f"figure-{number:02d}-{index + 1:02d}.svg"
        drawings[name] = panel_to_svg(panel, (TEXT_WIDTH - PANEL_GAP * (columns - 1)) // columns)
        panels.append({"title": panel.title, "file": name})
    omitted = f" {len(block.panels) - MAX_PAPER_PANELS} more panels are on the HTML page." if len(block.panels) > MAX_PAPER_PANELS else ""
    return {
        "kind": "figure",
        "caption": f"{block.caption} {block.note}".strip() + omitted,
        "columns": columns,
        "panels": panels,
        "legend": [vars(key) for key in block.legend],
    }


def panel_to_svg(panel: Panel, width: int) -> str:
    """Draw a panel as SVG. ``width`` is its total width in pixels, axes included."""
    spec = panel_spec(panel, width) | {"autosize": {"type": "fit-x", "contains": "padding"}}
    return vl_convert.vegalite_to_svg(spec, config=VEGA_CONFIG)
