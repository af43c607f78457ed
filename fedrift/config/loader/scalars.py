"""Numbers, texts and other values without parts: which of them a type allows, and how an error message describes the type."""

from __future__ import annotations

import unicodedata
from dataclasses import MISSING, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import DocInfo, Ge, Gt, Interval, Le, Len, Lt, MaxLen, MinLen
from pydantic import Strict, TypeAdapter, ValidationError

MAX_INT = 1_000_000  # largest absolute value of a whole number, unless the type of the field sets another bound
MIN_FLOAT, MAX_FLOAT = 1e-30, 1e30  # range of the absolute value of other numbers than 0, well within the range of float32
MAX_TEXT_LENGTH = 1000  # characters of a text, unless the type of the field sets another bound
SCALAR_TYPES = (bool, int, float, str)


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
