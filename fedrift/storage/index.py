"""Finding runs: all under a folder, or the one that a few letters name; and moving one aside."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeVar

from ..core.errors import UserError, unknown_name_error
from .run import Run

REPLACED_FOLDER = "replaced"  # the folder beside the runs that holds those moved aside
# of every experiment
REQUIRED_KEYS = ("dataset.name", "model", "seed", "training.num_rounds", "algorithm.type", "partition.type")
MAX_REASON_LENGTH = 200  # letters of a reason
T = TypeVar("T")


class UnreadableRun(NamedTuple):
    """A run that cannot be read, and why, in one line."""

    id: str
    reason: str


def list_runs(root: Path) -> list[Run]:
    """Every run under ``root`` whose experiment can be read, the oldest first; none if the folder is not there."""
    return [run for run in _list_folders(root) if not find_fault(run)]


def list_unreadable(root: Path) -> list[UnreadableRun]:
    """Every run under ``root`` whose experiment cannot be read, and why."""
    return [UnreadableRun(run.id, fault) for run in _list_folders(root) if (fault := find_fault(run))]


def find_run(root: Path, name: str) -> Run:
    """The run whose folder is ``name``, or the only one under ``root`` whose id begins with it.

    Raises UserError with the candidates where none or several fit, and with the reason where the run cannot be read.
    """
    run = _locate(root, name)
    if fault := find_fault(run):
        raise UserError(f"run {run.id} cannot be read: {fault}")
    return run


def find_runs(root: Path, names: Iterable[str]) -> tuple[list[Run], list[UnreadableRun]]:
    """The runs of several names, each once, and those among them that cannot be read. Raises UserError as ``find_run`` does
    where a name fits none or several."""
    every = list(dict.fromkeys(_locate(root, name) for name in names))
    faults = {run: find_fault(run) for run in every}
    return [run for run in every if not faults[run]], [UnreadableRun(run.id, fault) for run, fault in faults.items() if fault]


def _locate(root: Path, name: str) -> Run:
    runs = _list_folders(root)
    fitting = [run for run in runs if run.id == name]
    if not fitting and name:
        fitting = [run for run in runs if run.id.startswith(name)]
    if len(fitting) > 1:
        candidates = ", ".join(sorted(run.id for run in fitting))
        raise UserError(f"{name!r} names {len(fitting)} runs: {candidates}. Say more letters.")
    if fitting:
        return fitting[0]
    if (Path(name) / "experiment.json").is_file():
        folder = Path(name).resolve()
        return Run(folder.parent, folder.name)
    if not runs:
        raise UserError(f"no run {name!r}: {Path(root).resolve()} holds none; `fedrift run` makes one")
    raise unknown_name_error(f"run in {root} beginning with", name, [run.id for run in runs])


def read_each(runs: Iterable[Run], reader: Callable[[Run], T]) -> tuple[list[tuple[Run, T]], list[UnreadableRun]]:
    """What ``read`` makes of each run, and the runs of which it makes nothing: one broken run hides no other."""
    found, bad = [], []
    for run in runs:
        try:
            found.append((run, reader(run)))
        except Exception as error:
            bad.append(UnreadableRun(run.id, format_reason(error)))
    return found, bad


def format_reason(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    text = text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
    return text if len(text) <= MAX_REASON_LENGTH else f"{text[: MAX_REASON_LENGTH - 3]}..."


def move_aside(run: Run) -> Path:
    """Move a run's folder, whole, into ``replaced/`` beside it, so that the run can be begun again; where it is now.

    Raises UserError where another process is writing the run, or the folder cannot be moved.
    """
    with run.lock():
        pass
    target = Path(run.root) / REPLACED_FOLDER
    number = 1
    while (target / f"{run.id}.{number}").exists():
        number += 1
    try:
        target.mkdir(exist_ok=True)
        return run.folder.rename(target / f"{run.id}.{number}")
    except OSError as error:
        raise UserError(f"{run.folder} cannot be moved to {target}: {error.strerror or error}; nothing was changed") from error


def _list_folders(root: Path) -> list[Run]:
    begun = []
    for path in Path(root).glob("*/experiment.json"):
        try:
            begun.append((path.stat().st_mtime_ns, path.parent.name))
        except OSError:  # removed meanwhile, or a link to nowhere
            continue
    return [Run(Path(root), name) for _, name in sorted(begun)]


def find_fault(run: Run) -> str:
    """Why a run's experiment cannot be read; "" if it can."""
    path = run.folder / "experiment.json"
    try:
        stamp = path.stat()
    except OSError as error:
        return format_reason(error)
    return _find_fault_cached(run, stamp.st_mtime_ns, stamp.st_size)


@lru_cache(maxsize=1 << 14)
def _find_fault_cached(run: Run, modified_ns: int, size: int) -> str:
    try:
        stored = run.config
    except Exception as error:
        return format_reason(error)
    for key in REQUIRED_KEYS:
        value: object = stored
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        wanted: type = int if key in ("seed", "training.num_rounds") else str
        if not isinstance(value, wanted):
            return (
                f"experiment.json holds {str(value)[:80]!r} as {key}; remove or repair {run.folder}"
                if value is not None
                else f"experiment.json has no {key}; remove or repair {run.folder}"
            )
    severity = stored["partition"].get("severity", 0.0)
    if not isinstance(severity, (int, float)):
        return f"experiment.json holds {str(severity)[:80]!r} as partition.severity; remove or repair {run.folder}"
    return ""
