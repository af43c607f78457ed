"""Held-out text, the same for every run on a corpus: which blocks, of which domain, and whose.

Blocks are packed domain by domain from documents in canonical order drawn by the corpus's own split
seed, so that no partition, severity, algorithm or seed of the study changes what is measured on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.random import numpy_stream
from ..data.corpus import Corpus
from ..data.tokenization import Blocks, TokenizedCorpus, pack_blocks
from ..partition.words import FUNCTION_WORDS

TokenReader = Callable[[np.ndarray], TokenizedCorpus]  # some documents of the corpus, as one hand writes them
INITIAL_DOCUMENTS = 16  # documents to read at first


@dataclass(frozen=True, eq=False)
class HeldOut:
    """E blocks of held-out text of J domains, and how N clients' own data is mixed of the domains."""

    blocks: Blocks  # [E, T]
    domain_ids: np.ndarray  # [E] index into domains
    domains: tuple[str, ...]  # J
    client_domain_tokens: np.ndarray  # [N, J] training tokens of each client in each domain

    def head(self, blocks_per_domain: int) -> HeldOut:
        """At most so many blocks of each domain."""
        rank = np.concatenate([np.arange(count) for count in np.bincount(self.domain_ids, minlength=len(self.domains))])
        rows = rank < blocks_per_domain
        return HeldOut(
            Blocks(self.blocks.tokens[rows], self.blocks.mask[rows]), self.domain_ids[rows], self.domains, self.client_domain_tokens
        )

    def client_blocks(self, client: int, num_blocks: int) -> np.ndarray:
        """About ``num_blocks`` blocks mixed as the client's own data is, of domains that have any; fixed for the client,
        ``[num_blocks]``."""
        mix = self.client_domain_tokens[client] * (count_predicted_tokens(self) > 0)
        share = mix / max(mix.sum(), 1)
        wanted = np.floor(share * num_blocks).astype(int)
        for domain in np.argsort(-(share * num_blocks - wanted), kind="stable")[: num_blocks - wanted.sum()]:
            wanted[domain] += 1  # largest remainders
        picks = []
        for domain, number in enumerate(wanted):
            rows = np.flatnonzero(self.domain_ids == domain)
            picks.append(np.roll(rows, -client * int(number))[:number])  # other clients of the domain read on
        return np.sort(np.concatenate(picks))


def count_predicted_tokens(held_out: HeldOut) -> np.ndarray:
    """Tokens of each domain that a loss can be measured on, ``[J]``: the first of a block is context alone."""
    return np.bincount(held_out.domain_ids, weights=held_out.blocks.mask[:, 1:].sum(1), minlength=len(held_out.domains))


def build_held_out(
    corpus: Corpus, tokens: TokenizedCorpus, split: int, block_length: int, max_blocks: int, seed: int, client_domain_tokens: np.ndarray
) -> HeldOut:
    """At most ``max_blocks`` blocks of ``block_length`` tokens of each domain, from the documents of one split.

    ``client_domain_tokens [N, J]`` has a column for every domain of the corpus and, if there are documents without a label, one
    more.
    """
    names = domain_names(corpus)
    parts, domain = [], []
    for number, name in enumerate(names):
        rows = order_documents(corpus, split, seed, number, name)
        parts.append(pack_first_blocks(tokens, rows, block_length, max_blocks))
        domain.append(np.full(len(parts[-1].tokens), number))
    return HeldOut(concat_blocks(parts), np.concatenate(domain), names, client_domain_tokens)


def append_rewritten(
    held_out: HeldOut,
    corpus: Corpus,
    split: int,
    block_length: int,
    max_blocks: int,
    seed: int,
    readers: Sequence[TokenReader],
    client_domain_tokens: np.ndarray,
) -> HeldOut:
    """Behind the held-out text as found, the same documents as each of H - 1 hands writes them: a domain more for each
    hand and domain. ``client_domain_tokens [N, H J]``: training tokens of each client, as found in the first J columns.

    Texts that grow or shrink fill the same number of blocks with fewer or more documents.
    """
    parts, domain = [held_out.blocks], [held_out.domain_ids]
    for hand, read in enumerate(readers, 1):
        for number, name in enumerate(held_out.domains):
            rows = order_documents(corpus, split, seed, number, name)
            parts.append(read_first_blocks(read, rows, block_length, max_blocks))
            domain.append(np.full(len(parts[-1].tokens), hand * len(held_out.domains) + number))
    names = tuple(f"{name}, hand {hand}" for hand in range(1, len(readers) + 1) for name in held_out.domains)
    return HeldOut(concat_blocks(parts), np.concatenate(domain), (*held_out.domains, *names), client_domain_tokens)


def order_documents(corpus: Corpus, split: int, seed: int, domain_id: int, domain: str) -> np.ndarray:
    """The documents of a domain in one split, in the order in which they are held out."""
    label = np.where(corpus.label < 0, len(corpus.domains), corpus.label)
    rows = np.flatnonzero((corpus.split == split) & (label == domain_id))
    return numpy_stream(seed, "held out", domain).permutation(rows)


def read_first_blocks(read: TokenReader, rows: np.ndarray, block_length: int, max_blocks: int) -> Blocks:
    """The first documents as written, no more of them than fill the blocks (about)."""
    few = INITIAL_DOCUMENTS
    while (tokens := read(rows[:few])).lengths.sum() < max_blocks * block_length and few < len(rows):
        few *= 2
    return pack_first_blocks(tokens, np.arange(len(tokens)), block_length, max_blocks)


def pack_first_blocks(tokens: TokenizedCorpus, rows: np.ndarray, block_length: int, max_blocks: int) -> Blocks:
    """At most ``max_blocks`` blocks of ``block_length`` tokens, from the first of the documents ``rows``."""
    enough = int(np.searchsorted(np.cumsum(tokens.lengths[rows]), max_blocks * block_length)) + 1
    blocks = pack_blocks(tokens, rows[:enough], block_length)
    return Blocks(blocks.tokens[:max_blocks], blocks.mask[:max_blocks])


def concat_blocks(parts: list[Blocks]) -> Blocks:
    return Blocks(np.concatenate([part.tokens for part in parts]), np.concatenate([part.mask for part in parts]))


def domain_names(corpus: Corpus) -> tuple[str, ...]:
    """The corpus's domains, and a last one for documents without a label, if there are any."""
    unlabelled = bool((corpus.label < 0).any())
    if not corpus.domains:
        return ("all",)
    return (*corpus.domains, "unlabelled") if unlabelled else corpus.domains


def count_client_domain_tokens(corpus: Corpus, client_rows: list[np.ndarray]) -> np.ndarray:
    """Tokens that each client holds of each domain, ``[N, J]``; ``client_rows`` index the whole corpus."""
    width = len(domain_names(corpus))
    label = np.where(corpus.label < 0, len(corpus.domains), corpus.label)
    return np.stack([np.bincount(label[held], weights=corpus.size[held], minlength=width) for held in client_rows])


# Tokens as text again: which token belongs to which word, and how many bytes of text it stands for.

WORD_PATTERN = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
FUNCTION_WORD, CONTENT_WORD, NOT_A_WORD = 0, 1, 2


def token_texts(tokenizer: Any, token_ids: np.ndarray) -> dict[int, str]:
    """Each token's text with the space before it, which some tokenisers drop at the start of a text: so none stands there.

    A token that holds a part of a character is no text of its own (U+FFFD); special ones are a line break.
    """
    anchor = tokenizer("a", add_special_tokens=False)["input_ids"]
    plain = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    known = np.unique(token_ids).tolist()
    start = len(tokenizer.decode(anchor, **plain))
    texts = tokenizer.batch_decode([[*anchor, token] for token in known], **plain)
    special = set(tokenizer.all_special_ids)
    return {token: "\n" if token in special else text[start:] for token, text in zip(known, texts, strict=True)}


def classify_tokens(blocks: Blocks, tokenizer: Any) -> np.ndarray:
    """FUNCTION_WORD, CONTENT_WORD or NOT_A_WORD for every token, ``[E, T]``: a token is of the kind of the word that it is part
    of.

    Function words are a closed list (``partition.words.FUNCTION_WORDS``); content words all others with letters or digits.
    Marks, spaces and padding are neither. A word that a block cuts in two is judged by what is left of it.
    """
    found = np.full(blocks.tokens.shape, NOT_A_WORD)
    texts = token_texts(tokenizer, blocks.tokens)
    for row, ids in enumerate(blocks.tokens):
        parts = [texts[token] if keep else "\n" for token, keep in zip(ids.tolist(), blocks.mask[row], strict=True)]
        ends = np.cumsum([len(part) for part in parts])
        for word in WORD_PATTERN.finditer("".join(parts)):
            first, after = np.searchsorted(ends, [word.start(), word.end() - 1], side="right")
            said = word.group().lower().replace("’", "'")
            own = slice(first, after + 1)  # a token of two words is of the first one's kind
            found[row, own] = np.where(
                found[row, own] == NOT_A_WORD, FUNCTION_WORD if said in FUNCTION_WORDS else CONTENT_WORD, found[row, own]
            )
    return found


def bytes_per_token(held_out: HeldOut, tokenizer: Any) -> np.ndarray:
    """Bytes of text (UTF-8) for each predicted token of a domain, ``[J]``; NaN where a domain has no blocks.

    The text of a block is that of its tokens after the first. End marks are predicted and are no text. A character that
    a block cuts is off by a byte or two.
    """
    plain = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    size, count = np.zeros(len(held_out.domains)), np.zeros(len(held_out.domains))
    for ids, keep, domain in zip(held_out.blocks.tokens, held_out.blocks.mask, held_out.domain_ids, strict=True):
        whole, first = (len(tokenizer.decode(part, **plain).encode()) for part in (ids[keep], ids[:1]))
        size[domain] += whole - first
        count[domain] += keep[1:].sum()
    return np.divide(size, count, out=np.full(len(size), np.nan), where=count > 0)
