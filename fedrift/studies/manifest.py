"""The manifest of a study: its folder, the list of its runs, and the role of each run.

    runs/studies/<name>/study.json        the study, its factors, every run with its cell, and the tuning results
                        failures/<run>    why a run failed
                        slurm/            logs of SLURM jobs

The runs themselves are stored beside the ``studies`` folder and may belong to several studies. This module does not need torch, so tables
and reports work without it.
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
MANIFEST_TYPES = {"study": dict, "factors": list, "complete": bool, "designs": dict, "tuning_results": list, "runs": list}  # of study.json
PART_TYPES = {"factors": str, "designs": dict, "tuning_results": dict}  # the types of their parts
ENTRY_ROLES = ("run", "iid_baseline", "trial")
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
MANIFEST_RECOVERY_HINT = "run the study again to recreate it, or restore a copy"


@dataclass(frozen=True)
class ManifestEntry:
    """The place of a run in a study."""

    run: str  # the run id
    role: str  # "run", "iid_baseline" or "trial"
    stage: str
    condition: str  # the cell in words
    seed: int
    iid: bool  # whether the run is an IID baseline
    iid_baseline: str  # the id of its IID baseline, or "" if it has none
    factors: dict[str, Any]  # factor -> label of its level
    settings: dict[str, Any] | None  # the settings that tuning selected, or those of a trial
    name: str  # the name of the experiment


@dataclass(frozen=True)
class StudyManifest:
    """The manifest of the study ``name`` under ``root``, the folder of runs.

    Example:
        >>> manifest = StudyManifest(Path("runs"), "severity")
        >>> {entry.run: manifest.get_status(entry.run) for entry in manifest.read()["runs"]}
    """

    root: Path
    name: str

    @property
    def folder(self) -> Path:
        """Return the folder of the study."""
        return Path(self.root) / STUDIES_FOLDER / self.name

    @property
    def exists(self) -> bool:
        """Return whether the study has been written."""
        return (self.folder / "study.json").exists()

    def write(self, content: dict[str, Any]) -> None:
        """Write ``study.json`` atomically. ``content`` is as ``fedrift.studies.plan.build_manifest_content`` returns it."""
        text = json.dumps({**content, "runs": [asdict(entry) for entry in content["runs"]]}, indent=1, ensure_ascii=False)
        write_atomically(self.folder / "study.json", text.encode() + b"\n")

    def read(self) -> dict[str, Any]:
        """Read ``study.json``, with its runs as ``ManifestEntry`` objects.

        Raises:
            UserError: The study does not exist, or its file is damaged.
        """
        path = self.folder / "study.json"
        if not path.exists():
            known = list_studies(self.root)
            raise (
                unknown_name_error("study", self.name, known)
                if known
                else UserError(
                    f"no study {self.name!r}: {Path(self.root).resolve()} contains no studies; create one with `fedrift study STUDY.yaml`"
                )
            )
        content = read_json_file(path, dict, MANIFEST_RECOVERY_HINT)
        for key, json_type in MANIFEST_TYPES.items():
            if not isinstance(content[key], json_type):
                raise UserError(
                    f"{path}: {key!r} must be {JSON_TYPE_NAMES[json_type]}, got {str(content[key])[:80]!r}; {MANIFEST_RECOVERY_HINT}"
                )
        for key, part_type in PART_TYPES.items():
            parts = content[key].values() if isinstance(content[key], dict) else content[key]
            for part in parts:
                if not isinstance(part, part_type):
                    raise UserError(f"{path}: {key!r} contains {str(part)[:80]!r}, which is not allowed there; {MANIFEST_RECOVERY_HINT}")
        for entry in content["runs"]:
            if not _is_entry(entry):
                raise UserError(f"{path}: 'runs' contains {str(entry)[:80]!r}, which is not a run of a study; {MANIFEST_RECOVERY_HINT}")
        return {**content, "runs": [ManifestEntry(**entry) for entry in content["runs"]]}

    def get_run(self, entry: ManifestEntry | str) -> Run:
        """Return the stored run of an entry or id."""
        return Run(Path(self.root), entry if isinstance(entry, str) else entry.run)

    # Failures are also stored here, because a run that failed before its first round has no folder.

    def record_failure(self, run_id: str, message: str) -> None:
        """Store why a run failed."""
        write_atomically(self.folder / "failures" / run_id, message.encode())

    def get_failure(self, run_id: str) -> str:
        """Return why a run failed, or "" if it did not."""
        try:
            return (self.folder / "failures" / run_id).read_text()
        except OSError:
            return ""

    def clear_failures(self) -> None:
        """Remove all stored failures, so that failed runs are tried again when the study continues."""
        for path in (self.folder / "failures").glob("*"):
            path.unlink(missing_ok=True)

    def get_status(self, run_id: str) -> str:
        """Return ``finished``, ``failed``, ``running``, ``unfinished`` or ``missing``."""
        run = self.get_run(run_id)
        return "finished" if run.is_finished else "failed" if self.get_failure(run_id) else run.status


def _is_entry(value: Any) -> bool:
    """Return whether a JSON value is a ``ManifestEntry`` whose ids are valid folder names."""
    return (
        isinstance(value, dict)
        and value.keys() == ENTRY_TYPES.keys()
        and all(isinstance(value[key], ENTRY_TYPES[key]) for key in ENTRY_TYPES)
        and value["role"] in ENTRY_ROLES
        and bool(NAME_PATTERN.fullmatch(value["run"]))
        and (not value["iid_baseline"] or bool(NAME_PATTERN.fullmatch(value["iid_baseline"])))
    )


def list_studies(root: Path) -> list[str]:
    """List the names of the studies under ``root``."""
    return sorted(path.parent.name for path in (Path(root) / STUDIES_FOLDER).glob("*/study.json"))


def find_study(root: Path, name: str) -> StudyManifest:
    """Find a study by its name, its YAML file or its folder.

    Raises:
        UserError: The study does not exist.
    """
    if name in list_studies(root):
        return StudyManifest(Path(root), name)
    path = Path(name)
    if (path / "study.json").is_file():
        path = path.resolve()
        return StudyManifest(path.parent.parent, path.name)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        from ..config.loader import load_yaml

        return find_study(root, str(load_yaml(path, kind="study", example="base: my.yaml").get("name", "")))
    manifest = StudyManifest(Path(root), name)
    manifest.read()  # raises UserError with the names of the existing studies
    return manifest


def merge_shared_baselines(entries: list[ManifestEntry]) -> list[ManifestEntry]:
    """Return each run once, for tables; an IID baseline that serves several conditions keeps the levels that they share."""
    merged: dict[tuple[str, str, str], ManifestEntry] = {}
    for entry in entries:
        key = (entry.role, entry.run, entry.stage if entry.role != "iid_baseline" else "")
        previous = merged.get(key)
        if previous is None or entry.role != "iid_baseline":
            merged[key] = entry
            continue
        shared_levels = {name: label if entry.factors.get(name) == label else None for name, label in previous.factors.items()}
        merged[key] = replace(previous, factors=shared_levels)
    return list(merged.values())
