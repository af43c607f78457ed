"""Hooks of mkdocs: links to files outside docs/ become plain text, and the site loads nothing from another server."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+(?!how-to/|reference/)(?=[\w.]+/|LOG|README|CONTRIBUTING)([^)]+)\)")
SHIM = "https://unpkg.com/iframe-worker/shim"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replace links out of the site by their text and the path of the file."""
    if "/" in page.file.src_uri:
        return markdown
    return OUTSIDE.sub(r"\1 (`\2`)", markdown)


def on_post_build(config: Any, **_: Any) -> None:
    """Load the script by which search works from the disk from the site itself, and not from another server."""
    site = Path(config["site_dir"])
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        local = os.path.relpath(site / "assets" / "iframe-worker.js", path.parent)
        if SHIM in text:
            path.write_text(text.replace(SHIM, Path(local).as_posix()), encoding="utf-8")
