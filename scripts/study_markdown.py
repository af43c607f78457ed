"""Write the paper of the study as Markdown with its legends."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from fedrift.report.document import Document, Figure, LegendKey, Table
from fedrift.report.study_report import MAX_PAPER_PANELS


def to_markdown(document: Document, figures_dir: str) -> str:
    """Return the paper as Markdown; the figures are the SVG files of ``render_pdf`` and ``draw_legends``."""
    lines = [
        f"# {document.question}",
        "",
        "*This page is written by `make study-report` from the stored runs. Do not edit it.*",
        "",
        f"**Abstract.** {' '.join(document.abstract)}",
        "",
    ]
    figure_number = table_number = 0
    for section in document.sections:
        lines += [f"## {section.title}", ""]
        for paragraph in section.text:
            lines += [paragraph, ""]
        for block in section.blocks:
            if isinstance(block, Figure):
                figure_number += 1
                if block.legend:
                    labels = ", ".join(key.label for key in block.legend)
                    lines += [f"![Legend: {labels}]({figures_dir}/figure-{figure_number:02d}-legend.svg)", ""]
                for index, panel in enumerate(block.panels[:MAX_PAPER_PANELS], 1):
                    lines += [f"**{panel.title}**", ""] if panel.title else []
                    lines += [f"![{panel.title or block.caption}]({figures_dir}/figure-{figure_number:02d}-{index:02d}.svg)", ""]
                lines += [f"*Figure {figure_number}. {block.caption} {block.note}".rstrip() + "*", ""]
            else:
                table_number += 1
                lines += [f"*Table {table_number}. {block.caption} {block.note}".rstrip() + "*", "", *markdown_table(block), ""]
    lines += ["## What was not run", ""]
    lines += [f"- {each.title}: {each.requirement}." for each in document.missing]
    return "\n".join(lines) + "\n"


LEGEND_WIDTH, LINE_HEIGHT = 640, 18  # pixels


def draw_legends(document: Document) -> dict[str, str]:
    """Return the legend of every figure that has one as SVG by file name; the PDF draws its own."""
    return {
        f"figure-{number:02d}-legend.svg": draw_legend(figure.legend) for number, figure in enumerate(document.figures, 1) if figure.legend
    }


def draw_legend(keys: Sequence[LegendKey]) -> str:
    """Return a legend as SVG, with as many entries in a line as fit."""
    x, y, marks = 0, LINE_HEIGHT // 2, []
    for key in keys:
        width = 52 + 7 * len(key.label)  # the font is not known, so a letter counts as 7 pixels
        if x and x + width > LEGEND_WIDTH:
            x, y = 0, y + LINE_HEIGHT
        color = key.color or "black"
        if key.mark == "dot":
            marks.append(f'<circle cx="{x + 12}" cy="{y}" r="4" fill="{color}"/>')
        else:
            dash = ' stroke-dasharray="5 4"' if key.mark == "dash" else ""
            marks.append(f'<line x1="{x}" y1="{y}" x2="{x + 24}" y2="{y}" stroke="{color}" stroke-width="2.5"{dash}/>')
        marks.append(f'<text x="{x + 30}" y="{y + 4}" font-family="sans-serif" font-size="12">{escape(key.label)}</text>')
        x += width
    size = f'width="{LEGEND_WIDTH}" height="{y + LINE_HEIGHT // 2}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(marks)}</svg>\n'


def markdown_table(table: Table) -> list[str]:
    """Return the lines of a Markdown table."""
    rule = ["--:" if index in table.numeric_columns else "---" for index in range(len(table.columns))]
    rows = (table.columns, rule, *table.rows)
    return ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
