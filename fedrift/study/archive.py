"""A study as one file: what tables and reports are made of, and nothing of the models. Equal studies give equal bytes.

In it are the study's book and of each run all that ``FILES`` names: the run as it stood, minus its state and its weights.
"""

from __future__ import annotations

import zipfile
from pathlib import Path, PurePosixPath

from ..errors import UserError
from ..store.query import fresh
from .book import STUDIES, Book

FILES = ("experiment.json", "environment.json", "finished.json", "failed.json", "findings.json", "mitigation.json",
         "events.jsonl", "timings.jsonl", "records.parquet")
THEN = (1980, 1, 1, 0, 0, 0)  # the earliest date that the format knows: no clock in the bytes
LARGEST = 4 << 30  # bytes that an archive may unpack to


def pack(book: Book, out: Path) -> Path:
    """Write the study and its runs to ``out``, a .zip file."""
    said = book.read()
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.part")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
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
    part.replace(out)
    return out


def unpack(archive: Path, root: Path) -> Book:
    """Lay the study and its runs under ``root``; a run that is there already is left as it is."""
    try:
        with zipfile.ZipFile(archive) as file:
            inside = file.infolist()
            books = [name.filename for name in inside if PurePosixPath(name.filename).match(f"{STUDIES}/*/study.json")]
            if len(books) != 1:
                raise UserError(f"{archive} holds no study; `fedrift export STUDY` makes such files")
            if sum(name.file_size for name in inside) > LARGEST:
                raise UserError(f"{archive} would unpack to more than {LARGEST >> 30} GiB")
            known = {path.parent.name for path in Path(root).glob("*/experiment.json")}
            for name in inside:
                path = PurePosixPath(name.filename)
                if path.is_absolute() or ".." in path.parts or not 2 <= len(path.parts) <= 4:
                    raise UserError(f"{archive} holds {name.filename!r}, which is no file of a study")
                if path.parts[0] not in known:
                    target = Path(root, *path.parts)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(file.read(name))
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{archive} cannot be read: {error}; wanted a file of `fedrift export STUDY`") from None
    return Book(Path(root), PurePosixPath(books[0]).parts[1])


def _add(archive: zipfile.ZipFile, name: str, path: Path) -> None:
    entry = zipfile.ZipInfo(name, THEN)
    entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
    archive.writestr(entry, path.read_bytes())
