"""A deal that is IID although its severity is not 0: refused, for its results would be reported as those of skewed clients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ..corpus.corpus import Corpus
from ..errors import UserError
from .partition import Partition, Partitioner, called, document_id


def deal_documents(partitioner: Partitioner, corpus: Corpus, stream: Callable[[], np.random.Generator]) -> Partition:
    """Deal a corpus, and make sure that the clients differ where the severity says that they do.

    Args:
        partitioner: The regime.
        corpus: The training documents.
        stream: Gives a fresh generator of one name at each call, as for ``calibrate``.

    Raises:
        UserError: The severity is not 0, there are two clients or more, and yet the deal is that of severity 0, or nothing
            tells the documents or the clients apart in what the regime deals by.
    """
    dealt = partitioner(corpus, stream())
    if partitioner.severity == 0 or partitioner.clients == 1:
        return dealt
    why = getattr(partitioner, "missing", no_reason)(corpus)
    if not why and same_rewrites(partitioner, dealt):
        why = "every client rewrites its texts alike"
    if not why and is_twin(partitioner, corpus, dealt, stream):
        why = "nothing in the texts can be rewritten" if dealt.rewrite else "the deal is exactly that of severity 0"
    if why:
        raise UserError(f"partition {called(partitioner)} with severity {partitioner.severity:g} deals corpus {corpus.name!r} "
                        f"IID: {why}. Change its settings, raise its severity, choose another regime or corpus, or take "
                        "severity 0")
    return dealt


def deal_notes(partitioner: Partitioner) -> list[str]:
    """What a reader of the results must know of the deal."""
    if partitioner.severity == 0 or partitioner.clients > 1:
        return []
    return [f"partition {called(partitioner)} has one client, which holds all documents: no severity makes it non-IID"]


def no_reason(corpus: Corpus) -> str:
    return ""


def same_rewrites(partitioner: Partitioner, dealt: Partition) -> bool:
    """Whether all clients rewrite in one way, and not as the homogeneous control, which is to do so."""
    return bool(dealt.rewrite) and len(set(dealt.rewrite)) == 1 and not getattr(partitioner, "everybody", False)


def is_twin(partitioner: Partitioner, corpus: Corpus, dealt: Partition, stream: Callable[[], np.random.Generator]) -> bool:
    """Whether each client holds, as it writes them, just the documents that it holds at severity 0."""
    changeable: Any = partitioner
    twin: Partition = replace(changeable, severity=0.0)(corpus, stream())
    if not all(np.array_equal(one, other) for one, other in zip(dealt.rows, twin.rows, strict=True)):
        return False
    ways = dealt.rewrite or (None,) * len(dealt)
    return not any(way is not None and way(text, document_id(text)) != text
                   for way, rows in zip(ways, dealt.rows, strict=True) for text in (corpus.text[row] for row in rows))


__all__ = ["deal_documents", "deal_notes"]
