"""MiniLM sentence embeddings: the usual frozen sentence encoder, 384 numbers, through sentence-transformers.

Wang, Wei, Dong, Bao, Yang & Zhou, "MiniLM", NeurIPS 2020, arXiv:2002.10957; Reimers & Gurevych, "Sentence-BERT", EMNLP 2019,
arXiv:1908.10084. The weights (90 MB) come from the hub unless they lie in its cache; ``FEDRIFT_MINILM`` may name a folder
that has them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from ..errors import UserError

NAME = "sentence-transformers/all-MiniLM-L6-v2"


def minilm(texts: Sequence[str]) -> np.ndarray:
    """The texts, each by itself, [D, 384]."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise UserError("the encoder 'minilm' needs a package of its own: pip install sentence-transformers, or choose "
                        "the encoder 'wordllama' or 'hashing'") from None
    place = os.environ.get("FEDRIFT_MINILM", NAME)
    try:
        model = SentenceTransformer(place, device="cpu")
    except (OSError, ValueError) as error:
        raise UserError(f"the weights of the encoder 'minilm' cannot be had from {place}: {error}. Set FEDRIFT_MINILM to a "
                        "folder that has them, or choose the encoder 'wordllama' or 'hashing'") from error
    return np.asarray(model.encode(list(texts), convert_to_numpy=True, show_progress_bar=False), dtype=np.float64)


__all__ = ["minilm"]
