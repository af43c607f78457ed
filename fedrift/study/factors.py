"""Factors: what a study varies, each level being a label and the changes to an experiment that it stands for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..config import override
from ..errors import UserError, quote


@dataclass(frozen=True)
class Factor:
    """``name``: its column in tables. ``levels``: label -> {path in the experiment: value}."""

    name: str
    levels: dict[Any, dict[str, Any]]


def factors(said: Mapping[str, Any]) -> dict[str, Factor]:
    """The factors of a study's YAML, in its order.

    ``partition.severity: [0.5, 1]`` varies a path; ``regime: {topic: {partition.is: TopicMix}, style: {...}}`` gives
    every level a name and any number of changes.
    """
    found = {}
    for key, levels in said.items():
        name = key.removesuffix(".is")
        if isinstance(levels, Mapping):
            wrong = [label for label, changes in levels.items()
                     if not isinstance(changes, Mapping) or not all(isinstance(path, str) for path in changes)]
            if wrong or not levels:
                raise UserError(f"factors.{key}: a named level is {{path: value, ...}}, e.g. topic: {{partition.is: TopicMix}}; "
                                f"got {quote(wrong) if wrong else 'no level'}. A list of values varies the path itself")
            found[name] = Factor(name, {label: dict(changes) for label, changes in levels.items()})
        elif isinstance(levels, (list, tuple)) and levels:
            found[name] = Factor(name, dict(zip(labels(levels), ({key: value} for value in levels), strict=True)))
        else:
            raise UserError(f"factors.{key}: wanted a list of values or a mapping of named levels, got {quote(levels)}")
        if len(found[name].levels) != len(levels):
            raise UserError(f"factors.{key}: two levels are the same: {quote(list(levels))}")
    return found


def labels(values: Iterable[Any]) -> list[Any]:
    """What to call each of some values: itself, or a class's name, with its settings where the name alone is not enough."""
    values = list(values)
    names = Counter(class_of(value) if isinstance(value, Mapping) else value if isinstance(value, str) else None
                    for value in values)
    return [label(value, names) for value in values]


def class_of(value: Mapping[str, Any]) -> str | None:
    """The class that a mapping names."""
    name = value.get("is")
    return name if isinstance(name, str) else None


def label(value: Any, names: Counter[Any]) -> Any:
    if isinstance(value, Mapping):
        rest = ", ".join(f"{key}={inner}" for key, inner in value.items() if key != "is")
        name = class_of(value)
        return name if name and names[name] == 1 else f"{name} {rest}" if name and rest else name or rest
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return "none" if value is None else value


def changed(said: dict[str, Any], changes: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """An experiment's YAML with all changes made, shorter paths first: ``algorithm`` before ``algorithm.mu``.

    Raises UserError where two set the same path to different values.
    """
    every: dict[str, Any] = {}
    for each in changes:
        for path, value in each.items():
            if path in every and every[path] != value:
                raise UserError(f"{quote(path)} is set to {quote(every[path])} and to {quote(value)} in one run: "
                                "let one factor set it")
            every[path] = value
    for path in sorted(every, key=lambda path: path.removesuffix(".is").count(".")):
        said = override(said, path, every[path])
    return said


def named(cell: Mapping[str, Any]) -> str:
    """A cell in words: ``algorithm=FedAvg, partition.severity=0.5``."""
    return ", ".join(f"{factor}={label}" for factor, label in cell.items()) or "all"
