"""The folder of the runs: find all of them, or one by its id or a tag; move a run aside, delete it, or drop its state.

A tag and a note are what a person wrote about a run.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ..core.errors import UserError, quote_value, unknown_name_error
from .run import Run, read_json_file

DELETED_FOLDER, REPLACED_FOLDER = "deleted", "replaced"  # the folders beside the runs for runs that were moved
STATE_FILES = ("state.safetensors", "client_states.rows", "updates")  # what only resuming and forking need
REQUIRED_KEYS = ("dataset.name", "model", "seed", "training.num_rounds", "algorithm.type", "partition.type")  # of experiment.json
MAX_REASON_LENGTH = 200  # characters
T = TypeVar("T")


class UnreadableRun(NamedTuple):
    """A run whose files cannot be read, and the reason in one line."""

    id: str
    reason: str


def list_runs(root: Path) -> list[Run]:
    """List every run under ``root`` with a readable experiment, oldest first; the list is empty if the folder does not exist."""
    return [run for run in _list_folders(root) if not get_read_error(run)]


def list_unreadable(root: Path) -> list[UnreadableRun]:
    """List every run under ``root`` whose experiment cannot be read, with the reason."""
    return [UnreadableRun(run.id, fault) for run in _list_folders(root) if (fault := get_read_error(run))]


def find_run(root: Path, name: str) -> Run:
    """Find a run by its id, by a unique prefix of its id, by a tag that only it has, or by its folder.

    Args:
        root: The folder of runs.
        name: The id, prefix, tag or folder.

    Raises:
        UserError: No run or several runs match, or the run cannot be read.

    Example:
        >>> run = find_run(Path("runs"), "ab12")
        >>> print(run.status, run.summary())
    """
    run = _locate(root, name)
    if fault := get_read_error(run):
        raise UserError(f"run {run.id} cannot be read: {fault}")
    return run


def find_runs(root: Path, names: Iterable[str]) -> tuple[list[Run], list[UnreadableRun]]:
    """Find the runs of several names, each once, separated into readable and unreadable runs.

    Raises:
        UserError: A name matches no run or several runs.
    """
    runs = list(dict.fromkeys(_locate(root, name) for name in names))
    faults = {run: get_read_error(run) for run in runs}
    return [run for run in runs if not faults[run]], [UnreadableRun(run.id, fault) for run, fault in faults.items() if fault]


def _locate(root: Path, name: str) -> Run:
    """Find the run of a name, readable or not."""
    runs = _list_folders(root)
    matches = [run for run in runs if run.id == name]
    if not matches and name:
        matches = [run for run in runs if run.id.startswith(name)]
    if len(matches) > 1:
        candidates = ", ".join(sorted(run.id for run in matches))
        raise UserError(f"{name!r} matches {len(matches)} runs: {candidates}. Give more characters of the id.")
    if matches:
        return matches[0]
    tagged = find_tagged(runs, name)
    if len(tagged) > 1:
        raise UserError(f"{len(tagged)} runs have the tag {name!r}: {', '.join(run.id for run in tagged)}. Give an id.")
    if tagged:
        return tagged[0]
    if (Path(name) / "experiment.json").is_file():
        folder = Path(name).resolve()
        return Run(folder.parent, folder.name)
    if not runs:
        raise UserError(f"no run {name!r}: {Path(root).resolve()} contains no runs; create one with `fedrift run`")
    raise unknown_name_error(f"run in {root} beginning with", name, [run.id for run in runs])


def try_read_each(runs: Iterable[Run], reader: Callable[[Run], T]) -> tuple[list[tuple[Run, T]], list[UnreadableRun]]:
    """Apply ``reader`` to each run, and return the results and the runs for which it raised; one damaged run does not affect the others."""
    results, unreadable = [], []
    for run in runs:
        try:
            results.append((run, reader(run)))
        except Exception as error:
            unreadable.append(UnreadableRun(run.id, format_reason(error)))
    return results, unreadable


def format_reason(error: BaseException) -> str:
    """Format an error in one line."""
    text = " ".join(str(error).split())
    text = text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
    return text if len(text) <= MAX_REASON_LENGTH else f"{text[: MAX_REASON_LENGTH - 3]}..."


def _list_folders(root: Path) -> list[Run]:
    """List the runs whose folder has an experiment, oldest first, readable or not.

    Raises:
        UserError: The path is no folder.
    """
    if Path(root).exists() and not Path(root).is_dir():
        raise UserError(f"{root} is a file, not a folder of runs: name the folder with --runs-dir")
    times_and_names = []
    for path in Path(root).glob("*/experiment.json"):
        try:
            times_and_names.append((path.stat().st_mtime_ns, path.parent.name))
        except OSError:  # removed in the meantime, or a dangling link
            continue
    return [Run(Path(root), name) for _, name in sorted(times_and_names)]


def get_read_error(run: Run) -> str:
    """Return why the experiment of a run cannot be read, or "" if it can be read."""
    path = run.folder / "experiment.json"
    try:
        file_status = path.stat()
    except OSError as error:
        return format_reason(error)
    return _get_read_error_cached(run, file_status.st_mtime_ns, file_status.st_size)


@lru_cache(maxsize=1 << 14)
def _get_read_error_cached(run: Run, modified_ns: int, size: int) -> str:
    try:
        stored = run.config
    except Exception as error:
        return format_reason(error)
    for key in REQUIRED_KEYS:
        value: object = stored
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        expected: type = int if key in ("seed", "training.num_rounds") else str
        if not isinstance(value, expected):
            return (
                f"experiment.json has the invalid value {str(value)[:80]!r} for {key}; remove or repair {run.folder}"
                if value is not None
                else f"experiment.json has no {key}; remove or repair {run.folder}"
            )
    severity = stored["partition"].get("severity", 0.0)
    if not isinstance(severity, (int, float)):
        return f"experiment.json has the invalid value {str(severity)[:80]!r} for partition.severity; remove or repair {run.folder}"
    return ""


def is_iid(stored_config: Mapping[str, Any]) -> bool:
    """Return whether a run, or the origin of a fork, has an IID partition."""
    return bool(stored_config["partition"].get("severity") == 0)


def to_iid_baseline(stored_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the stored experiment of the IID baseline of a run, as ``ExperimentConfig.iid_baseline`` makes it."""
    partition = {**stored_config["partition"], "severity": 0.0}
    if "alpha" in partition:  # runs with different values of alpha share one baseline
        partition["alpha"] = None
    return {**{key: value for key, value in stored_config.items() if key != "fork"}, "partition": partition}


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
    tags = [tag for tag in dict.fromkeys([*old["tags"], *new]) if tag not in without]
    run.write_json("labels", {**old, "tags": tags})
    return tags


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


# Removing runs or parts of them.


def count_bytes(path: Path) -> int:
    """Return the size of a file or of all files in a folder; 0 if it does not exist."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def drop_state(run: Run) -> dict[str, int]:
    """Delete what a finished run only needs to be resumed or forked: its checkpoint, client states and update log.

    Records, events, models and findings stay, so that every table and report is as before.

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
