"""Build the held-out text of a corpus and map its tokens to domains, words and bytes.

The held-out text is the same for every run on a corpus. It consists of text blocks, which are sequences of equally many tokens. They
are packed domain by domain from documents in an order that is drawn with the corpus's own split seed. No partition, severity,
algorithm or seed of a study changes the evaluated text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from ..core.random import numpy_stream
from ..data.corpus import UNLABELED, Corpus
from ..data.tokenization import Blocks, TokenizedCorpus, count_trained, pack_blocks
from ..partition.words import FUNCTION_WORDS

TokenReader = Callable[[np.ndarray], TokenizedCorpus]  # reads documents by row, as one group of clients rewrites them
INITIAL_DOCUMENTS = 16  # rewritten documents that are read first; the number doubles until the blocks are full


class BlockOptions(NamedTuple):
    """How held-out text is selected and cut into text blocks."""

    split: int  # the code of the held-out split
    block_length: int  # tokens per block
    max_blocks: int  # largest number of blocks per domain
    seed: int  # seed of the selection of held-out documents
    max_blocks_per_document: int | None = None  # only so many block lengths of a document are read; None: documents are read whole

    @property
    def max_document_tokens(self) -> int | None:
        """Return how many tokens of a document are read, or None if documents are read whole."""
        return None if self.max_blocks_per_document is None else self.max_blocks_per_document * self.block_length


@dataclass(frozen=True, eq=False)
class HeldOut:
    """E text blocks of held-out text from J domains, and the domain mixture of the N clients' training data."""

    blocks: Blocks  # [E, T]
    domain_ids: np.ndarray  # [E] index into ``domains``
    domains: tuple[str, ...]  # J
    client_domain_tokens: np.ndarray  # [N, J] training tokens per client and domain

    def head(self, blocks_per_domain: int) -> HeldOut:
        """Return at most ``blocks_per_domain`` blocks of each domain."""
        rank = np.concatenate([np.arange(count) for count in np.bincount(self.domain_ids, minlength=len(self.domains))])
        rows = rank < blocks_per_domain
        return HeldOut(self.blocks.take(rows), self.domain_ids[rows], self.domains, self.client_domain_tokens)

    def client_blocks(self, client: int, num_blocks: int) -> np.ndarray:
        """Select blocks whose domain mixture matches a client's own training data.

        The selection is fixed for a client. Domains without held-out blocks are ignored. Clients of the same domain select
        different blocks of it where possible.

        Args:
            client: Client id.
            num_blocks: Number of blocks to select. Fewer are returned if a domain has too few.

        Returns:
            Sorted block indices, about ``[num_blocks]``.
        """
        tokens = self.client_domain_tokens[client] * (count_predicted_tokens(self) > 0)
        share = tokens / max(tokens.sum(), 1)
        quotas = np.floor(share * num_blocks).astype(int)
        for domain in np.argsort(-(share * num_blocks - quotas), kind="stable")[: num_blocks - quotas.sum()]:
            quotas[domain] += 1  # largest-remainder rounding
        selected = []
        for domain, quota in enumerate(quotas):
            rows = np.flatnonzero(self.domain_ids == domain)
            selected.append(np.roll(rows, -client * int(quota))[:quota])  # an offset, so that clients of one domain select different blocks
        return np.sort(np.concatenate(selected))


def count_predicted_tokens(held_out: HeldOut) -> np.ndarray:
    """Count the predicted tokens of each domain, ``[J]``.

    The first token of a block only provides context and is not predicted.
    """
    return np.bincount(held_out.domain_ids, weights=held_out.blocks.mask[:, 1:].sum(1), minlength=len(held_out.domains))


def build_held_out(corpus: Corpus, tokens: TokenizedCorpus, options: BlockOptions, client_domain_tokens: np.ndarray) -> HeldOut:
    """Build the held-out text from the documents of one split.

    Args:
        corpus: The corpus.
        tokens: Tokens of all its documents.
        options: How held-out text is selected and cut into blocks.
        client_domain_tokens: ``[N, J]``, training tokens per client and domain. It has one column per domain of the corpus and, if
            there are documents without a label, one more.
    """
    names = domain_names(corpus)
    blocks, domain_ids = [], []
    for index, name in enumerate(names):
        rows = order_documents(corpus, options.split, options.seed, index, name)
        blocks.append(pack_first_blocks(tokens, rows, options))
        domain_ids.append(np.full(len(blocks[-1].tokens), index))
    return HeldOut(concat_blocks(blocks), np.concatenate(domain_ids), names, client_domain_tokens)


def append_rewritten(
    held_out: HeldOut, corpus: Corpus, options: BlockOptions, readers: Sequence[TokenReader], client_domain_tokens: np.ndarray
) -> HeldOut:
    """Append the held-out documents as clients rewrite them.

    Each of the H - 1 rewriting variants adds one domain per original domain. The blocks of all variants come from the same documents
    in the same order. If rewriting changes the length of texts, the same number of blocks covers fewer or more documents.

    Args:
        held_out: Held-out text in its original form.
        corpus: The corpus.
        options: How held-out text is selected and cut into blocks; its limits hold for each variant.
        readers: H - 1 functions, each of which returns documents as one variant rewrites them.
        client_domain_tokens: ``[N, H J]``, training tokens per client. The first J columns count tokens in original form.
    """
    blocks, domain_ids = [held_out.blocks], [held_out.domain_ids]
    for variant, read in enumerate(readers, 1):
        for index, name in enumerate(held_out.domains):
            rows = order_documents(corpus, options.split, options.seed, index, name)
            blocks.append(read_first_blocks(read, rows, options))
            domain_ids.append(np.full(len(blocks[-1].tokens), variant * len(held_out.domains) + index))
    names = tuple(f"{name}, variant {variant}" for variant in range(1, len(readers) + 1) for name in held_out.domains)
    return HeldOut(concat_blocks(blocks), np.concatenate(domain_ids), (*held_out.domains, *names), client_domain_tokens)


def order_documents(corpus: Corpus, split: int, seed: int, domain_id: int, domain: str) -> np.ndarray:
    """Return the corpus rows of a domain in one split, in held-out order."""
    label = np.where(corpus.label < 0, len(corpus.domains), corpus.label)
    rows = np.flatnonzero((corpus.split == split) & (label == domain_id))
    return numpy_stream(seed, "held out", domain).permutation(rows)


def read_first_blocks(read: TokenReader, rows: np.ndarray, options: BlockOptions) -> Blocks:
    """Read rewritten documents until they fill ``options.max_blocks`` blocks, and pack them."""
    num_documents = INITIAL_DOCUMENTS
    while True:
        tokens = cut_documents(read(rows[:num_documents]), options.max_document_tokens)
        if tokens.lengths.sum() >= options.max_blocks * options.block_length or num_documents >= len(rows):
            return pack_first_blocks(tokens, np.arange(len(tokens)), options)
        num_documents *= 2


def pack_first_blocks(tokens: TokenizedCorpus, rows: np.ndarray, options: BlockOptions) -> Blocks:
    """Pack the first of the documents ``rows`` into at most ``options.max_blocks`` blocks."""
    length = options.block_length
    lengths = np.minimum(tokens.lengths[rows], options.max_document_tokens or np.inf).astype(np.int64)
    if tokens.keeps_whole:  # documents are cut to the length of a block, and those without an answer in it are left out
        lengths = np.minimum(lengths, length) * (count_trained(tokens, rows, length) > 0)
    num_documents = int(np.searchsorted(np.cumsum(lengths), options.max_blocks * length)) + 1
    rows = rows[:num_documents]
    if options.max_document_tokens is not None:
        tokens, rows = cut_documents(select_documents(tokens, rows), options.max_document_tokens), np.arange(len(rows))
    return pack_blocks(tokens, rows, length).take(slice(options.max_blocks))


def select_documents(tokens: TokenizedCorpus, rows: np.ndarray) -> TokenizedCorpus:
    """Return the tokens of some documents."""
    return _take_slices(tokens, tokens.offsets[rows], tokens.offsets[rows + 1])


def cut_documents(tokens: TokenizedCorpus, max_tokens: int | None) -> TokenizedCorpus:
    """Return the first tokens of every document, at most ``max_tokens`` of each; None: all of them."""
    starts, ends = tokens.offsets[:-1], tokens.offsets[1:]
    return tokens if max_tokens is None else _take_slices(tokens, starts, np.minimum(ends, starts + max_tokens))


def _take_slices(tokens: TokenizedCorpus, starts: np.ndarray, ends: np.ndarray) -> TokenizedCorpus:
    slices = [slice(start, end) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
    ids = np.concatenate([tokens.ids[:0], *(tokens.ids[each] for each in slices)])
    mask = None if tokens.mask is None else np.concatenate([tokens.mask[:0], *(tokens.mask[each] for each in slices)])
    return replace(tokens, ids=ids, offsets=np.concatenate([[0], np.cumsum(ends - starts)]).astype(np.int64), mask=mask)


def concat_blocks(parts: list[Blocks]) -> Blocks:
    """Concatenate blocks."""
    present = None if all(part.present is None for part in parts) else np.concatenate([part.is_token for part in parts])
    return Blocks(np.concatenate([part.tokens for part in parts]), np.concatenate([part.mask for part in parts]), present)


def domain_names(corpus: Corpus) -> tuple[str, ...]:
    """Return the domains of a corpus, with a last domain for documents without a label if there are any."""
    has_unlabeled = bool((corpus.label < 0).any())
    if not corpus.domains:
        return ("all",)
    return (*corpus.domains, UNLABELED) if has_unlabeled else corpus.domains


def count_client_domain_tokens(corpus: Corpus, client_rows: list[np.ndarray]) -> np.ndarray:
    """Count the training tokens per client and domain.

    Args:
        corpus: The corpus.
        client_rows: N arrays with the corpus rows of each client.

    Returns:
        Token counts, ``[N, J]``.
    """
    width = len(domain_names(corpus))
    label = np.where(corpus.label < 0, len(corpus.domains), corpus.label)
    return np.stack([np.bincount(label[rows], weights=corpus.size[rows], minlength=width) for rows in client_rows])


# Decoding: assign tokens to words, and count the bytes of text per token.

WORD_PATTERN = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
FUNCTION_WORD, CONTENT_WORD, NOT_A_WORD = 0, 1, 2


def token_texts(tokenizer: Any, token_ids: np.ndarray) -> dict[int, str]:
    """Decode each token separately, including a leading space.

    Some tokenizers drop a space at the start of a text, so each token is decoded after an anchor token. A token that contains only
    part of a character decodes to U+FFFD. Special tokens become a line break.

    Args:
        tokenizer: A fast tokenizer of transformers.
        token_ids: Token ids of any shape.

    Returns:
        The text of each distinct token id.
    """
    anchor = tokenizer("a", add_special_tokens=False)["input_ids"]
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    ids = np.unique(token_ids).tolist()
    start = len(tokenizer.decode(anchor, **options))
    texts = tokenizer.batch_decode([[*anchor, token] for token in ids], **options)
    special = set(tokenizer.all_special_ids)
    return {token: "\n" if token in special else text[start:] for token, text in zip(ids, texts, strict=True)}


def classify_tokens(blocks: Blocks, tokenizer: Any) -> np.ndarray:
    """Classify every token as FUNCTION_WORD, CONTENT_WORD or NOT_A_WORD.

    A token has the class of the word that it is part of, and of the first word if it contains two. Function words are a closed list
    (``partition.words.FUNCTION_WORDS``); all other words with letters or digits are content words. Punctuation, spaces and padding
    are not words. A word that is cut by a block boundary is classified by its remaining part.

    Args:
        blocks: E blocks of T tokens.
        tokenizer: A fast tokenizer of transformers.

    Returns:
        Classes, ``[E, T]``.
    """
    kinds = np.full(blocks.tokens.shape, NOT_A_WORD)
    texts = token_texts(tokenizer, blocks.tokens)
    for row, ids in enumerate(blocks.tokens):
        parts = [texts[token] if kept else "\n" for token, kept in zip(ids.tolist(), blocks.is_token[row], strict=True)]
        ends = np.cumsum([len(part) for part in parts])
        for word in WORD_PATTERN.finditer("".join(parts)):
            first, last = np.searchsorted(ends, [word.start(), word.end() - 1], side="right")
            text = word.group().lower().replace("’", "'")
            span = slice(first, last + 1)
            kinds[row, span] = np.where(
                kinds[row, span] == NOT_A_WORD, FUNCTION_WORD if text in FUNCTION_WORDS else CONTENT_WORD, kinds[row, span]
            )
    return kinds


def bytes_per_token(held_out: HeldOut, tokenizer: Any) -> np.ndarray:
    """Compute the bytes of UTF-8 text per predicted token of each domain.

    The first token of a block is not predicted, so its bytes do not count; those of prompts do not count either if only answers are
    trained. End-of-text tokens are predicted but have no bytes. A character that is cut by a block boundary changes the count by one
    or two bytes.

    Args:
        held_out: Held-out text.
        tokenizer: A fast tokenizer of transformers.

    Returns:
        Bytes per token, ``[J]``; NaN for a domain without blocks.
    """
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    size, count = np.zeros(len(held_out.domains)), np.zeros(len(held_out.domains))
    for ids, mask, domain in zip(held_out.blocks.tokens, held_out.blocks.mask, held_out.domain_ids, strict=True):
        for start, stop in predicted_spans(mask):
            whole, context = (len(tokenizer.decode(ids[:end], **options).encode()) for end in (stop, start))
            size[domain] += whole - context
        count[domain] += mask[1:].sum()
    return np.divide(size, count, out=np.full(len(size), np.nan), where=count > 0)


def predicted_spans(mask: np.ndarray) -> list[tuple[int, int]]:
    """Return the spans (first, stop) of predicted tokens of a block; the first token of a block is not predicted.

    Args:
        mask: Which tokens count in the loss, [T].
    """
    flags = np.concatenate([[False], mask[1:], [False]]).astype(np.int8)
    changes = np.flatnonzero(np.diff(flags))
    return [(int(first) + 1, int(stop) + 1) for first, stop in changes.reshape(-1, 2)]
