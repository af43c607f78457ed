"""Hooks of mkdocs: links to files outside docs/ become plain text, tables can be read on a phone, the search puts the paper last, and the
site loads nothing from another server."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+(?!how-to/|reference/)(?=[\w.]+/|LOG|README|CONTRIBUTING)([^)]+)\)")
CELL = re.compile(r"<td>(.*?)</td>", re.DOTALL)
LONG_CELL = 40  # characters; a longer cell gets a minimum width
SHIM = "https://unpkg.com/iframe-worker/shim"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replace links out of the site by their text and the path of the file."""
    if page.file.src_uri.startswith("study/"):  # the paper names everything, so it would be the first result of most searches
        page.meta.setdefault("search", {})["boost"] = 0.2
    if "/" in page.file.src_uri:
        return markdown
    return OUTSIDE.sub(r"\1 (`\2`)", markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Mark the long cells of tables, which the style sheet keeps wide enough to read."""
    return CELL.sub(lambda cell: f'<td class="long">{cell[1]}</td>' if is_long(cell[1]) else cell[0], html)


def is_long(cell: str) -> bool:
    """Return whether the text of a cell of a table is long, without its tags."""
    return len(" ".join(re.sub(r"<[^>]+>", "", cell).split())) > LONG_CELL


def on_post_build(config: Any, **_: Any) -> None:
    """Load the script by which search works from the disk from the site itself, and not from another server."""
    site = Path(config["site_dir"])
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        local = os.path.relpath(site / "assets" / "iframe-worker.js", path.parent)
        if SHIM in text:
            path.write_text(text.replace(SHIM, Path(local).as_posix()), encoding="utf-8")
