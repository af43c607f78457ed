"""Configure the dataset of an experiment (`DatasetConfig`) and load it (`load_corpus`).

`load_corpus` is the only entry point for named datasets, local files and folders, and Hugging Face datasets.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from annotated_types import Interval, MinLen, Predicate, doc

from ..core.errors import UserError, unknown_name_error
from ..core.lazy_imports import pd
from ..core.random import Seed, numpy_stream
from ..core.registry import find_extension
from .catalog import NAMED_DATASETS, POCKET_PRETRAINING_DATASETS, NamedDataset
from .conversations import NO_ANSWER, NO_CONVERSATION, ChatTemplate, DataFormat, TrainOn, Unusable
from .corpus import TRAIN, UNLABELED, Corpus
from .documents import (
    Document,
    assign_splits,
    deduplicate,
    extract_documents,
    is_heading,
    map_labels_to_domains,
    merge_datasets,
    select_subset,
    subsample,
)
from .encoders import Encoder, embed_texts, label_by_cluster
from .readers import BBC_PACKAGE, find_local_path, find_table_files, list_bbc_files, missing_path_error, read_bbc, read_hub, read_path
from .rows import ColumnNames, Rows, Table, concat_rows, detect_split, group_similar_names, normalize_label, table_to_rows
from .synthetic import SyntheticConfig, generate_rows
from .tables import detect_format, read_table, resolve_columns

SUBSETS = ("all", "pretraining", "unseen")
MIN_LABELED_DOCUMENTS = 20  # with at least this many labeled documents, label columns that hardly repeat a value are refused
Fingerprint = Annotated[
    str, Predicate(re.compile(r"([0-9a-f]{64})?").fullmatch), doc("an empty string or the 64 hexadecimal digits that a run wrote")
]
MAX_NAME_LENGTH = 1000  # in characters
HUB_ID_PATTERN = re.compile(r"([\w.-]+/[\w.-]+)(?::([\w.-]+))?")


@dataclass(frozen=True)
class DatasetConfig:
    """Configure the dataset of an experiment; ``dataset: bbc`` in YAML means ``DatasetConfig(name="bbc")``.

    ``name`` is tried as a named dataset, then as a local file or folder (see ``readers.py``), then as a Hugging Face dataset
    id. A colon separates the id from the name of its configuration if it has several: ``owner/name:configuration``.

    Example:
        >>> DatasetConfig("reviews.csv", text_column="body", label_column="topic", limit=5000).limit
        5000
    """

    name: Annotated[str, MinLen(1)]  # A named dataset, a local file or folder, or a Hugging Face dataset id.
    text_column: Annotated[str, MinLen(1)] = "text"  # The column of the text; named datasets ignore the three column keys.
    label_column: str = "label"  # The column of the labels, which are the domains; "" reads no labels.
    source_column: str = "source"  # The author or publisher of each text; BySource makes one client per value.
    limit: Annotated[int, Interval(ge=1, le=10**9)] | None = None  # The largest number of documents; splits and labels keep their shares.
    domains: tuple[str, ...] = ()  # If given, only documents of these domains are used.
    validation_fraction: Annotated[float, Interval(ge=0, lt=1)] = 0.1  # The share of train that replaces a missing validation split.
    test_fraction: Annotated[float, Interval(ge=0, lt=1)] = 0.1  # The share of train that replaces a missing test split.
    split_seed: Seed = 0  # The seed that draws these documents.
    num_clusters: Annotated[int, Interval(ge=2, le=10_000)] | None = None  # If given, clusters of document embeddings replace the labels.
    encoder: Encoder | None = None  # The embedding that is clustered; null: lsa.
    synthetic: SyntheticConfig = SyntheticConfig()  # The settings of the dataset ``synthetic``.
    format: DataFormat = "auto"  # How rows hold documents; auto decides by the columns.
    train_on: TrainOn = "answer"  # The tokens of instruction and chat data that count in the loss; running text counts in full.
    chat_template: ChatTemplate = "auto"  # The chat template; auto: the tokenizer's, or the plain one if it has none.
    config: str = ""  # The configuration of a hub dataset.
    revision: str = ""  # The branch, tag or commit of a hub dataset.
    split: str = ""  # The split of a hub dataset to read, for example "train" or "train[:1000]"; "": all of them.
    fingerprint: Fingerprint = ""  # The hash of the documents; a run fills it in, so that changed data give another id.
    source_fingerprint: Fingerprint = ""  # The same for the sources, if clients depend on them; a run fills it in.

    def to_dict(self) -> dict[str, Any]:
        """Return all keys as plain values.

        ``synthetic`` is left out if it has its default values and the dataset is another one.
        """
        values = asdict(self)
        values["domains"] = list(self.domains)
        if self.synthetic == SyntheticConfig() and self.name != "synthetic":
            del values["synthetic"]
        else:
            values["synthetic"]["styles"] = list(self.synthetic.styles)
        return values


def load_corpus(config: DatasetConfig, *, data_dir: Path | None = None, subset: str = "all", cache_dir: Path | None = None) -> Corpus:
    """Load, clean and split the documents of a dataset.

    Args:
        config: The dataset.
        data_dir: The folder with local copies of named datasets. The environment variable FEDRIFT_DATA is the default.
        subset: ``"pretraining"`` or ``"unseen"`` keeps only train documents that ``pocket`` did or did not see during
            pretraining, if the dataset is one of its six pretraining datasets (see ``catalog.py``). ``"all"`` keeps both.
        cache_dir: The folder in which embeddings are cached, if any.

    Returns:
        The corpus in canonical order.

    Raises:
        UserError: The dataset cannot be loaded, a setting does not fit it, or its content does not match
            ``config.fingerprint``.
    """
    check_settings(config, subset)
    counts: Counter[str] = Counter()
    rows: list[Rows] = []
    documents = collect_documents(config, resolve_data_dir(data_dir), subset, counts, rows)
    documents = deduplicate(documents, counts)
    if config.num_clusters is None:
        check_labels_repeat(documents, config)
    if config.domains:
        documents = filter_domains(documents, config, counts)
    if config.limit is not None:
        counts["limit"] = max(0, len(documents) - config.limit)
        documents = subsample(documents, config.limit, config.split_seed)
    if not documents:
        raise no_documents_error(config.name, counts, concat_rows(rows))
    corpus = build_corpus(config, documents, counts, concat_rows(rows))
    if config.num_clusters is not None:
        vectors = embed_texts(corpus.text.tolist(), config.encoder or "lsa", cache_dir=cache_dir)
        corpus = label_by_cluster(corpus, vectors, config.num_clusters, numpy_stream(config.split_seed, "corpus", "clusters"))
    if config.fingerprint and config.fingerprint != corpus.fingerprint:
        raise UserError(
            f"the content of dataset {config.name!r} has changed: the run expects fingerprint {config.fingerprint[:12]}, but the data "
            f"has {corpus.fingerprint[:12]}. Restore the old files, or start a new run"
        )
    return corpus


def no_documents_error(name: str, counts: Counter[str], rows: Rows) -> UserError:
    """Return the error for a dataset without usable documents, with what was left out and why."""
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in counts.items() if count) or "nothing"
    reasons = [f"for example, {detail}" for detail in unusable_details(rows).values()] + list(rows.notes)
    return UserError(
        f"dataset {name!r} has no usable documents (left out: {dropped}{''.join(f'; {reason}' for reason in reasons[:3])}). "
        "`fedrift dataset show` prints what is read from a dataset"
    )


def unusable_details(rows: Rows) -> dict[str, str]:
    """Return what is wrong with the first of the rows that cannot be used, for each reason."""
    details: dict[str, str] = {}
    for cell in rows.text:
        if isinstance(cell, Unusable) and cell.detail:
            details.setdefault(cell.reason, cell.detail)
    return details


def check_settings(config: DatasetConfig, subset: str) -> None:
    """Raise UserError if the settings of a dataset contradict each other; the data is not read."""
    if not config.name.strip():
        raise UserError("dataset is empty: give a named dataset, a local file or folder, or a Hugging Face dataset id")
    if len(config.name) > MAX_NAME_LENGTH:
        raise UserError(
            f"the dataset name {config.name[:60]!r}... has {len(config.name):,} characters, but at most {MAX_NAME_LENGTH:,} are "
            "allowed: give a named dataset, a local file or folder, or a Hugging Face dataset id"
        )
    if subset not in SUBSETS:
        raise unknown_name_error("subset", subset, SUBSETS)
    if config.validation_fraction + config.test_fraction >= 1:
        raise UserError(
            f"dataset.validation_fraction {config.validation_fraction} and dataset.test_fraction {config.test_fraction} leave "
            "no documents to train on: their sum must be less than 1"
        )
    if subset == "pretraining" and known_origin(config.name) not in POCKET_PRETRAINING_DATASETS:
        raise UserError(
            f"no document of {config.name!r} is known to be in the pretraining half. The pretraining half consists of documents from "
            f"{', '.join(sorted(POCKET_PRETRAINING_DATASETS))}"
        )
    check_hub_keys(config)
    if config.synthetic != SyntheticConfig() and config.name != "synthetic":
        raise UserError(
            f"dataset.synthetic applies to the dataset 'synthetic' only, but dataset.name is {config.name!r}: remove "
            "dataset.synthetic, or set dataset.name=synthetic"
        )
    if config.encoder and config.num_clusters is None:
        raise UserError(
            "dataset.encoder is used for clustering only, but dataset.num_clusters is not set: set it, for example dataset.num_clusters=8, "
            "or remove dataset.encoder"
        )


def collect_documents(config: DatasetConfig, data_dir: Path | None, subset: str, counts: Counter[str], rows: list[Rows]) -> list[Document]:
    """Read a dataset and return its cleaned documents before deduplication.

    Args:
        config: The dataset; a dataset of several parts is read part by part.
        data_dir: The folder with local copies, if any.
        subset: Which train documents to keep, as in `load_corpus`.
        counts: Receives the number of documents left out, by reason.
        rows: Receives the rows of each table that was read.
    """
    named = NAMED_DATASETS.get(config.name)
    if named and named.parts:
        parts = {domain: collect_documents(replace(config, name=part), data_dir, subset, counts, rows) for domain, part in named.parts}
        return merge_datasets(
            parts, counts, validation_fraction=config.validation_fraction, test_fraction=config.test_fraction, seed=config.split_seed
        )
    rows.append(find_reader(config, data_dir)())
    documents = extract_documents(rows[-1], counts, skip_headings=bool(named and named.skip_headings))
    if named and named.label_domains:
        documents = map_labels_to_domains(documents, dict(named.label_domains), counts)
    if subset != "all" and known_origin(config.name) in POCKET_PRETRAINING_DATASETS:
        documents = select_subset(documents, subset, counts)
    return documents


def resolve_data_dir(data_dir: Path | None) -> Path | None:
    """Return the folder of local copies: ``data_dir``, else the environment variable FEDRIFT_DATA, else None."""
    folder = data_dir or os.environ.get("FEDRIFT_DATA")
    return Path(folder).expanduser() if folder else None


def find_reader(config: DatasetConfig, data_dir: Path | None) -> Callable[[], Rows]:
    """Return the function that reads the rows of a dataset; nothing is read before it is called.

    The dataset is a named one, that of an extension, a local path or a hub dataset, tried in this order.

    Raises:
        UserError: The name is unknown, or the data is not on this machine and cannot be downloaded.
    """
    named = NAMED_DATASETS.get(config.name)
    if config.name == "synthetic":
        return lambda: generate_rows(config.synthetic)
    extension = None if named else find_extension("dataset", config.name)
    if extension is not None:
        return lambda: rows_of_frame(extension(), config)
    if named:
        original = named.base_name or config.name
        if data_dir and (folder := data_dir / original).is_dir():
            return lambda: read_path(folder)
        if original == "bbc":
            return read_bbc
        if named.hub_id:
            names = ColumnNames(named.text_column, named.label_column, data_format="text")
            return partial(read_hub, named.hub_id, named.configs, names)
        raise UserError(
            f"dataset {config.name!r} has no verified hub id and is read from a local folder only: put "
            f"train.parquet and test.parquet (columns text, label, source) in a folder {original}/ and set "
            f"FEDRIFT_DATA to its parent folder. FEDRIFT_DATA is "
            f"{f'{str(data_dir)!r}, which has no such folder' if data_dir else 'not set'}. The text comes from {named.published_at}; "
            "docs/corpora.md says how to get it"
        )
    path, columns = find_local_path(config.name), ColumnNames(config.text_column, config.label_column, config.source_column, config.format)
    if path:
        return partial(read_path, path, columns)
    if config.name.startswith((".", "/", "~")) or detect_format(Path(config.name)):
        raise missing_path_error(Path(os.path.expanduser(config.name)))
    hub = HUB_ID_PATTERN.fullmatch(config.name)
    if hub:
        return partial(read_hub, hub[1], hub_configs(config, hub[2]), columns, config.revision or None, config.split or None)
    error = unknown_name_error("dataset", config.name[:80], NAMED_DATASETS)
    raise UserError(f"{error}. You can also give a local file or folder, or a Hugging Face dataset id as owner/name")


def check_available(config: DatasetConfig, *, data_dir: Path | None = None, subset: str = "all") -> None:
    """Check the settings and the name of a dataset without reading its documents.

    Args:
        config: The dataset.
        data_dir: The folder with local copies, as in `load_corpus`.
        subset: As in `load_corpus`.

    Raises:
        UserError: Settings contradict each other, the name is unknown, or the data is not on this machine and cannot be downloaded.
    """
    check_settings(config, subset)
    named = NAMED_DATASETS.get(config.name)
    for name in [part for _, part in named.parts] if named and named.parts else [config.name]:
        find_reader(replace(config, name=name), resolve_data_dir(data_dir))


def hub_configs(config: DatasetConfig, name_suffix: str | None) -> tuple[str, ...]:
    """Return the configuration of a hub dataset, which follows the id after a colon or is given by ``dataset.config``.

    Raises:
        UserError: Both are given and differ.
    """
    if name_suffix and config.config not in ("", name_suffix):
        raise UserError(
            f"dataset.name {config.name!r} names the configuration {name_suffix!r}, but dataset.config is {config.config!r}: remove one"
        )
    chosen = name_suffix or config.config
    return (chosen,) if chosen else ()


def check_hub_keys(config: DatasetConfig) -> None:
    """Check that ``dataset.config``, ``dataset.revision`` and ``dataset.split`` are used for datasets of the hub only.

    Raises:
        UserError: One of them is set for another dataset.
    """
    is_set = [f"dataset.{key}" for key in ("config", "revision", "split") if getattr(config, key)]
    is_hub = config.name not in NAMED_DATASETS and not find_local_path(config.name) and HUB_ID_PATTERN.fullmatch(config.name)
    if is_set and not is_hub:
        raise UserError(
            f"{' and '.join(is_set)}: only datasets of the Hugging Face hub (owner/name) have these keys, but dataset.name is "
            f"{config.name[:80]!r}. Remove them; to read one split of a local folder, name its file"
        )


def rows_of_frame(table: Any, config: DatasetConfig) -> Rows:
    """Convert the table that an extension returned into rows.

    Args:
        table: A pandas DataFrame or a list of dictionaries. An optional column ``split`` holds train, validation or test.
        config: Names the columns of text, label and source.

    Raises:
        UserError: The text column is missing, or a split is unknown.
    """
    frame = pd.DataFrame(table)
    where, names = f"dataset {config.name!r}", list(map(str, frame.columns))
    columns = ColumnNames(config.text_column, config.label_column, config.source_column, config.format)
    cells = {name: frame.iloc[:, names.index(name)].tolist() for name in resolve_columns(where, names, columns)}
    rows = table_to_rows(Table(cells, tuple(names)), TRAIN, columns, where, "")
    if "split" not in frame:
        return rows
    splits = [detect_split(str(cell)) for cell in frame["split"]]
    if None in splits:
        raise UserError(
            f"dataset {config.name!r}: the column 'split' holds {frame['split'].iloc[splits.index(None)]!r}; allowed: train, "
            "validation, test"
        )
    return replace(rows, split=[split for split in splits if split is not None])


def known_origin(name: str) -> str:
    """Return the named dataset to which a name, hub id or folder refers, or "" if it is unknown."""
    if name in NAMED_DATASETS:
        return NAMED_DATASETS[name].base_name or name
    path = find_local_path(name)
    if path:
        path = path.resolve()
        return next((known for known in (path.stem, path.name, path.parent.name) if known in NAMED_DATASETS), "")
    hub_ids = {named.hub_id.lower(): known for known, named in NAMED_DATASETS.items() if named.hub_id and not named.base_name}
    return hub_ids.get(name.partition(":")[0].lower(), "")


def filter_domains(documents: list[Document], config: DatasetConfig, counts: Counter[str]) -> list[Document]:
    """Keep the documents of the configured domains.

    Raises:
        UserError: A configured domain does not exist in the dataset.
    """
    known = {d.label for d in documents if d.label is not None}
    for domain in config.domains:
        if domain not in known:
            raise unknown_name_error(f"domain of {config.name}", domain, known)
    selected = [d for d in documents if d.label in config.domains]
    counts["other domain"] += len(documents) - len(selected)
    return selected


def check_labels_repeat(documents: list[Document], config: DatasetConfig) -> None:
    """Check that the label column groups documents.

    Raises:
        UserError: Hardly any label occurs twice, so that the column identifies documents rather than topics.
    """
    labels = Counter(d.label for d in documents if d.label is not None)
    if labels.total() >= MIN_LABELED_DOCUMENTS and 2 * len(labels) > labels.total():
        raise UserError(
            f"dataset {config.name!r} has {len(labels):,} different labels for {labels.total():,} documents: hardly any label occurs "
            f"twice, so the column {config.label_column!r} does not hold topics. Name another column with "
            "dataset.label_column, use no labels with dataset.label_column='', or find topics by clustering with "
            "dataset.num_clusters=8"
        )


def corpus_notes(domains: tuple[str, ...], counts: Counter[str], rows: Rows, *, has_labels: bool) -> tuple[str, ...]:
    """Return the facts about the loading that a reader of the results must know.

    Args:
        domains: The topics.
        counts: The number of documents by what loading did with them.
        rows: The rows that were read.
        has_labels: Whether the topics are the labels of the data and not clusters.
    """
    notes = list(rows.notes)
    for names in group_similar_names(domains):
        notes.append(f"topics {', '.join(map(repr, names))} differ only in capitals or white space and count as {len(names)} topics")
    details = unusable_details(rows)
    for reason, part in (("not text", "text"), (NO_ANSWER, "answer"), (NO_CONVERSATION, "readable conversation")):
        if counts[reason]:
            detail = f"; for example, {details[reason]}" if reason in details else ""
            notes.append(f"{counts[reason]:,} rows have no {part} and were left out{detail}")
    if counts["conflicting label"] and has_labels:
        notes.append(f"{counts['conflicting label']:,} texts occur with several labels; each keeps the first of its labels by name")
    if 2 * counts["duplicate"] > len(rows):
        notes.append(f"{counts['duplicate']:,} of {len(rows):,} rows repeat the text of another row and were left out")
    return tuple(notes)


def split_label_notes(documents: list[Document]) -> list[str]:
    """Return notes on labels that disagree between the splits of the data, so that what is trained is not measured or vice versa."""
    held_out = [d for d in documents if d.split != TRAIN]
    labels, trained = ({d.label for d in part if d.label is not None} for part in (held_out, [d for d in documents if d.split == TRAIN]))
    if held_out and bool(labels) != bool(trained):
        named, other = ("training", "held-out") if trained else ("held-out", "training")
        return [f"the {named} documents have topics, but no {other} document has one: check that all files have the label column"]
    if labels - trained:
        names = ", ".join(map(repr, sorted(labels - trained)[:5]))
        return [f"held-out documents have topics without training documents ({names}): check that all splits name topics alike"]
    return []


def build_corpus(config: DatasetConfig, documents: list[Document], counts: Counter[str], rows: Rows) -> Corpus:
    """Assign splits and convert documents to the arrays of a `Corpus`.

    Raises:
        UserError: No document is left to train on, or a topic has the name of the documents without a label.
    """
    split = assign_splits(
        documents, validation_fraction=config.validation_fraction, test_fraction=config.test_fraction, seed=config.split_seed
    )
    if TRAIN not in split:
        raise UserError(
            f"dataset {config.name!r} has no documents to train on: all {len(documents):,} usable documents are in validation or test"
        )
    domains = tuple(sorted({d.label for d in documents if d.label is not None}))
    if config.num_clusters is None and UNLABELED in domains and any(d.label is None for d in documents):
        raise UserError(
            f"dataset {config.name!r} has a topic {UNLABELED!r} and documents without a label, which are measured under this name: rename "
            "the topic, or choose the topics to use with dataset.domains"
        )
    index = {domain: number for number, domain in enumerate(domains)}
    return Corpus(
        name=config.name,
        text=np.array([d.text for d in documents], dtype=object),
        label=np.array([-1 if d.label is None else index[d.label] for d in documents], dtype=np.int64),
        domains=domains,
        source=np.array([d.source for d in documents], dtype=object),
        split=split,
        size=np.array([len(d.text.split()) for d in documents], dtype=np.int64),
        drop_counts={reason: count for reason, count in counts.items() if count},
        columns=rows.columns,
        has_source=rows.has_source,
        notes=(*corpus_notes(domains, counts, rows, has_labels=config.num_clusters is None), *split_label_notes(documents)),
        examples=collect_examples(config, documents),
        train_on=config.train_on,
        chat_template=config.chat_template,
    )


def collect_examples(config: DatasetConfig, documents: list[Document]) -> np.ndarray | None:
    """Return the examples of instruction and chat data, [D] object; None for running text.

    Raises:
        UserError: Some documents are running text and others are not.
    """
    num_examples = sum(document.example is not None for document in documents)
    if not num_examples:
        return None
    if num_examples < len(documents):
        raise UserError(
            f"dataset {config.name!r} mixes {num_examples:,} conversations with {len(documents) - num_examples:,} documents of running "
            "text: read them as two datasets, or set dataset.format to the format of all of them"
        )
    examples = np.empty(num_examples, dtype=object)
    examples[:] = [document.example for document in documents]
    return examples


# General text measures what a pretrained model forgets; no client trains on it. For ``pocket`` it comes from the half on which it
# was pretrained (``catalog.py``), for other models from Wikipedia. Documents of the experiment's corpus are excluded.

DEFAULT_GENERAL_DATASET = "wikitext2"  # preferred local copy if no name is configured
MAX_GENERAL_DOCUMENTS = 2000  # read at most this many


def load_general_corpus(
    experiment_corpus: Corpus, name: str = "", *, is_pocket_model: bool = False, data_dir: Path | None = None
) -> Corpus | None:
    """Load general-domain text that does not overlap with the corpus of the experiment.

    Args:
        experiment_corpus: The corpus of the experiment, whose documents are excluded.
        name: The dataset. By default the first pretraining dataset of ``pocket`` that has a local copy is used, and nothing
            is downloaded.
        is_pocket_model: Whether the model is ``pocket``. If so, only documents from its pretraining half are used, if that half is known.
        data_dir: The folder with local copies, as in `load_corpus`.

    Returns:
        The corpus, or None if no name is given and there is no local copy.

    Raises:
        UserError: The named dataset has no document outside the experiment's corpus.
    """
    for candidate in [name] if name else local_general_datasets(data_dir):
        subset = "pretraining" if is_pocket_model and known_origin(candidate) in POCKET_PRETRAINING_DATASETS else "all"
        corpus = load_corpus(DatasetConfig(candidate, limit=MAX_GENERAL_DOCUMENTS), data_dir=data_dir, subset=subset)
        excluded_texts = set(experiment_corpus.text.tolist())
        remaining = corpus.take(np.array([text not in excluded_texts for text in corpus.text]))
        if subset == "pretraining":  # validation and test documents belong to neither half
            remaining = remaining.train
        elif known_origin(candidate) == known_origin(experiment_corpus.name) and known_origin(experiment_corpus.name):
            remaining = remaining.take(np.zeros(len(remaining), dtype=bool))
        if len(remaining):
            return replace(remaining, name=candidate)
        if name:
            raise UserError(
                f"evaluation.general_dataset: every document of {name!r} is part of the experiment's dataset "
                f"{experiment_corpus.name!r} or was not part of the model's pretraining text; name another dataset"
            )
    return None


def local_general_datasets(data_dir: Path | None) -> list[str]:
    """List the pretraining datasets of ``pocket`` that have a local copy, Wikipedia first."""
    folder = resolve_data_dir(data_dir)
    known = sorted(POCKET_PRETRAINING_DATASETS & NAMED_DATASETS.keys(), key=lambda name: (name != DEFAULT_GENERAL_DATASET, name))
    return [name for name in known if folder and (folder / name).is_dir()]


# The catalog for the command line only counts documents, because loading them would take too long.


class CatalogEntry(NamedTuple):
    """One named dataset with its availability on this machine."""

    name: str
    description: str
    num_documents: int | None  # before deduplication; None if the dataset is not on this machine
    origin: str
    license_terms: str


def list_datasets(data_dir: Path | None = None) -> list[CatalogEntry]:
    """List all named datasets.

    Args:
        data_dir: The folder with local copies, as in `load_corpus`.
    """
    data_dir = resolve_data_dir(data_dir)
    return [catalog_entry(name, named, data_dir) for name, named in NAMED_DATASETS.items()]


def catalog_entry(name: str, named: NamedDataset, data_dir: Path | None) -> CatalogEntry:
    """Describe one named dataset; count its documents if it is on this machine."""
    if named.parts:
        part_names = ", ".join(part for _, part in named.parts)
        counts = [catalog_entry(part, NAMED_DATASETS[part], data_dir).num_documents for _, part in named.parts]
        known = [count for count in counts if count is not None]
        total = (
            len(known) * min(known) if len(known) == len(counts) else None
        )  # each part contributes as many documents as the smallest one
        return CatalogEntry(name, named.description, total, f"combines {part_names}", named.license_terms)
    folder = data_dir / (named.base_name or name) if data_dir else None
    if folder and folder.is_dir():
        return CatalogEntry(name, named.description, count_documents(folder, named), "local folder", named.license_terms)
    if name == "synthetic":
        return CatalogEntry(name, named.description, SyntheticConfig().num_documents, "generated by fedrift", named.license_terms)
    if name == "bbc":
        documents = len(list_bbc_files()) or None
        origin = f"package {BBC_PACKAGE}" + ("" if documents else " (not installed)")
        return CatalogEntry(name, named.description, documents, origin, named.license_terms)
    origin = f"hub {named.hub_id}" if named.hub_id else f"local folder (not found); from {named.published_at}"
    return CatalogEntry(name, named.description, None, origin, named.license_terms)


def count_documents(folder: Path, named: NamedDataset) -> int | None:
    """Count the documents in a local folder and read as little as possible; return None if it cannot be read."""
    try:
        return sum(count_table_documents(file, named) for file, _ in find_table_files(folder)[0]) or None
    except (UserError, OSError, pa.ArrowException):
        return None


def count_table_documents(file: Path, named: NamedDataset) -> int:
    """Count the documents of one table that the dataset would use."""
    if named.skip_headings:
        cells = (str(cell or "").strip() for cell in read_table(file, ["text"]).columns["text"])
        return sum(bool(cell) and not is_heading(cell) for cell in cells)
    if named.label_domains:
        domains = dict(named.label_domains)
        return sum(normalize_label(cell) in domains for cell in read_table(file, ["label"]).columns["label"])
    if file.suffix.lower() == ".parquet":
        return int(pq.read_metadata(file).num_rows)
    return len(read_table(file, ["text"]).columns["text"])
