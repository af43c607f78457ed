"""Convert instruction and chat data to token ids, and mark the tokens that count in the loss.

The ids and marks equal those of TRL 1.16 (``SFTTrainer`` with ``assistant_only_loss`` or ``completion_only_loss``) and of
``apply_chat_template(..., return_assistant_tokens_mask=True)`` in transformers. Chat templates without the keyword ``generation`` give
no such marks; then everything that the template adds after the prompt of an answer counts, as in TRL for a prompt and its completion.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from ..core.errors import UserError
from .conversations import Example

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
