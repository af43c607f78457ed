"""Tokens as text again: which token belongs to which word, and how many bytes of text it stands for."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from ..corpus.blocks import Blocks
from ..partition.function_words import FUNCTION_WORDS
from .held_out import HeldOut

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
FUNCTION, CONTENT, NEITHER = 0, 1, 2


def pieces(tokenizer: Any, ids: np.ndarray) -> dict[int, str]:
    """Each token's text with the space before it, which some tokenisers drop at the start of a text: so none stands there.

    A token that holds a part of a character is no text of its own (U+FFFD); special ones are a line break.
    """
    anchor = tokenizer("a", add_special_tokens=False)["input_ids"]
    plain = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    known = np.unique(ids).tolist()
    start = len(tokenizer.decode(anchor, **plain))
    texts = tokenizer.batch_decode([[*anchor, token] for token in known], **plain)
    special = set(tokenizer.all_special_ids)
    return {token: "\n" if token in special else text[start:] for token, text in zip(known, texts, strict=True)}


def kinds(blocks: Blocks, tokenizer: Any) -> np.ndarray:
    """FUNCTION, CONTENT or NEITHER for every token, ``[E, T]``: a token is of the kind of the word that it is part of.

    Function words are a closed list (``partition.function_words``); content words all others with letters or digits.
    Marks, spaces and padding are neither. A word that a block cuts in two is judged by what is left of it.
    """
    found = np.full(blocks.tokens.shape, NEITHER)
    texts = pieces(tokenizer, blocks.tokens)
    for row, ids in enumerate(blocks.tokens):
        parts = [texts[token] if keep else "\n" for token, keep in zip(ids.tolist(), blocks.keep[row], strict=True)]
        ends = np.cumsum([len(part) for part in parts])
        for word in WORD.finditer("".join(parts)):
            first, after = np.searchsorted(ends, [word.start(), word.end() - 1], side="right")
            said = word.group().lower().replace("’", "'")
            own = slice(first, after + 1)  # a token of two words is of the first one's kind
            found[row, own] = np.where(found[row, own] == NEITHER, FUNCTION if said in FUNCTION_WORDS else CONTENT,
                                       found[row, own])
    return found


def bytes_per_token(held_out: HeldOut, tokenizer: Any) -> np.ndarray:
    """Bytes of text (UTF-8) for each predicted token of a domain, ``[J]``; NaN where a domain has no blocks.

    The text of a block is that of its tokens after the first. End marks are predicted and are no text. A character that
    a block cuts is off by a byte or two.
    """
    plain = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    size, count = np.zeros(len(held_out.names)), np.zeros(len(held_out.names))
    for ids, keep, domain in zip(held_out.blocks.tokens, held_out.blocks.keep, held_out.domain, strict=True):
        whole, first = (len(tokenizer.decode(part, **plain).encode()) for part in (ids[keep], ids[:1]))
        size[domain] += whole - first
        count[domain] += keep[1:].sum()
    return np.divide(size, count, out=np.full(len(size), np.nan), where=count > 0)
