"""Reading YAML into the objects themselves: unknown keys refused with the nearest right one, ranges checked at the door.

A class that can stand in a place is named by ``is``: ``algorithm: {is: FedProx, mu: 0.1}``, or
``algorithm: FedProx`` where its defaults do. What may stand there is what its room exports.
"""

from __future__ import annotations

import inspect
import sys
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import DocInfo, Ge, Gt, Interval, Le, Len, Lt, MaxLen, MinLen
from pydantic import Strict, TypeAdapter, ValidationError

from .errors import UserError, nearest, quote, unknown
from .yaml_text import DEPTH, read_text
from .yaml_text import dump_yaml as dump_yaml
from .yaml_text import parse_yaml as parse_yaml

WHOLE = 1_000_000  # the largest whole number, either sign, where a field's type does not say another
SMALLEST, LARGEST = 1e-30, 1e30  # sizes of any other number but 0, which float32 holds with room for squares of them
TEXT = 1000  # characters of a text, where a field's type does not say another
MISTAKES = 20  # told at once
PLAIN = (bool, int, float, str)


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
    """``said`` (plain YAML) as a ``kind``; all mistakes in one ``UserError``, one line each, with its place."""
    wrong: list[str] = []
    value = _read(kind, said, rooms, where, wrong)
    if len(wrong) > MISTAKES:
        wrong[MISTAKES:] = [f"and {len(wrong) - MISTAKES:,} more mistakes"]
    if wrong:
        raise UserError("\n".join(wrong))
    return value


def _read(kind: Any, said: Any, rooms: Rooms, where: str, wrong: list[str], default: Any = MISSING) -> Any:
    """A value, by its type: a class of a room, a dataclass, one of several types, a list, a mapping, a plain value."""
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
        if name is None and isinstance(said, Mapping) and "is" not in said and default is not MISSING:
            name = type(default).__name__  # {mu: 0.1} changes the default, whichever class that is
        if not isinstance(name, str) or name not in choices:
            wrong.append(f"{where}: {_unknown(where, said, name, choices)}")
            return None
        rest = {} if isinstance(said, str) else {key: value for key, value in said.items() if key != "is"}
        return _fields(choices[name], rest, rooms, where, wrong)
    if is_dataclass(kind) and isinstance(kind, type):
        if isinstance(said, str) and _default(fields(kind)[0]) is MISSING:  # what must be said may be said alone: corpus: bbc
            said = {fields(kind)[0].name: said}
        if not isinstance(said, Mapping):
            wrong.append(f"{where}: wanted {kind.__name__} as keys and values, got {quote(said)}")
            return None
        if said.get("is") == kind.__name__ and rooms.named_class(kind):  # as it is written where others may stand
            said = {key: value for key, value in said.items() if key != "is"}
        return _fields(kind, said, rooms, where, wrong)
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        fitting = [part for part in inner if _may_hold(part, said, rooms)]
        if said is None and NoneType in inner:
            return None
        whole = kind_of(fitting[0]) in PLAIN if len(fitting) == 1 else True
        return _read_plain(fitting[0] if len(fitting) == 1 else kind, said, where, wrong, kind) if whole else \
            _read(fitting[0], said, rooms, where, wrong, default)
    if origin is Annotated and get_origin(inner[0]) is tuple and isinstance(said, (list, tuple)):
        least = next((part.min_length for part in inner[1:] if isinstance(part, (MinLen, Len))), 0)
        if len(said) < least:
            wrong.append(f"{where}: wanted {allowed(kind)}, got {quote(list(said))}")
            return None
        return _read(inner[0], said, rooms, where, wrong)
    if origin is tuple and inner and isinstance(said, (list, tuple)):
        kinds = [inner[0]] * len(said) if inner[-1] is Ellipsis else list(inner)
        if len(kinds) == len(said):
            return tuple(_read(part, value, rooms, f"{where}[{number}]", wrong)
                         for number, (part, value) in enumerate(zip(kinds, said, strict=True)))
    if origin is dict and isinstance(said, Mapping):
        odd = [key for key in said if not isinstance(key, str)]
        wrong += [f"{where}: wanted keys that are words, got {quote(key)}" for key in odd]
        return {key: _read(inner[1], value, rooms, f"{where}.{_short(key)}", wrong) for key, value in said.items()
                if key not in odd}
    return _read_plain(kind, said, where, wrong)


def _may_hold(kind: Any, said: Any, rooms: Rooms) -> bool:
    """Whether a value has the form of a type that is one of several: a list, keys and values, or neither."""
    plain = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    if rooms.choices(plain) is not None or is_dataclass(plain):
        return isinstance(said, (Mapping, str))
    origin = get_origin(plain)
    return isinstance(said, (list, tuple)) if origin is tuple else isinstance(said, Mapping) if origin is dict else \
        said is None if plain is NoneType else not isinstance(said, (list, tuple, Mapping))


def _read_plain(kind: Any, said: Any, where: str, wrong: list[str], among: Any = None) -> Any:
    """A number, a text or the like: of its own type, finite, and within bounds. ``among``: the types of which it is one."""
    if isinstance(said, float) and said.is_integer() and abs(said) <= WHOLE and kind_of(kind) is int:
        said = int(said)  # 1e3
    try:
        value = _adapter(kind).validate_python(said) if _is_sound(said, kind) else MISSING
    except (ValidationError, OverflowError):
        value = MISSING
    if value is MISSING:
        wrong.append(f"{where}: wanted {allowed(among or kind)}, got {quote(said)}")
        return None
    return value + 0.0 if isinstance(value, float) else value  # there is one zero


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


def _is_sound(value: Any, kind: Any) -> bool:
    """Whether any field may hold this value: a number of a size that is computed with, or a text without control characters."""
    if kind is Any:
        return True
    bounds = get_args(kind)[1:] if get_origin(kind) is Annotated else ()
    if isinstance(value, bool):
        return True
    if isinstance(value, int):
        return any(isinstance(bound, Le) or (isinstance(bound, Interval) and bound.le is not None) for bound in bounds) \
            or abs(value) <= (WHOLE if kind_of(kind) is int else LARGEST)
    if isinstance(value, float):
        return value == 0 or SMALLEST <= abs(value) <= LARGEST
    if isinstance(value, str):
        most = next((bound.max_length for bound in bounds if isinstance(bound, MaxLen)), TEXT)
        return len(value) <= most and not any(
            unicodedata.category(letter) in ("Cc", "Cs") and letter not in "\n\t" for letter in value)
    return True


def kind_of(kind: Any) -> Any:
    """The plain type under annotations and beside None; None if there are several."""
    if get_origin(kind) is Annotated:
        return kind_of(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        parts = [part for part in get_args(kind) if part is not NoneType]
        return kind_of(parts[0]) if len(parts) == 1 else None
    return kind


@cache
def _cached_adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(strict(kind))


def _adapter(kind: Any) -> TypeAdapter[Any]:
    try:
        return _cached_adapter(kind)
    except TypeError:  # a type that cannot be hashed
        return TypeAdapter(strict(kind))


def strict(kind: Any) -> Any:
    """The type without conversions: no text and no truth value is a number, no number is a text."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return Annotated[(strict(inner[0]), *inner[1:])]  # type: ignore[return-value]
    if origin in (Union, UnionType):
        return Union[tuple(strict(part) for part in inner)]  # noqa: UP007
    return Annotated[kind, Strict()] if kind in PLAIN else kind


def allowed(kind: Any) -> str:
    """What a type takes, in words: ``a whole number from 1 to 1,000,000``."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return next((part.documentation for part in inner[1:] if isinstance(part, DocInfo)), "") or \
            _bounded(inner[0], inner[1:])
    if origin in (Union, UnionType):
        return " or ".join(allowed(part) for part in inner)
    if origin is Literal:
        return " or ".join(repr(choice) for choice in inner)
    if origin is tuple and inner:
        return f"a list, each part {allowed(inner[0])}" if inner[-1] is Ellipsis else \
            f"a list of {len(inner)}: {', '.join(allowed(part) for part in inner)}"
    if origin is dict or is_dataclass(kind):
        return "keys and values"
    return {NoneType: "null", bool: "true or false"}.get(kind) or _bounded(kind, ())


def _bounded(kind: Any, bounds: tuple[Any, ...]) -> str:
    """A number or a text with its bounds, in words."""
    if kind is str:
        least = any(isinstance(bound, (MinLen, Len)) for bound in bounds)
        most = next((bound.max_length for bound in bounds if isinstance(bound, MaxLen)), TEXT)
        return f"text of {'1 to' if least else 'at most'} {most:,} characters without control characters"
    if kind not in (int, float):
        return allowed(kind) + (", at least one" if any(isinstance(bound, (MinLen, Len)) for bound in bounds) else "")
    low: tuple[float, bool] = (-WHOLE if kind is int else -LARGEST, True)
    high: tuple[float, bool] = (WHOLE if kind is int else LARGEST, True)
    for bound in (one for each in bounds for one in (each if isinstance(each, Interval) else [each])):
        low = (bound.ge, True) if isinstance(bound, Ge) else (bound.gt, False) if isinstance(bound, Gt) else low  # type: ignore
        high = (bound.le, True) if isinstance(bound, Le) else (bound.lt, False) if isinstance(bound, Lt) else high  # type: ignore
    if kind is float and low == (0, False):
        low = (SMALLEST, True)
    name, form = ("a whole number", "{:,}") if kind is int else ("a number", "{:,g}")
    return (f"{name} {'from' if low[1] else 'above'} {form.format(low[0])} {'to' if high[1] else 'and below'} "
            f"{form.format(high[0])}")


@cache
def _types(kind: type) -> dict[str, Any]:
    """The types of a class's fields; none where a user's class names types that exist for type checkers only."""
    try:
        return get_type_hints(kind, include_extras=True)
    except (NameError, TypeError):
        return {}


def _fields(kind: type, said: Mapping[Any, Any], rooms: Rooms, where: str, wrong: list[str]) -> Any:
    types = _types(kind)
    known = [f.name for f in fields(kind)]
    before = len(wrong)
    for key in said:
        if key not in known:
            near = nearest(str(key), known) if isinstance(key, str) else None
            hint = f": did you mean {near!r}?" if near else ";"
            wrong.append(f"{where + '.' if where else ''}{_short(key)}: {kind.__name__} has no such key{hint} "
                         f"It has {', '.join(known)}")
    for f in fields(kind):
        if f.name not in said and _default(f) is MISSING:
            wrong.append(f"{where + '.' if where else ''}{f.name}: must be said")
    defaults = {f.name: _default(f) for f in fields(kind)}
    given = {key: _read(types.get(key, Any), value, rooms, f"{where}.{key}" if where else key, wrong, defaults[key])
             for key, value in said.items() if key in known}
    return None if len(wrong) > before else kind(**given)


def _short(key: Any) -> str:
    """A key as a message names it."""
    return key if isinstance(key, str) and len(key) <= 60 and key.isprintable() else quote(key)


def _unknown(where: str, said: Any, name: Any, choices: Mapping[str, type]) -> UserError:
    if not isinstance(name, str):
        return UserError(f"say which one with `is:`; there are {', '.join(sorted(choices))}; got {quote(said)}")
    return unknown(where.rsplit(".", 1)[-1], name, choices)


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


def load_yaml(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file, which have to be there."""
    said = parse_yaml(read_text(Path(path), "an experiment is YAML, e.g. experiments/demo.yaml"), str(path))
    if not isinstance(said, dict):
        raise UserError(f"{path} holds no experiment: wanted keys and values such as `corpus: bbc`, "
                        f"got {'nothing' if said is None else type(said).__name__}")
    return said


def overridden(said: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """The YAML ``said`` with ``a.b=c`` overrides, each value YAML itself."""
    for text in overrides:
        path, sign, value = text.partition("=")
        if not sign or not path:
            raise UserError(f"{quote(text)}: an override is written path=value, e.g. partition.severity=0.5")
        said = override(said, path.strip(), parse_yaml(value, f"the override {quote(text)}"))
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
    if not head or path.count(".") > DEPTH:
        raise UserError(f"{quote(path)}: a path is keys with dots between them, e.g. partition.severity")
    if not rest:
        if path != head:
            raise UserError(f"{quote(path)}: a path ends with a key, e.g. partition.severity")
        return {**said, head: value}
    if isinstance(inner, str):
        inner = {"name": inner} if head == "corpus" else {"is": inner}
    if inner is not None and not isinstance(inner, Mapping):
        raise UserError(f"{quote(path)}: {_short(head)} is {quote(inner)}, which has no keys to change")
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
