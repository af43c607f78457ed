"""A study as one file: what tables and reports are made of, and nothing of the models. Equal studies give equal bytes.

In it are the study's book and of each run all that ``RUN_FILES`` names: the run as it stood, minus its state and its weights.

An archive comes from elsewhere, so nothing of it is believed. All names, sizes and kinds of its members are checked before a byte
is written; it is unpacked beside the runs, read there as it will be read later, and only then moved to its place.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from ..core.errors import UserError
from ..storage import Run
from ..storage.files import explain_write_errors, format_error, replace_atomically
from ..storage.parquet import check_run_column
from ..storage.query import ensure_parquet
from .manifest import STUDIES_FOLDER, StudyManifest

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
ZIP_TIMESTAMP = (1980, 1, 1, 0, 0, 0)  # the earliest date that the format knows: no clock in the bytes
MAX_TOTAL_BYTES = 4 << 30  # bytes that an archive may unpack to
MAX_MEMBER_BYTES = 1 << 28  # bytes of one file; each is held in memory when it is read
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
)  # what zipfile raises of bytes that are no archive
EXPECTED_HINT = "wanted a file of `fedrift export STUDY`"


def export_study(manifest: StudyManifest, output: Path) -> Path:
    """Write the study and its runs to ``output``, a .zip file."""
    said = manifest.read()
    with replace_atomically(output, 0) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
        _add_member(archive, f"{STUDIES_FOLDER}/{manifest.name}/study.json", manifest.folder / "study.json")
        for path in sorted((manifest.folder / "failures").glob("*")):
            _add_member(archive, f"{STUDIES_FOLDER}/{manifest.name}/failures/{path.name}", path)
        for id in sorted({entry.run for entry in said["runs"]}):
            run = manifest.get_run(id)
            if (run.folder / "experiment.json").exists():
                ensure_parquet(run)
            for name in RUN_FILES:
                if (run.folder / name).exists():
                    _add_member(archive, f"{id}/{name}", run.folder / name)
    return output


def import_study(archive: Path, root: Path) -> StudyManifest:
    """Lay the study and its runs under ``root``; a run that is there already is left as it is, and so is the same study.

    Raises:
        UserError: The file is no archive of a study, a run in it is not the one that its id names, or another study of that name
            is there. Nothing has been written then.
    """
    archive, root = Path(archive), Path(root)
    if not archive.is_file():
        raise UserError(f"{archive} cannot be read: {'it is no file' if archive.exists() else 'it is not there'}; {EXPECTED_HINT}")
    with _explain_damage(archive), zipfile.ZipFile(archive) as file:
        name, members = _check_members(archive, file.infolist())
        with explain_write_errors(root, sum(member.file_size for member in members)):
            root.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(prefix=".import-", dir=root) as place:
                staged = StudyManifest(Path(place), name)
                for member in members:
                    target = staged.root / member.filename
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(file.read(member))
                try:
                    _check_contents(staged)
                    _check_local(staged, StudyManifest(root, name))
                except UserError as error:
                    raise UserError(f"{archive} cannot be imported: {str(error).replace(f'{place}{os.sep}', '')}") from None
                _move_into_place(staged, StudyManifest(root, name))
    return StudyManifest(root, name)


def _check_members(archive: Path, infos: list[zipfile.ZipInfo]) -> tuple[str, list[zipfile.ZipInfo]]:
    """The study's name and the files to unpack. Raises UserError where the archive holds anything else."""

    def refuse(member: zipfile.ZipInfo, why: str) -> UserError:
        return UserError(f"{archive} cannot be imported: {member.filename[:80]!r} {why}; {EXPECTED_HINT}")

    members = [member for member in infos if not _is_folder(member)]
    books = [found[1] for member in members if (found := STUDY_PATTERN.fullmatch(member.filename))]
    if len(set(books)) != 1:
        raise UserError(f"{archive} holds {'no study' if not books else 'several studies'}; {EXPECTED_HINT}")
    seen: set[str] = set()
    for member in members:
        known = MEMBER_PATTERN.fullmatch(member.filename)
        if not STUDY_PATTERN.fullmatch(member.filename) and (not known or known[1] not in (None, books[0])):
            raise refuse(member, "is no file of a study")
        if member.filename in seen:
            raise refuse(member, "is in it twice")
        if member.flag_bits & 1:
            raise refuse(member, "is encrypted")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise refuse(member, f"is compressed by method {member.compress_type}, of which `fedrift export` makes no use")
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
            raise refuse(member, "is a link or another special file")
        if member.file_size > MAX_MEMBER_BYTES:
            raise refuse(member, f"would unpack to {member.file_size:,} bytes, and may to {MAX_MEMBER_BYTES:,}")
        seen.add(member.filename)
    if sum(member.file_size for member in members) > MAX_TOTAL_BYTES:
        raise UserError(f"{archive} would unpack to more than {MAX_TOTAL_BYTES >> 30} GiB; {EXPECTED_HINT}")
    return books[0], members


def _is_folder(member: zipfile.ZipInfo) -> bool:
    """Whether a member is the entry of a folder, as other tools write them; nothing is made of it."""
    return member.is_dir() and set(member.filename[:-1].split("/")).isdisjoint(("", ".", ".."))


def _check_contents(staged_manifest: StudyManifest) -> None:
    """Read all that was unpacked as it will be read later. Raises UserError where something is not what it has to be."""
    from ..config.schema import compute_id

    wanted = {entry.run for entry in staged_manifest.read()["runs"]}
    for folder in sorted(path for path in staged_manifest.root.iterdir() if path.name != STUDIES_FOLDER):
        run = Run(staged_manifest.root, folder.name)
        if run.id not in wanted:
            raise UserError(f"run {run.id} is none of the study {staged_manifest.name}")
        stored = run.config
        found = compute_id(stored)
        if (found, stored["id"]) != (run.id, run.id):
            raise UserError(f"the experiment of run {run.id} has the id {found}: it was changed after the run, or is another's")
        run.check_files()
        run.records()
        check_run_column(run.folder)


def _check_local(staged_manifest: StudyManifest, local_manifest: StudyManifest) -> None:
    """Raise UserError where the study that is there already is another one."""
    if (
        local_manifest.exists
        and (local_manifest.folder / "study.json").read_bytes() != (staged_manifest.folder / "study.json").read_bytes()
    ):
        raise UserError(
            f"{local_manifest.folder} is there already and is another study {local_manifest.name!r}. It is left as it is; "
            "import into another folder (--runs-dir), or rename or export the one that is there and remove its folder first"
        )


def _move_into_place(staged_manifest: StudyManifest, local_manifest: StudyManifest) -> None:
    """Move what is not there yet to its place: the runs first, the study's book last, so that it never names what is to come."""
    for folder in sorted(path for path in staged_manifest.root.iterdir() if path.name != STUDIES_FOLDER):
        target = local_manifest.root / folder.name
        if not target.exists():
            os.replace(folder, target)
        elif not (target / "experiment.json").exists():  # claimed, not begun
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
    """Turn what zipfile raises of a damaged or foreign file into a UserError."""
    try:
        yield
    except ARCHIVE_ERRORS as error:
        raise UserError(f"{archive} cannot be read: {format_error(error)}; {EXPECTED_HINT}") from None


def _add_member(archive: zipfile.ZipFile, name: str, path: Path) -> None:
    entry = zipfile.ZipInfo(name, ZIP_TIMESTAMP)
    entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
    archive.writestr(entry, path.read_bytes())
