"""Extensions: algorithms, partitions, probes and other parts that are defined outside the package.

There are three ways to make an extension available:

1. the decorator ``@fedrift.register("algorithm")`` on the class or function, in code that runs before the configuration is read;
2. an import path in the configuration, ``type: "my_package.my_module:MyAvg"`` or ``type: "my_file.py:MyAvg"``;
3. an entry point of an installed distribution, in the group of the kind: ``fedrift.algorithms``, ``fedrift.aggregators``,
   ``fedrift.optimizers``, ``fedrift.trainables``, ``fedrift.partitions``, ``fedrift.clusterings``, ``fedrift.probes``,
   ``fedrift.detectors``, ``fedrift.datasets`` or ``fedrift.models``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from functools import cache
from hashlib import sha256
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from .errors import UserError, unknown_name_error

T = TypeVar("T")
KINDS = ("algorithm", "aggregator", "optimizer", "trainable", "partition", "clustering", "probe", "detector", "dataset", "model")
FILE_MODULE_PREFIX = "_fedrift_file_"  # of the names of modules that are imported by the path of a file
_registered: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
_imported_files: dict[str, str] = {}
_import_paths: dict[int, str] = {}  # id of an object -> its import path, for objects from files, whose modules have no importable name


def register(kind: str, name: str | None = None) -> Callable[[T], T]:
    """Make a class or function available under a name in configurations.

    Args:
        kind: One of ``KINDS``.
        name: The name in configurations. Default: the object's own name.

    Returns:
        A decorator that returns its argument unchanged.

    Raises:
        UserError: The kind is unknown, or another object is registered under the name.

    Example:
        >>> import fedrift
        >>> @fedrift.register("detector")
        ... def too_short(evidence):
        ...     return []
    """
    if kind not in KINDS:
        raise unknown_name_error("kind of extension", kind, KINDS)

    def decorate(thing: T) -> T:
        key: str = name or str(getattr(thing, "__name__", ""))
        registered = _registered[kind].get(key)
        if registered is not None and _identity(registered) != _identity(thing):
            raise UserError(f"the {kind} {key!r} is registered already, by {_identity(registered)}; choose another name")
        _registered[kind][key] = thing
        return thing

    return decorate


def _identity(thing: Any) -> str:
    module = getattr(thing, "__module__", "?")  # a file can be imported under two names, by its path and by ``import``
    return f"{getattr(sys.modules.get(module), '__file__', None) or module}:{getattr(thing, '__qualname__', thing)}"


def extensions(kind: str) -> Mapping[str, Any]:
    """Return the extensions of a kind by name. The first call loads the entry points of installed distributions.

    Args:
        kind: One of ``KINDS``.

    Raises:
        UserError: An entry point cannot be loaded.
    """
    return {**_load_entry_points(kind), **_registered[kind]}


@cache
def _load_entry_points(kind: str) -> Mapping[str, Any]:
    return {point.name: _load(point) for point in entry_points(group=f"fedrift.{kind}s")}


def _load(point: EntryPoint) -> Any:
    try:
        return point.load()
    except Exception as error:
        raise UserError(
            f"the entry point {point.name} = {point.value} of the group {point.group} cannot be loaded: "
            f"{type(error).__name__}: {error}. Fix or uninstall that distribution"
        ) from error


def find_extension(kind: str, name: str) -> Any | None:
    """Return the extension of a kind by its registered name or import path; None if the name is neither.

    Raises:
        UserError: The name is an import path that cannot be imported.
    """
    available = extensions(kind)
    return available[name] if name in available else import_object(name) if is_import_path(name) else None


def is_import_path(name: object) -> bool:
    """Return whether a name is an import path: ``module:Name`` or ``file.py:Name``."""
    module, colon, attribute = name.rpartition(":") if isinstance(name, str) else ("", "", "")
    return bool(
        colon and attribute.isidentifier() and module and (module.endswith(".py") or all(part.isidentifier() for part in module.split(".")))
    )


def import_object(path: str) -> Any:
    """Import ``package.module:Name`` or ``file.py:Name``.

    A module is searched on ``sys.path`` and in the working directory. A file is found by its path, relative or absolute.

    Raises:
        UserError: The module or file cannot be imported, or does not define the name.
    """
    source, _, name = path.rpartition(":")
    module = _load_file(os.path.abspath(source)) if source.endswith(".py") else _import_module(source)
    if not hasattr(module, name):
        raise unknown_name_error(f"object in {source} named", name, (public for public in vars(module) if not public.startswith("_")))
    thing = getattr(module, name)
    if source.endswith(".py"):
        _import_paths[id(thing)] = path
        _imported_files[path] = os.path.abspath(source)
    return thing


def import_path_of(thing: Any) -> str:
    """Return the import path with which ``import_object`` finds a class or function."""
    module = thing.__module__
    if module.startswith(FILE_MODULE_PREFIX):  # the path of a file, on which this name depends, must not be part of a run id
        module = Path(str(sys.modules[module].__file__)).stem
    return _import_paths.get(id(thing)) or f"{module}:{thing.__qualname__}"


def _import_module(name: str) -> ModuleType:
    working_dir = os.getcwd()
    added = working_dir not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, working_dir)
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(f"cannot import {name}: {error}. Install it, or put it into the working directory {working_dir}") from error
    finally:
        if added:
            sys.path.remove(working_dir)


def imported_files() -> dict[str, str]:
    """Return the absolute path of the Python file of every import path that this process has used, such as ``mine.py:MyAvg``."""
    return dict(_imported_files)


def import_files(files: Mapping[str, str]) -> None:
    """Import what another process has imported from Python files, under the same import paths.

    Objects of these classes can be unpickled afterwards. Files that do not exist any more are skipped.

    Args:
        files: The result of ``imported_files`` in the other process.
    """
    for path, file in files.items():
        if os.path.exists(file):
            _import_paths[id(getattr(_load_file(file), path.rpartition(":")[2]))] = path


@cache
def _load_file(path: str) -> ModuleType:
    # The name of the file alone may be that of another file or of a library, whose source would be read in its place (`inspect`).
    spec = spec_from_file_location(f"{FILE_MODULE_PREFIX}{sha256(path.encode()).hexdigest()[:16]}", path)
    if spec is None or spec.loader is None or not os.path.exists(path):
        raise UserError(f"cannot import {path}: there is no such Python file")
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # the dataclass decorator reads sys.modules
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        raise UserError(f"cannot import {path}: {error}") from error
    return module
