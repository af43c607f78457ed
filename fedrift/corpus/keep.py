"""Arrays that took long to make, kept in files: whole or not at all, and made again when damaged."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from uuid import uuid4

import numpy as np


def kept_array(file: Path, rows: int) -> np.ndarray | None:
    """What an earlier call kept, [rows, E]; None if there is nothing, or nothing sound."""
    try:
        with np.load(file, allow_pickle=False) as kept:
            found: np.ndarray = kept["array"]  # a zip's checksum is compared here
    except Exception:  # damaged bytes raise anything, and so does a file of an older fedrift
        return None
    return found if found.ndim == 2 and len(found) == rows and bool(np.isfinite(found).all()) else None


def keep_array(file: Path, array: np.ndarray) -> None:
    """Written under another name, then renamed; a folder that takes no files is warned of and done without."""
    draft = file.with_name(f"{file.stem}.{os.getpid()}-{uuid4().hex[:8]}.draft")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as out:
            np.savez(out, array=array)
        draft.replace(file)
    except OSError as error:
        draft.unlink(missing_ok=True)
        warnings.warn(f"vectors are not kept in {file.parent}: {error}", stacklevel=2)
