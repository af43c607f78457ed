"""One factor at a time around a centre."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .design import Cell, Design, Levels, level


@dataclass(frozen=True)
class OneFactor(Design):
    """The centre, and every cell that differs from it in one factor. ``centre``: a level for some factors; the first
    level of the others. No interaction can be seen: each effect is that at the centre."""

    centre: dict[str, Any] = field(default_factory=dict)

    def __call__(self, levels: Levels) -> list[Cell]:
        said = {factor: level(levels, factor, label) for factor, label in self.centre.items()}
        centre = {factor: said.get(factor, labels[0]) for factor, labels in levels.items()}
        return [centre] + [{**centre, factor: label} for factor, labels in levels.items()
                           for label in labels if label != centre[factor]]
