"""Summarize a loaded dataset: what was read, what was left out, token counts, and examples as the model sees them."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import UserError
from .conversations import find_format
from .corpus import TEST, TRAIN, VALIDATION, Corpus
from .dataset import DatasetConfig
from .readers import find_local_path, find_table_files, list_files
from .tables import SUFFIXES, TEXT_SUFFIX, detect_format
from .tokenization import TokenizedCorpus, count_trained

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
