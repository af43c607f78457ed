"""Changes of plain values and of configurations by the path of a key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

from ...core.errors import UserError, quote_value, unknown_name_error
from .yaml_text import MAX_DEPTH, display_key, parse_yaml


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
