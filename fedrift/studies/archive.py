"""Export of a study to one file, and its import: everything that tables and reports need, without model weights.

The archive contains the study manifest and, for each run, the files in ``RUN_FILES``. It contains neither the training state nor model
weights. Equal studies give equal bytes.

An archive is untrusted input. The names, sizes and kinds of all its members are checked before anything is written. It is then unpacked
into a temporary folder beside the runs, read there by the same code that reads runs later, and only then moved to its final place.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..core.errors import UserError, quote_value
from ..core.records import RecordColumns
from ..storage import Run
from ..storage.files import explain_write_errors, format_error, replace_atomically
from ..storage.index import get_read_error, is_iid, to_iid_baseline
from ..storage.parquet import check_run_column, parquet_path, write_parquet
from ..storage.query import ensure_parquet
from .manifest import STUDIES_FOLDER, ManifestEntry, StudyManifest

RUN_FILES = (
    "experiment.json",
    "environment.json",
    "finished.json",
    "failed.json",
    "findings.json",
    "clustering.json",
    "events.jsonl",
    "timings.jsonl",
    "records.parquet",
)
ZIP_TIMESTAMP = (1980, 1, 1, 0, 0, 0)  # the earliest date of the format, so that the bytes do not depend on the clock
MAX_TOTAL_BYTES = 4 << 30  # limit on the unpacked archive, in bytes
MAX_MEMBER_BYTES = 1 << 28  # limit on one unpacked file, in bytes, because each is read into memory
RUN_ID_PATTERN = "[0-9a-f]{12}"
STUDY_PATTERN = re.compile(rf"{STUDIES_FOLDER}/(?!\.)([\w.-]{{1,100}})/study\.json", re.ASCII)
MEMBER_PATTERN = re.compile(
    rf"{RUN_ID_PATTERN}/(?:{'|'.join(map(re.escape, RUN_FILES))})|"
    rf"{STUDIES_FOLDER}/(?!\.)([\w.-]{{1,100}})/failures/{RUN_ID_PATTERN}",
    re.ASCII,
)
ARCHIVE_ERRORS = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    OSError,
    EOFError,
    ValueError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    zlib.error,
    struct.error,
)  # the exceptions of zipfile for bytes that are not a valid archive
EXPECTED_HINT = "use a file that `fedrift export STUDY` wrote"


def export_study(manifest: StudyManifest, output: Path, is_compact: bool = False) -> Path:
    """Write a study and its runs to a .zip file.

    Args:
        manifest: The manifest of the study.
        output: The path of the .zip file, which is replaced if it exists.
        is_compact: Whether the values of records are rounded to single precision, except whole numbers. The archive of a study with
            many clients is a third smaller then.

    Returns:
        ``output``.

    Raises:
        UserError: A file of the study cannot be read, or ``output`` cannot be written.
    """
    content = manifest.read()
    with replace_atomically(output, 0) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
        _add_member(archive, f"{STUDIES_FOLDER}/{manifest.name}/study.json", manifest.folder / "study.json")
        for path in sorted((manifest.folder / "failures").glob("*")):
            _add_member(archive, f"{STUDIES_FOLDER}/{manifest.name}/failures/{path.name}", path)
        for id in sorted({entry.run for entry in content["runs"]}):
            run = manifest.get_run(id)
            if (run.folder / "experiment.json").exists():
                ensure_parquet(run)
            rounded = _round_records(run) if is_compact and parquet_path(run.folder).exists() else {}
            for name in RUN_FILES:
                if (run.folder / name).exists():
                    _add_member(archive, f"{id}/{name}", rounded.get(name, run.folder / name))
    return output


def _round_records(run: Run) -> dict[str, bytes]:
    """Return the contents of ``records.parquet`` with rounded values, and of ``finished.json`` with the checksum of the rounded records."""
    records = RecordColumns.from_records(run.records())
    with np.errstate(over="ignore", invalid="ignore"):
        single = records.value.astype(np.float32).astype(np.float64)
        is_rounded = np.abs(single - records.value) <= np.finfo(np.float32).eps * np.abs(records.value)  # neither NaN nor out of range
    values = np.where(is_rounded & (records.value != np.round(records.value)), single, records.value)
    with TemporaryDirectory() as temporary:
        copy = Run(Path(temporary), run.id)
        copy.folder.mkdir()
        contents = {"records.parquet": write_parquet(copy.folder, replace(records, value=values)).read_bytes()}
        summary = run.summary()
        if "records.jsonl" in summary.get("stored", {}):
            stored = {**summary["stored"], "records.jsonl": copy.compute_records_checksum()}
            copy.write_json("finished", {**summary, "stored": stored})
            contents["finished.json"] = (copy.folder / "finished.json").read_bytes()
    return contents


def import_study(archive: Path, root: Path) -> StudyManifest:
    """Import a study and its runs into a folder of runs.

    Existing runs, and an identical existing study, are left unchanged.

    Args:
        archive: A file that ``export_study`` wrote.
        root: The folder of runs.

    Returns:
        The manifest of the imported study.

    Raises:
        UserError: The file is not an archive of a study, a run in it does not match its id, or ``root`` contains another study of that
            name, or one of its runs with other results. Nothing has been written in these cases.
    """
    archive, root = Path(archive), Path(root)
    if not archive.is_file():
        raise UserError(f"{archive} cannot be read: {'it is not a file' if archive.exists() else 'it does not exist'}; {EXPECTED_HINT}")
    with _explain_damage(archive), zipfile.ZipFile(archive) as file:
        name, members = _check_members(archive, file.infolist())
        with explain_write_errors(root, sum(member.file_size for member in members)):
            root.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(prefix=".import-", dir=root) as temporary:
                staged = StudyManifest(Path(temporary), name)
                for member in members:
                    target = staged.root / member.filename
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(file.read(member))
                try:
                    _check_contents(staged)
                    _check_local(staged, StudyManifest(root, name))
                except UserError as error:
                    raise UserError(f"{archive} cannot be imported: {str(error).replace(f'{temporary}{os.sep}', '')}") from None
                _move_into_place(staged, StudyManifest(root, name))
    return StudyManifest(root, name)


def _check_members(archive: Path, infos: list[zipfile.ZipInfo]) -> tuple[str, list[zipfile.ZipInfo]]:
    """Return the name of the study and the files to unpack; raise UserError if the archive contains anything else."""

    def refuse(member: zipfile.ZipInfo, reason: str) -> UserError:
        return UserError(f"{archive} cannot be imported: {member.filename[:80]!r} {reason}; {EXPECTED_HINT}")

    members = [member for member in infos if not _is_folder(member)]
    study_names = [match[1] for member in members if (match := STUDY_PATTERN.fullmatch(member.filename))]
    if len(set(study_names)) != 1:
        raise UserError(f"{archive} contains {'no study' if not study_names else 'several studies'}; {EXPECTED_HINT}")
    checked: set[str] = set()
    for member in members:
        matched = MEMBER_PATTERN.fullmatch(member.filename)
        if not STUDY_PATTERN.fullmatch(member.filename) and (not matched or matched[1] not in (None, study_names[0])):
            raise refuse(member, "is not a file of a study")
        if member.filename in checked:
            raise refuse(member, "occurs twice")
        if member.flag_bits & 1:
            raise refuse(member, "is encrypted")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise refuse(member, f"is compressed by method {member.compress_type}, which `fedrift export` does not use")
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
            raise refuse(member, "is a link or another special file")
        if member.file_size > MAX_MEMBER_BYTES:
            raise refuse(member, f"would unpack to {member.file_size:,} bytes; at most {MAX_MEMBER_BYTES:,} are allowed")
        checked.add(member.filename)
    if sum(member.file_size for member in members) > MAX_TOTAL_BYTES:
        raise UserError(f"{archive} would unpack to more than {MAX_TOTAL_BYTES >> 30} GiB; {EXPECTED_HINT}")
    return study_names[0], members


def _is_folder(member: zipfile.ZipInfo) -> bool:
    """Return whether a member is the entry of a folder, which other tools write and which the import ignores."""
    return member.is_dir() and set(member.filename[:-1].split("/")).isdisjoint(("", ".", ".."))


def _check_contents(staged_manifest: StudyManifest) -> None:
    """Read everything that was unpacked with the code that reads runs later; raise UserError if something is invalid."""
    from ..config.schema import compute_id

    entries: list[ManifestEntry] = staged_manifest.read()["runs"]
    run_ids, experiments = {entry.run for entry in entries}, dict[str, dict[str, Any]]()
    for folder in sorted(path for path in staged_manifest.root.iterdir() if path.name != STUDIES_FOLDER):
        run = Run(staged_manifest.root, folder.name)
        if run.id not in run_ids:
            raise UserError(f"run {run.id} is not part of the study {staged_manifest.name}")
        stored = run.read_config()
        id = compute_id(stored)
        if (id, stored["id"]) != (run.id, run.id):
            raise UserError(f"the experiment of run {run.id} has the id {id}: it was changed after the run, or it belongs to another run")
        run.check_files()
        checksum = run.compute_records_checksum()
        if run.is_finished and not checksum[0]:
            raise UserError(f"run {run.id} is finished, but the archive has no records of it")
        check_run_column(run.folder)
        if run.summary().get("stored", {}).get("records.jsonl", checksum) != checksum:
            raise UserError(f"the records of run {run.id} are not those with which it finished, according to its finished.json")
        experiments[run.id] = stored
    for entry in entries:
        if entry.run in experiments:
            _check_entry(entry, experiments[entry.run], run_ids)


def _check_entry(entry: ManifestEntry, stored: Mapping[str, Any], run_ids: set[str]) -> None:
    """Check that the manifest describes a run as its experiment does, so that reports compare it with the right baseline.

    Raises:
        UserError: The seed, the role or the IID baseline is another one.
    """
    from ..config.schema import compute_id

    for name, described, true in (
        ("seed", entry.seed, stored["seed"]),
        ("iid", entry.iid, entry.iid and is_iid(stored)),
        ("iid_baseline", entry.iid_baseline, compute_id(to_iid_baseline(stored)) if entry.iid_baseline else ""),
    ):
        if described != true:
            raise UserError(f"study.json says {name} {quote_value(described)} of run {entry.run}, which is not that of its experiment")
    if entry.iid_baseline not in {"", *run_ids}:
        raise UserError(f"study.json names {entry.iid_baseline} as IID baseline of run {entry.run}, but does not list it")


def _check_local(staged_manifest: StudyManifest, local_manifest: StudyManifest) -> None:
    """Raise UserError if a different study of the same name, or other results of one of its runs, exist."""
    if (
        local_manifest.exists
        and (local_manifest.folder / "study.json").read_bytes() != (staged_manifest.folder / "study.json").read_bytes()
    ):
        raise UserError(
            f"{local_manifest.folder} already exists and contains another study {local_manifest.name!r}, which was not changed. "
            "Import into another folder (--runs-dir), or export the existing study and remove its folder first"
        )
    for folder in sorted(path for path in staged_manifest.root.iterdir() if path.name != STUDIES_FOLDER):
        imported, local = staged_manifest.get_run(folder.name), local_manifest.get_run(folder.name)
        if not imported.is_finished or not (os.path.lexists(local.folder) and (local.folder / "experiment.json").exists()):
            continue
        problem = get_read_error(local) or ("" if local.is_finished else f"is {local.status}")
        if not problem and imported.compute_records_checksum() != local.compute_records_checksum():
            problem = "has other records"
        if problem:
            raise UserError(
                f"run {local.id} already exists in {local_manifest.root} but {problem}, so the study would show that run. Import into "
                f"another folder (--runs-dir), or move the run away first (`fedrift delete {local.id} --force`)"
            )


def _move_into_place(staged_manifest: StudyManifest, local_manifest: StudyManifest) -> None:
    """Move new files to their final place: the runs first and the manifest last, so that it never names a missing run."""
    for folder in sorted(path for path in staged_manifest.root.iterdir() if path.name != STUDIES_FOLDER):
        target = local_manifest.root / folder.name
        if not target.exists():
            os.replace(folder, target)
        elif not (target / "experiment.json").exists():  # a worker has acquired this run but not started it
            for path in sorted(folder.iterdir(), key=lambda path: path.name == "experiment.json"):
                os.replace(path, target / path.name)
    for path in sorted((staged_manifest.folder / "failures").glob("*")):
        target = local_manifest.folder / "failures" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            os.replace(path, target)
    if not local_manifest.exists:
        local_manifest.folder.mkdir(parents=True, exist_ok=True)
        shutil.move(staged_manifest.folder / "study.json", local_manifest.folder / "study.json")


@contextmanager
def _explain_damage(archive: Path) -> Iterator[None]:
    """Turn the exceptions of zipfile for a damaged or foreign file into a UserError."""
    try:
        yield
    except ARCHIVE_ERRORS as error:
        raise UserError(f"{archive} cannot be read: {format_error(error)}; {EXPECTED_HINT}") from None


def _add_member(archive: zipfile.ZipFile, name: str, content: Path | bytes) -> None:
    """Add a file, or the content of one, with fixed metadata, so that equal contents give equal bytes."""
    entry = zipfile.ZipInfo(name, ZIP_TIMESTAMP)
    entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
    archive.writestr(entry, content.read_bytes() if isinstance(content, Path) else content)
