"""Every combination of levels."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from .design import Cell, Design, Levels


@dataclass(frozen=True)
class FullGrid(Design):
    """All main effects and all interactions can be told apart; the most runs."""

    def __call__(self, levels: Levels) -> list[Cell]:
        return [dict(zip(levels, labels, strict=True)) for labels in product(*levels.values())]
