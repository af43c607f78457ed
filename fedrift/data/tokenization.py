"""Tokenize a corpus once into one flat array of token ids, and pack documents into blocks of equal length.

A mask travels with the ids where not every token counts in the loss: in instruction and chat data, and for the beginning-of-sequence
token. Token ids are cached under a hash of the texts and the tokenizer.

The ids and marks of instruction and chat data equal those of TRL 1.16 (``SFTTrainer`` with ``assistant_only_loss`` or
``completion_only_loss``) and of ``apply_chat_template(..., return_assistant_tokens_mask=True)`` in transformers. Chat templates without
the keyword ``generation`` give no such marks; then everything that the template adds after the prompt of an answer counts, as in TRL for
a prompt and its completion.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from ..core.errors import UserError
from .conversations import Example
from .corpus import EXAMPLES_VERSION, Corpus

# The template of tokenizers that have none. An answer ends with the end-of-sequence token, which counts in the loss:
#     System: ...
#     User: ...
#     Assistant: ...<end>
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if not loop.first %}{{ '\\n' }}{% endif %}"
    "{{ message['role'][:1] | upper }}{{ message['role'][1:] }}:"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ ' ' + message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\nAssistant:' }}{% endif %}"
)
GENERATION_PATTERN = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
TokenizedExample = tuple[list[int], list[bool]]
"""The token ids of an example, and whether each of them counts in the loss."""
TOKENIZER_BATCH = 1000  # documents per call of the tokenizer


@dataclass(frozen=True, eq=False)
class TokenizedCorpus:
    """The token ids of all documents in one array.

    A document of running text ends with the end-of-sequence token. It begins with the beginning-of-sequence token if the tokenizer adds
    one; this token does not count in the loss.

    ``pad_id`` may equal ``eos_id``, because padding is marked by `Blocks.mask` and never inferred from the ids.
    """

    ids: np.ndarray  # [sum of lengths] uint16 where the vocabulary allows, else int32
    offsets: np.ndarray  # [D + 1] int64: document d is ids[offsets[d]:offsets[d + 1]]
    eos_id: int
    pad_id: int
    mask: np.ndarray | None = None  # [sum of lengths] bool: whether a token counts in the loss; None: all tokens count
    keeps_whole: bool = False  # whether no document may be divided between blocks, as for instruction and chat data

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def document_ids(self, row: int) -> np.ndarray:
        """Return the ids of one document, including special tokens."""
        return self.ids[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Return the number of tokens of each document, [D] int64, including special tokens."""
        return np.diff(self.offsets)

    @property
    def trained_lengths(self) -> np.ndarray:
        """Return the number of tokens of each document that count in the loss, [D] int64."""
        if self.mask is None:
            return self.lengths
        return np.diff(np.concatenate([[0], np.cumsum(self.mask, dtype=np.int64)])[self.offsets])

    def trained_sizes(self, block_length: int) -> np.ndarray:
        """Return the number of tokens of each document that count in the loss once they are in blocks, [D] int64.

        Running text is divided between blocks and counts in full, but a document that stays whole is cut to the length of a block.

        Args:
            block_length: The number of tokens per block.
        """
        return count_trained(self, np.arange(len(self)), block_length) if self.keeps_whole else self.trained_lengths


def tokenize_corpus(corpus: Corpus, tokenizer: Any, *, cache_dir: Path | None) -> TokenizedCorpus:
    """Tokenize all documents of a corpus.

    The end-of-sequence token is added, and the beginning-of-sequence token if the tokenizer adds it to texts. A special token that is
    spelled out in a text is tokenized as plain text. Instruction and chat data are tokenized by the chat template instead
    (``resolve_template``); a special token that is spelled out in a message is a special token then, as in transformers. A
    damaged cache file is replaced. If the cache folder cannot be written, a warning is issued and nothing is cached.

    Args:
        corpus: The documents; the result has their order.
        tokenizer: A fast tokenizer of the library transformers.
        cache_dir: The folder of cached token ids, or None for no cache.

    Raises:
        UserError: The tokenizer is not a fast one, it has no end-of-sequence token, or its chat template refuses a conversation.
    """
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UserError(f"{type(tokenizer).__name__} is not a fast tokenizer: use a tokenizer that has a tokenizer.json")
    end = tokenizer.eos_token_id
    if end is None:
        raise UserError(f"the tokenizer {tokenizer.name_or_path!r} has no end-of-sequence token: set its eos_token")
    pad = end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    dtype = np.dtype(np.uint16 if max(len(tokenizer), end + 1, pad + 1) <= 2**16 else np.int32)
    file = cache_dir / f"tokens-{tokenization_fingerprint(corpus, tokenizer)[:32]}.npz" if cache_dir else None
    has_examples = corpus.examples is not None
    bos_id = tokenizer.bos_token_id if not has_examples and adds_bos(tokenizer) else None
    if file:
        cached = read_token_cache(
            file,
            num_documents=len(corpus),
            eos_id=None if has_examples else end,
            expected_dtype=dtype,
            has_mask=has_examples or bos_id is not None,
        )
        if cached:
            return TokenizedCorpus(*cached[:2], end, pad, cached[2], has_examples)
    mask = None
    if has_examples:
        ids, offsets, mask = tokenize_examples(corpus, tokenizer, dtype)
    else:
        ids, offsets = tokenize_texts(corpus.text, tokenizer, end, dtype, bos_id)
        if bos_id is not None:
            mask = np.ones(len(ids), dtype=bool)
            mask[offsets[:-1]] = False
    if file:
        write_token_cache(file, ids, offsets, mask)
    return TokenizedCorpus(ids, offsets, end, pad, mask, has_examples)


def tokenize_examples(corpus: Corpus, tokenizer: Any, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the ids of all examples in one array, the offset of each in it [D + 1], and which tokens count in the loss."""
    template = resolve_template(tokenizer, corpus.chat_template)
    examples = corpus.examples if corpus.examples is not None else ()
    tokenized = [tokenize_example(example, tokenizer, template, corpus.train_on) for example in examples]
    offsets = np.concatenate([[0], np.cumsum([len(ids) for ids, _ in tokenized], dtype=np.int64)]).astype(np.int64)
    ids = np.fromiter(chain.from_iterable(ids for ids, _ in tokenized), dtype=dtype)
    return ids, offsets, np.fromiter(chain.from_iterable(mask for _, mask in tokenized), dtype=bool)


def tokenize_texts(
    texts: np.ndarray, tokenizer: Any, eos_id: int, dtype: np.dtype, bos_id: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids of all texts in one array, and the offset of each text in it [D + 1]; each text begins with ``bos_id`` if given."""
    parts = [np.empty(0, dtype)]
    lengths: list[int] = []
    for start in range(0, len(texts), TOKENIZER_BATCH):
        rows = tokenizer(
            texts[start : start + TOKENIZER_BATCH].tolist(),
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            truncation=False,
            padding=False,
            verbose=False,
        )["input_ids"]
        rows = [[*([] if bos_id is None else [bos_id]), *row, eos_id] for row in rows]
        parts.append(np.fromiter(chain.from_iterable(rows), dtype=dtype))
        lengths.extend(map(len, rows))
    return np.concatenate(parts), np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def tokenization_fingerprint(corpus: Corpus, tokenizer: Any) -> str:
    """Return the sha256 of the texts in their order and of everything that determines their ids."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    for key in ("truncation", "padding"):  # state of the last call, which does not affect these ids
        backend.pop(key, None)
    settings: list[Any] = ["tokens", 1, tokenizer.eos_token_id, backend]
    if corpus.examples is not None:
        template = resolve_template(tokenizer, corpus.chat_template)
        settings += [
            EXAMPLES_VERSION,
            corpus.train_on,
            template,
            {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        ]
    elif adds_bos(tokenizer):
        settings += [tokenizer.bos_token_id]
    digest = sha256(json.dumps(settings, sort_keys=True).encode())
    for example in () if corpus.examples is None else corpus.examples:
        digest.update(sha256(example.to_json().encode()).digest())
    for text in corpus.text:
        digest.update(sha256(text.encode()).digest())
    return digest.hexdigest()


def read_token_cache(
    file: Path, *, num_documents: int, eos_id: int | None, expected_dtype: np.dtype, has_mask: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None] | None:
    """Read cached token ids, offsets and mask; return None if the file is missing or invalid.

    The file is valid if it has the expected dtype and number of documents, and every document ends with ``eos_id`` if it is given.
    """
    try:
        with np.load(file, allow_pickle=False) as archive:
            ids, offsets = archive["flat"], archive["offset"]
            mask = archive["mask"] if has_mask else None
    except Exception:  # damaged bytes can raise many types, such as BadZipFile, TokenError or MemoryError
        return None
    is_valid = (
        ids.dtype == expected_dtype
        and offsets.dtype == np.int64
        and ids.ndim == 1
        and offsets.shape == (num_documents + 1,)
        and offsets[0] == 0
        and offsets[-1] == len(ids)
        and bool((np.diff(offsets) > 0).all())
        and (eos_id is None or bool((ids[offsets[1:] - 1] == eos_id).all()))
        and (mask is None or (mask.dtype == bool and mask.shape == ids.shape))
    )
    return (ids, offsets, mask) if is_valid else None


def write_token_cache(file: Path, flat: np.ndarray, offset: np.ndarray, mask: np.ndarray | None = None) -> None:
    """Write the cache file atomically: write a temporary file, then rename it."""
    draft = file.with_name(f"{file.stem}.{os.getpid()}-{uuid4().hex[:8]}.draft")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as out:
            arrays: dict[str, Any] = {"flat": flat, "offset": offset, **({} if mask is None else {"mask": mask})}
            np.savez(out, **arrays)
        draft.replace(file)
    except OSError as error:
        draft.unlink(missing_ok=True)
        warnings.warn(f"token ids cannot be cached in {file.parent}: {error}", stacklevel=2)


@dataclass(frozen=True, eq=False)
class Blocks:
    """K blocks of T tokens each, for training and evaluation."""

    tokens: np.ndarray  # [K, T] int64
    mask: np.ndarray  # [K, T] bool: whether a token counts in the loss; False on padding
    present: np.ndarray | None = None  # [K, T] bool: False on padding only; None: equal to ``mask``

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def is_token(self) -> np.ndarray:
        """Return which positions hold tokens and not padding, [K, T] bool."""
        return self.mask if self.present is None else self.present

    def take(self, rows: np.ndarray | slice) -> Blocks:
        """Return some of the blocks."""
        return Blocks(self.tokens[rows], self.mask[rows], None if self.present is None else self.present[rows])


def pack_blocks(tokens: TokenizedCorpus, rows: np.ndarray, block_length: int) -> Blocks:
    """Concatenate documents and cut them into blocks of equal length.

    Documents are separated by their end-of-sequence tokens, and only the last block is padded. A client's documents never
    share a block with those of another client if each client is packed in a separate call. Documents that must stay whole
    (``tokens.keeps_whole``) are packed by `pack_whole`.

    Args:
        tokens: The token ids of the corpus.
        rows: Indices of documents, in the order in which they are packed, or a boolean mask [D].
        block_length: The number of tokens per block (T).

    Returns:
        The blocks [K, T]; K is 0 if ``rows`` is empty.

    Raises:
        ValueError: ``block_length`` is less than 1.
    """
    if block_length < 1:
        raise ValueError(f"block_length must be at least 1, got {block_length}")
    rows = np.asarray(rows)
    rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
    if tokens.keeps_whole:
        return pack_whole(tokens, rows, block_length)
    starts, ends = tokens.offsets[rows].tolist(), tokens.offsets[rows + 1].tolist()
    total = int(tokens.lengths[rows].sum())
    num_blocks = -(-total // block_length)
    packed: np.ndarray = np.full(num_blocks * block_length, tokens.pad_id, dtype=np.int64)
    # Concatenating D slices is several times faster than indexing every token.
    np.concatenate([tokens.ids[:0], *(tokens.ids[start:stop] for start, stop in zip(starts, ends, strict=True))], out=packed[:total])
    present = np.arange(num_blocks * block_length) < total
    mask = present
    if tokens.mask is not None:
        mask = np.zeros(num_blocks * block_length, dtype=bool)
        np.concatenate([tokens.mask[:0], *(tokens.mask[start:stop] for start, stop in zip(starts, ends, strict=True))], out=mask[:total])
    shape = num_blocks, block_length
    return Blocks(packed.reshape(shape), mask.reshape(shape), None if tokens.mask is None else present.reshape(shape))


def pack_whole(tokens: TokenizedCorpus, rows: np.ndarray, block_length: int) -> Blocks:
    """Pack documents into blocks without dividing a document between blocks.

    A document that does not fit into the rest of a block begins the next one, so that each answer stands behind its prompt. A document
    that is longer than a block is cut at its end. A document without a token that counts in the loss is left out.

    Args:
        tokens: The token ids of the corpus.
        rows: Indices of documents, in the order in which they are packed.
        block_length: The number of tokens per block (T).

    Returns:
        The blocks [K, T].
    """
    lengths = np.minimum(tokens.lengths[rows], block_length)
    places: list[tuple[int, int, int, int]] = []  # block, position in the block, offset of the document, length
    block, used = 0, 0
    is_trained = count_trained(tokens, rows, block_length) > 0
    for start, length in zip(tokens.offsets[rows[is_trained]].tolist(), lengths[is_trained].tolist(), strict=True):
        if used + length > block_length:
            block, used = block + 1, 0
        places.append((block, used, start, length))
        used += length
    shape = block + 1 if places else 0, block_length
    packed, mask, present = np.full(shape, tokens.pad_id, dtype=np.int64), np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    for block, position, start, length in places:
        packed[block, position : position + length] = tokens.ids[start : start + length]
        mask[block, position : position + length] = True if tokens.mask is None else tokens.mask[start : start + length]
        present[block, position : position + length] = True
    return Blocks(packed, mask, present)


def count_trained(tokens: TokenizedCorpus, rows: np.ndarray, block_length: int) -> np.ndarray:
    """Count the tokens of some documents that count in the loss, [len(rows)], if each document is cut to ``block_length`` tokens."""
    if tokens.mask is None:
        return np.minimum(tokens.lengths[rows], block_length)
    total = np.concatenate([[0], np.cumsum(tokens.mask, dtype=np.int64)])
    starts = tokens.offsets[rows]
    counts: np.ndarray = total[np.minimum(starts + block_length, tokens.offsets[rows + 1])] - total[starts]
    return counts


# Instruction and chat data: the token ids of an example, and which of them count in the loss.


def adds_bos(tokenizer: Any) -> bool:
    """Return whether a tokenizer begins each text with its beginning-of-sequence token, as those of Llama and Gemma do."""
    bos = tokenizer.bos_token_id
    if bos is None:
        return False
    plain, special = (tokenizer("a", add_special_tokens=flag)["input_ids"] for flag in (False, True))
    return special[:1] == [bos] and plain[:1] != [bos]


def has_chat_template(tokenizer: Any) -> bool:
    """Return whether a tokenizer comes with a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def resolve_template(tokenizer: Any, chat_template: str) -> str:
    """Return the Jinja template that joins the turns of an example.

    Args:
        tokenizer: A tokenizer of transformers.
        chat_template: ``tokenizer``: the tokenizer's template; ``plain``: `PLAIN_TEMPLATE`; ``auto``: the first of these that exists.

    Raises:
        UserError: The tokenizer has no template, but ``chat_template`` is ``tokenizer``.
    """
    if chat_template != "plain" and has_chat_template(tokenizer):
        return str(tokenizer.get_chat_template())
    if chat_template == "tokenizer":
        raise UserError(
            f"dataset.chat_template is 'tokenizer', but the tokenizer {tokenizer.name_or_path!r} has no chat template: use "
            "dataset.chat_template=plain, or a model with a chat template"
        )
    return ("{{ bos_token }}" if adds_bos(tokenizer) else "") + PLAIN_TEMPLATE


def template_notes(examples: Iterable[Example] | None, tokenizer: Any, chat_template: str) -> list[str]:
    """Return a note if the plain template replaces a chat template that the tokenizer lacks."""
    needs_template = examples is not None and any(example.uses_template for example in examples)
    if not needs_template or chat_template != "auto" or has_chat_template(tokenizer):
        return []
    return [
        "the tokenizer has no chat template, so the turns of a conversation are joined by the plain template of fedrift "
        "('User: ...', 'Assistant: ...'); dataset.chat_template=plain accepts it without this note"
    ]


def tokenize_example(example: Example, tokenizer: Any, template: str, train_on: str) -> TokenizedExample:
    """Convert an example to token ids and mark those that count in the loss.

    The first token never counts, because nothing precedes it.

    Args:
        example: The example.
        tokenizer: A fast tokenizer of transformers.
        template: The chat template, from `resolve_template`.
        train_on: ``answer`` counts the tokens of answers, ``all`` counts all tokens.

    Raises:
        UserError: The chat template refuses the conversation, or it changes earlier turns.
    """
    if not example.uses_template:
        ids, mask = tokenize_completion(example, tokenizer)
    else:
        try:
            ids, mask = tokenize_conversation(example, tokenizer, template, needs_mask=train_on == "answer")
        except UserError:
            raise
        except Exception as error:  # templates raise any error, such as "roles must alternate"
            roles = ", ".join(turn.role for turn in example.turns[:20])
            raise UserError(
                f"the chat template of the tokenizer refuses a conversation with the roles {roles} "
                f"({' '.join(str(error).split())[:200]}): remove such conversations, or use dataset.chat_template=plain"
            ) from error
    if train_on == "all":
        mask = [True] * len(ids)
    return ids, [False, *mask[1:]]


def tokenize_completion(example: Example, tokenizer: Any) -> TokenizedExample:
    """Tokenize a prompt and its completion, which ends with the end-of-sequence token, as texts without a template."""
    prompt, completion = (turn.content for turn in example.turns)
    completion = completion if completion.endswith(tokenizer.eos_token) else completion + tokenizer.eos_token
    prompt_ids, ids = (tokenizer(text, verbose=False)["input_ids"] for text in (prompt, prompt + completion))
    start = common_prefix_length(prompt_ids, ids)
    return ids, [index >= start for index in range(len(ids))]


def tokenize_conversation(example: Example, tokenizer: Any, template: str, needs_mask: bool) -> TokenizedExample:
    """Tokenize a conversation and mark the tokens of its answers."""
    messages = example.messages
    if example.num_prompt is None and needs_mask and GENERATION_PATTERN.search(template):
        output = tokenizer.apply_chat_template(messages, chat_template=template, return_dict=True, return_assistant_tokens_mask=True)
        return list(output["input_ids"]), [bool(flag) for flag in output["assistant_masks"]]

    def render(num_turns: int, prompts_answer: bool = False) -> tuple[str, list[int]]:
        options = {"chat_template": template, "add_generation_prompt": prompts_answer}
        text = tokenizer.apply_chat_template(messages[:num_turns], tokenize=False, **options) if num_turns else ""
        return text, tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def opening_ids(rendered: str, stop: int) -> list[int]:
        # An answer without a prompt follows the header of its turn, and the default system prompt of some templates. A template has no
        # messages to render there, so its text ends where another answer would change it.
        other = [{**messages[0], "content": "B" if messages[0]["content"].lstrip().startswith("A") else "A"}, *messages[1:stop]]
        changed = tokenizer.apply_chat_template(other, tokenize=False, chat_template=template)
        header = rendered[: common_prefix_length(rendered, changed)]
        return tokenizer(header, add_special_tokens=False, verbose=False)["input_ids"]  # type: ignore[no-any-return]

    text, ids = render(len(messages))
    mask = [False] * len(ids)
    for first, stop in answer_spans(example) if needs_mask else ():
        rendered, part_ids = render(stop)
        if not text.startswith(rendered):
            raise UserError(
                "the chat template of the tokenizer renders the earlier turns of a conversation differently when turns follow, so fedrift "
                "cannot find its answers: use dataset.chat_template=plain, dataset.train_on=all, or a template with the keyword generation"
            )
        start = common_prefix_length(render(first, prompts_answer=True)[1] if first else opening_ids(rendered, stop), ids)
        end = len(ids) if stop == len(messages) else common_prefix_length(part_ids, ids)
        mask[start:end] = [True] * (end - start)
    return list(ids), mask


def answer_spans(example: Example) -> list[tuple[int, int]]:
    """Return the first turn of each answer and the turn after it; the turns of a completion are one answer."""
    if example.num_prompt is not None:
        return [(example.num_prompt, len(example.turns))]
    return [(index, index + 1) for index in range(len(example.turns)) if example.is_answer(index)]


def common_prefix_length(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Return the number of equal ids at the beginning of two sequences, or of equal characters of two texts."""
    return next((index for index, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]), min(len(first), len(second)))
