"""Loading of YAML into plain values, and of plain values into configuration classes.

YAML is read with the core schema of YAML 1.2. PyYAML itself reads YAML 1.1, in which ``1:30`` is 90, ``010`` is 8, ``no`` is false and
``1e-3`` is text; here they are text, 10, text and a number. Limits on the size of the text ensure that no input hangs or raises
anything but ``UserError``. Not supported are duplicate keys, tags, merge keys, keys that are lists or mappings, several documents,
and aliases that expand to more than ``MAX_NODES`` values.

Plain values are checked strictly against the annotated types of dataclass fields. An error message names the key and, for an unknown
key, the closest key that exists. A class that can be chosen is named by the key ``type``: ``algorithm: {type: FedProx, mu: 0.1}``, or
``algorithm: FedProx`` for its defaults. A ``Registry`` defines which classes can be chosen.
"""

from __future__ import annotations

import inspect
import re
import sys
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from annotated_types import DocInfo, Ge, Gt, Interval, Le, Len, Lt, MaxLen, MinLen
from pydantic import Strict, TypeAdapter, ValidationError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from ..core.errors import UserError, closest_match, quote_value, unknown_name_error
from ..core.registry import extensions, import_object, import_path_of, is_import_path

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
        raise UserError(f"cannot read {shown}: {error.strerror or error}") from None
    except ValueError as error:  # the path contains a NUL character
        raise UserError(f"cannot read {quote_value(str(path))}: {error}") from None


MAX_INT = 1_000_000  # largest absolute value of a whole number, unless the type of the field sets another bound
MIN_FLOAT, MAX_FLOAT = 1e-30, 1e30  # range of the absolute value of other numbers than 0, well within the range of float32
MAX_TEXT_LENGTH = 1000  # characters of a text, unless the type of the field sets another bound
MAX_REPORTED_ERRORS = 20  # in one error message
SCALAR_TYPES = (bool, int, float, str)
PACKAGE = __name__.partition(".")[0]


class Registry:
    """The classes that can be chosen for fields of some base classes.

    Args:
        modules: The module of each base class, whose ``__all__`` names the choices, for example ``{FedAvg: algorithms}``.
        kinds: The kind of extension (``core.registry.KINDS``) of each base class that can also be chosen.

    Example:
        >>> from fedrift import algorithms
        >>> registry = Registry({algorithms.FedAvg: algorithms})
        >>> parse_value(algorithms.FedAvg, {"type": "FedProx", "mu": 0.1}, registry).mu
        0.1
    """

    def __init__(self, modules: Mapping[type, ModuleType], kinds: Mapping[type, str] | None = None) -> None:
        self.modules, self.kinds = dict(modules), dict(kinds or {})

    def choices(self, kind: Any) -> dict[str, type] | None:
        """Return the classes that can be chosen for a base class by name, with extensions; None if ``kind`` is no such base class."""
        module = self.modules.get(kind)
        if module is None:
            return None
        builtin = {name: thing for name in module.__all__ if is_dataclass(thing := getattr(module, name))}
        return {**(extensions(self.kinds[kind]) if kind in self.kinds else {}), **builtin}  # type: ignore[dict-item]

    def is_choice(self, value: Any) -> bool:
        """Return whether the class of a value can be chosen by name, so that the stored form must contain the name."""
        return self.is_choice_class(type(value))

    def is_choice_class(self, cls: type) -> bool:
        """Return whether a class can be chosen by name."""
        return any(cls in (self.choices(kind) or {}).values() for kind in self.modules)

    def name_of(self, cls: type) -> str | None:
        """Return the name of a class in configurations; None if it cannot be chosen by name."""
        return next((name for kind in self.modules for name, choice in (self.choices(kind) or {}).items() if choice is cls), None)

    def resolve(self, kind: Any, name: str) -> type | None:
        """Return the class for a name or an import path.

        Upper and lower case, underscores and hyphens do not matter, and the name of the base class may be omitted at the end:
        ``last_blocks`` is LastBlocks, and ``text`` is TextClustering.

        Args:
            kind: The base class.
            name: The name or import path of the class.

        Returns:
            The class; None if no class or more than one class has the name.

        Raises:
            UserError: The import path does not lead to a dataclass that is derived from ``kind``, or has its members if it is a protocol.
        """
        choices = self.choices(kind) or {}
        if name in choices:
            return choices[name]
        if kind in self.kinds and is_import_path(name):
            thing = import_object(name)
            if not (isinstance(thing, type) and is_dataclass(thing) and not list_missing_members(thing, kind)):
                missing = list_missing_members(thing, kind)
                is_protocol = getattr(kind, "_is_protocol", False) and is_dataclass(thing)
                rule = f"has {', '.join(missing)}" if is_protocol else f"is derived from {kind.__module__}.{kind.__name__}"
                raise UserError(f"{name} is no {kind.__name__}; it must be a frozen dataclass that {rule}")
            return thing
        if name.casefold() == "none" and kind.__name__.startswith("No"):
            return kind  # type: ignore[no-any-return]
        requested, suffix = _plain_name(name), _plain_name(kind.__name__.removeprefix("No"))
        matches = {cls for choice, cls in choices.items() if requested in (plain := _plain_name(choice), plain.removesuffix(suffix))}
        return matches.pop() if len(matches) == 1 else None


def list_missing_members(thing: Any, kind: Any) -> list[str]:
    """Return the members of a protocol that a class lacks; for another base class, its name if the class is not derived from it."""
    if not isinstance(thing, type):
        return [kind.__name__]
    if not getattr(kind, "_is_protocol", False):
        return [] if issubclass(thing, kind) else [kind.__name__]
    required = [name for name in vars(kind) if (name == "__call__" or not name.startswith("_"))]
    present = {*dir(thing), *(field.name for field in fields(thing))} if is_dataclass(thing) else set(dir(thing))
    return [name for name in required if name not in present and kind not in thing.__mro__]


def _plain_name(name: str) -> str:
    return name.replace("_", "").replace("-", "").casefold()


def parse_value(kind: Any, raw: Any, registry: Registry, key_path: str = "") -> Any:
    """Convert plain values to a value of a type.

    Args:
        kind: The type, for example a dataclass or an annotated number.
        raw: The plain values, as from YAML.
        registry: The classes that can be chosen by name.
        key_path: The path of the key, for error messages.

    Raises:
        UserError: There are mistakes; the message has one line per mistake, each with the path of its key.
    """
    errors: list[str] = []
    value = _parse_value(kind, raw, registry, key_path, errors)
    if len(errors) > MAX_REPORTED_ERRORS:
        errors[MAX_REPORTED_ERRORS:] = [f"and {len(errors) - MAX_REPORTED_ERRORS:,} more mistakes"]
    if errors:
        raise UserError("\n".join(errors))
    return value


def _parse_value(kind: Any, raw: Any, registry: Registry, key_path: str, errors: list[str], default: Any = MISSING) -> Any:
    """Convert plain values to a value of a type: a class chosen by name, a dataclass, a union, a list, a mapping or a scalar."""
    if hasattr(raw, "tolist"):  # a numpy scalar or array
        raw = raw.tolist()
    if is_dataclass(raw) and not isinstance(raw, type):
        return _check_object(kind, raw, registry, key_path, errors)
    choices = registry.choices(kind)
    if choices is not None:
        if not isinstance(raw, (str, Mapping)) and _is_instance(kind, raw):
            errors.append(
                f"{key_path}: {type(raw).__name__} is no dataclass; decorate the class with @dataclass(frozen=True), "
                "so that its settings are part of the run id"
            )
            return None
        name = raw if isinstance(raw, str) else raw.get("type") if isinstance(raw, Mapping) else None
        if isinstance(raw, Mapping) and "type" not in raw and is_dataclass(default):
            name = type(default).__name__  # without a type, the keys change the default value, whose other fields stay
            raw = {**_field_values(default), **raw}
        try:
            chosen = registry.resolve(kind, name) if isinstance(name, str) else None
        except UserError as error:
            errors.append(f"{key_path}: {error}")
            return None
        if chosen is None:
            errors.append(f"{key_path}: {_unknown_choice_error(key_path, raw, name, choices)}")
            return None
        # A stored configuration also contains a hash of the source of classes from outside fedrift.
        reserved = ("type",) if _top_package(chosen) == PACKAGE else ("type", "source")
        field_values = {} if isinstance(raw, str) else {key: value for key, value in raw.items() if key not in reserved}
        return _parse_fields(chosen, field_values, registry, key_path, errors)
    if is_dataclass(kind) and isinstance(kind, type):
        if (
            isinstance(raw, str) and _field_default(fields(kind)[0]) is MISSING
        ):  # short form of a class with a required first field, such as dataset: bbc
            raw = {fields(kind)[0].name: raw}
        if not isinstance(raw, Mapping):
            errors.append(f"{key_path}: expected {kind.__name__} as keys and values, got {quote_value(raw)}")
            return None
        # The class is also a choice elsewhere, where ``type`` is written.
        if raw.get("type") == kind.__name__ and registry.is_choice_class(kind):
            raw = {key: value for key, value in raw.items() if key != "type"}
        if type(default) is kind:
            raw = {**_field_values(default), **raw}
        return _parse_fields(kind, raw, registry, key_path, errors)
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        candidates = [part for part in inner if _has_form_of(part, raw, registry)]
        if raw is None and NoneType in inner:
            return None
        is_scalar = plain_type(candidates[0]) in SCALAR_TYPES if len(candidates) == 1 else True
        return (
            _parse_scalar(candidates[0] if len(candidates) == 1 else kind, raw, key_path, errors, kind)
            if is_scalar
            else _parse_value(candidates[0], raw, registry, key_path, errors, default)
        )
    if origin is Annotated and get_origin(inner[0]) is tuple and isinstance(raw, (list, tuple)):
        min_length = next((part.min_length for part in inner[1:] if isinstance(part, (MinLen, Len))), 0)
        if len(raw) < min_length:
            errors.append(f"{key_path}: expected {describe_type(kind)}, got {quote_value(list(raw))}")
            return None
        return _parse_value(inner[0], raw, registry, key_path, errors)
    if origin is tuple and inner and isinstance(raw, (list, tuple)):
        kinds = [inner[0]] * len(raw) if inner[-1] is Ellipsis else list(inner)
        if len(kinds) == len(raw):
            return tuple(
                _parse_value(part, value, registry, f"{key_path}[{number}]", errors)
                for number, (part, value) in enumerate(zip(kinds, raw, strict=True))
            )
    if origin is dict and isinstance(raw, Mapping):
        invalid = [key for key in raw if not isinstance(key, str)]
        errors += [f"{key_path}: expected keys that are text, got {quote_value(key)}" for key in invalid]
        return {
            key: _parse_value(inner[1], value, registry, f"{key_path}.{_display_key(key)}", errors)
            for key, value in raw.items()
            if key not in invalid
        }
    return _parse_scalar(kind, raw, key_path, errors)


def _has_form_of(kind: Any, raw: Any, registry: Registry) -> bool:
    """Return whether a value has the form of one type of a union: a list, a mapping, or neither."""
    plain = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    if registry.choices(plain) is not None or is_dataclass(plain):
        return isinstance(raw, (Mapping, str))
    origin = get_origin(plain)
    return (
        isinstance(raw, (list, tuple))
        if origin is tuple
        else isinstance(raw, Mapping)
        if origin is dict
        else raw is None
        if plain is NoneType
        else not isinstance(raw, (list, tuple, Mapping))
    )


def _parse_scalar(kind: Any, raw: Any, key_path: str, errors: list[str], union: Any = None) -> Any:
    """Check a number, a text or another scalar against its type and bounds. ``union`` is the type that error messages describe."""
    if isinstance(raw, float) and raw.is_integer() and abs(raw) <= MAX_INT and plain_type(kind) is int:
        raw = int(raw)  # 1e3
    try:
        value = _get_adapter(kind).validate_python(raw) if _is_allowed_scalar(raw, kind) else MISSING
    except (ValidationError, OverflowError):
        value = MISSING
    if value is MISSING:
        errors.append(f"{key_path}: expected {describe_type(union or kind)}, got {quote_value(raw)}")
        return None
    return value + 0.0 if isinstance(value, float) else value  # converts -0.0 to 0.0


def _check_object(kind: Any, value: Any, registry: Registry, key_path: str, errors: list[str]) -> Any:
    """Check an object that was created in Python like a value from a file."""
    if not _is_instance(kind, value):
        errors.append(f"{key_path}: expected {getattr(kind, '__name__', kind)}, got {type(value).__name__}")
        return None
    corrections = _collect_corrections(value, registry, key_path, errors)
    return replace(value, **corrections) if corrections and not errors else value


def validate_fields(value: Any, registry: Registry) -> dict[str, Any]:
    """Check the fields of a dataclass instance as ``parse_value`` checks values from a file.

    Args:
        value: The instance.
        registry: The classes that can be chosen by name.

    Returns:
        New values for the fields whose values are equal to a value of the right type but have another type: 1 instead of 1.0, a list
        instead of a tuple, or a numpy scalar.

    Raises:
        UserError: There are mistakes; the message has one line per mistake, each with the path of its key.
    """
    errors: list[str] = []
    corrections = _collect_corrections(value, registry, "", errors)
    if errors:
        raise UserError("\n".join(errors))
    return corrections


def _collect_corrections(value: Any, registry: Registry, key_path: str, errors: list[str]) -> dict[str, Any]:
    """Return the fields to correct, and append mistakes to ``errors``."""
    kind: type = type(value)
    types, known, corrections = _field_types(kind), {f.name for f in fields(value)}, {}
    for name in sorted(vars(value).keys() - known):
        if not name.startswith("_") and not hasattr(type(value), name):
            errors.append(
                f"{key_path + '.' if key_path else ''}{name}: no field of the dataclass {type(value).__name__}; declare it as a "
                "field, so that it is part of the run id"
            )
    for f in fields(value):
        before = getattr(value, f.name)
        after = _parse_value(
            types.get(f.name, Any), before, registry, f"{key_path}.{f.name}" if key_path else f.name, errors, _field_default(f)
        )
        if f.init and not _is_identical(before, after):
            corrections[f.name] = after
    return corrections


def _is_identical(before: Any, after: Any) -> bool:
    """Return whether two equal values also have the same types."""
    if after is before:
        return True
    if type(after) is not type(before) or is_dataclass(after):
        return False
    return all(map(_is_identical, before, after)) if isinstance(after, tuple) else repr(after) == repr(before)


def _is_instance(kind: Any, value: Any) -> bool:
    if get_origin(kind) in (Union, UnionType):
        return any(_is_instance(part, value) for part in get_args(kind))
    if get_origin(kind) is Annotated:
        return _is_instance(get_args(kind)[0], value)
    if getattr(kind, "_is_protocol", False):
        return all(hasattr(value, name) for name in vars(kind) if name == "__call__" or not name.startswith("_"))
    return kind is Any or (isinstance(kind, type) and isinstance(value, kind))


def _is_allowed_scalar(value: Any, kind: Any) -> bool:
    """Return whether a value respects the general limits: the range of numbers, the length of text, and no control characters."""
    if kind is Any:
        return True
    bounds = get_args(kind)[1:] if get_origin(kind) is Annotated else ()
    if isinstance(value, bool):
        return True
    if isinstance(value, int):
        return any(isinstance(bound, Le) or (isinstance(bound, Interval) and bound.le is not None) for bound in bounds) or abs(value) <= (
            MAX_INT if plain_type(kind) is int else MAX_FLOAT
        )
    if isinstance(value, float):
        return value == 0 or MIN_FLOAT <= abs(value) <= MAX_FLOAT
    if isinstance(value, str):
        max_length = next((bound.max_length for bound in bounds if isinstance(bound, MaxLen)), MAX_TEXT_LENGTH)
        return len(value) <= max_length and not any(
            unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t" for character in value
        )
    return True


def plain_type(kind: Any) -> Any:
    """Return the type without annotations and without an alternative None; None if several types remain."""
    if get_origin(kind) is Annotated:
        return plain_type(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        parts = [part for part in get_args(kind) if part is not NoneType]
        return plain_type(parts[0]) if len(parts) == 1 else None
    return kind


@cache
def _cached_adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(strict_type(kind))


def _get_adapter(kind: Any) -> TypeAdapter[Any]:
    try:
        return _cached_adapter(kind)
    except TypeError:  # a type that cannot be hashed
        return TypeAdapter(strict_type(kind))


def strict_type(kind: Any) -> Any:
    """Return the type with strict validation, so that texts and truth values are not converted to numbers or vice versa."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return Annotated[(strict_type(inner[0]), *inner[1:])]  # type: ignore[return-value]
    if origin in (Union, UnionType):
        return Union[tuple(strict_type(part) for part in inner)]  # noqa: UP007
    return Annotated[kind, Strict()] if kind in SCALAR_TYPES else kind


def describe_type(kind: Any) -> str:
    """Describe the values that a type allows, for example ``a whole number from 1 to 1,000,000``."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return next((part.documentation for part in inner[1:] if isinstance(part, DocInfo)), "") or _describe_bounds(inner[0], inner[1:])
    if origin in (Union, UnionType):
        return " or ".join(describe_type(part) for part in inner)
    if origin is Literal:
        return " or ".join(repr(choice) for choice in inner)
    if origin is tuple and inner:
        return (
            f"a list, each part {describe_type(inner[0])}"
            if inner[-1] is Ellipsis
            else f"a list of {len(inner)}: {', '.join(describe_type(part) for part in inner)}"
        )
    if origin is dict or is_dataclass(kind):
        return "keys and values"
    return {NoneType: "null", bool: "true or false"}.get(kind) or _describe_bounds(kind, ())


def _describe_bounds(kind: Any, bounds: tuple[Any, ...]) -> str:
    """Describe a number or a text with its bounds."""
    if kind is str:
        has_minimum = any(isinstance(bound, (MinLen, Len)) for bound in bounds)
        max_length = next((bound.max_length for bound in bounds if isinstance(bound, MaxLen)), MAX_TEXT_LENGTH)
        return f"text of {'1 to' if has_minimum else 'at most'} {max_length:,} characters without control characters"
    if kind not in (int, float):
        return describe_type(kind) + (", at least one" if any(isinstance(bound, (MinLen, Len)) for bound in bounds) else "")
    low: tuple[float, bool] = (-MAX_INT if kind is int else -MAX_FLOAT, True)
    high: tuple[float, bool] = (MAX_INT if kind is int else MAX_FLOAT, True)
    for bound in (part for entry in bounds for part in (entry if isinstance(entry, Interval) else [entry])):
        low = (bound.ge, True) if isinstance(bound, Ge) else (bound.gt, False) if isinstance(bound, Gt) else low  # type: ignore
        high = (bound.le, True) if isinstance(bound, Le) else (bound.lt, False) if isinstance(bound, Lt) else high  # type: ignore
    if kind is float and low == (0, False):
        low = (MIN_FLOAT, True)
    name, form = ("a whole number", "{:,}") if kind is int else ("a number", "{:,g}")
    return f"{name} {'from' if low[1] else 'above'} {form.format(low[0])} {'to' if high[1] else 'and below'} {form.format(high[0])}"


@cache
def _field_types(kind: type) -> dict[str, Any]:
    """Return the types of the fields of a class; empty if the class refers to types that are imported for type checking only."""
    try:
        return get_type_hints(kind, include_extras=True)
    except (NameError, TypeError):
        return {}


def _parse_fields(kind: type, raw: Mapping[Any, Any], registry: Registry, key_path: str, errors: list[str]) -> Any:
    types = _field_types(kind)
    known = [f.name for f in fields(kind)]
    before = len(errors)
    for key in raw:
        if key not in known:
            match = closest_match(str(key), known) if isinstance(key, str) else None
            hint = f": did you mean {match!r}? It" if match else "; it"
            errors.append(
                f"{key_path + '.' if key_path else ''}{_display_key(key)}: {kind.__name__} has no such key{hint} has {', '.join(known)}"
            )
    for f in fields(kind):
        if f.name not in raw and _field_default(f) is MISSING:
            errors.append(f"{key_path + '.' if key_path else ''}{f.name}: this key is required")
    defaults = {f.name: _field_default(f) for f in fields(kind)}
    parsed = {
        key: _parse_value(types.get(key, Any), value, registry, f"{key_path}.{key}" if key_path else key, errors, defaults[key])
        for key, value in raw.items()
        if key in known
    }
    return None if len(errors) > before else kind(**parsed)


def _field_values(value: Any) -> dict[str, Any]:
    return {f.name: getattr(value, f.name) for f in fields(value)}


def _display_key(key: Any) -> str:
    """Return a key as error messages show it."""
    return key if isinstance(key, str) and len(key) <= 60 and key.isprintable() else quote_value(key)


def _unknown_choice_error(key_path: str, raw: Any, name: Any, choices: Mapping[str, type]) -> UserError:
    if not isinstance(name, str):
        return UserError(f"choose a class with `type:`; available: {', '.join(sorted(choices))}; got {quote_value(raw)}")
    return unknown_name_error(key_path.rsplit(".", 1)[-1], name, choices)


def _field_default(f: Field[Any]) -> Any:
    return f.default_factory() if f.default_factory is not MISSING else f.default


def dump_value(value: Any, registry: Registry) -> Any:
    """Convert a value to plain values that ``parse_value`` reads.

    A class from outside fedrift is represented by its registered name or import path and by a hash of its source.

    Args:
        value: A dataclass instance, a mapping, a list or a scalar.
        registry: The classes that can be chosen by name.
    """
    if is_dataclass(value) and not isinstance(value, type):
        field_values = {f.name: dump_value(getattr(value, f.name), registry) for f in fields(value)}
        if _top_package(type(value)) != PACKAGE:
            name = registry.name_of(type(value)) or import_path_of(type(value))
            return {"type": name, "source": hash_source(type(value)), **field_values}
        if registry.is_choice(value):
            return {"type": type(value).__name__, **field_values}
        return field_values
    if isinstance(value, Mapping):
        return {str(key): dump_value(part, registry) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [dump_value(part, registry) for part in value]
    return value


def hash_source(kind: type) -> str:
    """Return the sha256 of the source files of a class and of its base classes outside fedrift and the standard library."""
    digest = sha256()
    for cls in kind.__mro__:
        if _top_package(cls) not in (PACKAGE, *sys.stdlib_module_names):
            digest.update(_read_source(cls))
    return digest.hexdigest()


def _read_source(kind: type) -> bytes:
    try:
        return Path(str(inspect.getsourcefile(kind))).read_bytes()
    except (OSError, TypeError):  # a class in a notebook has no file
        try:
            return inspect.getsource(kind).encode()
        except (OSError, TypeError):
            raise UserError(
                f"the source of {kind.__module__}.{kind.__qualname__} cannot be read, but the run id depends on it; "
                "define the class in a file and import it"
            ) from None


def _top_package(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file of keys and values.

    Raises:
        UserError: The file cannot be read, is not valid YAML, or does not contain keys and values.
    """
    raw = parse_yaml(read_text(Path(path), "an experiment is YAML, e.g. experiments/demo.yaml"), str(path))
    if not isinstance(raw, dict):
        raise UserError(
            f"{path} contains no experiment: expected keys and values such as `dataset: bbc`, "
            f"got {'nothing' if raw is None else type(raw).__name__}"
        )
    return raw


def apply_overrides(raw: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Apply overrides to plain values.

    Args:
        raw: The keys and values, which are not modified.
        overrides: Changes as ``"key.key=value"``; each value is YAML.

    Returns:
        A dictionary with the changes.

    Raises:
        UserError: An override has another form, or its path leads through a value without keys.
    """
    for text in overrides:
        path, separator, value = text.partition("=")
        if not separator or not path:
            raise UserError(f"{quote_value(text)}: an override is written path=value, e.g. partition.severity=0.5")
        raw = set_key(raw, path.strip(), parse_yaml(value, f"the override {quote_value(text)}"))
    return raw


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
        raise UserError(f"{quote_value(path)}: {_display_key(head)} is {quote_value(inner)}, which has no keys to change")
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


__all__ = ["dump_yaml", "parse_yaml", "read_text"]
