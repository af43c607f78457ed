"""A study as a report: a page, a paper, and tables for one. No torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ...store.files import write_whole
from ...study import Book
from .build import build
from .dossier import opened
from .latex import files
from .page import render


def write_study_report(
    book: Book,
    out: Path,
    *,
    html: bool = True,
    pdf: bool = False,
    latex: bool = False,
    say: Callable[[str], None] = lambda message: None,
) -> list[Path]:
    """Write ``index.html``, ``report.pdf`` with its ``figures/`` and ``tables/*.tex`` under the folder ``out``, as asked.

    The study may be empty, unfinished or failed: the report then says so. ``out`` may be an .html file if only that is asked.
    """
    page = out if out.suffix.lower() in (".html", ".htm") else out / "index.html"
    document = build(opened(book, say))
    made: dict[Path, bytes] = {}
    if html:
        made[page] = render(document).encode()
    if pdf:
        from .paper import paper

        content, drawings = paper(document, say)
        made[page.parent / "report.pdf"] = content
        made |= {page.parent / "figures" / name: drawing.encode() for name, drawing in drawings.items()}
    if latex:
        made |= {page.parent / "tables" / name: text.encode() for name, text in files(document).items()}
    for path, content in made.items():
        write_whole(path, content)
    return list(made)


__all__ = ["write_study_report"]
