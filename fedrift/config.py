"""Reading YAML into the objects themselves: unknown keys refused with the nearest right one, ranges checked at the door.

A class that can stand in a place is named by ``is``: ``algorithm: {is: FedProx, mu: 0.1}``, or
``algorithm: FedProx`` where its defaults do. What may stand there is what its room exports.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_origin, get_type_hints

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
    choices = rooms.choices(kind)
    if choices is not None:
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
        return TypeAdapter(kind).validate_python(said)
    except ValidationError as error:
        for problem in error.errors():
            wrong.append(f"{where}: {problem['msg'][0].lower()}{problem['msg'][1:]}, got {problem['input']!r}")
        return None


def _fields(kind: type, said: Mapping[str, Any], rooms: Rooms, where: str, wrong: list[str]) -> Any:
    types = get_type_hints(kind, include_extras=True)
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
    """Everything a value holds, as plain YAML that ``read`` takes back."""
    if is_dataclass(value):
        said = {f.name: write(getattr(value, f.name), rooms) for f in fields(value)}
        return {"is": type(value).__name__, **said} if rooms.named(value) else said
    if isinstance(value, (list, tuple)):
        return [write(part, rooms) for part in value]
    return value


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
    """Plain JSON without the fields that stand at their default: a new field leaves old ids alone."""
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
    """A copy with other fields, by path: ``edit(e, {"partition__severity": 0})``."""
    for path, new in changes.items():
        head, _, rest = path.partition("__")
        if not hasattr(value, head):
            raise unknown(f"field of {type(value).__name__}", head, [f.name for f in fields(value)])
        value = replace(value, **{head: edit(getattr(value, head), {rest: new}) if rest else new})
    return value
