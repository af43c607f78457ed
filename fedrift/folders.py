"""Where things are kept that can be made or fetched again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where fetched models, tokenised corpora and embeddings are kept: ``FEDRIFT_CACHE``, else the user's cache."""
    said = os.environ.get("FEDRIFT_CACHE")
    return Path(said).expanduser() if said else Path.home() / ".cache" / "fedrift"
