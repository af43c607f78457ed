"""Which documents the model ``pocket`` has read, so that studies can keep to those it has not.

``pocket`` is pretrained on one half, by document hash, of the train splits of six corpora. The rule goes by
the exact text and by the corpus's name, so it is exact for the copies it was pretrained from (the local
folders). The same corpora from the hub are halved by the same rule, but a copy that was cleaned otherwise
hashes otherwise, and files and data sets of other names cannot be told at all: they are left as they are.
"""

from __future__ import annotations

from hashlib import sha256

READ_BY_POCKET = frozenset(
    {"wikitext2", "dbpedia", "reddit_posts", "stackexchange", "medquad", "newsgroups20"}
)


def pretraining_half(text: str) -> bool:
    """Whether a document belongs to the half that ``pocket`` is pretrained on."""
    return sha256(text.strip().encode()).digest()[0] % 2 == 0
