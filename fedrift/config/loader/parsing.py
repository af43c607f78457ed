"""Conversion of plain values to configuration classes, with one message per mistake."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from annotated_types import Len, MinLen

from ...core.errors import UserError, closest_match, quote_value, unknown_name_error
from .choices import Registry
from .dumping import PACKAGE, top_package
from .scalars import SCALAR_TYPES, check_scalar, describe_type, plain_type
from .yaml_text import display_key

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

    Args:
        registry: The classes that can be chosen by name.
        errors: The mistakes so far, each with the path of its key.
    """

    registry: Registry
    errors: list[str] = field(default_factory=list)

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
