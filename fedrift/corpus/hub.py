"""Any data set of the Hugging Face hub, through the library ``datasets``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import UserError
from .corpus import TRAIN
from .rows import Rows, joined, split_of
from .tables import pick


def read_hub(name: str, configs: Sequence[str] = (), text: str = "text", label: str = "label") -> Rows:
    """The documents of a hub data set, class numbers turned into class names.

    Of several configurations each is read, and its name is the label. Splits not named after train,
    validation or test are left alone, unless none is. A list of labels counts as its first.
    """
    if len(configs) <= 1:
        return joined(splits(name, configs[0] if configs else None, text, label))
    parts = []
    for config in configs:
        for part in splits(name, config, text, ""):
            parts.append(Rows(part.text, [config.replace("_", "-")] * len(part), part.source, part.split))
    return joined(parts)


def splits(name: str, config: str | None, text: str, label: str) -> list[Rows]:
    """One ``Rows`` for each split that counts."""
    found = download(name, config)
    known = {key: split for key in found if (split := split_of(key)) is not None}
    parts = []
    for key, split in (known or dict.fromkeys(found, TRAIN)).items():
        data = found[key]
        wanted = [text] if label in ("", "label") else [text, label]
        names = pick(f"data set {name!r}", data.column_names, wanted, [c for c in (label, "source") if c])
        columns = data.select_columns(names).to_dict()
        labels = columns.get(label, [None] * len(data))
        if label in columns:
            labels = class_names(labels, data.features[label])
        parts.append(
            Rows(
                columns[text],
                labels,
                columns.get("source", [f"{name}:{key}"] * len(data)),
                [split] * len(data),
            )
        )
    return parts


def class_names(cells: list[Any], feature: Any) -> list[Any]:
    """Class numbers as names, where the feature (or that of a list's items) knows them; -1 is no label."""
    if any(isinstance(cell, list) for cell in cells):
        cells = [(cell or [None])[0] if isinstance(cell, list) else cell for cell in cells]
        feature = getattr(feature, "feature", feature)
    names = getattr(feature, "names", None)
    if names is None:
        return cells
    return [names[cell] if cell is not None and cell >= 0 else None for cell in cells]


def download(name: str, config: str | None) -> Any:
    """The data set by split, from the hub or its local cache; UserError if it cannot be had."""
    import datasets  # here, not above: half a second that no other corpus needs to wait for

    try:
        return datasets.load_dataset(name, config)
    except ValueError as error:  # a wrong or missing configuration; the library names those there are
        raise UserError(
            f"data set {name!r}: {error} (a configuration goes behind a colon: {name}:NAME)"
        ) from error
    except Exception as error:
        # Offline, unknown, gated, a proxy's refusal: the library has no common class for them.
        raise UserError(
            f"data set {name!r} could not be had from the hub ({type(error).__name__}: {error}). Ways out: "
            f"check the spelling (no local file or folder of that name was found either) and the network; or "
            f"put its files (train.parquet, test.parquet or .csv, .jsonl, with columns text and label) in a "
            f"folder and give that folder as corpus; or, for a corpus that fedrift knows by name, put a "
            f"folder of that name in the one that FEDRIFT_DATA names"
        ) from error
