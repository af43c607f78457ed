"""Finding runs: all under a folder, or the one that a few letters name."""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError, unknown
from .run import Run


def list_runs(root: Path) -> list[Run]:
    """Every run under ``root``, the oldest first; none if the folder is not there."""
    begun = [path for path in Path(root).glob("*/experiment.json") if path.is_file()]
    begun.sort(key=lambda path: (path.stat().st_mtime_ns, path.parent.name))
    return [Run(Path(root), path.parent.name) for path in begun]


def find_run(root: Path, name: str) -> Run:
    """The run whose folder is ``name``, or the only one under ``root`` whose id begins with it.

    Raises UserError with the candidates where none or several fit.
    """
    runs = list_runs(root)
    fitting = [run for run in runs if run.id == name]
    if not fitting and name:
        fitting = [run for run in runs if run.id.startswith(name)]
    if len(fitting) == 1:
        return fitting[0]
    if len(fitting) > 1:
        candidates = ", ".join(sorted(run.id for run in fitting))
        raise UserError(f"{name!r} names {len(fitting)} runs: {candidates}. Say more letters.")
    if (Path(name) / "experiment.json").is_file():
        folder = Path(name).resolve()
        return Run(folder.parent, folder.name)
    if not runs:
        raise UserError(f"no run {name!r}: {Path(root).resolve()} holds none; `fedrift run` makes one")
    raise unknown(f"run in {root} beginning with", name, [run.id for run in runs])
