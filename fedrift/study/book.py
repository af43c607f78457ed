"""A study's folder: which runs it has and what each is for. The runs themselves lie beside it and may serve other studies.

    runs/studies/<name>/study.json        the study, its factors, every run with its place in the design, what tuning chose
                        failures/<run>    why a run stopped
                        slurm/            logs of jobs

No torch here: tables and reports open without it.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import UserError, unknown
from ..store import Run
from ..store.files import write_whole
from ..store.run import SHAPES, read_stored

STUDIES = "studies"
KEYS = {"study": dict, "factors": list, "complete": bool, "designs": dict, "choices": list, "runs": list}  # of study.json
ENTRY: dict[str, Any] = {"run": str, "role": str, "stage": str, "arm": str, "seed": int, "iid": bool, "twin": str,
                         "factors": dict, "settings": (dict, type(None)), "name": str}
NAME = re.compile(r"(?!\.)[\w.-]{1,100}")
WAY_OUT = "run the study again to write it, or take a copy of it"


@dataclass(frozen=True)
class Entry:
    """A run's place in a study. ``twin``: the id of its IID twin, "" without one; ``iid``: it is here as a twin only."""

    run: str
    role: str  # "run", "twin" or "trial"
    stage: str
    arm: str
    seed: int
    iid: bool
    twin: str
    factors: dict[str, Any]
    settings: dict[str, Any] | None
    name: str


@dataclass(frozen=True)
class Book:
    """The study ``name`` under ``root``, the folder of the runs."""

    root: Path
    name: str

    @property
    def folder(self) -> Path:
        return Path(self.root) / STUDIES / self.name

    @property
    def there(self) -> bool:
        return (self.folder / "study.json").exists()

    def write(self, said: dict[str, Any]) -> None:
        """Write ``study.json``, whole or not at all."""
        text = json.dumps({**said, "runs": [asdict(entry) for entry in said["runs"]]}, indent=1, ensure_ascii=False)
        write_whole(self.folder / "study.json", text.encode() + b"\n")

    def read(self) -> dict[str, Any]:
        """What ``write`` wrote, its runs as entries."""
        path = self.folder / "study.json"
        if not path.exists():
            known = studies(self.root)
            raise unknown("study", self.name, known) if known else UserError(
                f"no study {self.name!r}: {Path(self.root).resolve()} holds none; `fedrift study STUDY.yaml` makes one")
        said = read_stored(path, dict, WAY_OUT)
        for key, shape in KEYS.items():
            if not isinstance(said[key], shape):
                raise UserError(f"{path}: {key!r} is {str(said[key])[:80]!r}, and has to be {SHAPES[shape]}; {WAY_OUT}")
        for entry in said["runs"]:
            if not _is_entry(entry):
                raise UserError(f"{path}: runs holds {str(entry)[:80]!r}, which is no run of a study; {WAY_OUT}")
        return {**said, "runs": [Entry(**entry) for entry in said["runs"]]}

    def run(self, entry: Entry | str) -> Run:
        return Run(Path(self.root), entry if isinstance(entry, str) else entry.run)

    # Runs that stopped: kept here too, because a run that failed before its first round has no folder to say so

    def fail(self, run: str, message: str) -> None:
        write_whole(self.folder / "failures" / run, message.encode())

    def failure(self, run: str) -> str:
        """Why a run stopped; "" if it did not."""
        try:
            return (self.folder / "failures" / run).read_text()
        except OSError:
            return ""

    def forget_failures(self) -> None:
        """Before the study is gone on with: what failed is tried again."""
        for path in (self.folder / "failures").glob("*"):
            path.unlink(missing_ok=True)

    def state(self, run: str) -> str:
        """``finished``, ``failed``, ``running``, ``unfinished`` or ``missing``."""
        kept = self.run(run)
        return "finished" if kept.finished else "failed" if self.failure(run) else kept.status


def _is_entry(said: Any) -> bool:
    """Whether a JSON value is an ``Entry``, whose ids name folders of runs."""
    return (isinstance(said, dict) and said.keys() == ENTRY.keys() and all(isinstance(said[key], ENTRY[key]) for key in ENTRY)
            and bool(NAME.fullmatch(said["run"])) and (not said["twin"] or bool(NAME.fullmatch(said["twin"]))))


def studies(root: Path) -> list[str]:
    """The names of the studies under ``root``."""
    return sorted(path.parent.name for path in (Path(root) / STUDIES).glob("*/study.json"))


def find_study(root: Path, name: str) -> Book:
    """The study of that name, or the one whose YAML file or folder is named."""
    if name in studies(root):
        return Book(Path(root), name)
    path = Path(name)
    if (path / "study.json").is_file():
        path = path.resolve()
        return Book(path.parent.parent, path.name)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        from ..config import load_yaml

        return find_study(root, str(load_yaml(path).get("name", "")))
    book = Book(Path(root), name)
    book.read()  # raises, and says what there is
    return book


def shared_twins(entries: list[Entry]) -> list[Entry]:
    """Each run once for tables: a twin that serves several arms keeps the levels that they agree on."""
    found: dict[tuple[str, str, str], Entry] = {}
    for entry in entries:
        key = (entry.role, entry.run, entry.stage if entry.role != "twin" else "")
        before = found.get(key)
        if before is None or entry.role != "twin":
            found[key] = entry
            continue
        agreed = {name: label if entry.factors.get(name) == label else None for name, label in before.factors.items()}
        found[key] = replace(before, factors=agreed)
    return list(found.values())
