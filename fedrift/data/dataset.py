"""`DatasetConfig`: how an experiment names its corpus; `load_corpus`: the one way in for all of them."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from annotated_types import Interval, MinLen, Predicate, doc

from ..core.errors import UserError, unknown_name_error
from ..core.random import Seed, numpy_stream
from ..core.registry import find_extension
from .catalog import NAMED_DATASETS, POCKET_PRETRAINING_DATASETS, NamedDataset
from .corpus import TRAIN, Corpus
from .documents import (
    Document,
    assign_splits,
    deduplicate,
    extract_documents,
    is_heading,
    map_labels_to_domains,
    merge_datasets,
    select_half,
    subsample,
)
from .encoders import Encoder, embed_texts, label_by_cluster
from .readers import BBC_PACKAGE, find_local_path, find_table_files, list_bbc_files, missing_path_error, read_bbc, read_hub, read_path
from .rows import Rows, concat_rows, detect_split, group_similar_names, normalize_label
from .synthetic import SyntheticConfig, generate_rows
from .tables import detect_format, read_table

HALVES = ("all", "pretraining", "unseen")
MIN_LABELED_DOCUMENTS = 20  # labelled documents from which labels that hardly repeat are refused
Fingerprint = Annotated[
    str, Predicate(re.compile(r"([0-9a-f]{64})?").fullmatch), doc("nothing, or the 64 hexadecimal digits that a run wrote")
]
MAX_NAME_LENGTH = 1000  # characters of a name
HUB_ID_PATTERN = re.compile(r"([\w.-]+/[\w.-]+)(?::([\w.-]+))?")


@dataclass(frozen=True)
class DatasetConfig:
    """How a corpus is named in an experiment; in YAML ``dataset: bbc`` is ``DatasetConfig(name="bbc")``.

    ``name`` is a named corpus, else a local file or folder (see ``readers.py``), else a Hugging Face data set
    id, with its configuration behind a colon where it has several: ``owner/name:configuration``.
    """

    name: Annotated[str, MinLen(1)]
    text_column: Annotated[str, MinLen(1)] = "text"  # column names of files and hub data sets (named corpora know their own)
    label_column: str = "label"  # "" takes no labels
    source_column: str = "source"  # the column that says who wrote or published a text: the clients of BySource
    limit: Annotated[int, Interval(ge=1, le=10**9)] | None = None  # at most so many documents, splits and labels in proportion
    domains: tuple[str, ...] = ()  # only these domains
    validation_fraction: Annotated[float, Interval(ge=0, lt=1)] = 0.1  # shares of train, for want of own splits
    test_fraction: Annotated[float, Interval(ge=0, lt=1)] = 0.1
    split_seed: Seed = 0
    num_clusters: Annotated[int, Interval(ge=2, le=10_000)] | None = None  # so many topics, by clustering, replace the labels
    encoder: Encoder | None = None  # in whose vectors; lsa if not said
    synthetic: SyntheticConfig = SyntheticConfig()  # the dials of the made-up corpus ``synthetic``, and of no other
    fingerprint: Fingerprint = ""  # Corpus.fingerprint of what was loaded, once it was: a changed file is another experiment

    def to_dict(self) -> dict[str, Any]:
        """All keys as plain values; without the dials of the synthetic one where another corpus leaves them at their default."""
        said = asdict(self)
        said["domains"] = list(self.domains)
        if self.synthetic == SyntheticConfig() and self.name != "synthetic":
            del said["synthetic"]
        else:
            said["synthetic"]["styles"] = list(self.synthetic.styles)
        return said


def load_corpus(config: DatasetConfig, *, data_dir: Path | None = None, half: str = "all", cache_dir: Path | None = None) -> Corpus:
    """The documents of ``config``, clean and split.

    ``data_dir`` is the folder of local copies of named corpora (default: the environment's FEDRIFT_DATA).
    ``half`` keeps of the corpora that ``pocket`` was pretrained on only the train documents it has read
    ("pretraining") or has not ("unseen"); see ``catalog.py``. ``cache_dir`` is a folder for embeddings.
    Raises UserError for whatever cannot be loaded, and if ``config.fingerprint`` is given and the data has changed since.
    """
    if not config.name.strip():
        raise UserError("dataset is empty: give a named corpus, a local file or folder, or a Hugging Face data set id")
    if len(config.name) > MAX_NAME_LENGTH:
        raise UserError(
            f"corpus {config.name[:60]!r}... is a name of {len(config.name):,} characters: give a named corpus, a "
            f"local file or folder, or a Hugging Face data set id of at most {MAX_NAME_LENGTH:,}"
        )
    if half not in HALVES:
        raise unknown_name_error("half", half, HALVES)
    if config.validation_fraction + config.test_fraction >= 1:
        raise UserError(
            f"dataset.validation_fraction {config.validation_fraction} and dataset.test_fraction {config.test_fraction} leave "
            "nothing to train on"
        )
    if half == "pretraining" and known_origin(config.name) not in POCKET_PRETRAINING_DATASETS:
        raise UserError(
            f"no document of {config.name!r} is known to be in the pretraining half: that is made of "
            f"{', '.join(sorted(POCKET_PRETRAINING_DATASETS))}"
        )
    if config.synthetic != SyntheticConfig() and config.name != "synthetic":
        raise UserError(
            f"dataset.synthetic sets the dials of the corpus 'synthetic', not of {config.name!r}: leave it out, "
            "or say dataset.name=synthetic"
        )
    if config.encoder and config.num_clusters is None:
        raise UserError(
            "dataset.encoder says in whose vectors clusters are found: say how many with dataset.num_clusters=8, or leave it out"
        )
    counts: Counter[str] = Counter()
    rows: list[Rows] = []
    found = collect_documents(config, resolve_data_dir(data_dir), half, counts, rows)
    found = deduplicate(found, counts)
    if config.num_clusters is None:
        check_labels_repeat(found, config)
    if config.domains:
        found = filter_domains(found, config, counts)
    if config.limit is not None:
        counts["beyond the limit"] = max(0, len(found) - config.limit)
        found = subsample(found, config.limit, config.split_seed)
    if not found:
        left_out = ", ".join(f"{count:,} {why}" for why, count in counts.items() if count)
        raise UserError(f"corpus {config.name!r} holds no usable document (left out: {left_out or 'nothing'})")
    corpus = build_corpus(config, found, counts, concat_rows(rows))
    if config.num_clusters is not None:
        vectors = embed_texts(corpus.text.tolist(), config.encoder or "lsa", cache_dir=cache_dir)
        corpus = label_by_cluster(corpus, vectors, config.num_clusters, numpy_stream(config.split_seed, "corpus", "clusters"))
    if config.fingerprint and config.fingerprint != corpus.fingerprint:
        raise UserError(
            f"corpus {config.name!r} is not what it was: wanted content {config.fingerprint[:12]}, the data now "
            f"has {corpus.fingerprint[:12]}. Bring the old files back, or start a new run"
        )
    return corpus


def collect_documents(config: DatasetConfig, data_dir: Path | None, half: str, counts: Counter[str], rows: list[Rows]) -> list[Document]:
    """Tidy documents of the corpus's own domains and of one half; what was read goes to ``rows``."""
    named = NAMED_DATASETS.get(config.name)
    if named and named.parts:
        parts = {domain: collect_documents(replace(config, name=part), data_dir, half, counts, rows) for domain, part in named.parts}
        return merge_datasets(
            parts, counts, validation_fraction=config.validation_fraction, test_fraction=config.test_fraction, seed=config.split_seed
        )
    rows.append(read_rows(config, data_dir))
    found = extract_documents(rows[-1], counts, skip_headings=bool(named and named.skip_headings))
    if named and named.label_domains:
        found = map_labels_to_domains(found, dict(named.label_domains), counts)
    if half != "all" and known_origin(config.name) in POCKET_PRETRAINING_DATASETS:
        found = select_half(found, half, counts)
    return found


def resolve_data_dir(data_dir: Path | None) -> Path | None:
    """The folder of local copies: as given, else as FEDRIFT_DATA says, else none."""
    said = data_dir or os.environ.get("FEDRIFT_DATA")
    return Path(said).expanduser() if said else None


def read_rows(config: DatasetConfig, data_dir: Path | None) -> Rows:
    """The rows of a named corpus, a local path or a hub data set, in this order."""
    named = NAMED_DATASETS.get(config.name)
    if config.name == "synthetic":
        return generate_rows(config.synthetic)
    extension = None if named else find_extension("dataset", config.name)
    if extension is not None:
        return rows_of_frame(extension(), config)
    if named:
        original = named.base_name or config.name
        if data_dir and (data_dir / original).is_dir():
            return read_path(data_dir / original)
        if original == "bbc":
            return read_bbc()
        if named.hub_id:
            return read_hub(named.hub_id, named.configs, (named.text_column, named.label_column, "source"))
        raise UserError(
            f"corpus {config.name!r} has no sure hub id and is read from a local folder only: put "
            f"train.parquet and test.parquet (columns text, label, source) in a folder {original}/ and name "
            f"the folder above it with FEDRIFT_DATA, which is "
            f"{f'{str(data_dir)!r} and has no such folder' if data_dir else 'not set'}"
        )
    path, columns = find_local_path(config.name), (config.text_column, config.label_column, config.source_column)
    if path:
        return read_path(path, columns)
    if config.name.startswith((".", "/", "~")) or detect_format(Path(config.name)):
        raise missing_path_error(Path(os.path.expanduser(config.name)))
    hub = HUB_ID_PATTERN.fullmatch(config.name)
    if hub:
        return read_hub(hub[1], (hub[2],) if hub[2] else (), columns)
    error = unknown_name_error("corpus", config.name[:80], NAMED_DATASETS)
    raise UserError(f"{error}. Or give a local file or folder, or a Hugging Face data set id as owner/name")


def rows_of_frame(table: Any, config: DatasetConfig) -> Rows:
    """The rows of a table that an extension made: a pandas DataFrame, or a list of dictionaries.

    The columns are those that ``config`` names; a column ``split`` holds train, validation or test, and is optional.

    Raises:
        UserError: There is no text column, or a split is unknown.
    """
    frame = pd.DataFrame(table)
    if config.text_column not in frame:
        raise UserError(
            f"dataset {config.name!r}: the extension returned the columns {', '.join(map(str, frame.columns)) or 'none'}; wanted "
            f"{config.text_column!r}, and optionally {config.label_column!r}, {config.source_column!r} and 'split'"
        )
    absent = [None] * len(frame)
    splits: list[int | None] = [TRAIN] * len(frame)
    if "split" in frame:
        splits = [detect_split(str(each)) for each in frame["split"]]
    if None in splits:
        raise UserError(
            f"dataset {config.name!r}: the column 'split' holds {frame['split'].iloc[splits.index(None)]!r}; allowed: train, "
            "validation, test"
        )
    return Rows(
        frame[config.text_column].tolist(),
        frame[config.label_column].tolist() if config.label_column in frame else absent,
        frame[config.source_column].tolist() if config.source_column in frame else absent,
        [split for split in splits if split is not None],
        tuple(map(str, frame.columns)),
        config.source_column in frame,
    )


def known_origin(name: str) -> str:
    """The named corpus that these texts are known to come from, by name, hub id or folder; "" if unknown."""
    if name in NAMED_DATASETS:
        return NAMED_DATASETS[name].base_name or name
    path = find_local_path(name)
    if path:
        path = path.resolve()
        return next((known for known in (path.stem, path.name, path.parent.name) if known in NAMED_DATASETS), "")
    hub_ids = {named.hub_id.lower(): known for known, named in NAMED_DATASETS.items() if named.hub_id and not named.base_name}
    return hub_ids.get(name.partition(":")[0].lower(), "")


def filter_domains(documents: list[Document], config: DatasetConfig, counts: Counter[str]) -> list[Document]:
    """The documents of the domains that were asked for; UserError if one of them does not exist."""
    known = {d.label for d in documents if d.label is not None}
    for domain in config.domains:
        if domain not in known:
            raise unknown_name_error(f"domain of {config.name}", domain, known)
    kept = [d for d in documents if d.label in config.domains]
    counts["other domain"] += len(documents) - len(kept)
    return kept


def check_labels_repeat(documents: list[Document], config: DatasetConfig) -> None:
    """UserError for a label column in which hardly a value stands twice: it names the documents, not their topics."""
    labels = Counter(d.label for d in documents if d.label is not None)
    if labels.total() >= MIN_LABELED_DOCUMENTS and 2 * len(labels) > labels.total():
        raise UserError(
            f"corpus {config.name!r} has {len(labels):,} labels for {labels.total():,} documents: hardly one stands "
            f"twice, so the column {config.label_column!r} names documents and no topics. Name another one with "
            "dataset.label_column, take no labels with dataset.label_column='', or find topics by clustering with "
            "dataset.num_clusters=8"
        )


def corpus_notes(domains: tuple[str, ...], counts: Counter[str], rows: Rows) -> tuple[str, ...]:
    """What a reader of the results must know of how the corpus was read."""
    notes = list(rows.notes)
    for names in group_similar_names(domains):
        notes.append(f"topics {', '.join(map(repr, names))} differ only in capitals or white space and count as {len(names)}")
    if counts["not text"]:
        notes.append(f"{counts['not text']:,} rows have no text and are left out")
    return tuple(notes)


def build_corpus(config: DatasetConfig, documents: list[Document], counts: Counter[str], rows: Rows) -> Corpus:
    """Documents as the arrays of a `Corpus`."""
    split = assign_splits(
        documents, validation_fraction=config.validation_fraction, test_fraction=config.test_fraction, seed=config.split_seed
    )
    if TRAIN not in split:
        raise UserError(f"corpus {config.name!r} has no documents to train on: all {len(documents):,} usable ones are held out")
    domains = tuple(sorted({d.label for d in documents if d.label is not None}))
    index = {domain: number for number, domain in enumerate(domains)}
    return Corpus(
        name=config.name,
        text=np.array([d.text for d in documents], dtype=object),
        label=np.array([-1 if d.label is None else index[d.label] for d in documents], dtype=np.int64),
        domains=domains,
        source=np.array([d.source for d in documents], dtype=object),
        split=split,
        size=np.array([len(d.text.split()) for d in documents], dtype=np.int64),
        drop_counts={why: count for why, count in counts.items() if count},
        columns=rows.columns,
        has_source=rows.has_source,
        notes=corpus_notes(domains, counts, rows),
    )


# General text: what a pretrained model knew before, told by documents that no client trains on.
#
# For ``pocket`` it is text of the half that it was pretrained on, which studies with it never use (``catalog.py``). For other
# models it is Wikipedia. Documents that the experiment's corpus has too are left out, whatever they are.

DEFAULT_GENERAL_DATASET = "wikitext2"  # where it is not said which
MAX_GENERAL_DOCUMENTS = 2000  # that are looked through


def load_general_corpus(
    experiment_corpus: Corpus, name: str = "", *, is_pocket_model: bool = False, data_dir: Path | None = None
) -> Corpus | None:
    """Documents of the corpus ``name`` that are not in ``experiment_corpus``; UserError if there are none.

    Without a name it is the first of the corpora that ``pocket`` has read of which there is a local copy, and None if there
    is none: nothing is fetched that was not asked for. ``is_pocket_model``: the model is that one, and its half is taken.
    """
    for candidate in [name] if name else local_general_datasets(data_dir):
        half = "pretraining" if is_pocket_model and known_origin(candidate) in POCKET_PRETRAINING_DATASETS else "all"
        found = load_corpus(DatasetConfig(candidate, limit=MAX_GENERAL_DOCUMENTS), data_dir=data_dir, half=half)
        theirs = set(experiment_corpus.text.tolist())
        rest = found.take(np.array([text not in theirs for text in found.text]))
        if half == "pretraining":  # validation and test documents are no one's half
            rest = rest.train
        elif known_origin(candidate) == known_origin(experiment_corpus.name) and known_origin(experiment_corpus.name):
            rest = rest.take(np.zeros(len(rest), dtype=bool))
        if len(rest):
            return replace(rest, name=candidate)
        if name:
            raise UserError(
                f"evaluation.general_dataset: every document of {name!r} belongs to the experiment's corpus "
                f"{experiment_corpus.name!r} or to what its model has not read; name another corpus"
            )
    return None


def local_general_datasets(data_dir: Path | None) -> list[str]:
    """The corpora that ``pocket`` has read and that have a local copy, Wikipedia first."""
    folder = resolve_data_dir(data_dir)
    known = sorted(POCKET_PRETRAINING_DATASETS & NAMED_DATASETS.keys(), key=lambda name: (name != DEFAULT_GENERAL_DATASET, name))
    return [name for name in known if folder and (folder / name).is_dir()]


# What corpora there are, quick enough for a command line: nothing is loaded, only counted.


class CatalogEntry(NamedTuple):
    """One named corpus."""

    name: str
    description: str
    num_documents: int | None  # before duplicates are removed; None if it is not on this machine
    origin: str
    license_terms: str


def list_datasets(data_dir: Path | None = None) -> list[CatalogEntry]:
    """All named corpora; ``data_dir`` as for ``load_corpus``."""
    data_dir = resolve_data_dir(data_dir)
    return [catalog_entry(name, named, data_dir) for name, named in NAMED_DATASETS.items()]


def catalog_entry(name: str, named: NamedDataset, data_dir: Path | None) -> CatalogEntry:
    if named.parts:
        made_of = ", ".join(part for _, part in named.parts)
        counts = [catalog_entry(part, NAMED_DATASETS[part], data_dir).num_documents for _, part in named.parts]
        known = [count for count in counts if count is not None]
        equal = len(known) * min(known) if len(known) == len(counts) else None  # as many of each as of the smallest
        return CatalogEntry(name, named.description, equal, f"made of {made_of}", named.license_terms)
    folder = data_dir / (named.base_name or name) if data_dir else None
    if folder and folder.is_dir():
        return CatalogEntry(name, named.description, count_documents(folder, named), "local folder", named.license_terms)
    if name == "synthetic":
        return CatalogEntry(name, named.description, SyntheticConfig().num_documents, "made by fedrift", named.license_terms)
    if name == "bbc":
        documents = len(list_bbc_files()) or None
        origin = f"package {BBC_PACKAGE}" + ("" if documents else " (not installed)")
        return CatalogEntry(name, named.description, documents, origin, named.license_terms)
    origin = f"hub {named.hub_id}" if named.hub_id else "local folder only (not there)"
    return CatalogEntry(name, named.description, None, origin, named.license_terms)


def count_documents(folder: Path, named: NamedDataset) -> int | None:
    """Documents in a local folder, without reading more than it takes; None if it cannot be read."""
    try:
        return sum(count_table_documents(file, named) for file, _ in find_table_files(folder)[0]) or None
    except (UserError, OSError, pa.ArrowException):
        return None


def count_table_documents(file: Path, named: NamedDataset) -> int:
    if named.skip_headings:
        cells = (str(cell or "").strip() for cell in read_table(file, ["text"]).columns["text"])
        return sum(bool(cell) and not is_heading(cell) for cell in cells)
    if named.label_domains:
        domains = dict(named.label_domains)
        return sum(normalize_label(cell) in domains for cell in read_table(file, ["label"]).columns["label"])
    if file.suffix.lower() == ".parquet":
        return int(pq.read_metadata(file).num_rows)
    return len(read_table(file, ["text"]).columns["text"])
