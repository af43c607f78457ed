"""Remove runs or parts of them: move a run aside, delete it, or drop the state of a finished run."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..core.errors import UserError
from .run import Run

DELETED_FOLDER, REPLACED_FOLDER = "deleted", "replaced"  # the folders beside the runs for runs that were moved
STATE_FILES = ("state.safetensors", "client_states.rows", "updates")  # what only resuming and forking need


def count_bytes(path: Path) -> int:
    """Return the size of a file or of all files in a folder; 0 if it does not exist."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def drop_state(run: Run) -> dict[str, int]:
    """Delete what a finished run only needs to be resumed or forked: its checkpoint, client states and update log.

    Records, events, models and findings stay, so that every table and report is as before.

    Args:
        run: The run.

    Returns:
        The freed bytes of each file or folder that existed.

    Raises:
        UserError: The run is not finished, or another process is writing it.
    """
    if not run.is_finished:
        raise UserError(
            f"run {run.id[:6]} is {run.status} and needs its state to resume. Finish it with the same `fedrift run`, or remove the "
            f"whole run with `fedrift delete {run.id[:6]}`"
        )
    with run.lock():
        sizes = {name: count_bytes(run.folder / name) for name in STATE_FILES if (run.folder / name).exists()}
        for name in sizes:
            path = run.folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return sizes


def delete_run(run: Run, permanently: bool = False) -> Path | None:
    """Move a run into ``deleted/`` beside the runs, or remove its files.

    Args:
        run: The run.
        permanently: Whether to remove the files, which cannot be undone.

    Returns:
        The new folder; None if the files were removed.

    Raises:
        UserError: Another process is writing the run, or the folder cannot be moved.
    """
    if not permanently:
        return _move_run(run, DELETED_FOLDER)
    with run.lock():
        pass
    try:
        shutil.rmtree(run.folder)
    except OSError as error:
        raise UserError(f"{run.folder} cannot be deleted: {error.strerror or error}; check its permissions") from error
    return None


def archive_run(run: Run) -> Path:
    """Move the whole folder of a run into ``replaced/`` beside it, so that the run can start again; return its new path.

    Raises:
        UserError: Another process is writing the run, or the folder cannot be moved.
    """
    return _move_run(run, REPLACED_FOLDER)


def _move_run(run: Run, folder_name: str) -> Path:
    """Move a run into a folder beside the runs, under its id and the next free number."""
    with run.lock():
        pass
    target = Path(run.root) / folder_name
    number = 1
    while (target / f"{run.id}.{number}").exists():
        number += 1
    try:
        target.mkdir(exist_ok=True)
        return run.folder.rename(target / f"{run.id}.{number}")
    except OSError as error:
        raise UserError(f"{run.folder} cannot be moved to {target}: {error.strerror or error}; nothing was changed") from error
