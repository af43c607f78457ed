"""The experiments and studies that come with fedrift, which a name without a folder finds from anywhere: ``demo``, ``small``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

Kind = Literal["experiments", "studies"]


def ready_folder(kind: Kind) -> Path:
    """Return the folder of the ready files: inside an installed package, and beside the package in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "ready" / kind
    return installed if installed.is_dir() else package.parent / kind


def list_ready(kind: Kind) -> list[str]:
    """Return the names of the ready experiments or studies, sorted."""
    return sorted(path.stem for path in ready_folder(kind).glob("*.yaml"))


def find_ready(path: Path, kind: Kind) -> Path:
    """Return the file that a person means: an existing file, or a ready one by its name with or without ``.yaml``.

    Args:
        path: What was given.
        kind: The kind of file.

    Returns:
        The path of a ready file if ``path`` is such a name and no file has this path; else ``path`` unchanged.

    Example:
        >>> find_ready(Path("demo"), "experiments").name
        'demo.yaml'
    """
    name = path.name.removesuffix(".yaml")
    if len(path.parts) != 1 or name not in list_ready(kind) or path.is_file():
        return path
    return ready_folder(kind) / f"{name}.yaml"
