"""Classes that a configuration chooses by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import ModuleType
from typing import Any

from ...core.errors import UserError
from ...core.registry import extensions, import_object, is_import_path


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
        if not requested:  # it would be the base class without its own name
            return None
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
