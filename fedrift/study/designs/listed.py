"""The cells that were written down, and no others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...errors import UserError
from .design import Cell, Design, Levels, level


@dataclass(frozen=True)
class Listed(Design):
    """``cells``: a level for every factor that has more than one."""

    cells: tuple[dict[str, Any], ...] = ()

    def __call__(self, levels: Levels) -> list[Cell]:
        found: list[Cell] = []
        for number, said in enumerate(self.cells):
            unsaid = [factor for factor, labels in levels.items() if factor not in said and len(labels) > 1]
            if unsaid:
                raise UserError(f"design.cells[{number}] must say a level for {', '.join(unsaid)}")
            chosen = {factor: level(levels, factor, label) for factor, label in said.items()}
            cell = {factor: chosen.get(factor, labels[0]) for factor, labels in levels.items()}
            if cell not in found:
                found.append(cell)
        if not found:
            raise UserError("design.cells names no cell; each is a level for every factor, e.g. {algorithm: FedAvg}")
        return found
