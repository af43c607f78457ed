"""Conversion of plain values to configuration classes, with one message per mistake, and back to plain values."""

from __future__ import annotations

import inspect
import sys
import unicodedata
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import DocInfo, Ge, Gt, Interval, Le, Len, Lt, MaxLen, MinLen
from pydantic import Strict, TypeAdapter, ValidationError

from ...core.errors import UserError, closest_match, quote_value, unknown_name_error
from ...core.registry import import_path_of
from .choices import Registry
from .yaml_text import display_key

PACKAGE = __name__.partition(".")[0]
MAX_INT = 1_000_000  # largest absolute value of a whole number, unless the type of the field sets another bound
MIN_FLOAT, MAX_FLOAT = 1e-30, 1e30  # range of the absolute value of other numbers than 0, well within the range of float32
MAX_TEXT_LENGTH = 1000  # characters of a text, unless the type of the field sets another bound
SCALAR_TYPES = (bool, int, float, str)
MAX_REPORTED_ERRORS = 20  # in one error message


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
    parser = Parser(registry)
    value = parser.parse(kind, raw, key_path)
    errors = parser.errors
    if len(errors) > MAX_REPORTED_ERRORS:
        errors[MAX_REPORTED_ERRORS:] = [f"and {len(errors) - MAX_REPORTED_ERRORS:,} more mistakes"]
    if errors:
        raise UserError("\n".join(errors))
    return value


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
    parser = Parser(registry)
    corrections = parser.correct_fields(value, "")
    if parser.errors:
        raise UserError("\n".join(parser.errors))
    return corrections


@dataclass
class Parser:
    """Converts plain values to values of types, and collects the mistakes.

    After a mistake, a method returns None or an incomplete value.
    """

    registry: Registry  # the classes that can be chosen by name
    errors: list[str] = field(default_factory=list)  # the mistakes so far, each with the path of its key

    def parse(self, kind: Any, raw: Any, key_path: str, default: Any = MISSING) -> Any:
        """Convert plain values to a value of a type: a class chosen by name, a dataclass, a union, a list, a mapping or a scalar.

        Args:
            kind: The type.
            raw: The plain values.
            key_path: The path of the key, for error messages.
            default: The default of the field, whose own fields stay where ``raw`` does not change them. ``MISSING``: there is none.
        """
        if hasattr(raw, "tolist"):  # a numpy scalar or array
            raw = raw.tolist()
        if is_dataclass(raw) and not isinstance(raw, type):
            return self._check_object(kind, raw, key_path)
        if self.registry.choices(kind) is not None:
            return self._parse_choice(kind, raw, key_path, default)
        if is_dataclass(kind) and isinstance(kind, type):
            return self._parse_dataclass(kind, raw, key_path, default)
        origin = get_origin(kind)
        if origin in (Union, UnionType):
            return self._parse_union(kind, raw, key_path, default)
        if isinstance(raw, (list, tuple)) and _has_list_form(kind, raw):
            return self._parse_list(kind, raw, key_path)
        if origin is dict and isinstance(raw, Mapping):
            return self._parse_mapping(kind, raw, key_path)
        return self._parse_scalar(kind, raw, key_path, kind)

    def correct_fields(self, value: Any, key_path: str) -> dict[str, Any]:
        """Check the fields of a dataclass instance, and return new values for the fields whose values have another type."""
        kind: type = type(value)
        types, known, corrections = _field_types(kind), {f.name for f in fields(value)}, {}
        for name in sorted(vars(value).keys() - known):
            if not name.startswith("_") and not hasattr(type(value), name):
                self.errors.append(
                    f"{_join(key_path, name)}: no field of the dataclass {type(value).__name__}; declare it as a "
                    "field, so that it is part of the run id"
                )
        for f in fields(value):
            before = getattr(value, f.name)
            after = self.parse(types.get(f.name, Any), before, _join(key_path, f.name), _field_default(f))
            if f.init and not _is_identical(before, after):
                corrections[f.name] = after
        return corrections

    def _check_object(self, kind: Any, value: Any, key_path: str) -> Any:
        """Check an object that was created in Python like a value from a file."""
        if not _is_instance(kind, value):
            self.errors.append(f"{key_path}: expected {getattr(kind, '__name__', kind)}, got {type(value).__name__}")
            return None
        corrections = self.correct_fields(value, key_path)
        return replace(value, **corrections) if corrections and not self.errors else value

    def _parse_choice(self, kind: Any, raw: Any, key_path: str, default: Any) -> Any:
        """Create an instance of the class that ``raw`` names by its key ``type``, or by a text for a class with its defaults."""
        if not isinstance(raw, (str, Mapping)) and _is_instance(kind, raw):
            self.errors.append(
                f"{key_path}: {type(raw).__name__} is no dataclass; decorate the class with @dataclass(frozen=True), "
                "so that its settings are part of the run id"
            )
            return None
        name = raw if isinstance(raw, str) else raw.get("type") if isinstance(raw, Mapping) else None
        if isinstance(raw, Mapping) and "type" not in raw and is_dataclass(default):
            name = type(default).__name__  # without a type, the keys change the default value, whose other fields stay
            raw = {**_field_values(default), **raw}
        try:
            chosen = self.registry.resolve(kind, name) if isinstance(name, str) else None
        except UserError as error:
            self.errors.append(f"{key_path}: {error}")
            return None
        if chosen is None:
            self.errors.append(f"{key_path}: {_unknown_choice_error(key_path, raw, name, self.registry.choices(kind) or {})}")
            return None
        # A stored configuration also contains a hash of the source of classes from outside fedrift.
        reserved = ("type",) if top_package(chosen) == PACKAGE else ("type", "source")
        field_values = {} if isinstance(raw, str) else {key: value for key, value in raw.items() if key not in reserved}
        return self._parse_fields(chosen, field_values, key_path)

    def _parse_dataclass(self, kind: type, raw: Any, key_path: str, default: Any) -> Any:
        """Create an instance of a class that is not chosen by name."""
        if isinstance(raw, str) and _field_default(fields(kind)[0]) is MISSING:
            raw = {fields(kind)[0].name: raw}  # short form of a class with a required first field, such as dataset: bbc
        if not isinstance(raw, Mapping):
            self.errors.append(f"{key_path}: expected {kind.__name__} as keys and values, got {quote_value(raw)}")
            return None
        # The class is also a choice elsewhere, where ``type`` is written.
        if raw.get("type") == kind.__name__ and self.registry.is_choice_class(kind):
            raw = {key: value for key, value in raw.items() if key != "type"}
        if type(default) is kind:
            raw = {**_field_values(default), **raw}
        return self._parse_fields(kind, raw, key_path)

    def _parse_fields(self, kind: type, raw: Mapping[Any, Any], key_path: str) -> Any:
        """Create an instance of a dataclass from the values of its fields."""
        types, known = _field_types(kind), [f.name for f in fields(kind)]
        before = len(self.errors)
        for key in raw:
            if key not in known:
                match = closest_match(str(key), known) if isinstance(key, str) else None
                hint = f": did you mean {match!r}? It" if match else "; it"
                self.errors.append(f"{_join(key_path, display_key(key))}: {kind.__name__} has no such key{hint} has {', '.join(known)}")
        defaults = {f.name: _field_default(f) for f in fields(kind)}
        for name, default in defaults.items():
            if name not in raw and default is MISSING:
                self.errors.append(f"{_join(key_path, name)}: this key is required")
        parsed = {
            key: self.parse(types.get(key, Any), value, _join(key_path, key), defaults[key]) for key, value in raw.items() if key in known
        }
        return None if len(self.errors) > before else kind(**parsed)

    def _parse_union(self, kind: Any, raw: Any, key_path: str, default: Any) -> Any:
        """Convert a value to the alternative that has its form: a list, a mapping, or neither."""
        if raw is None and NoneType in get_args(kind):
            return None
        candidates = [part for part in get_args(kind) if self._has_form_of(part, raw)]
        if len(candidates) == 1 and plain_type(candidates[0]) not in SCALAR_TYPES:
            return self.parse(candidates[0], raw, key_path, default)
        return self._parse_scalar(candidates[0] if len(candidates) == 1 else kind, raw, key_path, kind)

    def _has_form_of(self, kind: Any, raw: Any) -> bool:
        """Return whether a value has the form of one type of a union: a list, a mapping, or neither."""
        plain = get_args(kind)[0] if get_origin(kind) is Annotated else kind
        if self.registry.choices(plain) is not None or is_dataclass(plain):
            return isinstance(raw, (Mapping, str))
        if plain is NoneType:
            return raw is None
        forms = {tuple: (list, tuple), dict: (Mapping,)}
        form = forms.get(get_origin(plain))  # type: ignore[arg-type]
        return isinstance(raw, form) if form else not isinstance(raw, (list, tuple, Mapping))

    def _parse_list(self, kind: Any, raw: list[Any] | tuple[Any, ...], key_path: str) -> Any:
        """Convert a list to a tuple, part by part."""
        if get_origin(kind) is Annotated:
            inner, *bounds = get_args(kind)
            if len(raw) < next((part.min_length for part in bounds if isinstance(part, (MinLen, Len))), 0):
                self.errors.append(f"{key_path}: expected {describe_type(kind)}, got {quote_value(list(raw))}")
                return None
            return self.parse(inner, raw, key_path)
        parts = get_args(kind)
        kinds = [parts[0]] * len(raw) if parts[-1] is Ellipsis else parts
        return tuple(self.parse(part, value, f"{key_path}[{number}]") for number, (part, value) in enumerate(zip(kinds, raw, strict=True)))

    def _parse_mapping(self, kind: Any, raw: Mapping[Any, Any], key_path: str) -> dict[str, Any]:
        """Convert a mapping whose keys are free texts, value by value."""
        invalid = [key for key in raw if not isinstance(key, str)]
        self.errors += [f"{key_path}: expected keys that are text, got {quote_value(key)}" for key in invalid]
        kind_of_value = get_args(kind)[1]
        return {key: self.parse(kind_of_value, value, f"{key_path}.{display_key(key)}") for key, value in raw.items() if key not in invalid}

    def _parse_scalar(self, kind: Any, raw: Any, key_path: str, described: Any) -> Any:
        """Check a scalar against its type and bounds. ``described`` is the type that the error message describes."""
        value = check_scalar(kind, raw)
        if value is MISSING:
            self.errors.append(f"{key_path}: expected {describe_type(described)}, got {quote_value(raw)}")
            return None
        return value


def _has_list_form(kind: Any, raw: list[Any] | tuple[Any, ...]) -> bool:
    """Return whether a type is a list that takes as many parts as ``raw`` has. The parser checks the bounds of an annotated list."""
    parts = get_args(kind)
    if get_origin(kind) is Annotated:
        return get_origin(parts[0]) is tuple
    return get_origin(kind) is tuple and bool(parts) and (parts[-1] is Ellipsis or len(parts) == len(raw))


def _join(key_path: str, key: str) -> str:
    """Return the path of a key below another key."""
    return f"{key_path}.{key}" if key_path else key


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


@cache
def _field_types(kind: type) -> dict[str, Any]:
    """Return the types of the fields of a class; empty if the class refers to types that are imported for type checking only."""
    try:
        return get_type_hints(kind, include_extras=True)
    except (NameError, TypeError):
        return {}


def _field_values(value: Any) -> dict[str, Any]:
    return {f.name: getattr(value, f.name) for f in fields(value)}


def _unknown_choice_error(key_path: str, raw: Any, name: Any, choices: Mapping[str, type]) -> UserError:
    if not isinstance(name, str):
        return UserError(f"choose a class with `type:`; available: {', '.join(sorted(choices))}; got {quote_value(raw)}")
    error = unknown_name_error(key_path.rsplit(".", 1)[-1], name, choices)
    if name.casefold() == "iid" and any("severity" in _field_types(choice) for choice in choices.values()):
        return UserError(f"{error}. Clients are IID at severity 0 of every partition: give partition.severity=0")
    return error


def _field_default(f: Field[Any]) -> Any:
    return f.default_factory() if f.default_factory is not MISSING else f.default


# Numbers, texts and other values without parts: which of them a type allows, and how an error message describes the type.


def check_scalar(kind: Any, raw: Any) -> Any:
    """Return a number, a text or another scalar in the type of its field, or ``MISSING`` if the type does not allow it."""
    if isinstance(raw, float) and raw.is_integer() and abs(raw) <= MAX_INT and plain_type(kind) is int:
        raw = int(raw)  # 1e3
    try:
        value = _get_adapter(kind).validate_python(raw) if _is_allowed_scalar(raw, kind) else MISSING
    except (ValidationError, OverflowError):
        return MISSING
    return value + 0.0 if isinstance(value, float) else value  # converts -0.0 to 0.0


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


# Back to plain values.


def dump_value(value: Any, registry: Registry) -> Any:
    """Convert a value to plain values that ``parse_value`` reads.

    A class from outside fedrift is represented by its registered name or import path and by a hash of its source.

    Args:
        value: A dataclass instance, a mapping, a list or a scalar.
        registry: The classes that can be chosen by name.
    """
    if is_dataclass(value) and not isinstance(value, type):
        field_values = {f.name: dump_value(getattr(value, f.name), registry) for f in fields(value)}
        if top_package(type(value)) != PACKAGE:
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


def hash_source(thing: Any) -> str:
    """Return the sha256 of the source files of a class and of its base classes outside fedrift and the standard library.

    Args:
        thing: The class; or a function, whose own file is read; or another object, for which its class is read.

    Raises:
        UserError: A source cannot be read.
    """
    while isinstance(thing, partial):
        thing = thing.func
    thing = inspect.unwrap(thing) if callable(thing) else thing
    digest = sha256()
    for part in [thing] if inspect.isroutine(thing) else (thing if isinstance(thing, type) else type(thing)).__mro__:
        if top_package(part) not in (PACKAGE, *sys.stdlib_module_names):
            digest.update(_read_source(part))
    return digest.hexdigest()


def _read_source(thing: Any) -> bytes:
    try:
        return Path(str(inspect.getsourcefile(thing))).read_bytes()
    except (OSError, TypeError):  # a class in a notebook has no file
        try:
            return inspect.getsource(thing).encode()
        except (OSError, TypeError):
            raise UserError(
                f"the source of {thing.__module__}.{thing.__qualname__} cannot be read, but the run id depends on it; "
                "define it in a file and import it"
            ) from None


def top_package(thing: Any) -> str:
    """Return the first part of the name of the module in which a class or function is defined."""
    return str(thing.__module__).partition(".")[0]
