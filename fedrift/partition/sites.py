"""Where a rewrite strikes: a place in a text has a number in [0, 1) and is rewritten where that is below s.

So what severity 0.3 rewrites, severity 0.6 rewrites too, whatever the order of documents.
"""

from __future__ import annotations

from hashlib import blake2b


def site(key: bytes, document: str, place: int | str) -> float:
    """The number of a place in a document (sha256 hex), uniform in [0, 1)."""
    digest = blake2b(f"{document}:{place}".encode(), digest_size=8, key=key).digest()
    return int.from_bytes(digest) / 2.0**64
