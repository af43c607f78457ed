"""Reading YAML into the objects themselves: unknown keys refused with the nearest right one, ranges checked at the door.

A class that can stand in a place is named by ``is``: ``algorithm: {is: FedProx, mu: 0.1}``, or
``algorithm: FedProx`` where its defaults do. What may stand there is what its room exports.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from types import ModuleType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from .errors import UserError, nearest, unknown


class Rooms:
    """Which classes may stand where a type is asked for: ``{FedAvg: algorithms, ...}``."""

    def __init__(self, rooms: Mapping[type, ModuleType]) -> None:
        self.rooms = dict(rooms)

    def choices(self, kind: Any) -> dict[str, type] | None:
        """The classes by name, None if the type is no room's."""
        room = self.rooms.get(kind)
        if room is None:
            return None
        return {name: thing for name in room.__all__ if is_dataclass(thing := getattr(room, name))}  # type: ignore[misc]

    def named(self, value: Any) -> bool:
        """Whether a value's class is chosen by name, so that writing it down must say which."""
        return self.named_class(type(value))

    def named_class(self, wanted: type) -> bool:
        """Whether a class is one that may be chosen by name."""
        return any(wanted in (self.choices(kind) or {}).values() for kind in self.rooms)


def read(kind: Any, said: Any, rooms: Rooms, where: str = "") -> Any:
    """``said`` (plain YAML) as a ``kind``; all mistakes in one ``UserError``, each with its place."""
    wrong: list[str] = []
    value = _read(kind, said, rooms, where, wrong)
    if wrong:
        raise UserError("\n".join(wrong))
    return value


def _read(kind: Any, said: Any, rooms: Rooms, where: str, wrong: list[str], default: Any = MISSING) -> Any:
    if hasattr(said, "tolist"):  # a scalar or an array of numpy's
        said = said.tolist()
    if is_dataclass(said) and not isinstance(said, type):
        return _read_object(kind, said, rooms, where, wrong)
    choices = rooms.choices(kind)
    if choices is not None:
        if not isinstance(said, (str, Mapping)) and _is_instance(kind, said):
            wrong.append(f"{where}: {type(said).__name__} is no dataclass: write @dataclass(frozen=True) above the class, "
                         "so that its settings are part of the run's id")
            return None
        name = said if isinstance(said, str) else said.get("is") if isinstance(said, Mapping) else None
        if name is None and isinstance(said, Mapping) and default is not MISSING:
            name = type(default).__name__  # {mu: 0.1} changes the default, whichever class that is
        if name not in choices:
            wrong.append(f"{where}: {_unknown(where, name, choices)}")
            return None
        rest = {} if isinstance(said, str) else {key: value for key, value in said.items() if key != "is"}
        return _fields(choices[name], rest, rooms, where, wrong)
    if is_dataclass(kind) and isinstance(kind, type):
        if isinstance(said, str):  # a class with one leading field may be said by it alone: corpus: bbc
            said = {fields(kind)[0].name: said}
        if not isinstance(said, Mapping):
            wrong.append(f"{where}: wanted {kind.__name__} as keys and values, got {said!r}")
            return None
        if said.get("is") == kind.__name__ and rooms.named_class(kind):  # as it is written where others may stand
            said = {key: value for key, value in said.items() if key != "is"}
        return _fields(kind, said, rooms, where, wrong)
    inner = get_args(kind)
    if get_origin(kind) is tuple and inner and rooms.choices(inner[0]) is not None:
        if not isinstance(said, (list, tuple)):
            wrong.append(f"{where}: wanted a list, got {said!r}")
            return None
        return tuple(_read(inner[0], part, rooms, f"{where}[{number}]", wrong) for number, part in enumerate(said))
    try:
        value = _adapter(kind).validate_python(said)
        return 0.0 if isinstance(value, float) and value == 0 else value  # -0.0 equals 0.0 and is written as it
    except ValidationError as error:
        for problem in error.errors():
            wrong.append(f"{where}: {problem['msg'][0].lower()}{problem['msg'][1:]}, got {problem['input']!r}")
        return None


def _read_object(kind: Any, value: Any, rooms: Rooms, where: str, wrong: list[str]) -> Any:
    """An object that was made in Python, checked as if it had been read."""
    if not _is_instance(kind, value):
        wrong.append(f"{where}: wanted {getattr(kind, '__name__', kind)}, got {type(value).__name__}")
        return None
    changed = _corrections(value, rooms, where, wrong)
    return replace(value, **changed) if changed and not wrong else value


def correct_fields(value: Any, rooms: Rooms) -> dict[str, Any]:
    """Check the fields of an object as ``read`` checks those of a file.

    Returns:
        The fields whose values equal what their types ask for but are of another type (1 for 1.0, a list for a tuple, a scalar of
        numpy's), each as its type has it.

    Raises:
        UserError: with all mistakes, each with its place.
    """
    wrong: list[str] = []
    changed = _corrections(value, rooms, "", wrong)
    if wrong:
        raise UserError("\n".join(wrong))
    return changed


def _corrections(value: Any, rooms: Rooms, where: str, wrong: list[str]) -> dict[str, Any]:
    kind: type = type(value)
    types, known, changed = _types(kind), {f.name for f in fields(value)}, {}
    for name in sorted(vars(value).keys() - known):
        if not name.startswith("_") and not hasattr(type(value), name):
            wrong.append(f"{where + '.' if where else ''}{name}: no field of the dataclass {type(value).__name__}: declare it as "
                         "one, so that it is part of the run's id")
    for f in fields(value):
        before = getattr(value, f.name)
        after = _read(types.get(f.name, Any), before, rooms, f"{where}.{f.name}" if where else f.name, wrong, _default(f))
        if f.init and not _is_same(before, after):
            changed[f.name] = after
    return changed


def _is_same(before: Any, after: Any) -> bool:
    """Whether two equal values are of the same types too."""
    if after is before:
        return True
    if type(after) is not type(before) or is_dataclass(after):
        return False
    return all(map(_is_same, before, after)) if isinstance(after, tuple) else repr(after) == repr(before)


def _is_instance(kind: Any, value: Any) -> bool:
    if get_origin(kind) in (Union, UnionType):
        return any(_is_instance(part, value) for part in get_args(kind))
    if get_origin(kind) is Annotated:
        return _is_instance(get_args(kind)[0], value)
    if getattr(kind, "_is_protocol", False):
        return all(hasattr(value, name) for name in vars(kind) if name == "__call__" or not name.startswith("_"))
    return kind is Any or (isinstance(kind, type) and isinstance(value, kind))


@cache
def _cached_adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _adapter(kind: Any) -> TypeAdapter[Any]:
    try:
        return _cached_adapter(kind)
    except TypeError:  # a type that cannot be hashed
        return TypeAdapter(kind)


@cache
def _types(kind: type) -> dict[str, Any]:
    """The types of a class's fields; none where a user's class names types that exist for type checkers only."""
    try:
        return get_type_hints(kind, include_extras=True)
    except (NameError, TypeError):
        return {}


def _fields(kind: type, said: Mapping[str, Any], rooms: Rooms, where: str, wrong: list[str]) -> Any:
    types = _types(kind)
    known = [f.name for f in fields(kind)]
    for key in said:
        if key not in known:
            near = nearest(str(key), known)
            hint = f": did you mean {near!r}?" if near else ";"
            wrong.append(f"{where + '.' if where else ''}{key}: {kind.__name__} has no such key{hint} It has {', '.join(known)}")
    for f in fields(kind):
        if f.name not in said and _default(f) is MISSING:
            wrong.append(f"{where + '.' if where else ''}{f.name}: must be said")
    defaults = {f.name: _default(f) for f in fields(kind)}
    given = {key: _read(types[key], value, rooms, f"{where}.{key}" if where else key, wrong, defaults[key])
             for key, value in said.items() if key in known}
    return None if wrong else kind(**given)


def _unknown(where: str, name: Any, choices: Mapping[str, type]) -> UserError:
    if name is None:
        return UserError(f"say which one with `is:`; there are {', '.join(sorted(choices))}")
    return unknown(where.rsplit(".", 1)[-1], str(name), choices)


def _default(f: Field[Any]) -> Any:
    return f.default_factory() if f.default_factory is not MISSING else f.default


def write(value: Any, rooms: Rooms) -> Any:
    """Everything a value holds, as plain YAML that ``read`` takes back.

    A class that is not fedrift's is written by its import path and a digest of its source.
    """
    if is_dataclass(value) and not isinstance(value, type):
        said = {f.name: write(getattr(value, f.name), rooms) for f in fields(value)}
        if rooms.named(value):
            return {"is": type(value).__name__, **said}
        if _package(type(value)) != __package__:
            return {"is": f"{type(value).__module__}.{type(value).__qualname__}", "source": digest_source(type(value)), **said}
        return said
    if isinstance(value, Mapping):
        return {str(key): write(part, rooms) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [write(part, rooms) for part in value]
    return value


def digest_source(kind: type) -> str:
    """The sha256 of the files that a user's class and its bases are written in."""
    found = sha256()
    for each in kind.__mro__:
        if _package(each) not in (__package__, *sys.stdlib_module_names):
            found.update(_source(each))
    return found.hexdigest()


def _source(kind: type) -> bytes:
    try:
        return Path(str(inspect.getsourcefile(kind))).read_bytes()
    except (OSError, TypeError):  # a notebook has no file
        try:
            return inspect.getsource(kind).encode()
        except (OSError, TypeError):
            raise UserError(f"the source of {kind.__module__}.{kind.__qualname__} cannot be read, and the run's id is made from "
                            "it: write the class into a file and import it") from None


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def parse_yaml(text: str, where: str) -> Any:
    """YAML as plain values."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{where} is not YAML: {error}") from None


def load_yaml(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file, which have to be there."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file; an experiment is YAML, e.g. experiments/demo.yaml") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    said = parse_yaml(text, str(path))
    if not isinstance(said, dict):
        raise UserError(f"{path} holds no experiment: wanted keys and values such as `corpus: bbc`, "
                        f"got {'nothing' if said is None else type(said).__name__}")
    return said


def overridden(said: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """The YAML ``said`` with ``a.b=c`` overrides, each value YAML itself."""
    for text in overrides:
        path, sign, value = text.partition("=")
        if not sign or not path:
            raise UserError(f"{text!r}: an override is written path=value, e.g. partition.severity=0.5")
        said = override(said, path.strip(), parse_yaml(value, text))
    return said


def canonical(value: Any) -> Any:
    """Plain JSON without the fields that stand at their default: what ids were made from before they had a schema version."""
    if is_dataclass(value):
        said = {f.name: canonical(part) for f in fields(value) if (part := getattr(value, f.name)) != _default(f)}
        return {"is": type(value).__name__, **said}
    if isinstance(value, (list, tuple)):
        return [canonical(part) for part in value]
    return value


def override(said: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The YAML ``said`` with ``value`` at the dotted ``path``; a class said by its name alone is opened up."""
    head, _, rest = path.partition(".")
    inner = said.get(head)
    if not rest:
        return {**said, head: value}
    if isinstance(inner, str):
        inner = {"name": inner} if head == "corpus" else {"is": inner}
    return {**said, head: override(dict(inner or {}), rest, value)}


def edit(value: Any, changes: Mapping[str, Any]) -> Any:
    """A copy with other fields, by path: ``edit(e, {"partition__severity": 0})``. The changes are made together."""
    new: dict[str, Any] = {}
    for path, part in changes.items():
        head, _, rest = path.partition("__")
        if not hasattr(value, head):
            raise unknown(f"field of {type(value).__name__}", head, [f.name for f in fields(value)])
        new[head] = edit(new.get(head, getattr(value, head)), {rest: part}) if rest else part
    return replace(value, **new)
