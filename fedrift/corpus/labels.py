"""Labels as names: the same cells give the same topics whether they come from a file or from a hub data set."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any
from unicodedata import normalize

from ..errors import UserError

# What pandas, and with it the CSV reader of the library `datasets`, takes for a missing value.
MISSING = frozenset(
    "#N/A|#N/A N/A|#NA|-1.#IND|-1.#QNAN|-NaN|-nan|1.#IND|1.#QNAN|<NA>|N/A|NA|NULL|NaN|None|n/a|nan|null".split("|")
)
DOUBTFUL = frozenset({"na", "n/a", "none", "null", "nil", "-", "?", "unknown", "missing", "undefined"})
NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?")


def read_labels(cells: Sequence[Any], feature: Any, where: str) -> tuple[list[str | None], list[str]]:
    """Turn the cells of a label column into topic names.

    Args:
        cells: The column, as Python values.
        feature: The column's feature in the sense of the library ``datasets``, or None where there is none.
        where: The column, for messages: ``"train.csv, column 'label'"``.

    Returns:
        One name a cell (None: no label), and what a reader of the results must know.

    Raises:
        UserError: The cells are structures or bytes, or a class number has no name.
    """
    notes: list[str] = []
    if any(isinstance(cell, (list, tuple)) for cell in cells):
        several = sum(isinstance(cell, (list, tuple)) and len(cell) > 1 for cell in cells)
        if several:
            notes.append(f"{where} holds lists: the first item counts as the label ({several:,} rows have more than one)")
        cells = [(cell[0] if cell else None) if isinstance(cell, (list, tuple)) else cell for cell in cells]
        feature = getattr(feature, "feature", feature)
    for cell in cells:
        if isinstance(cell, (Mapping, list, tuple, bytes)):
            raise UserError(f"{where} holds {kind_name(cell)}, which name no topic. Name a column of text or numbers with "
                            "corpus.label, or take no labels with corpus.label=''")
    names = getattr(feature, "names", None)
    if names is not None and all(cell is None or is_integer(cell) for cell in cells):
        return [class_name(cell, names, where) for cell in cells], notes
    labels = plain_numbers([label_name(cell) for cell in cells])
    missing = Counter(name for name in labels if name in MISSING)
    if missing:
        notes.append(f"{where}: {missing.total():,} labels read {listed(missing)} and count as no label")
    doubtful = Counter(name for name in labels if name and name not in MISSING and name.lower() in DOUBTFUL)
    if doubtful:
        notes.append(f"{where}: {listed(doubtful)} counts as a topic ({doubtful.total():,} rows); "
                     "corpus.domains can leave it out")
    return [None if name in MISSING else name for name in labels], notes


def label_name(cell: Any) -> str | None:
    """A label as text: 3 and 3.0 are "3"; None, NaN and the empty string are no label."""
    if cell is None or isinstance(cell, str):
        name = (cell or "").strip()
        return None if name.lower() in ("", "nan") else name
    if isinstance(cell, Decimal):
        return None if cell.is_nan() else f"{cell.normalize():f}"
    if isinstance(cell, float):
        return None if math.isnan(cell) else f"{cell:.0f}" if cell.is_integer() else str(cell)
    return str(cell)


def class_name(cell: Any, names: Sequence[str], where: str) -> str | None:
    """The name of a class number; -1 and a missing number are no label."""
    if cell is None or cell == -1:
        return None
    if not 0 <= cell < len(names):
        raise UserError(f"{where} holds class number {int(cell)}, but its metadata names classes 0 to {len(names) - 1}")
    return str(names[int(cell)])


def plain_numbers(labels: list[str | None]) -> list[str | None]:
    """Whole numbers without ``.0``, where a column of text holds numbers alone.

    A column of whole numbers with gaps is written as ``1.0`` to a CSV file, and is 1 in every other format.
    """
    known = {name for name in labels if name is not None and name not in MISSING}
    if not any(name.endswith(".0") for name in known):
        return labels
    if not all(NUMBER.fullmatch(name) and name in (repr(float(name)), name.partition(".")[0]) for name in known):
        return labels
    return [name.removesuffix(".0") if name else name for name in labels]


def similar_names(domains: Sequence[str]) -> list[tuple[str, ...]]:
    """Groups of names that differ only in capitals, white space or the Unicode form."""
    groups: dict[str, list[str]] = {}
    for name in domains:
        groups.setdefault(" ".join(normalize("NFKC", name).casefold().split()), []).append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def is_integer(cell: Any) -> bool:
    """Whether a cell is a whole number and no truth value."""
    return (isinstance(cell, int) and not isinstance(cell, bool)) or (isinstance(cell, float) and cell.is_integer())


def kind_name(cell: Any) -> str:
    """What a cell is, in words."""
    if isinstance(cell, Mapping):
        return f"structures ({', '.join(map(str, list(cell)[:5]))})"[:80]
    return "lists of lists" if isinstance(cell, (list, tuple)) else "bytes"


def listed(names: Counter[str]) -> str:
    """The names in quotes, the most frequent first."""
    return ", ".join(repr(name[:40]) for name, _ in names.most_common(5))
