"""YAML as plain values, by the core schema of YAML 1.2, within limits: no text hangs or ends in a traceback.

PyYAML reads YAML 1.1, in which ``1:30`` is 90, ``010`` is 8, ``no`` is false and ``1e-3`` is text. Here they are text, 10, text
and a number. Not read at all: duplicate keys, tags, merge keys, keys that are lists or mappings, several documents, and whatever
its aliases make larger than ``NODES``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from .errors import UserError, quote

BYTES = 250_000  # of a file: read in a few seconds, whatever is in it
NODES = 20_000  # values and keys, each counted as often as aliases repeat it
DEPTH = 50  # lists and mappings inside each other
DIGITS = 300  # of a whole number; longer ones stay text, which no number is made of

CORE = {  # https://yaml.org/spec/1.2.2/#103-core-schema
    "null": (r"null|Null|NULL|~|", ["n", "N", "~", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
              list("-+.0123456789")),
}


class Core(yaml.SafeLoader):
    """PyYAML's loader with the types of YAML 1.2, which counts what it composes."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = self.composed = 0
        self.sizes: dict[int, int] = {}  # by the identity of a node: how many values it stands for

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "tag", None) not in (None, "!"):
            raise refusal(f"a tag, {quote(event.tag)}: tags are not read", event.start_mark)
        alias = self.check_event(yaml.AliasEvent)  # type: ignore[no-untyped-call]
        if alias and event.anchor in self.anchors and id(self.anchors[event.anchor]) not in self.sizes:
            raise refusal(f"the alias {quote(event.anchor)} stands inside what it repeats", event.start_mark)
        self.composed += 1
        if self.depth >= DEPTH:
            raise refusal(f"more than {DEPTH} lists or mappings inside each other", event.start_mark)
        self.depth += 1
        node: Node | None = super().compose_node(parent, index)  # type: ignore[no-untyped-call]
        self.depth -= 1
        if node is not None and not alias:
            parts = [part for pair in node.value for part in pair] if isinstance(node, MappingNode) else \
                node.value if isinstance(node, SequenceNode) else []
            self.sizes[id(node)] = 1 + sum(self.sizes[id(part)] for part in parts)
        if self.composed > NODES or (node is not None and self.sizes[id(node)] > NODES):
            raise refusal(f"more than {NODES:,} values", event.start_mark)
        return node

    def construct_mapping(self, node: Node, deep: bool = False) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                raise refusal("a list or a mapping as a key; a key is a word", key_node.start_mark)
            if key_node.value == "<<" and key_node.style is None:
                raise refusal("the merge key <<, which is not read: write the keys out", key_node.start_mark)
            key = self.construct_object(key_node, deep=True)
            if key in found:
                raise refusal(f"the key {quote(key)} is given twice", key_node.start_mark)
            found[key] = self.construct_object(value_node, deep=deep)
        return found


def refusal(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def whole(loader: Core, node: ScalarNode) -> int | str:
    """A whole number; 010 is ten."""
    text = str(loader.construct_scalar(node))
    if len(text) > DIGITS:
        return text
    return int(text, 0 if text[:2] in ("0o", "0x") else 10)


def number(loader: Core, node: ScalarNode) -> float:
    """A number with a fraction, an exponent, or none at all (.inf, .nan)."""
    text = str(loader.construct_scalar(node)).lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


Core.add_constructor("tag:yaml.org,2002:int", whole)
Core.add_constructor("tag:yaml.org,2002:float", number)


class Writer(yaml.SafeDumper):
    """PyYAML's dumper, which quotes what ``Core`` would not read as text."""


Core.yaml_implicit_resolvers = {}  # none of YAML 1.1
for name, (pattern, first) in CORE.items():
    for side in (Core, Writer):
        side.add_implicit_resolver(f"tag:yaml.org,2002:{name}", re.compile(rf"(?:{pattern})\Z"), first)


def dump_yaml(value: Any, **options: Any) -> str:
    """Plain values as YAML that ``parse_yaml`` reads back."""
    return str(yaml.dump(value, Dumper=Writer, sort_keys=False, allow_unicode=True, **options))


def parse_yaml(text: str, where: str) -> Any:
    """YAML as plain values.

    Args:
        text: The YAML.
        where: What to call it in a refusal, such as the file's name.

    Raises:
        UserError: In one line, with the place in the text, where it is not YAML or is more than is read.
    """
    if len(text) > BYTES:
        raise UserError(f"{where} has {len(text):,} characters of YAML; at most {BYTES:,} are read")
    try:
        loader = Core(text)
        try:
            return loader.get_single_data()  # type: ignore[no-untyped-call]
        finally:
            loader.dispose()  # type: ignore[no-untyped-call]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = error.problem or error.context or "it cannot be read"
        raise UserError(f"{where} is not YAML that can be read: {place}{one_line(problem)}") from None
    except yaml.reader.ReaderError as error:
        raise UserError(f"{where} is not YAML that can be read: the character {error.character!r} at position "
                        f"{error.position:,} is not allowed") from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError, IndexError) as error:
        raise UserError(f"{where} is not YAML that can be read: {one_line(str(error))}") from None


def one_line(text: str, most: int = 200) -> str:
    """The words of a text in one line."""
    return " ".join(text.split())[:most]


def read_text(path: Path, example: str) -> str:
    """The text of a YAML file.

    Raises:
        UserError: If it cannot be read, is no plain file, is no UTF-8, or is too large. ``example`` says what is wanted.
    """
    shown = str(path) if len(str(path)) <= 200 else quote(str(path))
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"cannot read {shown}: it is {'a folder' if path.is_dir() else 'no plain file'}; {example}")
        size = path.stat().st_size
        if size > BYTES:
            raise UserError(f"{shown} has {size:,} bytes; at most {BYTES:,} are read: {example}")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{shown} is not a text file in UTF-8; {example}") from None
    except OSError as error:
        raise UserError(f"cannot read {shown}: {error.strerror or error}") from None
    except ValueError as error:  # a NUL in the name
        raise UserError(f"cannot read {quote(str(path))}: {error}") from None


__all__ = ["dump_yaml", "parse_yaml", "read_text"]
