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

from ..core.errors import UserError, unknown_name_error
from ..storage import Run
from ..storage.files import write_atomically
from ..storage.run import JSON_TYPE_NAMES, read_json_file

STUDIES_FOLDER = "studies"
MANIFEST_TYPES = {"study": dict, "factors": list, "complete": bool, "designs": dict, "choices": list, "runs": list}  # of study.json
ENTRY_TYPES: dict[str, Any] = {
    "run": str,
    "role": str,
    "stage": str,
    "condition": str,
    "seed": int,
    "iid": bool,
    "iid_baseline": str,
    "factors": dict,
    "settings": (dict, type(None)),
    "name": str,
}
NAME_PATTERN = re.compile(r"(?!\.)[\w.-]{1,100}")
MANIFEST_RECOVERY_HINT = "run the study again to write it, or take a copy of it"


@dataclass(frozen=True)
class ManifestEntry:
    """A run's place in a study. ``iid_baseline``: the id of its IID baseline, "" without one; ``iid``: it is
    here as a baseline only."""

    run: str
    role: str  # "run", "iid_baseline" or "trial"
    stage: str
    condition: str
    seed: int
    iid: bool
    iid_baseline: str
    factors: dict[str, Any]
    settings: dict[str, Any] | None
    name: str


@dataclass(frozen=True)
class StudyManifest:
    """The study ``name`` under ``root``, the folder of the runs."""

    root: Path
    name: str

    @property
    def folder(self) -> Path:
        return Path(self.root) / STUDIES_FOLDER / self.name

    @property
    def exists(self) -> bool:
        return (self.folder / "study.json").exists()

    def write(self, content: dict[str, Any]) -> None:
        """Write ``study.json``, whole or not at all."""
        text = json.dumps({**content, "runs": [asdict(entry) for entry in content["runs"]]}, indent=1, ensure_ascii=False)
        write_atomically(self.folder / "study.json", text.encode() + b"\n")

    def read(self) -> dict[str, Any]:
        """What ``write`` wrote, its runs as entries."""
        path = self.folder / "study.json"
        if not path.exists():
            known = list_studies(self.root)
            raise (
                unknown_name_error("study", self.name, known)
                if known
                else UserError(f"no study {self.name!r}: {Path(self.root).resolve()} holds none; `fedrift study STUDY.yaml` makes one")
            )
        said = read_json_file(path, dict, MANIFEST_RECOVERY_HINT)
        for key, shape in MANIFEST_TYPES.items():
            if not isinstance(said[key], shape):
                raise UserError(
                    f"{path}: {key!r} is {str(said[key])[:80]!r}, and has to be {JSON_TYPE_NAMES[shape]}; {MANIFEST_RECOVERY_HINT}"
                )
        for entry in said["runs"]:
            if not _is_entry(entry):
                raise UserError(f"{path}: runs holds {str(entry)[:80]!r}, which is no run of a study; {MANIFEST_RECOVERY_HINT}")
        return {**said, "runs": [ManifestEntry(**entry) for entry in said["runs"]]}

    def get_run(self, entry: ManifestEntry | str) -> Run:
        return Run(Path(self.root), entry if isinstance(entry, str) else entry.run)

    # Runs that stopped: kept here too, because a run that failed before its first round has no folder to say so

    def record_failure(self, run_id: str, message: str) -> None:
        write_atomically(self.folder / "failures" / run_id, message.encode())

    def get_failure(self, run_id: str) -> str:
        """Why a run stopped; "" if it did not."""
        try:
            return (self.folder / "failures" / run_id).read_text()
        except OSError:
            return ""

    def clear_failures(self) -> None:
        """Before the study is gone on with: what failed is tried again."""
        for path in (self.folder / "failures").glob("*"):
            path.unlink(missing_ok=True)

    def get_status(self, run_id: str) -> str:
        """``finished``, ``failed``, ``running``, ``unfinished`` or ``missing``."""
        kept = self.get_run(run_id)
        return "finished" if kept.is_finished else "failed" if self.get_failure(run_id) else kept.status


def _is_entry(value: Any) -> bool:
    """Whether a JSON value is a ``ManifestEntry``, whose ids name folders of runs."""
    return (
        isinstance(value, dict)
        and value.keys() == ENTRY_TYPES.keys()
        and all(isinstance(value[key], ENTRY_TYPES[key]) for key in ENTRY_TYPES)
        and bool(NAME_PATTERN.fullmatch(value["run"]))
        and (not value["iid_baseline"] or bool(NAME_PATTERN.fullmatch(value["iid_baseline"])))
    )


def list_studies(root: Path) -> list[str]:
    """The names of the studies under ``root``."""
    return sorted(path.parent.name for path in (Path(root) / STUDIES_FOLDER).glob("*/study.json"))


def find_study(root: Path, name: str) -> StudyManifest:
    """The study of that name, or the one whose YAML file or folder is named."""
    if name in list_studies(root):
        return StudyManifest(Path(root), name)
    path = Path(name)
    if (path / "study.json").is_file():
        path = path.resolve()
        return StudyManifest(path.parent.parent, path.name)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        from ..config.loader import load_yaml

        return find_study(root, str(load_yaml(path).get("name", "")))
    book = StudyManifest(Path(root), name)
    book.read()  # raises, and says what there is
    return book


def merge_shared_baselines(entries: list[ManifestEntry]) -> list[ManifestEntry]:
    """Each run once for tables: an IID baseline that serves several conditions keeps the levels that they agree on."""
    found: dict[tuple[str, str, str], ManifestEntry] = {}
    for entry in entries:
        key = (entry.role, entry.run, entry.stage if entry.role != "iid_baseline" else "")
        before = found.get(key)
        if before is None or entry.role != "iid_baseline":
            found[key] = entry
            continue
        agreed = {name: label if entry.factors.get(name) == label else None for name, label in before.factors.items()}
        found[key] = replace(before, factors=agreed)
    return list(found.values())
