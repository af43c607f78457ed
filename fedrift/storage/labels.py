"""What a person wrote about a run: tags and a note, in ``runs/<id>/labels.json``. They change neither its id nor its results."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..core.errors import UserError, quote_value
from .run import Run, read_json_file

TAG_PATTERN = re.compile(r"\w[\w.+-]{0,39}")
MAX_NOTE_LENGTH = 2000
RECOVERY_HINT = "remove the file; it holds only tags and a note"


def read_labels(run: Run) -> dict[str, Any]:
    """Return ``{"tags": [...], "note": "..."}`` of a run; both are empty if nothing was written.

    Raises:
        UserError: The file is damaged.
    """
    path = run.folder / "labels.json"
    if not path.exists():
        return {"tags": [], "note": ""}
    content = read_json_file(path, dict, RECOVERY_HINT)
    tags, note = content.get("tags", []), content.get("note", "")
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags) or not isinstance(note, str):
        raise UserError(
            f"{path} must hold a list `tags` of texts and a text `note`, but holds {quote_value(str(dict(content)))}; {RECOVERY_HINT}"
        )
    return {"tags": tags, "note": note}


def add_tags(run: Run, tags: Iterable[str], removed: Iterable[str] = ()) -> list[str]:
    """Add tags to a run and remove others; return all its tags, each once, in the order of their addition.

    Raises:
        UserError: A tag is not a single word of at most 40 letters, digits and ``. _ + -``.
    """
    new, old = list(tags), read_labels(run)
    for tag in new:
        if not TAG_PATTERN.fullmatch(tag):
            raise UserError(
                f"the tag {quote_value(tag)} is not allowed: use one word of at most 40 letters, digits and . _ + -, e.g. best-lr"
            )
    without = set(removed)
    kept = [tag for tag in dict.fromkeys([*old["tags"], *new]) if tag not in without]
    run.write_json("labels", {**old, "tags": kept})
    return kept


def write_note(run: Run, note: str) -> None:
    """Store the note of a run; it replaces the previous note, and "" removes it.

    Raises:
        UserError: The note is too long.
    """
    if len(note) > MAX_NOTE_LENGTH:
        raise UserError(f"the note has {len(note):,} characters; at most {MAX_NOTE_LENGTH:,} are allowed: shorten it")
    run.write_json("labels", {**read_labels(run), "note": note})


def find_tagged(runs: Iterable[Run], tag: str) -> list[Run]:
    """Return the runs with a tag; runs with damaged labels have none."""
    return [run for run in runs if tag in _read_tags(run.folder)]


def _read_tags(folder: Path) -> list[str]:
    try:
        tags: list[str] = read_labels(Run(folder.parent, folder.name))["tags"]
    except UserError:
        return []
    return tags
