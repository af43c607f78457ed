"""Export of a partition to files: one Parquet dataset per client, readable by ``datasets.load_dataset`` and any Parquet reader."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .. import __version__
from ..core.errors import UserError
from ..data.corpus import Corpus
from .base import Partition, document_id

TRAIN_FILE = "train.parquet"


def export_partition(corpus: Corpus, partition: Partition, folder: Path, metadata: Mapping[str, Any]) -> Path:
    """Write the documents of each client after their rewrites, together with ``partition.json`` and a dataset card.

    ``load_dataset(folder, "client3")`` returns client 3 with the columns text, label and source, as does
    ``load_dataset("parquet", data_files=folder/client3/train.parquet)``.

    Args:
        corpus: The corpus that was partitioned.
        partition: The partition.
        folder: Output folder; it must be new or empty.
        metadata: The settings of the experiment that determine the data. They are copied into ``partition.json``.

    Returns:
        The path of ``partition.json``.

    Raises:
        UserError: ``folder`` exists and is not empty, or the examples of the corpus have several forms.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"The output folder {folder} already exists and is not empty. Choose another folder, or remove it first.")
    if corpus.examples is not None and len({(example.num_prompt is None, example.uses_template) for example in corpus.examples}) > 1:
        raise UserError(
            f"Corpus {corpus.name!r} cannot be exported, because a column has one type, but some of its examples are conversations or "
            "lists of messages and others are texts. Write all of them in one way, such as a column messages."
        )
    client_names = [f"client{k:0{len(str(len(partition) - 1))}d}" for k in range(len(partition))]
    clients = []
    for name, (client, rows) in zip(client_names, enumerate(partition.rows), strict=True):
        rewrite = partition.rewrites[client] if partition.rewrites else None
        original_texts = [str(corpus.text[row]) for row in rows]
        ids = [document_id(text) for text in original_texts]
        texts = original_texts if rewrite is None else [rewrite(text, document) for text, document in zip(original_texts, ids, strict=True)]
        file = folder / name / TRAIN_FILE
        file.parent.mkdir(parents=True)
        pq.write_table(client_table(corpus.take(rows), texts), file)
        clients.append(
            {
                "name": name,
                "file": f"{name}/{TRAIN_FILE}",
                "documents": len(ids),
                "size": int(corpus.size[rows].sum()),
                "rewritten": rewrite is not None,
                "sha256": sha256(file.read_bytes()).hexdigest(),
                "ids": ids,
            }
        )
    index = {
        "created_by": f"fedrift {__version__}",
        **metadata,
        "corpus_fingerprint": corpus.fingerprint,
        "domains": list(corpus.domains),
        "documents": len(corpus),
        "num_unused": len(corpus) - sum(len(rows) for rows in partition.rows),
        "partition_fingerprint": partition_fingerprint(partition, corpus),
        "clients": clients,
    }
    (folder / "README.md").write_text(dataset_card(client_names), encoding="utf-8")
    index_file = folder / "partition.json"
    index_file.write_text(json.dumps(index, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return index_file


def client_table(corpus: Corpus, texts: list[str]) -> pa.Table:
    """Return the columns text (or messages, or prompt and completion), label and source of one client's documents.

    Args:
        corpus: The client's documents.
        texts: The documents' texts after rewriting, [D].
    """
    if corpus.examples is not None:
        rows = [example.to_columns() for example in corpus.examples]
        content = {name: pa.array([row.get(name) for row in rows]) for row in rows[:1] for name in row}
    else:
        content = {"text": pa.array(texts, pa.string())}
    labels = [corpus.domains[label] if label >= 0 else None for label in corpus.label]
    sources = [str(source) for source in corpus.source]
    return pa.table(content | {name: pa.array(column, pa.string()) for name, column in (("label", labels), ("source", sources))})


def partition_fingerprint(partition: Partition, corpus: Corpus) -> str:
    """Return the SHA-256 hex digest of each client's set of document identifiers; document order does not matter."""
    ids = np.array([document_id(text) for text in corpus.text])
    return sha256(json.dumps([sorted(ids[rows].tolist()) for rows in partition.rows]).encode()).hexdigest()


def dataset_card(names: list[str]) -> str:
    """Return the README.md of the exported dataset.

    Its YAML header tells the library ``datasets`` that each client is a configuration.

    Args:
        names: Names of the clients' folders.
    """
    lines = ["---", "configs:"]
    for name in names:
        lines += [f"- config_name: {name}", "  data_files:", "  - split: train", f"    path: {name}/{TRAIN_FILE}"]
    lines += [
        "---",
        "",
        "This dataset has one configuration per client. `partition.json` lists each client's documents and the settings of the partition.",
        "",
    ]
    return "\n".join(lines)
