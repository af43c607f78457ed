"""The arms of a study, and which of its factors colour a figure, which make panels, and which are dials."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...study import Entry
from ..figures import OKABE_ITO

FIRST = ("algorithm", "mitigation", "algorithm.aggregate")  # what is compared, where it is varied
FLAT = 1e-9


@dataclass(frozen=True)
class Arm:
    """One cell of the design over its seeds. ``place``: its number among all arms of the study."""

    place: int
    stage: str
    name: str
    levels: Mapping[str, str]  # of every factor of the study; what the arm does not vary as its runs have it
    values: Mapping[str, Any]
    runs: Mapping[int, str]
    twins: Mapping[int, str]


@dataclass(frozen=True)
class Axis:
    """A factor that takes several levels. ``numbers``: its levels are numbers, so it is a dial."""

    name: str
    levels: tuple[str, ...]
    numbers: bool

    @property
    def label(self) -> str:
        return short(self.name)


@dataclass(frozen=True)
class Stage:
    """Arms that make a whole. ``colour``: the axis that is compared inside a panel; ``rest``: those that make panels."""

    name: str
    arms: tuple[Arm, ...]
    axes: tuple[Axis, ...]

    @property
    def colour(self) -> Axis | None:
        named = {axis.name: axis for axis in self.axes}
        words = [axis for axis in self.axes if not axis.numbers]
        return next((named[name] for name in FIRST if name in named), None) or next(iter([*words, *self.axes]), None)

    @property
    def rest(self) -> tuple[Axis, ...]:
        return tuple(axis for axis in self.axes if axis != self.colour)

    @property
    def dials(self) -> tuple[Axis, ...]:
        return tuple(axis for axis in self.axes if axis.numbers)

    def axis(self, *names: str) -> Axis | None:
        return next((axis for axis in self.axes if axis.name in names), None)

    @property
    def colours(self) -> dict[str, str]:
        return shades(self.colour.levels) if self.colour else {"all": OKABE_ITO[0]}

    def shade(self, arm: Arm) -> str:
        """The level that colours an arm."""
        return arm.levels[self.colour.name] if self.colour else "all"

    def panels(self, without: Sequence[Axis | None] = ()) -> dict[str, list[Arm]]:
        """The arms by their levels of all axes but the one that colours, and but some."""
        axes = [axis for axis in self.rest if axis not in without]
        found: dict[str, list[Arm]] = {}
        for arm in self.arms:
            found.setdefault(named(arm, axes), []).append(arm)
        return found


def stages(entries: Sequence[Entry], factors: Sequence[str], asked: Mapping[str, Mapping[str, Any]]) -> tuple[Stage, ...]:
    """The stages of a study in its order; ``asked``: the experiment of each run that has begun, flat."""
    cells: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        if entry.role == "run":
            cells.setdefault((entry.stage, entry.arm), []).append(entry)
    arms = []
    for place, ((stage, name), members) in enumerate(cells.items()):
        known = next((asked[entry.run] for entry in members if entry.run in asked), {})
        values = {factor: members[0].factors[factor] if factor in members[0].factors else known.get(factor) for factor in factors}
        arms.append(
            Arm(
                place,
                stage,
                name,
                {factor: text(value) for factor, value in values.items()},
                values,
                {entry.seed: entry.run for entry in members},
                {entry.seed: entry.twin for entry in members if entry.twin and entry.twin != entry.run},
            )
        )
    return tuple(
        staged(name, [arm for arm in arms if arm.stage == name], factors) for name in dict.fromkeys(arm.stage for arm in arms)
    )


def staged(name: str, arms: Sequence[Arm], factors: Sequence[str]) -> Stage:
    axes = []
    for factor in factors:
        levels = {arm.levels[factor]: arm.values[factor] for arm in arms}
        if len(levels) > 1:
            numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in levels.values())
            order = sorted(levels, key=lambda level: levels[level]) if numbers else list(levels)
            axes.append(Axis(factor, tuple(order), numbers))
    return Stage(name, tuple(arms), tuple(axes))


def every_axis(found: Sequence[Stage]) -> list[Axis]:
    """The axes of all stages, each once with all its levels."""
    axes: dict[str, list[Axis]] = {}
    for each in found:
        for axis in each.axes:
            axes.setdefault(axis.name, []).append(axis)
    merged = []
    for name, same in axes.items():
        levels = dict.fromkeys(arm.levels[name] for each in found for arm in each.arms)
        numbers = all(axis.numbers for axis in same)
        merged.append(
            Axis(name, tuple(sorted(levels, key=float) if numbers and all(map(_is_number, levels)) else levels), numbers)
        )
    return merged


def named(arm: Arm, axes: Sequence[Axis]) -> str:
    """An arm by its levels of some axes: ``topic, severity 0.5``."""
    return ", ".join(arm.levels[axis.name] if not axis.numbers else f"{axis.label} {arm.levels[axis.name]}" for axis in axes)


def shades(levels: Sequence[str]) -> dict[str, str]:
    """A colour for each level; from the seventh on they repeat."""
    return {level: OKABE_ITO[place % len(OKABE_ITO)] for place, level in enumerate(levels)}


def text(value: Any) -> str:
    """A level in words."""
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def short(factor: str) -> str:
    """The last part of a path: ``severity`` for ``partition.severity``."""
    return factor.rsplit(".", 1)[-1].replace("_", " ")


def clashes(factors: Sequence[str]) -> set[str]:
    """Short names that two factors share."""
    return {name for name, count in Counter(map(short, factors)).items() if count > 1}


def _is_number(level: str) -> bool:
    try:
        float(level)
    except ValueError:
        return False
    return True
