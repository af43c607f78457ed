"""Look at a dataset: propose the text and label column of a table, or summarize what was loaded from it.

A summary states what was read, what was left out, token counts, and examples as the model sees them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..core.errors import UserError
from .conversations import EXAMPLE_COLUMNS, find_format
from .corpus import TEST, TRAIN, VALIDATION, Corpus
from .dataset import DatasetConfig
from .readers import find_local_path, find_table_files, list_files
from .tables import SUFFIXES, TEXT_SUFFIX, check_one_column, detect_format, format_columns, read_delimited, read_json, read_text
from .tokenization import TokenizedCorpus, count_trained

SAMPLE_ROWS = 1000  # rows that are looked at
TEXT_NAMES = ("text", "content", "body", "article", "document", "review", "sentence", "abstract", "comment", "message", "description")
LABEL_NAMES = ("label", "topic", "category", "class", "domain", "subject", "genre", "section", "subreddit", "label_text")
MAX_TOPICS = 50  # a column with more different values is no topic
SPLITS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
MAX_LISTED = 20  # names of files, topics or sources that a summary lists
NOT_DROPPED = ("conflicting label",)  # counts of documents that are used nevertheless


def summarize_corpus(config: DatasetConfig, corpus: Corpus) -> dict[str, Any]:
    """Return what was read and what was left out, as JSON values.

    Args:
        config: The configuration of the dataset.
        corpus: The dataset as it was loaded.
    """
    dropped = {reason: count for reason, count in corpus.drop_counts.items() if reason not in NOT_DROPPED}
    return {
        "dataset": config.name,
        "format": used_format(config, corpus),
        "files": list_read_files(config.name),
        "columns": list(corpus.columns),
        "rows": len(corpus) + sum(dropped.values()),
        "documents": {name: int((corpus.split == code).sum()) for name, code in SPLITS.items()},
        "left_out": dropped,
        "topics": count_values([corpus.domains[label] for label in corpus.label if label >= 0]),
        "without_topic": int((corpus.label < 0).sum()),
        "sources": count_values([str(source) for source in corpus.source]) if corpus.has_source else {},
        "notes": list(corpus.notes),
        "fingerprint": corpus.fingerprint,
    }


def used_format(config: DatasetConfig, corpus: Corpus) -> str:
    """Return the format by which the documents were read."""
    if corpus.examples is None:
        return "text"
    found = find_format(config.format, config.text_column, corpus.columns)
    return "chat" if found == "text" else found


def list_read_files(name: str) -> list[str]:
    """List the files of a local dataset; return an empty list for other datasets."""
    path = find_local_path(name)
    if path is None:
        return []
    if path.is_file():
        return [str(path)]
    try:
        tables = [str(file) for file, _ in find_table_files(path)[0]]
    except UserError:
        tables = []
    return tables or [str(file) for file in list_files(path) if detect_format(file) in (*SUFFIXES, TEXT_SUFFIX)]


def count_values(values: list[str]) -> dict[str, int]:
    """Count values, the most frequent first, and equally frequent ones in the order of their names."""
    return dict(sorted(Counter(values).items(), key=lambda pair: (-pair[1], pair[0])))


def summarize_tokens(corpus: Corpus, tokens: TokenizedCorpus, block_length: int) -> dict[str, Any]:
    """Return token counts as JSON values.

    Args:
        corpus: The dataset.
        tokens: Its tokens.
        block_length: The number of tokens per block, ``training.max_seq_length``.
    """
    counts: dict[str, Any] = {}
    for name, code in SPLITS.items():
        rows = np.flatnonzero(corpus.split == code)
        lengths = tokens.lengths[rows]
        counts[name] = {
            "tokens": int(lengths.sum()),
            "trained_tokens": int(tokens.trained_lengths[rows].sum()),
            "median_length": int(np.median(lengths)) if len(rows) else 0,
            "longest": int(lengths.max(initial=0)),
        }
        if tokens.keeps_whole:
            counts[name] |= {
                "cut": int((lengths > block_length).sum()),
                "without_answer": int((count_trained(tokens, rows, block_length) == 0).sum()),
            }
    return {"max_seq_length": block_length, "splits": counts}


def show_examples(corpus: Corpus, tokens: TokenizedCorpus, tokenizer: Any, num_examples: int, block_length: int) -> list[dict[str, Any]]:
    """Return the first training documents as the model sees them.

    Args:
        corpus: The dataset.
        tokens: Its tokens.
        tokenizer: The tokenizer of the model.
        num_examples: The number of documents.
        block_length: The number of tokens that are shown of each.

    Returns:
        For each document its topic, and its text in segments with whether they count in the loss.
    """
    examples = []
    for row in np.flatnonzero(corpus.split == TRAIN)[:num_examples]:
        ids = tokens.document_ids(row)[:block_length]
        mask = np.ones(len(ids), dtype=bool) if tokens.mask is None else tokens.mask[tokens.offsets[row] :][: len(ids)]
        starts = [0, *(np.flatnonzero(np.diff(mask.astype(np.int8))) + 1).tolist(), len(ids)]
        segments = [
            {"text": tokenizer.decode(ids[start:stop], clean_up_tokenization_spaces=False), "trained": bool(mask[start])}
            for start, stop in pairwise(starts)
            if stop > start
        ]
        topic = corpus.domains[corpus.label[row]] if corpus.label[row] >= 0 else None
        examples.append({"topic": topic, "source": str(corpus.source[row]), "tokens": len(ids), "segments": segments})
    return examples


def is_experiment_file(name: str) -> bool:
    """Return whether a name is that of a YAML file."""
    return Path(name).suffix.lower() in (".yaml", ".yml")


# The columns of a table, before an experiment exists.


class ColumnChoice(NamedTuple):
    """The columns that are proposed for a table."""

    columns: tuple[str, ...]  # all columns of the table
    text: str  # the column of running text; "" for instruction and chat data, whose format is found by its columns
    label: str  # the column of topics; "" if none looks like one
    topics: tuple[str, ...]  # the values of the label column in the sample, the most frequent first
    is_small: bool = False  # whether the sample holds all rows of the dataset


def propose_columns(name: str) -> ColumnChoice | None:
    """Propose the text and the label column of a local table or of a folder of tables.

    Args:
        name: The value of ``dataset.name``.

    Returns:
        The proposal; None if the dataset is no local table, so that it has no columns to choose.

    Raises:
        UserError: The table cannot be read, or no column contains text.
    """
    path, num_tables = find_local_path(name), 1
    if path is not None and path.is_dir():
        tables = find_table_files(path)[0]
        path, num_tables = tables[0][0] if tables else None, len(tables)
    if path is None or detect_format(path) not in SUFFIXES:
        return None
    columns = sample_columns(path)
    is_small = num_tables == 1 and all(len(values) < SAMPLE_ROWS for values in columns.values())
    is_chat = find_format("auto", "text", list(columns)) != "text"  # as the dataset is read if no column is named
    text = "" if is_chat else choose_text(columns)
    if not text and not is_chat:
        raise UserError(f"{path} has no column of text; its columns are {format_columns(list(columns))}. Add one, or name another file")
    label = choose_label({name: values for name, values in columns.items() if name != text and not (is_chat and name in EXAMPLE_COLUMNS)})
    counts: dict[str, int] = {}
    for value in columns.get(label, ()):
        counts[str(value)] = counts.get(str(value), 0) + 1
    return ColumnChoice(tuple(columns), text, label, tuple(sorted(counts, key=lambda topic: -counts[topic])), is_small)


def sample_columns(path: Path) -> dict[str, Sequence[Any]]:
    """Return the first rows of every column of a table."""
    file_format = detect_format(path)
    if file_format == ".parquet" and path.suffix.lower() == ".parquet":
        from pyarrow.parquet import ParquetFile

        with ParquetFile(path) as file:
            batch = next(file.iter_batches(batch_size=SAMPLE_ROWS), None)
            return batch.to_pydict() if batch is not None else dict.fromkeys(file.schema_arrow.names, ())
    if file_format in (".parquet", ".arrow"):
        raise UserError(
            f"the columns of {path.name} cannot be looked at: give an uncompressed Parquet file, CSV or JSONL, or write the YAML by hand"
        )
    text = read_text(path)
    if file_format in (".csv", ".tsv"):
        separator = "\t" if file_format == ".tsv" else ","
        columns: Mapping[str, Sequence[Any]] = read_delimited(str(path), text, separator, text_column="text")[1]
        check_one_column(path, columns, separator)
    else:
        columns = read_json(path, text)
    return {name: list(islice(values, SAMPLE_ROWS)) for name, values in columns.items()}


def choose_text(columns: Mapping[str, Sequence[Any]]) -> str:
    """Return the usual name of a text column, or the column with the longest texts; "" if no column contains texts."""
    texts = {name: [value for value in values if isinstance(value, str)] for name, values in columns.items()}
    lengths = {name: sum(map(len, values)) / len(values) for name, values in texts.items() if values}
    named = [name for usual in TEXT_NAMES for name in lengths if name.lower() == usual]
    return named[0] if named else max(lengths, key=lambda name: lengths[name], default="")


def choose_label(columns: Mapping[str, Sequence[Any]]) -> str:
    """Return the usual name of a label column, or the first column with few different values; "" if there is none."""
    usual = [name for usual in LABEL_NAMES for name in columns if name.lower() == usual]
    if usual:
        return usual[0]
    for name, values in columns.items():
        scalars = [value for value in values if isinstance(value, (str, int)) and value != ""]
        if name.lower() not in ("split", "source") and 2 <= len(set(scalars)) <= min(MAX_TOPICS, len(scalars) // 4):
            return name
    return ""
