"""A study as one file: what tables and reports are made of, and nothing of the models. Equal studies give equal bytes.

In it are the study's book and of each run all that ``FILES`` names: the run as it stood, minus its state and its weights.

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

from ..errors import UserError
from ..store import Run
from ..store.files import full_disk_told, in_words, replacing
from ..store.query import fresh
from .book import STUDIES, Book

FILES = ("experiment.json", "environment.json", "finished.json", "failed.json", "findings.json", "mitigation.json",
         "events.jsonl", "timings.jsonl", "records.parquet")
THEN = (1980, 1, 1, 0, 0, 0)  # the earliest date that the format knows: no clock in the bytes
LARGEST = 4 << 30  # bytes that an archive may unpack to
LARGEST_MEMBER = 1 << 28  # bytes of one file; each is held in memory when it is read
RUN = "[0-9a-f]{12}"
STUDY = re.compile(rf"{STUDIES}/(?!\.)([\w.-]{{1,100}})/study\.json", re.ASCII)
MEMBER = re.compile(rf"{RUN}/(?:{'|'.join(map(re.escape, FILES))})|{STUDIES}/(?!\.)([\w.-]{{1,100}})/failures/{RUN}", re.ASCII)
DAMAGES = (zipfile.BadZipFile, zipfile.LargeZipFile, OSError, EOFError, ValueError, LookupError, ArithmeticError, RuntimeError,
           zlib.error, struct.error)  # what zipfile raises of bytes that are no archive
WANTED = "wanted a file of `fedrift export STUDY`"


def pack(book: Book, out: Path) -> Path:
    """Write the study and its runs to ``out``, a .zip file."""
    said = book.read()
    with replacing(out, 0) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
        _add(archive, f"{STUDIES}/{book.name}/study.json", book.folder / "study.json")
        for path in sorted((book.folder / "failures").glob("*")):
            _add(archive, f"{STUDIES}/{book.name}/failures/{path.name}", path)
        for id in sorted({entry.run for entry in said["runs"]}):
            run = book.run(id)
            if (run.folder / "experiment.json").exists():
                fresh(run)
            for name in FILES:
                if (run.folder / name).exists():
                    _add(archive, f"{id}/{name}", run.folder / name)
    return out


def unpack(archive: Path, root: Path) -> Book:
    """Lay the study and its runs under ``root``; a run that is there already is left as it is, and so is the same study.

    Raises:
        UserError: The file is no archive of a study, a run in it is not the one that its id names, or another study of that name
            is there. Nothing has been written then.
    """
    archive, root = Path(archive), Path(root)
    if not archive.is_file():
        raise UserError(f"{archive} cannot be read: {'it is no file' if archive.exists() else 'it is not there'}; {WANTED}")
    with _damage_told(archive), zipfile.ZipFile(archive) as file:
        name, members = _check_members(archive, file.infolist())
        with full_disk_told(root, sum(member.file_size for member in members)):
            root.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(prefix=".import-", dir=root) as place:
                staged = Book(Path(place), name)
                for member in members:
                    target = staged.root / member.filename
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(file.read(member))
                try:
                    _check_contents(staged)
                    _check_local(staged, Book(root, name))
                except UserError as error:
                    raise UserError(f"{archive} cannot be imported: {str(error).replace(f'{place}{os.sep}', '')}") from None
                _move(staged, Book(root, name))
    return Book(root, name)


def _check_members(archive: Path, inside: list[zipfile.ZipInfo]) -> tuple[str, list[zipfile.ZipInfo]]:
    """The study's name and the files to unpack. Raises UserError where the archive holds anything else."""
    def refuse(member: zipfile.ZipInfo, why: str) -> UserError:
        return UserError(f"{archive} cannot be imported: {member.filename[:80]!r} {why}; {WANTED}")

    members = [member for member in inside if not _is_folder(member)]
    books = [found[1] for member in members if (found := STUDY.fullmatch(member.filename))]
    if len(set(books)) != 1:
        raise UserError(f"{archive} holds {'no study' if not books else 'several studies'}; {WANTED}")
    seen: set[str] = set()
    for member in members:
        known = MEMBER.fullmatch(member.filename)
        if not STUDY.fullmatch(member.filename) and (not known or known[1] not in (None, books[0])):
            raise refuse(member, "is no file of a study")
        if member.filename in seen:
            raise refuse(member, "is in it twice")
        if member.flag_bits & 1:
            raise refuse(member, "is encrypted")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise refuse(member, f"is compressed by method {member.compress_type}, of which `fedrift export` makes no use")
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
            raise refuse(member, "is a link or another special file")
        if member.file_size > LARGEST_MEMBER:
            raise refuse(member, f"would unpack to {member.file_size:,} bytes, and may to {LARGEST_MEMBER:,}")
        seen.add(member.filename)
    if sum(member.file_size for member in members) > LARGEST:
        raise UserError(f"{archive} would unpack to more than {LARGEST >> 30} GiB; {WANTED}")
    return books[0], members


def _is_folder(member: zipfile.ZipInfo) -> bool:
    """Whether a member is the entry of a folder, as other tools write them; nothing is made of it."""
    return member.is_dir() and set(member.filename[:-1].split("/")).isdisjoint(("", ".", ".."))


def _check_contents(staged: Book) -> None:
    """Read all that was unpacked as it will be read later. Raises UserError where something is not what it has to be."""
    from ..experiment import identify

    wanted = {entry.run for entry in staged.read()["runs"]}
    for folder in sorted(path for path in staged.root.iterdir() if path.name != STUDIES):
        run = Run(staged.root, folder.name)
        if run.id not in wanted:
            raise UserError(f"run {run.id} is none of the study {staged.name}")
        stored = run.experiment
        found = identify(stored)
        if (found, stored["id"]) != (run.id, run.id):
            raise UserError(f"the experiment of run {run.id} has the id {found}: it was changed after the run, or is another's")
        run.check_shapes()
        run.records()


def _check_local(staged: Book, local: Book) -> None:
    """Raise UserError where the study that is there already is another one."""
    if local.there and (local.folder / "study.json").read_bytes() != (staged.folder / "study.json").read_bytes():
        raise UserError(f"{local.folder} is there already and is another study {local.name!r}. It is left as it is; import into "
                        "another folder (--runs), or rename or export the one that is there and remove its folder first")


def _move(staged: Book, local: Book) -> None:
    """Move what is not there yet to its place: the runs first, the study's book last, so that it never names what is to come."""
    for folder in sorted(path for path in staged.root.iterdir() if path.name != STUDIES):
        target = local.root / folder.name
        if not target.exists():
            os.replace(folder, target)
        elif not (target / "experiment.json").exists():  # claimed, not begun
            for path in sorted(folder.iterdir(), key=lambda path: path.name == "experiment.json"):
                os.replace(path, target / path.name)
    for path in sorted((staged.folder / "failures").glob("*")):
        target = local.folder / "failures" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            os.replace(path, target)
    if not local.there:
        local.folder.mkdir(parents=True, exist_ok=True)
        shutil.move(staged.folder / "study.json", local.folder / "study.json")


@contextmanager
def _damage_told(archive: Path) -> Iterator[None]:
    """Turn what zipfile raises of a damaged or foreign file into a UserError."""
    try:
        yield
    except DAMAGES as error:
        raise UserError(f"{archive} cannot be read: {in_words(error)}; {WANTED}") from None


def _add(archive: zipfile.ZipFile, name: str, path: Path) -> None:
    entry = zipfile.ZipInfo(name, THEN)
    entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
    archive.writestr(entry, path.read_bytes())
