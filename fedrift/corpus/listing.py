"""What corpora there are, quick enough for a command line: nothing is loaded, only counted."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import UserError
from .bbc import PACKAGE, bbc_files
from .clean import is_heading
from .files import table_files
from .labels import label_name
from .named import NAMED, Named
from .sandbox import Sandbox
from .source import data_folder
from .tables import read_table


class Listing(NamedTuple):
    """One named corpus."""

    name: str
    description: str
    documents: int | None  # before duplicates are removed; None if it is not on this machine
    origin: str
    terms: str


def corpora(data: Path | None = None) -> list[Listing]:
    """All named corpora; ``data`` as for ``load_corpus``."""
    data = data_folder(data)
    return [listing(name, named, data) for name, named in NAMED.items()]


def listing(name: str, named: Named, data: Path | None) -> Listing:
    if named.parts:
        made_of = ", ".join(part for _, part in named.parts)
        counts = [listing(part, NAMED[part], data).documents for _, part in named.parts]
        known = [count for count in counts if count is not None]
        equal = len(known) * min(known) if len(known) == len(counts) else None  # as many of each as of the smallest
        return Listing(name, named.description, equal, f"made of {made_of}", named.terms)
    folder = data / (named.of or name) if data else None
    if folder and folder.is_dir():
        return Listing(name, named.description, count(folder, named), "local folder", named.terms)
    if name == "sandbox":
        return Listing(name, named.description, Sandbox().documents, "made by fedrift", named.terms)
    if name == "bbc":
        documents = len(bbc_files()) or None
        origin = f"package {PACKAGE}" + ("" if documents else " (not installed)")
        return Listing(name, named.description, documents, origin, named.terms)
    origin = f"hub {named.hub}" if named.hub else "local folder only (not there)"
    return Listing(name, named.description, None, origin, named.terms)


def count(folder: Path, named: Named) -> int | None:
    """Documents in a local folder, without reading more than it takes; None if it cannot be read."""
    try:
        return sum(count_table(file, named) for file, _ in table_files(folder)[0]) or None
    except (UserError, OSError, pa.ArrowException):
        return None


def count_table(file: Path, named: Named) -> int:
    if named.lines:
        cells = (str(cell or "").strip() for cell in read_table(file, ["text"]).columns["text"])
        return sum(bool(cell) and not is_heading(cell) for cell in cells)
    if named.domains:
        domains = dict(named.domains)
        return sum(label_name(cell) in domains for cell in read_table(file, ["label"]).columns["label"])
    if file.suffix.lower() == ".parquet":
        return int(pq.read_metadata(file).num_rows)
    return len(read_table(file, ["text"]).columns["text"])
