"""Reading, changing and writing of YAML, with the core schema of YAML 1.2 and limits on the size of the text.

PyYAML itself reads YAML 1.1, in which ``1:30`` is 90, ``010`` is 8, ``no`` is false and ``1e-3`` is text; here they are text, 10, text
and a number. The limits ensure that no input hangs or raises anything but ``UserError``. Not supported are duplicate keys, tags, merge
keys, keys that are lists or mappings, several documents, and aliases that expand to more than ``MAX_NODES`` values.

An override such as ``algorithm.mu=0.1`` changes plain values by the path of a key. A name without a folder, such as ``demo`` or
``small``, finds an experiment or a study that comes with fedrift from anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from ...core.errors import UserError, quote_value, unknown_name_error

Kind = Literal["experiments", "studies"]
HINTS = {
    "experiment": "give the YAML file of an experiment, e.g. experiments/demo.yaml",
    "study": "give the YAML file of a study, e.g. studies/small.yaml",
}
MAX_BYTES = 250_000  # size of a file; any file of this size is read within a few seconds
MAX_NODES = 20_000  # number of values and keys after the expansion of aliases
MAX_DEPTH = 50  # nested lists and mappings
MAX_DIGITS = 300  # digits of a whole number; a longer one remains text, which no field of a number accepts

CORE_SCHEMA = {  # https://yaml.org/spec/1.2.2/#103-core-schema
    "null": (r"null|Null|NULL|~|", ["n", "N", "~", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.0123456789")),
}


class CoreLoader(yaml.SafeLoader):
    """The loader of PyYAML with the types of YAML 1.2 and with limits on depth and size."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = self.num_composed = 0
        self.node_sizes: dict[int, int] = {}  # id of a node -> number of values after the expansion of aliases

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "tag", None) not in (None, "!"):
            raise yaml_error(f"the tag {quote_value(event.tag)}: tags are not supported", event.start_mark)
        alias = self.check_event(yaml.AliasEvent)  # type: ignore[no-untyped-call]
        if alias and event.anchor in self.anchors and id(self.anchors[event.anchor]) not in self.node_sizes:
            raise yaml_error(f"the alias {quote_value(event.anchor)} is inside the value that it refers to", event.start_mark)
        self.num_composed += 1
        if self.depth >= MAX_DEPTH:
            raise yaml_error(f"more than {MAX_DEPTH} nested lists or mappings", event.start_mark)
        self.depth += 1
        node: Node | None = super().compose_node(parent, index)  # type: ignore[no-untyped-call]
        self.depth -= 1
        if node is not None and not alias:
            parts = (
                [part for pair in node.value for part in pair]
                if isinstance(node, MappingNode)
                else node.value
                if isinstance(node, SequenceNode)
                else []
            )
            self.node_sizes[id(node)] = 1 + sum(self.node_sizes[id(part)] for part in parts)
        if self.num_composed > MAX_NODES or (node is not None and self.node_sizes[id(node)] > MAX_NODES):
            raise yaml_error(f"more than {MAX_NODES:,} values", event.start_mark)
        return node

    def construct_mapping(self, node: Node, deep: bool = False) -> dict[Any, Any]:
        mapping: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                raise yaml_error("a list or a mapping is used as a key; a key must be text or a number", key_node.start_mark)
            if key_node.value == "<<" and key_node.style is None:
                raise yaml_error("the merge key << is not supported; repeat the keys", key_node.start_mark)
            key = self.construct_object(key_node, deep=True)
            if key in mapping:
                raise yaml_error(f"the key {quote_value(key)} is given twice", key_node.start_mark)
            mapping[key] = self.construct_object(value_node, deep=deep)
        return mapping


def yaml_error(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    """Create the error for a problem at a position of the text."""
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def construct_int(loader: CoreLoader, node: ScalarNode) -> int | str:
    """Convert a node to a whole number; 010 is ten, and a number with too many digits remains text."""
    text = str(loader.construct_scalar(node))
    if len(text) > MAX_DIGITS:
        return text
    return int(text, 0 if text[:2] in ("0o", "0x") else 10)


def construct_float(loader: CoreLoader, node: ScalarNode) -> float:
    """Convert a node to a floating-point number, including .inf and .nan."""
    text = str(loader.construct_scalar(node)).lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


CoreLoader.add_constructor("tag:yaml.org,2002:int", construct_int)
CoreLoader.add_constructor("tag:yaml.org,2002:float", construct_float)


class CoreDumper(yaml.SafeDumper):
    """The dumper of PyYAML, which quotes text that ``CoreLoader`` would not read as text."""


CoreLoader.yaml_implicit_resolvers = {}  # removes the types of YAML 1.1
for name, (pattern, first) in CORE_SCHEMA.items():
    for side in (CoreLoader, CoreDumper):
        side.add_implicit_resolver(f"tag:yaml.org,2002:{name}", re.compile(rf"(?:{pattern})\Z"), first)


def dump_yaml(value: Any, **options: Any) -> str:
    """Convert plain values to YAML that ``parse_yaml`` reads.

    Args:
        value: Dictionaries, lists, texts, numbers, truth values and None.
        **options: Further options of ``yaml.dump``.
    """
    return str(yaml.dump(value, Dumper=CoreDumper, sort_keys=False, allow_unicode=True, **options))


def parse_yaml(text: str, source_name: str) -> Any:
    """Parse YAML into plain values.

    Args:
        text: The YAML.
        source_name: The name of the source in error messages, such as the name of the file.

    Raises:
        UserError: The text is not valid YAML or exceeds a limit. The message has one line, with the position in the text.
    """
    if len(text) > MAX_BYTES:
        raise UserError(f"{source_name} has {len(text):,} characters of YAML; at most {MAX_BYTES:,} are allowed")
    try:
        loader = CoreLoader(text)
        try:
            return loader.get_single_data()  # type: ignore[no-untyped-call]
        finally:
            loader.dispose()  # type: ignore[no-untyped-call]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        position = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = error.problem or error.context or "it cannot be parsed"
        raise UserError(f"{source_name} is not valid YAML: {position}{to_single_line(problem)}") from None
    except yaml.reader.ReaderError as error:
        raise UserError(
            f"{source_name} is not valid YAML: the character {error.character!r} at position {error.position:,} is not allowed"
        ) from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError, IndexError) as error:
        raise UserError(f"{source_name} is not valid YAML: {to_single_line(str(error))}") from None


def to_single_line(text: str, max_length: int = 200) -> str:
    """Replace all whitespace by single spaces and truncate the text."""
    return " ".join(text.split())[:max_length]


def read_text(path: Path, example: str) -> str:
    """Read the text of a YAML file.

    Args:
        path: The path of the file.
        example: A hint for error messages on what the file should be.

    Raises:
        UserError: The file cannot be read, is not a regular file, is not UTF-8, or is too large.
    """
    shown = str(path) if len(str(path)) <= 200 else quote_value(str(path))
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"cannot read {shown}: it is {'a folder' if path.is_dir() else 'not a regular file'}; {example}")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UserError(f"{shown} has {size:,} bytes; at most {MAX_BYTES:,} are allowed: {example}")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{shown} is not a text file in UTF-8; {example}") from None
    except OSError as error:
        raise UserError(f"cannot read {shown}: {error.strerror or error}; {example}") from None
    except ValueError as error:  # the path contains a NUL character
        raise UserError(f"cannot read {quote_value(str(path))}: {error}") from None


def load_yaml(path: Path, kind: str = "experiment", example: str = "dataset: bbc") -> dict[str, Any]:
    """Read a YAML file of keys and values.

    Args:
        path: The path of the file.
        kind: What the file should contain, ``"experiment"`` or ``"study"``, for error messages.
        example: A line of such a file, for error messages.

    Raises:
        UserError: The file cannot be read, is not valid YAML, or does not contain keys and values.
    """
    raw = parse_yaml(read_text(Path(path), HINTS[kind]), str(path))
    if not isinstance(raw, dict):
        raise UserError(
            f"{path} contains no {kind}: expected keys and values such as `{example}`, "
            f"got {'nothing' if raw is None else type(raw).__name__}"
        )
    return raw


def display_key(key: Any) -> str:
    """Return a key as error messages show it."""
    return key if isinstance(key, str) and len(key) <= 60 and key.isprintable() else quote_value(key)


# The ready experiments and studies.


def ready_folder(kind: Kind) -> Path:
    """Return the folder of the ready files: inside an installed package, and beside the package in a checkout."""
    package = Path(__file__).resolve().parents[2]
    installed = package / "ready" / kind
    return installed if installed.is_dir() else package.parent / kind


def list_ready(kind: Kind) -> list[str]:
    """Return the names of the ready experiments or studies, sorted."""
    return sorted(path.stem for path in ready_folder(kind).glob("*.yaml"))


def find_ready(path: Path, kind: Kind) -> Path:
    """Return the file that a person means: an existing file, or a ready one by its name with or without ``.yaml``.

    Args:
        path: What was given.
        kind: The kind of file.

    Returns:
        The path of a ready file if ``path`` is such a name and no file has this path; else ``path`` unchanged.

    Example:
        >>> find_ready(Path("demo"), "experiments").name
        'demo.yaml'
    """
    name = path.name.removesuffix(".yaml")
    if len(path.parts) != 1 or name not in list_ready(kind) or path.is_file():
        return path
    return ready_folder(kind) / f"{name}.yaml"


# Changes by the path of a key.


def apply_overrides(raw: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Apply overrides to plain values.

    Args:
        raw: The keys and values, which are not modified.
        overrides: Changes as ``"key.key=value"``; each value is YAML. Nothing after the equals sign is the empty text, because a shell
            removes the quotation marks of ``key=''``; null is written ``null`` or ``~``.

    Returns:
        A dictionary with the changes.

    Raises:
        UserError: An override has another form, or its path leads through a value without keys.
    """
    for text in overrides:
        path, separator, value = text.partition("=")
        if not separator or not path:
            raise UserError(f"{quote_value(text)}: an override is written path=value, e.g. partition.severity=0.5")
        raw = set_key(raw, path.strip(), parse_yaml(value, f"the override {quote_value(text)}") if value.strip() else "")
    return raw


def check_no_override_is_lost(overrides: Iterable[str]) -> None:
    """Check that no override replaces the value of an earlier one, as ``seed=1 seed=2`` and ``algorithm.mu=0.1 algorithm=FedProx`` do.

    Args:
        overrides: Changes as ``"key.key=value"``. Text of another form is skipped; ``apply_overrides`` refuses it.

    Raises:
        UserError: A key is given twice, or after one of its own keys.
    """
    earlier: list[str] = []
    for text in overrides:
        path, separator, _ = text.partition("=")
        path = path.strip()
        if not separator:
            continue
        if path in earlier:
            raise UserError(f"the override {quote_value(path)} is given twice: give each key once")
        lost = next((key for key in earlier if key.startswith(f"{path}.")), None)
        if lost:
            raise UserError(
                f"{quote_value(text)} replaces {quote_value(lost)}, which is given before it: give "
                f"{quote_value(path)} first, or leave one out"
            )
        earlier.append(path)


def set_key(raw: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Set the value at a dotted path, and return the new dictionary.

    On the way, a class that is given by its name only is expanded: ``FedProx`` becomes ``{type: FedProx}``.

    Raises:
        UserError: The path is malformed, or it leads through a value without keys.
    """
    head, _, rest = path.partition(".")
    inner = raw.get(head)
    if not head or path.count(".") > MAX_DEPTH:
        raise UserError(f"{quote_value(path)}: a path consists of keys separated by dots, e.g. partition.severity")
    if not rest:
        if path != head:
            raise UserError(f"{quote_value(path)}: a path must end with a key, e.g. partition.severity")
        return {**raw, head: value}
    if isinstance(inner, str):
        inner = {"name": inner} if head == "dataset" else {"type": inner}
    if inner is not None and not isinstance(inner, Mapping):
        raise UserError(f"{quote_value(path)}: {display_key(head)} is {quote_value(inner)}, which has no keys to change")
    return {**raw, head: set_key(dict(inner or {}), rest, value)}


def edit_config(value: Any, changes: Mapping[str, Any]) -> Any:
    """Return a copy of a configuration with changed fields. All changes are applied before the copy is checked.

    Args:
        value: The configuration.
        changes: The new values by path; a double underscore separates nested fields.

    Raises:
        UserError: A field does not exist.

    Example:
        >>> edit_config(config, {"partition__severity": 0})  # doctest: +SKIP
    """
    new_values: dict[str, Any] = {}
    for path, part in changes.items():
        head, _, rest = path.partition("__")
        if not hasattr(value, head):
            raise unknown_name_error(f"field of {type(value).__name__}", head, [f.name for f in fields(value)])
        new_values[head] = edit_config(new_values.get(head, getattr(value, head)), {rest: part}) if rest else part
    return replace(value, **new_values)
