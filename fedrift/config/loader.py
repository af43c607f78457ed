"""YAML as plain values, by the core schema of YAML 1.2, within limits: no text hangs or ends in a traceback.

PyYAML reads YAML 1.1, in which ``1:30`` is 90, ``010`` is 8, ``no`` is false and ``1e-3`` is text. Here they are text, 10, text
and a number. Not read at all: duplicate keys, tags, merge keys, keys that are lists or mappings, several documents, and whatever
its aliases make larger than ``NODES``.
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

MAX_BYTES = 250_000  # of a file: read in a few seconds, whatever is in it
MAX_NODES = 20_000  # values and keys, each counted as often as aliases repeat it
MAX_DEPTH = 50  # lists and mappings inside each other
MAX_DIGITS = 300  # of a whole number; longer ones stay text, which no number is made of

CORE_SCHEMA = {  # https://yaml.org/spec/1.2.2/#103-core-schema
    "null": (r"null|Null|NULL|~|", ["n", "N", "~", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.0123456789")),
}


class CoreLoader(yaml.SafeLoader):
    """PyYAML's loader with the types of YAML 1.2, which counts what it composes."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = self.num_composed = 0
        self.node_sizes: dict[int, int] = {}  # by the identity of a node: how many values it stands for

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "tag", None) not in (None, "!"):
            raise yaml_error(f"a tag, {quote_value(event.tag)}: tags are not read", event.start_mark)
        alias = self.check_event(yaml.AliasEvent)  # type: ignore[no-untyped-call]
        if alias and event.anchor in self.anchors and id(self.anchors[event.anchor]) not in self.node_sizes:
            raise yaml_error(f"the alias {quote_value(event.anchor)} stands inside what it repeats", event.start_mark)
        self.num_composed += 1
        if self.depth >= MAX_DEPTH:
            raise yaml_error(f"more than {MAX_DEPTH} lists or mappings inside each other", event.start_mark)
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
        found: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                raise yaml_error("a list or a mapping as a key; a key is a word", key_node.start_mark)
            if key_node.value == "<<" and key_node.style is None:
                raise yaml_error("the merge key <<, which is not read: write the keys out", key_node.start_mark)
            key = self.construct_object(key_node, deep=True)
            if key in found:
                raise yaml_error(f"the key {quote_value(key)} is given twice", key_node.start_mark)
            found[key] = self.construct_object(value_node, deep=deep)
        return found


def yaml_error(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def construct_int(loader: CoreLoader, node: ScalarNode) -> int | str:
    """A whole number; 010 is ten."""
    text = str(loader.construct_scalar(node))
    if len(text) > MAX_DIGITS:
        return text
    return int(text, 0 if text[:2] in ("0o", "0x") else 10)


def construct_float(loader: CoreLoader, node: ScalarNode) -> float:
    """A number with a fraction, an exponent, or none at all (.inf, .nan)."""
    text = str(loader.construct_scalar(node)).lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


CoreLoader.add_constructor("tag:yaml.org,2002:int", construct_int)
CoreLoader.add_constructor("tag:yaml.org,2002:float", construct_float)


class CoreDumper(yaml.SafeDumper):
    """PyYAML's dumper, which quotes what ``Core`` would not read as text."""


CoreLoader.yaml_implicit_resolvers = {}  # none of YAML 1.1
for name, (pattern, first) in CORE_SCHEMA.items():
    for side in (CoreLoader, CoreDumper):
        side.add_implicit_resolver(f"tag:yaml.org,2002:{name}", re.compile(rf"(?:{pattern})\Z"), first)


def dump_yaml(value: Any, **options: Any) -> str:
    """Plain values as YAML that ``parse_yaml`` reads back."""
    return str(yaml.dump(value, Dumper=CoreDumper, sort_keys=False, allow_unicode=True, **options))


def parse_yaml(text: str, source_name: str) -> Any:
    """YAML as plain values.

    Args:
        text: The YAML.
        where: What to call it in a refusal, such as the file's name.

    Raises:
        UserError: In one line, with the place in the text, where it is not YAML or is more than is read.
    """
    if len(text) > MAX_BYTES:
        raise UserError(f"{source_name} has {len(text):,} characters of YAML; at most {MAX_BYTES:,} are read")
    try:
        loader = CoreLoader(text)
        try:
            return loader.get_single_data()  # type: ignore[no-untyped-call]
        finally:
            loader.dispose()  # type: ignore[no-untyped-call]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = error.problem or error.context or "it cannot be read"
        raise UserError(f"{source_name} is not YAML that can be read: {place}{to_single_line(problem)}") from None
    except yaml.reader.ReaderError as error:
        raise UserError(
            f"{source_name} is not YAML that can be read: the character {error.character!r} at position {error.position:,} is not allowed"
        ) from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError, IndexError) as error:
        raise UserError(f"{source_name} is not YAML that can be read: {to_single_line(str(error))}") from None


def to_single_line(text: str, max_length: int = 200) -> str:
    """The words of a text in one line."""
    return " ".join(text.split())[:max_length]


def read_text(path: Path, example: str) -> str:
    """The text of a YAML file.

    Raises:
        UserError: If it cannot be read, is no plain file, is no UTF-8, or is too large. ``example`` says what is wanted.
    """
    shown = str(path) if len(str(path)) <= 200 else quote_value(str(path))
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"cannot read {shown}: it is {'a folder' if path.is_dir() else 'no plain file'}; {example}")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UserError(f"{shown} has {size:,} bytes; at most {MAX_BYTES:,} are read: {example}")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{shown} is not a text file in UTF-8; {example}") from None
    except OSError as error:
        raise UserError(f"cannot read {shown}: {error.strerror or error}") from None
    except ValueError as error:  # a NUL in the name
        raise UserError(f"cannot read {quote_value(str(path))}: {error}") from None


# Reading YAML into the objects themselves: unknown keys refused with the nearest right one, ranges checked at the door.
#
# A class that can stand in a place is named by ``type``: ``algorithm: {type: FedProx, mu: 0.1}``, or
# ``algorithm: FedProx`` where its defaults do. What may stand there is what its room exports.

MAX_INT = 1_000_000  # the largest whole number, either sign, where a field's type does not say another
MIN_FLOAT, MAX_FLOAT = 1e-30, 1e30  # sizes of any other number but 0, which float32 holds with room for squares of them
MAX_TEXT_LENGTH = 1000  # characters of a text, where a field's type does not say another
MAX_REPORTED_ERRORS = 20  # told at once
SCALAR_TYPES = (bool, int, float, str)
PACKAGE = __name__.partition(".")[0]


class Registry:
    """Which classes may stand where a type is asked for.

    Args:
        modules: For each base class the module whose ``__all__`` names the choices: ``{FedAvg: algorithms}``.
        kinds: For each base class the kind of extension (``core.registry.KINDS``) that may stand there too.
    """

    def __init__(self, modules: Mapping[type, ModuleType], kinds: Mapping[type, str] | None = None) -> None:
        self.modules, self.kinds = dict(modules), dict(kinds or {})

    def choices(self, kind: Any) -> dict[str, type] | None:
        """The classes by name, extensions included; None if the type is not chosen by name."""
        module = self.modules.get(kind)
        if module is None:
            return None
        own = {name: thing for name in module.__all__ if is_dataclass(thing := getattr(module, name))}
        return {**(extensions(self.kinds[kind]) if kind in self.kinds else {}), **own}  # type: ignore[dict-item]

    def is_choice(self, value: Any) -> bool:
        """Whether a value's class is chosen by name, so that writing it down must name it."""
        return self.is_choice_class(type(value))

    def is_choice_class(self, cls: type) -> bool:
        """Whether a class is one that may be chosen by name."""
        return any(cls in (self.choices(kind) or {}).values() for kind in self.modules)

    def name_of(self, cls: type) -> str | None:
        """The name that configurations choose a class by; None if it has none."""
        return next((name for kind in self.modules for name, each in (self.choices(kind) or {}).items() if each is cls), None)

    def resolve(self, kind: Any, name: str) -> type | None:
        """The class that a name stands for, or an import path: ``last_blocks`` is LastBlocks, ``text`` is TextClustering.

        Raises:
            UserError: An import path leads to no dataclass of this kind.
        """
        choices = self.choices(kind) or {}
        if name in choices:
            return choices[name]
        if kind in self.kinds and is_import_path(name):
            thing = import_object(name)
            if not (isinstance(thing, type) and issubclass(thing, kind) and is_dataclass(thing)):
                raise UserError(
                    f"{name} is no {kind.__name__}: write a frozen dataclass that is derived from {kind.__module__}.{kind.__name__}"
                )
            return thing
        if name.casefold() == "none" and kind.__name__.startswith("No"):
            return kind  # type: ignore[no-any-return]
        wanted, family = _plain_name(name), _plain_name(kind.__name__.removeprefix("No"))
        alike = {each for choice, each in choices.items() if wanted in (plain := _plain_name(choice), plain.removesuffix(family))}
        return alike.pop() if len(alike) == 1 else None


def _plain_name(name: str) -> str:
    return name.replace("_", "").replace("-", "").casefold()


def parse_value(kind: Any, raw: Any, registry: Registry, key_path: str = "") -> Any:
    """``said`` (plain YAML) as a ``kind``; all mistakes in one ``UserError``, one line each, with its place."""
    wrong: list[str] = []
    value = _parse_value(kind, raw, registry, key_path, wrong)
    if len(wrong) > MAX_REPORTED_ERRORS:
        wrong[MAX_REPORTED_ERRORS:] = [f"and {len(wrong) - MAX_REPORTED_ERRORS:,} more mistakes"]
    if wrong:
        raise UserError("\n".join(wrong))
    return value


def _parse_value(kind: Any, raw: Any, registry: Registry, key_path: str, errors: list[str], default: Any = MISSING) -> Any:
    """A value, by its type: a class of a room, a dataclass, one of several types, a list, a mapping, a plain value."""
    if hasattr(raw, "tolist"):  # a scalar or an array of numpy's
        raw = raw.tolist()
    if is_dataclass(raw) and not isinstance(raw, type):
        return _check_object(kind, raw, registry, key_path, errors)
    choices = registry.choices(kind)
    if choices is not None:
        if not isinstance(raw, (str, Mapping)) and _is_instance(kind, raw):
            errors.append(
                f"{key_path}: {type(raw).__name__} is no dataclass: write @dataclass(frozen=True) above the class, "
                "so that its settings are part of the run's id"
            )
            return None
        name = raw if isinstance(raw, str) else raw.get("type") if isinstance(raw, Mapping) else None
        if isinstance(raw, Mapping) and "type" not in raw and is_dataclass(default):
            name = type(default).__name__  # {mu: 0.1} changes the default, whichever class that is, and keeps its other values
            raw = {**_field_values(default), **raw}
        try:
            chosen = registry.resolve(kind, name) if isinstance(name, str) else None
        except UserError as error:
            errors.append(f"{key_path}: {error}")
            return None
        if chosen is None:
            errors.append(f"{key_path}: {_unknown_choice_error(key_path, raw, name, choices)}")
            return None
        aside = ("type",) if _top_package(chosen) == PACKAGE else ("type", "source")  # the digest beside a stored class of a user
        rest = {} if isinstance(raw, str) else {key: value for key, value in raw.items() if key not in aside}
        return _parse_fields(chosen, rest, registry, key_path, errors)
    if is_dataclass(kind) and isinstance(kind, type):
        if isinstance(raw, str) and _field_default(fields(kind)[0]) is MISSING:  # what must be given may stand alone: dataset: bbc
            raw = {fields(kind)[0].name: raw}
        if not isinstance(raw, Mapping):
            errors.append(f"{key_path}: wanted {kind.__name__} as keys and values, got {quote_value(raw)}")
            return None
        if raw.get("type") == kind.__name__ and registry.is_choice_class(kind):  # as it is written where others may stand
            raw = {key: value for key, value in raw.items() if key != "type"}
        if type(default) is kind:
            raw = {**_field_values(default), **raw}
        return _parse_fields(kind, raw, registry, key_path, errors)
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        fitting = [part for part in inner if _has_form_of(part, raw, registry)]
        if raw is None and NoneType in inner:
            return None
        whole = plain_type(fitting[0]) in SCALAR_TYPES if len(fitting) == 1 else True
        return (
            _parse_scalar(fitting[0] if len(fitting) == 1 else kind, raw, key_path, errors, kind)
            if whole
            else _parse_value(fitting[0], raw, registry, key_path, errors, default)
        )
    if origin is Annotated and get_origin(inner[0]) is tuple and isinstance(raw, (list, tuple)):
        least = next((part.min_length for part in inner[1:] if isinstance(part, (MinLen, Len))), 0)
        if len(raw) < least:
            errors.append(f"{key_path}: wanted {describe_type(kind)}, got {quote_value(list(raw))}")
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
        odd = [key for key in raw if not isinstance(key, str)]
        errors += [f"{key_path}: wanted keys that are words, got {quote_value(key)}" for key in odd]
        return {
            key: _parse_value(inner[1], value, registry, f"{key_path}.{_display_key(key)}", errors)
            for key, value in raw.items()
            if key not in odd
        }
    return _parse_scalar(kind, raw, key_path, errors)


def _has_form_of(kind: Any, raw: Any, registry: Registry) -> bool:
    """Whether a value has the form of a type that is one of several: a list, keys and values, or neither."""
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
    """A number, a text or the like: of its own type, finite, and within bounds. ``among``: the types of which it is one."""
    if isinstance(raw, float) and raw.is_integer() and abs(raw) <= MAX_INT and plain_type(kind) is int:
        raw = int(raw)  # 1e3
    try:
        value = _get_adapter(kind).validate_python(raw) if _is_allowed_scalar(raw, kind) else MISSING
    except (ValidationError, OverflowError):
        value = MISSING
    if value is MISSING:
        errors.append(f"{key_path}: wanted {describe_type(union or kind)}, got {quote_value(raw)}")
        return None
    return value + 0.0 if isinstance(value, float) else value  # there is one zero


def _check_object(kind: Any, value: Any, registry: Registry, key_path: str, errors: list[str]) -> Any:
    """An object that was made in Python, checked as if it had been read."""
    if not _is_instance(kind, value):
        errors.append(f"{key_path}: wanted {getattr(kind, '__name__', kind)}, got {type(value).__name__}")
        return None
    changed = _collect_corrections(value, registry, key_path, errors)
    return replace(value, **changed) if changed and not errors else value


def validate_fields(value: Any, registry: Registry) -> dict[str, Any]:
    """Check the fields of an object as ``read`` checks those of a file.

    Returns:
        The fields whose values equal what their types ask for but are of another type (1 for 1.0, a list for a tuple, a scalar of
        numpy's), each as its type has it.

    Raises:
        UserError: with all mistakes, each with its place.
    """
    wrong: list[str] = []
    changed = _collect_corrections(value, registry, "", wrong)
    if wrong:
        raise UserError("\n".join(wrong))
    return changed


def _collect_corrections(value: Any, registry: Registry, key_path: str, errors: list[str]) -> dict[str, Any]:
    kind: type = type(value)
    types, known, changed = _field_types(kind), {f.name for f in fields(value)}, {}
    for name in sorted(vars(value).keys() - known):
        if not name.startswith("_") and not hasattr(type(value), name):
            errors.append(
                f"{key_path + '.' if key_path else ''}{name}: no field of the dataclass {type(value).__name__}: declare it as "
                "one, so that it is part of the run's id"
            )
    for f in fields(value):
        before = getattr(value, f.name)
        after = _parse_value(
            types.get(f.name, Any), before, registry, f"{key_path}.{f.name}" if key_path else f.name, errors, _field_default(f)
        )
        if f.init and not _is_identical(before, after):
            changed[f.name] = after
    return changed


def _is_identical(before: Any, after: Any) -> bool:
    """Whether two equal values are of the same types too."""
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
    """Whether any field may hold this value: a number of a size that is computed with, or a text without control characters."""
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
        most = next((bound.max_length for bound in bounds if isinstance(bound, MaxLen)), MAX_TEXT_LENGTH)
        return len(value) <= most and not any(unicodedata.category(letter) in ("Cc", "Cs") and letter not in "\n\t" for letter in value)
    return True


def plain_type(kind: Any) -> Any:
    """The plain type under annotations and beside None; None if there are several."""
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
    """The type without conversions: no text and no truth value is a number, no number is a text."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return Annotated[(strict_type(inner[0]), *inner[1:])]  # type: ignore[return-value]
    if origin in (Union, UnionType):
        return Union[tuple(strict_type(part) for part in inner)]  # noqa: UP007
    return Annotated[kind, Strict()] if kind in SCALAR_TYPES else kind


def describe_type(kind: Any) -> str:
    """What a type takes, in words: ``a whole number from 1 to 1,000,000``."""
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
    """A number or a text with its bounds, in words."""
    if kind is str:
        least = any(isinstance(bound, (MinLen, Len)) for bound in bounds)
        most = next((bound.max_length for bound in bounds if isinstance(bound, MaxLen)), MAX_TEXT_LENGTH)
        return f"text of {'1 to' if least else 'at most'} {most:,} characters without control characters"
    if kind not in (int, float):
        return describe_type(kind) + (", at least one" if any(isinstance(bound, (MinLen, Len)) for bound in bounds) else "")
    low: tuple[float, bool] = (-MAX_INT if kind is int else -MAX_FLOAT, True)
    high: tuple[float, bool] = (MAX_INT if kind is int else MAX_FLOAT, True)
    for bound in (one for each in bounds for one in (each if isinstance(each, Interval) else [each])):
        low = (bound.ge, True) if isinstance(bound, Ge) else (bound.gt, False) if isinstance(bound, Gt) else low  # type: ignore
        high = (bound.le, True) if isinstance(bound, Le) else (bound.lt, False) if isinstance(bound, Lt) else high  # type: ignore
    if kind is float and low == (0, False):
        low = (MIN_FLOAT, True)
    name, form = ("a whole number", "{:,}") if kind is int else ("a number", "{:,g}")
    return f"{name} {'from' if low[1] else 'above'} {form.format(low[0])} {'to' if high[1] else 'and below'} {form.format(high[0])}"


@cache
def _field_types(kind: type) -> dict[str, Any]:
    """The types of a class's fields; none where a user's class names types that exist for type checkers only."""
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
            near = closest_match(str(key), known) if isinstance(key, str) else None
            hint = f": did you mean {near!r}?" if near else ";"
            errors.append(
                f"{key_path + '.' if key_path else ''}{_display_key(key)}: {kind.__name__} has no such key{hint} It has {', '.join(known)}"
            )
    for f in fields(kind):
        if f.name not in raw and _field_default(f) is MISSING:
            errors.append(f"{key_path + '.' if key_path else ''}{f.name}: must be said")
    defaults = {f.name: _field_default(f) for f in fields(kind)}
    given = {
        key: _parse_value(types.get(key, Any), value, registry, f"{key_path}.{key}" if key_path else key, errors, defaults[key])
        for key, value in raw.items()
        if key in known
    }
    return None if len(errors) > before else kind(**given)


def _field_values(value: Any) -> dict[str, Any]:
    return {f.name: getattr(value, f.name) for f in fields(value)}


def _display_key(key: Any) -> str:
    """A key as a message names it."""
    return key if isinstance(key, str) and len(key) <= 60 and key.isprintable() else quote_value(key)


def _unknown_choice_error(key_path: str, raw: Any, name: Any, choices: Mapping[str, type]) -> UserError:
    if not isinstance(name, str):
        return UserError(f"say which one with `type:`; there are {', '.join(sorted(choices))}; got {quote_value(raw)}")
    return unknown_name_error(key_path.rsplit(".", 1)[-1], name, choices)


def _field_default(f: Field[Any]) -> Any:
    return f.default_factory() if f.default_factory is not MISSING else f.default


def dump_value(value: Any, registry: Registry) -> Any:
    """Everything a value holds, as plain YAML that ``read`` takes back.

    A class that is not fedrift's is written by its import path and a digest of its source.
    """
    if is_dataclass(value) and not isinstance(value, type):
        said = {f.name: dump_value(getattr(value, f.name), registry) for f in fields(value)}
        if _top_package(type(value)) != PACKAGE:
            return {"type": registry.name_of(type(value)) or import_path_of(type(value)), "source": hash_source(type(value)), **said}
        if registry.is_choice(value):
            return {"type": type(value).__name__, **said}
        return said
    if isinstance(value, Mapping):
        return {str(key): dump_value(part, registry) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [dump_value(part, registry) for part in value]
    return value


def hash_source(kind: type) -> str:
    """The sha256 of the files that a user's class and its bases are written in."""
    found = sha256()
    for each in kind.__mro__:
        if _top_package(each) not in (PACKAGE, *sys.stdlib_module_names):
            found.update(_read_source(each))
    return found.hexdigest()


def _read_source(kind: type) -> bytes:
    try:
        return Path(str(inspect.getsourcefile(kind))).read_bytes()
    except (OSError, TypeError):  # a notebook has no file
        try:
            return inspect.getsource(kind).encode()
        except (OSError, TypeError):
            raise UserError(
                f"the source of {kind.__module__}.{kind.__qualname__} cannot be read, and the run's id is made from "
                "it: write the class into a file and import it"
            ) from None


def _top_package(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def load_yaml(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file, which have to be there."""
    said = parse_yaml(read_text(Path(path), "an experiment is YAML, e.g. experiments/demo.yaml"), str(path))
    if not isinstance(said, dict):
        raise UserError(
            f"{path} holds no experiment: wanted keys and values such as `dataset: bbc`, "
            f"got {'nothing' if said is None else type(said).__name__}"
        )
    return said


def apply_overrides(raw: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """The YAML ``said`` with ``a.b=c`` overrides, each value YAML itself."""
    for text in overrides:
        path, sign, value = text.partition("=")
        if not sign or not path:
            raise UserError(f"{quote_value(text)}: an override is written path=value, e.g. partition.severity=0.5")
        raw = set_key(raw, path.strip(), parse_yaml(value, f"the override {quote_value(text)}"))
    return raw


def set_key(raw: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The YAML ``said`` with ``value`` at the dotted ``path``; a class said by its name alone is opened up."""
    head, _, rest = path.partition(".")
    inner = raw.get(head)
    if not head or path.count(".") > MAX_DEPTH:
        raise UserError(f"{quote_value(path)}: a path is keys with dots between them, e.g. partition.severity")
    if not rest:
        if path != head:
            raise UserError(f"{quote_value(path)}: a path ends with a key, e.g. partition.severity")
        return {**raw, head: value}
    if isinstance(inner, str):
        inner = {"name": inner} if head == "dataset" else {"type": inner}
    if inner is not None and not isinstance(inner, Mapping):
        raise UserError(f"{quote_value(path)}: {_display_key(head)} is {quote_value(inner)}, which has no keys to change")
    return {**raw, head: set_key(dict(inner or {}), rest, value)}


def edit_config(value: Any, changes: Mapping[str, Any]) -> Any:
    """A copy with other fields, by path: ``edit(e, {"partition__severity": 0})``. The changes are made together."""
    new: dict[str, Any] = {}
    for path, part in changes.items():
        head, _, rest = path.partition("__")
        if not hasattr(value, head):
            raise unknown_name_error(f"field of {type(value).__name__}", head, [f.name for f in fields(value)])
        new[head] = edit_config(new.get(head, getattr(value, head)), {rest: part}) if rest else part
    return replace(value, **new)


__all__ = ["dump_yaml", "parse_yaml", "read_text"]
