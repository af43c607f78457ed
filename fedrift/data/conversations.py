"""Read instruction and chat data: conversations, prompts with completions, and Alpaca's instructions.

A row becomes an `Example`, which keeps its turns and knows which of them are answers. Four formats exist:

- ``text``: one column of running text. Its rows are no examples.
- ``chat``: a column ``messages`` (or ``conversations``) with a list of ``{"role": ..., "content": ...}``.
- ``prompt_completion``: the columns ``prompt`` and ``completion``, as two texts or as two lists of messages.
- ``alpaca``: the columns ``instruction``, ``input`` (optional) and ``output``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

DataFormat = Literal["auto", "text", "chat", "prompt_completion", "alpaca"]
TrainOn = Literal["answer", "all"]
ChatTemplate = Literal["auto", "tokenizer", "plain"]
CHAT_COLUMNS = ("messages", "conversations")
FORMAT_COLUMNS: Mapping[str, tuple[str, ...]] = {"prompt_completion": ("prompt", "completion"), "alpaca": ("instruction", "output")}
# The names that ShareGPT and other collections give to the roles.
ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}
NO_ANSWER, NO_CONVERSATION = "no answer", "no conversation"
MESSAGE_KEYS = {"role", "content", "from", "value"}  # the keys of a message that are read
TOOL_KEYS = ("tool_calls", "function_call")  # a message with one of them is more than its text
# Columns that belong to instruction and chat data. The format decides which of them are read.
EXAMPLE_COLUMNS = (
    *CHAT_COLUMNS,
    *(name for columns in FORMAT_COLUMNS.values() for name in columns),
    *("input", "system", "system_prompt", "history", "tools", "functions"),
)


class Turn(NamedTuple):
    """One message of a conversation."""

    role: str
    content: str


class Unusable(NamedTuple):
    """Stands for a row that cannot be used."""

    reason: str  # a key of ``Corpus.drop_counts``
    detail: str = ""  # what is wrong with this row


@dataclass(frozen=True)
class Example:
    """A conversation, or a prompt with its completion.

    Args:
        turns: The messages in their order.
        num_prompt: The first turns that are the prompt; all later turns are answers. None: each turn of the assistant is an answer.
        uses_template: Whether the tokenizer's chat template joins the turns. Otherwise they are texts that follow each other directly.

    Example:
        >>> Example((Turn("user", "What is 2 + 2?"), Turn("assistant", "4"))).answers
        ('4',)
    """

    turns: tuple[Turn, ...]
    num_prompt: int | None = None
    uses_template: bool = True

    @property
    def text(self) -> str:
        """Return the contents of all turns; encoders, word counts and duplicates use it."""
        return ("\n\n" if self.uses_template else "").join(turn.content for turn in self.turns)

    @property
    def answers(self) -> tuple[str, ...]:
        """Return the contents of the turns that are answers."""
        return tuple(turn.content for index, turn in enumerate(self.turns) if self.is_answer(index))

    @property
    def messages(self) -> list[dict[str, str]]:
        """Return the turns in the form that chat templates read."""
        return [turn._asdict() for turn in self.turns]

    def is_answer(self, index: int) -> bool:
        """Return whether the turn with this index is an answer."""
        return self.turns[index].role == "assistant" if self.num_prompt is None else index >= self.num_prompt

    def to_json(self) -> str:
        """Return the example as JSON, for digests."""
        return json.dumps([self.turns, self.num_prompt, self.uses_template])

    def to_columns(self) -> dict[str, Any]:
        """Return the row from which the example can be read again."""
        if self.num_prompt is None:
            return {"messages": self.messages}
        parts = self.turns[: self.num_prompt], self.turns[self.num_prompt :]
        if self.uses_template:
            return dict(zip(FORMAT_COLUMNS["prompt_completion"], ([turn._asdict() for turn in part] for part in parts), strict=True))
        return dict(zip(FORMAT_COLUMNS["prompt_completion"], ("".join(turn.content for turn in part) for part in parts), strict=True))


def find_format(data_format: str, text_column: str, names: Sequence[str]) -> str:
    """Return the format of a table.

    Args:
        data_format: The configured format. ``auto`` decides by the columns: the text column, if it exists, has priority.
        text_column: The configured text column. With another name than ``text``, ``auto`` looks for no other format.
        names: The columns of the table.
    """
    if data_format != "auto":
        return data_format
    return "text" if text_column in names or text_column != "text" else (find_example_format(names) or "text")


def find_example_format(names: Sequence[str]) -> str:
    """Return the format of instruction or chat data whose columns a table has, or "" if it has none."""
    if any(name in names for name in CHAT_COLUMNS):
        return "chat"
    return next((name for name, columns in FORMAT_COLUMNS.items() if set(columns) <= set(names)), "")


def content_columns(data_format: str, text_column: str, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the required and the optional columns that hold the content of documents.

    Args:
        data_format: The format of the table, not ``auto``.
        text_column: The configured text column. For ``chat`` it names the column of messages, unless it is ``text``.
        names: The columns of the table.
    """
    if data_format == "chat":
        return [text_column if text_column != "text" else next((name for name in CHAT_COLUMNS if name in names), CHAT_COLUMNS[0])], []
    if data_format in FORMAT_COLUMNS:
        return list(FORMAT_COLUMNS[data_format]), ["input"] if data_format == "alpaca" else []
    return [text_column], []


def read_documents(data_format: str, text_column: str, cells: Mapping[str, Sequence[Any]], names: Sequence[str]) -> list[Any]:
    """Convert the cells of a table to one text, `Example`, `Unusable` or other value per row.

    Args:
        data_format: The configured format.
        text_column: The configured text column.
        cells: The columns that were read.
        names: All columns of the table.
    """
    found = find_format(data_format, text_column, names)
    required, optional = content_columns(found, text_column, names)
    columns = [cells[name] for name in required]
    if found == "text":
        is_chat = data_format == "auto" and any(is_message_list(cell) for cell in columns[0])
        return [parse_conversation(cell) for cell in columns[0]] if is_chat else list(columns[0])
    if found == "chat":
        return [parse_conversation(cell) for cell in columns[0]]
    if found == "prompt_completion":
        return [parse_prompt_completion(prompt, completion) for prompt, completion in zip(*columns, strict=True)]
    inputs = cells.get(optional[0], [None] * len(columns[0]))
    return [parse_alpaca(*row) for row in zip(columns[0], inputs, columns[1], strict=True)]


def is_message_list(cell: Any) -> bool:
    """Return whether a cell is a list of messages."""
    return (
        isinstance(cell, (list, tuple)) and bool(cell) and all(isinstance(item, Mapping) and {"role", "from"} & set(item) for item in cell)
    )


def parse_conversation(cell: Any) -> Example | Unusable:
    """Convert a cell with messages to an example."""
    turns = parse_messages(cell)
    return turns if isinstance(turns, Unusable) else check_answer(Example(turns))


def parse_prompt_completion(prompt: Any, completion: Any) -> Example | Unusable:
    """Convert a prompt and its completion, two texts or two lists of messages, to an example."""
    has_texts = isinstance(prompt, str) and isinstance(completion, str)
    if has_texts and not (prompt.startswith("[{") and not isinstance(parse_messages(prompt), Unusable)):
        parts = Turn("prompt", normalize_characters(prompt)), Turn("completion", normalize_characters(completion))
        return check_answer(Example(parts, 1, uses_template=False))
    for name, cell in (("prompt", prompt), ("completion", completion)):
        if not isinstance(cell, (str, list, tuple, Mapping)):
            return Unusable(NO_CONVERSATION, f"the column {name!r} holds {describe_cell(cell)}, not text")
    first, second = parse_messages(prompt), parse_messages(completion)
    for turns in (first, second):
        if isinstance(turns, Unusable):
            return turns
    assert not isinstance(first, Unusable) and not isinstance(second, Unusable)
    return check_answer(Example((*first, *second), len(first)))


def parse_alpaca(instruction: Any, context: Any, output: Any) -> Example | Unusable:
    """Convert an instruction, its input and its output to a conversation of two turns.

    The user's turn is the instruction, followed by a blank line and the input if there is one.
    """
    for name, cell in (("instruction", instruction), ("output", output), ("input", context if context is not None else "")):
        if not isinstance(cell, str):
            return Unusable(NO_CONVERSATION, f"the column {name!r} holds {describe_cell(cell)}, not text")
    question = f"{instruction}\n\n{context}" if isinstance(context, str) and context.strip() else instruction
    return check_answer(Example((Turn("user", normalize_characters(question)), Turn("assistant", normalize_characters(output)))))


def check_answer(example: Example) -> Example | Unusable:
    """Return the example if it has an answer that is not blank."""
    if any(answer.strip() for answer in example.answers):
        return example
    if example.answers:
        return Unusable(NO_ANSWER, "the answer is blank")
    roles = ", ".join(dict.fromkeys(turn.role[:40] for turn in example.turns))
    return Unusable(NO_ANSWER, f"its roles are {roles}, but an answer has the role assistant, gpt, chatgpt, bot or model")


def describe_cell(cell: Any) -> str:
    """Describe the type of a cell for a message."""
    names = {type(None): "null", str: "text", dict: "an object", list: "a list", tuple: "a list", bool: "a truth value"}
    return names.get(type(cell), "a number" if isinstance(cell, (int, float)) else type(cell).__name__)


def unread_notes(cells: Mapping[str, Sequence[Any]], read_columns: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return notes on the parts of instruction and chat data that are not read.

    Args:
        cells: The columns that were read.
        read_columns: Those of them that hold the content of documents.
        names: All columns of the table.
    """
    notes = []
    columns = [name for name in names if name in EXAMPLE_COLUMNS and name not in read_columns]
    if columns:
        hint = "; write a system prompt as the first message, with the role system" if "system" in "".join(columns) else ""
        notes.append(f"columns that are not read: {', '.join(columns)}{hint}")
    messages = (message for name in read_columns for cell in cells.get(name, ()) if is_message_list(cell) for message in cell)
    keys = dict.fromkeys(str(key)[:40] for message in messages for key, value in message.items() if value is not None)
    unread = [key for key in keys if key not in (*MESSAGE_KEYS, *TOOL_KEYS)]
    if unread:
        notes.append(f"only role and content of a message are read; its other keys have no effect: {', '.join(unread[:10])}")
    return notes


def parse_messages(cell: Any) -> tuple[Turn, ...] | Unusable:
    """Convert a list of messages, or its JSON, to turns.

    Messages have the keys ``role`` and ``content``, or ``from`` and ``value`` as in ShareGPT. A content of several parts is joined
    if all of them are text.
    """
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            return Unusable(NO_CONVERSATION, "the cell holds text that is not JSON, where a list of messages is expected")
    if isinstance(cell, Mapping):  # the library `datasets` stores some lists of structures as a structure of lists
        columns = [cell.get(name) for name in ("role", "content")]
        if not all(isinstance(column, (list, tuple)) for column in columns):
            return Unusable(NO_CONVERSATION, "the cell holds an object, where a list of messages is expected")
        cell = [{"role": role, "content": content} for role, content in zip(*columns, strict=False)]  # type: ignore[arg-type]
    if not is_message_list(cell):
        is_list = isinstance(cell, (list, tuple)) and bool(cell)
        found = "a list whose parts are not all objects with the key role or from" if is_list else describe_cell(cell)
        return Unusable(NO_CONVERSATION, f"the cell holds {found}, where a list of messages is expected")
    turns: list[Turn] = []
    for message in cell:
        turn = parse_message(message)
        if isinstance(turn, Unusable):
            return turn
        turns.append(turn)
    return tuple(turns)


def parse_message(message: Mapping[str, Any]) -> Turn | Unusable:
    """Convert one message to a turn."""
    role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
    if any(message.get(key) for key in TOOL_KEYS):
        return Unusable(NO_CONVERSATION, "a message calls a tool, which is not read")
    if isinstance(content, (list, tuple)):
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        content = "".join(texts) if len(texts) == len(parts) else content
    if not isinstance(role, str) or not isinstance(content, str):
        wrong = f"holds {describe_cell(content)}, not text" if isinstance(role, str) else f"has a role that is {describe_cell(role)}"
        return Unusable(NO_CONVERSATION, f"a message{f' of the role {role[:40]}' if isinstance(role, str) else ''} {wrong}")
    return Turn(ROLES.get(role.lower(), role.lower()), normalize_characters(content))


def normalize_characters(text: str) -> str:
    """Normalize line ends to \\n and replace unpaired surrogates.

    JSON escapes can produce unpaired surrogates, which cannot be encoded as UTF-8.
    """
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
