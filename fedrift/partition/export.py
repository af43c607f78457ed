"""A partition as files: one data set a client, as ``datasets.load_dataset`` and any reader of Parquet takes it."""

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
    """Write what each client holds, as it writes it, and ``partition.json``; where that lies.

    ``load_dataset(folder, "client3")`` is client 3 (columns text, label, source), as is
    ``load_dataset("parquet", data_files=folder/client3/train.parquet)``. ``metadata`` is the experiment's data side.
    A folder that holds anything already is refused.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already and not empty: name another folder, or remove it first")
    names = [f"client{k:0{len(str(len(partition) - 1))}d}" for k in range(len(partition))]
    clients = []
    for name, (client, rows) in zip(names, enumerate(partition.rows), strict=True):
        rewrite = partition.rewrites[client] if partition.rewrites else None
        found = [str(corpus.text[row]) for row in rows]
        ids = [document_id(text) for text in found]
        texts = found if rewrite is None else [rewrite(text, one) for text, one in zip(found, ids, strict=True)]
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
    told = {
        "made_by": f"fedrift {__version__}",
        **metadata,
        "corpus_content": corpus.fingerprint,
        "domains": list(corpus.domains),
        "documents": len(corpus),
        "left_out": len(corpus) - sum(len(rows) for rows in partition.rows),
        "content": partition_fingerprint(partition, corpus),
        "clients": clients,
    }
    (folder / "README.md").write_text(dataset_card(names), encoding="utf-8")
    listed = folder / "partition.json"
    listed.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return listed


def client_table(corpus: Corpus, texts: list[str]) -> pa.Table:
    """The columns of one client."""
    labels = [corpus.domains[label] if label >= 0 else None for label in corpus.label]
    sources = [str(source) for source in corpus.source]
    return pa.table({name: pa.array(column, pa.string()) for name, column in (("text", texts), ("label", labels), ("source", sources))})


def partition_fingerprint(partition: Partition, corpus: Corpus) -> str:
    """sha256 hex of who holds which documents, in whatever order they stand in."""
    ids = np.array([document_id(text) for text in corpus.text])
    return sha256(json.dumps([sorted(ids[rows].tolist()) for rows in partition.rows]).encode()).hexdigest()


def dataset_card(names: list[str]) -> str:
    """The data set card, which tells ``datasets`` that every client is a configuration of its own."""
    lines = ["---", "configs:"]
    for name in names:
        lines += [f"- config_name: {name}", "  data_files:", "  - split: train", f"    path: {name}/{TRAIN_FILE}"]
    lines += ["---", "", "One configuration a client; `partition.json` says which document went where, and why.", ""]
    return "\n".join(lines)
