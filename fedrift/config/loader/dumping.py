"""Conversion of configurations to plain values."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from ...core.errors import UserError
from ...core.registry import import_path_of
from .choices import Registry

PACKAGE = __name__.partition(".")[0]


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
